"""A data set of one's own, from raw files to an answer, by the commands of data/README.md."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.feature_files import image, write_npz
from tests.helpers.paths import ROOT

from tasks import vqa, vqa_prepare
from tasks.finetune.args import VqaArgs
from tasks.finetune.data import choose_recipe
from tasks.finetune.settle import settle
from vqadata.folder import DataFolder
from vqadata.sample import EMBEDDED, write_scenes

SIZE = 7  # of a region's features: no pre-trained model here reads that
QUESTIONS = ("is it red", "what is the", "is the blue")


def write_mine(folder: Path) -> None:
    """my_features/ with an .npz an image and my_questions/ with train, valid and an unanswered test split."""
    rng = np.random.default_rng(0)
    (folder / "my_features").mkdir()
    (folder / "my_questions").mkdir()
    splits: dict[str, list[dict]] = {"train": [], "valid": [], "test": []}
    for number in range(30):
        values = image(number, boxes=rng.integers(1, 5), size=SIZE) | {"img_id": f"photo{number}"}
        write_npz(folder / "my_features", values)
        split = ("train", "train", "valid", "test")[number % 4]
        for place, text in enumerate(QUESTIONS):
            record = {"question_id": 10 * number + place, "img_id": f"photo{number}", "sent": text}
            said = "yes" if values["features"][0, 0] > 0.5 else "no"
            answered = [{"answers": [said] * 4 + ["red"]}, {"answer": said}, {"label": {said: 0.9}}][place]
            splits[split].append(record if split == "test" else record | answered)
    for split, records in splits.items():
        (folder / "my_questions" / f"{split}.json").write_text(json.dumps(records))


def prepare(*flags: str) -> int:
    return vqa_prepare.main([*flags])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with the shipped pre-trained model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "snap").mkdir()
    (tmp_path / "snap" / "pretrained").symlink_to(ROOT / "snap" / "pretrained")
    return tmp_path


def test_from_raw_files_to_an_answer(
    here: Path, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mine(here)
    assert prepare("features", "my_features", "--dataset", "mine", "--quiet") == 0
    assert prepare("doctor", "--dataset", "mine") == 1
    assert "a split for validation" in capsys.readouterr().out
    assert prepare("own", "--from", "my_questions", "--name", "mine") == 0
    assert prepare("check", "data/mine") == 0
    assert prepare("doctor", "--dataset", "mine") == 0
    assert "--dataset mine can be trained on." in capsys.readouterr().out
    flags = ["--dataset=mine", "--version=own", f"--pretrained={pretrained}", "--fromScratch"]
    flags += ["--epochs=2", "--batchSize=16", "--strategy=SpotTune_Block", "--wandb=off", "--no-tqdm"]
    assert vqa.cli(flags) == 0
    arguments = json.loads(Path("snap/vqa/own/args.json").read_text())
    assert (arguments["train"], arguments["valid"]) == ("train", "valid")
    result = json.loads(Path("snap/vqa/own/result.json").read_text())
    assert result["dataset"] == "mine" and 0 <= result["val_accuracy"] <= 100
    capsys.readouterr()
    best = "--load=snap/vqa/own/BEST"
    assert vqa.cli(["--version=own", best, "--test=test", "--no-tqdm"]) == 0
    assert "test: 21 questions, no answers to score against" in capsys.readouterr().out
    predictions = json.loads(Path("snap/vqa/own/predictions/test.json").read_text())
    asked = json.loads(Path("my_questions/test.json").read_text())
    assert [type(p["question_id"]) for p in predictions] == [int] * len(asked)
    assert [p["question_id"] for p in predictions] == [record["question_id"] for record in asked]
    assert vqa.cli([best, "--question=is it red", "--image-id=photo3"]) == 0
    assert "is it red  (photo3 of mine)" in capsys.readouterr().out
    assert vqa.cli([best, "--question=is it red", "--image-id=photo30"]) == 2
    assert "30 images, such as photo0, photo1, photo10, nor a file" in capsys.readouterr().err


def test_a_changing_priors_variant_of_the_scenes_is_trained_on(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = replace(EMBEDDED["scenes"], splits={"train": 24, "nominival": 6, "minival": 12})
    write_scenes(DataFolder(Path("data"), "scenes"), few)
    assert prepare("changing-priors", "--from", "data/scenes", "--name", "cp", "--holdout", "0.2") == 0
    assert prepare("doctor", "--dataset", "cp") == 0
    flags = ["--dataset=cp", "--version=cp", "--epochs=1", "--strategy=SpotTune_Block"]
    assert vqa.cli([*flags, "--policy=light", "--wandb=off", "--no-tqdm"]) == 0
    arguments = json.loads(Path("snap/vqa/cp/args.json").read_text())
    assert (arguments["train"], arguments["valid"], arguments["lr"]) == ("cp_train", "cp_val", 1e-3)
    assert arguments["pretrained"] == "snap/pretrained/lxmert-scenes"
    capsys.readouterr()
    assert vqa.cli(["--version=cp", "--load=snap/vqa/cp/BEST", "--test=cp_test", "--tiny", "--no-tqdm"]) == 0
    questions = len(json.loads(Path("data/cp/cp_test.json").read_text()))
    printed = capsys.readouterr().out
    assert f"cp_test: {questions:,} questions, soft-target accuracy" in printed and "INCOMPLETE" in printed
    # Evaluation may be on other data that the model can read.
    other = ["--load=snap/vqa/cp/BEST", "--version=cp", "--dataset=scenes", "--test=minival", "--no-tqdm"]
    assert vqa.cli(other) == 0


def test_splits_that_are_not_there_by_a_known_name_are_asked_for(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mine(here)
    Path("my_questions/valid.json").rename("my_questions/held_out.json")
    assert prepare("features", "my_features", "--dataset", "mine", "--quiet") == 0
    assert prepare("own", "--from", "my_questions", "--name", "mine") == 0
    assert vqa.cli(["--dataset=mine", "--wandb=off"]) == 2
    error = capsys.readouterr().err
    assert "are for --valid? Name them; there are: held_out, test, train." in error
    args, _ = settle(VqaArgs(dataset="mine", valid="held_out"), print)
    assert (args.train, args.valid, args.epochs) == ("train", "held_out", 4)


def test_a_data_set_that_is_not_there_names_those_that_are(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "data" / "mine").mkdir(parents=True)
    assert vqa.cli(["--dataset=mein"]) == 2
    assert (
        "There is no data set mein: data/mein is missing. --dataset takes scenes, scenes-mixed, "
        "scenes-renamed, scenes-cp, vqav2, vqacpv2, mine" in (capsys.readouterr().err)
    )


def test_a_model_for_other_features_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mine(here)
    prepare("features", "my_features", "--dataset", "mine", "--quiet")
    prepare("own", "--from", "my_questions", "--name", "mine")
    assert choose_recipe(DataFolder(Path("data"), "mine")).pretrained == "unc-nlp/lxmert-base-uncased"
    assert vqa.cli(["--dataset=mine", "--pretrained=snap/pretrained/lxmert-scenes", "--wandb=off"]) == 2
    error = capsys.readouterr().err
    assert "and those of the data have 7; choose" in error
    assert len(error.splitlines()) == 1


def test_what_an_earlier_preparation_wrote_is_not_mixed_with_new_files(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mine(here)
    folder = Path("data/mine")
    assert prepare("own", "--from", "my_questions", "--name", "mine") == 0
    (folder / "notes.json").write_text("[]")  # not ours: left alone
    assert (folder / "test.json").exists()
    Path("my_questions/test.json").unlink()
    records = json.loads(Path("my_questions/valid.json").read_text())
    Path("my_questions/valid.json").write_text(json.dumps([{**r, "answer": "yes"} for r in records]))
    Path("my_questions/train.json").rename("my_questions/more.json")
    capsys.readouterr()
    assert prepare("own", "--from", "my_questions", "--name", "mine") == 0
    assert "Removed what an earlier command wrote and this one does not: " in capsys.readouterr().out
    names = {path.name for path in folder.glob("*.json")}
    assert names == {"more.json", "valid.json", "answers.json", "prepared.json", "notes.json"}
    (folder / "prepared.json").write_text('["../../../etc/x.json"]')
    assert prepare("own", "--from", "my_questions", "--name", "mine") == 2
    assert "prepared.json is not the list of files" in capsys.readouterr().err


def test_the_name_of_an_embedded_data_set_is_not_for_ones_own(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mine(here)
    for name in ("scenes", "scenes-cp", "scenes-cp-draw2"):
        assert prepare("own", "--from", "my_questions", "--name", name) == 2
        assert f"{name} is the name of an embedded data set" in capsys.readouterr().err
    assert not Path("data").exists()
