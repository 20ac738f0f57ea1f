"""Questions about a photo: from the feature store by its name, or found as the store's regions were."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.helpers.paths import ROOT

from common.errors import CheckpointError, DataError
from tasks import vqa, vqa_prepare
from tasks.finetune import photo
from tasks.finetune.args import VqaArgs
from tasks.finetune.data import choose_recipe
from tasks.finetune.photo import Images, find_extractor
from tasks.prepare import regions
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder
from vqadata.sample import EMBEDDED, write_scenes
from vqadata.scenes import FEATURE_SIZE

QUESTIONS = ("how many red objects are there?", "is there a star?")


@pytest.fixture
def scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VqaArgs:
    """A finished run on a few scenes, and what asks it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "pretrained").symlink_to(ROOT / "snap" / "pretrained")
    few = replace(EMBEDDED["scenes"], splits={"train": 8, "nominival": 4, "minival": 4})
    monkeypatch.setitem(EMBEDDED, "scenes", few)
    write_scenes(DataFolder(Path("data"), "scenes"), few)
    trains = ["--dataset=scenes", "--strategy=SpotTune_Block", "--policy=light", "--epochs=1"]
    assert vqa.cli([*trains, "--wandb=off", "--no-tqdm"]) == 0
    return VqaArgs(load="snap/vqa/run/BEST", question=QUESTIONS)


def store(folder: DataFolder, size: int, images: list[str], **manifest: Any) -> None:
    """A feature store whose manifest says more than usual."""
    rows = [(np.ones((1, size), np.float32), np.ones((1, 4), np.float32))] * len(images)
    write_store(folder.own_features / "some", images, rows, Layout(1, size))
    file = folder.own_features / "some" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | manifest))


