"""What of a data set a run refuses before it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.paths import ROOT
from tests.helpers.small import write_dataset, write_pretrained
from torch.utils.data import default_convert

from common.errors import DataError
from lxmert.tokens import load_tokenizer
from tasks import vqa
from tasks.finetune import data
from tasks.finetune.args import RECIPES
from tasks.finetune.data import choose_recipe, load_splits
from tasks.finetune.setup import read_by
from tasks.prepare.check import examine
from vqadata.dataset import VqaDataset
from vqadata.folder import DataFolder
from vqadata.sample import EMBEDDED

FLAGS = {"train": "train,nominival", "valid": "minival"}


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder.at(write_dataset(tmp_path / "small"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tokenizer(str(write_pretrained(tmp_path_factory.mktemp("model") / "model")))


def change(folder: DataFolder, split: str, act: Callable[[dict[str, Any]], Any], count: int = 60) -> None:
    """Do something to the first records of a split."""
    records = json.loads(folder.split_file(split).read_text())
    for record in records[:count]:
        act(record)
    folder.split_file(split).write_text(json.dumps(records))


def load(folder: DataFolder, tokenizer: Any, flags: dict[str, str] = FLAGS) -> list[VqaDataset]:
    return load_splits(folder, flags, tokenizer, folder.read_answers(), None)


@pytest.mark.parametrize(("flag", "split"), [("valid", "minival"), ("train", "nominival")])
@pytest.mark.parametrize("emptied", [False, True])
def test_nothing_is_scored_against_or_learned_from_questions_without_answers(
    folder: DataFolder, tokenizer: Any, flag: str, split: str, emptied: bool
) -> None:
    change(folder, split, lambda record: record.update(label={}) if emptied else record.pop("label"))
    with pytest.raises(DataError, match=rf"{split}\.json: none of its \d+ questions has an answer.*--{flag}"):
        load(folder, tokenizer)
    (dataset,) = load(folder, tokenizer, {"test": split})  # for predictions
    assert not dataset.labelled


def test_a_question_without_label_is_not_one_answered_wrong(folder: DataFolder, tokenizer: Any) -> None:
    change(folder, "minival", lambda record: record.update(label={}), 3)  # of which none is in the list
    assert load(folder, tokenizer)[1].labelled
    change(folder, "minival", lambda record: record.pop("label"), 3)
    with pytest.raises(DataError, match=r"minival\.json: 3 of its 60 questions have no label, the first: qu"):
        load(folder, tokenizer)


def test_a_split_of_no_questions_is_refused(folder: DataFolder, tokenizer: Any) -> None:
    folder.split_file("minival").write_text("[]")
    with pytest.raises(DataError, match=r"minival\.json holds no questions"):
        load(folder, tokenizer)


def test_an_image_without_features_is_told_in_the_words_of_check(folder: DataFolder, tokenizer: Any) -> None:
    change(folder, "nominival", lambda record: record.update(img_id="image_7"), 4)
    with pytest.raises(DataError, match=r"^nominival: 1 of 5 images have no features, the first: image_7\."):
        load(folder, tokenizer)


def test_a_second_start_has_the_same_batches_and_encodes_nothing(
    folder: DataFolder, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(folder, tokenizer)
    monkeypatch.setattr(data, "encode", lambda *_: pytest.fail("encoded again"))
    for one, other in zip(first, load(folder, tokenizer), strict=True):
        assert (one.images, one.labelled) == (other.images, other.labelled)
        assert list(one.question_types) == list(other.question_types)
        for start in range(0, len(one), 16):
            ours, theirs = (
                default_convert(dataset.__getitems__(range(start, min(start + 16, len(one)))))
                for dataset in (one, other)
            )
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_runs_keep_is_no_part_of_a_data_set(folder: DataFolder, tokenizer: Any) -> None:
    before, identity = (
        list(map(str, examine(folder, verify=True))),
        read_by(folder, FLAGS, load(folder, tokenizer)),
    )
    assert sorted(path.name for path in folder.path.glob("encoded/*.bin")) == [
        "minival.bin",
        "nominival.bin",
        "train.bin",
    ]
    assert list(map(str, examine(folder, verify=True))) == before
    assert read_by(folder, FLAGS, load(folder, tokenizer)) == identity
    assert not any("encoded" in text for text in [*before, *identity])


@pytest.mark.parametrize("name", EMBEDDED)
def test_an_embedded_data_set_has_the_recipe_of_the_scenes_on_splits_of_its_own(name: str) -> None:
    recipe = choose_recipe(DataFolder(Path("data"), name))
    splits = {"train": recipe.train, "valid": recipe.valid}
    assert {split for names in splits.values() for split in names.split(",")} <= set(EMBEDDED[name].splits)
    assert replace(recipe, **splits) == replace(RECIPES["scenes"], **splits)
    drawn = choose_recipe(DataFolder(Path("data"), f"{name}-draw7"))
    assert drawn == replace(recipe, pretrained="snap/pretrained/lxmert-scenes-draw7")


def test_a_draw_is_trained_on_with_a_model_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = replace(EMBEDDED["scenes-mixed"], splits={"train": 12, "nominival": 4, "minival": 8})
    monkeypatch.setitem(EMBEDDED, "scenes-mixed", few)
    flags = ["--dataset=scenes-mixed-draw1", "--strategy=Frozen", "--epochs=1", "--wandb=off", "--no-tqdm"]
    assert vqa.cli(flags) == 2
    model = "snap/pretrained/lxmert-scenes-draw1"
    sentence = f"{model} is missing: `bash run/lxmert_pretrain.bash --seed 1` makes it"
    assert sentence in capsys.readouterr().err
    shutil.copytree(ROOT / "snap/pretrained/lxmert-scenes", model)
    assert vqa.cli(flags) == 0
    arguments = json.loads(Path("snap/vqa/run/args.json").read_text())
    assert (arguments["dataset"], arguments["pretrained"]) == ("scenes-mixed-draw1", model)
    assert json.loads(Path("data/scenes-mixed-draw1/manifest.json").read_text())["seed"] == 1