def test_a_picture_of_the_embedded_scenes_is_taken_from_their_store(
    scenes: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    by_file = vqa.main(replace(scenes, image="data/scenes/images/scene_000013.png"))
    printed = capsys.readouterr().out
    assert by_file == vqa.main(replace(scenes, image_id="scene_000013"))
    assert printed == capsys.readouterr().out
    titles = [line for line in printed.splitlines() if line.endswith("(scene_000013 of scenes)")]
    assert [title.partition("  (")[0] for title in titles] == [*QUESTIONS]
    assert printed.count("gates ran tuned") == 2 and len(by_file["asked"]) == 2


def test_questions_of_a_file_are_answered_as_those_of_flags(scenes: VqaArgs) -> None:
    Path("some.txt").write_text(f"{QUESTIONS[0]}\n\n  {QUESTIONS[1]}\n")
    flags = ["--load=snap/vqa/run/BEST", "--image-id=scene_000003"]
    by_file = vqa.main(vqa.parse_args([*flags, "--questions=some.txt"]))
    assert by_file == vqa.main(replace(scenes, image_id="scene_000003"))
    mixed = vqa.main(vqa.parse_args([*flags, "--questions=some.txt", "--question=is it red?"]))
    assert mixed["asked"][1:] == by_file["asked"]


def test_each_question_is_answered_as_by_itself(scenes: VqaArgs) -> None:
    both = vqa.main(replace(scenes, image_id="scene_000003"))["asked"]
    for question, together in zip(QUESTIONS, both, strict=True):
        (alone,) = vqa.main(replace(scenes, image_id="scene_000003", question=(question,)))["asked"]
        assert alone == together


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--question=a", "--image=none.png"], "There is no photo none.png."),
        (
            ["--question=a", "--image=photo.png"],
            "photo.png is not in data/scenes/features, whose features of",
        ),
        (["--questions=none.txt", "--image-id=scene_000001"], "none.txt is missing."),
        (["--questions=empty.txt", "--image-id=scene_000001"], "empty.txt holds no questions"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    scenes: VqaArgs, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (40, 40)).save("photo.png")
    Path("empty.txt").write_text(" \n\n")
    capsys.readouterr()
    assert vqa.cli(["--load=snap/vqa/run/BEST", *flags]) == 2
    error = capsys.readouterr().err
    assert words in error and len(error.splitlines()) == 1


# --------------------------------------------------------------------------------------------- extractors


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """A data set whose store was made of two photos, on a grid."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(f"photos/{name}.png")
    flags = ["--dataset", "mine", "--extractor", "grid", "--grid", "3", "--quiet"]
    assert vqa_prepare.main(["regions", "photos", *flags]) == 0
    return DataFolder(Path("data"), "mine")


def test_a_new_photo_is_described_as_those_of_the_store_to_the_last_bit(grid: DataFolder) -> None:
    stores = grid.open_features()
    expected = stores.read(stores.locate(["two"]))
    Path("photos/two.png").rename("new.png")
    with Images(grid, stores.feature_size).find("new.png") as found:
        assert found.image_id == "new" and found.where == ", 10 regions found in new.png"
        regions = found.stores.read(found.stores.locate(["new"]))
        folder = found.stores.stores[0].path
    for ours, theirs in zip(regions, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert not folder.exists()


def test_what_is_on_a_grid_is_read_by_a_model_of_its_own(
    grid: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by that of the scenes, though its regions have as many numbers."""
    assert grid.open_features().feature_size == FEATURE_SIZE
    assert choose_recipe(grid).pretrained == "snap/pretrained/mine"
    record = {"question_id": 1, "img_id": "one", "sent": "is it?", "label": {"yes": 1}}
    for number, split in enumerate(("train", "valid")):
        grid.split_file(split).write_text(json.dumps([record | {"question_id": number}]))
    grid.answers_file.write_text('["yes", "no"]')
    assert vqa.cli(["--dataset=mine", "--wandb=off"]) == 2
    sentence = "snap/pretrained/mine is missing: `bash run/vqa_prepare.bash model --from data/mine` makes it"
    assert sentence in capsys.readouterr().err
    assert vqa_prepare.main(["model", "--from", "data/mine"]) == 0
    assert vqa.cli(["--dataset=mine", "--wandb=off"]) == 2
    assert "has no weights" in capsys.readouterr().err


def test_a_photos_name_is_found_in_whatever_form_a_system_writes_it(grid: DataFolder) -> None:
    store(grid, grid.open_features().feature_size, ["caf\u00e9"])
    file = Path(unicodedata.normalize("NFD", "caf\u00e9.png"))
    Image.new("RGB", (40, 40)).save(file)
    with Images(grid, 108).find(file) as found:
        assert (found.image_id, found.where) == ("caf\u00e9", " of mine")


def test_a_photo_that_cannot_be_read_is_named(grid: DataFolder) -> None:
    Path("text.jpg").write_text("no photo")
    with pytest.raises(DataError, match=r"^text\.jpg"), Images(grid, 108).find("text.jpg"):
        pass


def test_published_features_need_the_detector_and_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = DataFolder(Path("data"), "vqav2")
    store(folder, 2048, ["COCO_val2014_000000000001"])

    def unreachable(*_: Any, **__: Any) -> Path:
        raise CheckpointError("The hub cannot be reached.")

    monkeypatch.setattr(regions, "local_folder", unreachable)
    with pytest.raises(CheckpointError) as caught:
        find_extractor(Path("photo.jpg"), folder, 2048, None)
    said = str(caught.value)
    assert said.startswith(
        "photo.jpg is not in data/vqav2/features: its regions are to be found as those there were."
    )
    for words in ("unc-nlp/frcnn-vg-finetuned", "--weights", "not fit LXMERT's released weights"):
        assert words in said, said
    with pytest.raises(CheckpointError, match=r"none\.bin does not exist"):
        find_extractor(Path("photo.jpg"), folder, 2048, Path("none.bin"))


def test_the_extractor_is_the_one_that_the_store_names_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"kind": "detector", "recipe": "huggingface", "weights": "a" * 64}
    folder = DataFolder(tmp_path, "mine")
    store(folder, 2048, ["a"], extractor=record)
    asked = []

    def load(*arguments: Any) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(record=record | {"weights": arguments[1].read_text()})

    monkeypatch.setattr(photo, "load_extractor", load)
    (tmp_path / "w.bin").write_text("a" * 64)
    assert find_extractor(Path("p.jpg"), folder, 2048, tmp_path / "w.bin").record == record
    assert asked[0][0] == "detector" and asked[0][2] == "huggingface"
    (tmp_path / "w.bin").write_text("b" * 64)
    with pytest.raises(DataError, match="were found with other weights of the detector"):
        find_extractor(Path("p.jpg"), folder, 2048, tmp_path / "w.bin")


def test_stores_of_two_extractors_cannot_say_which_is_meant(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    store(folder, 108, ["a"], extractor={"kind": "grid", "grid": 3})
    (folder.own_features / "some").rename(folder.own_features / "other")
    store(folder, 108, ["b"], extractor={"kind": "grid", "grid": 4})
    with pytest.raises(DataError, match="are of different extractors"):
        find_extractor(Path("p.jpg"), folder, 108, None)
