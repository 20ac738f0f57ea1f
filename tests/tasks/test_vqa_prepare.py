"""The command line of vqa_prepare, from files to a data set that the trainer's reader takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.question_files import cp_test_ids, write_vqacp, write_vqav2

from tasks import vqa_prepare
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder

MINIVAL = ["COCO_val2014_000000000501", "COCO_val2014_000000000504"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with downloads/ (VQA v2, five files) and an empty data/."""
    write_vqav2(tmp_path / "downloads", test=True)
    (tmp_path / "minival.json").write_text(json.dumps(MINIVAL))
    (tmp_path / "data").mkdir()
    return tmp_path


def prepare(root: Path, *flags: object) -> int:
    return vqa_prepare.main([*map(str, flags), "--data", str(root / "data")])


def prepare_vqav2(root: Path) -> DataFolder:
    flags = ("--from", root / "downloads", "--minival-images", root / "minival.json", "--occurrences", 1)
    assert prepare(root, "questions", *flags) == 0
    return DataFolder(root / "data", "vqav2")


def test_vqa_v2(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare_vqav2(root)
    counts = {
        split: len(folder.read_splits([split])[split]) for split in ("train", "nominival", "minival", "test")
    }
    assert counts == {"train": 24, "nominival": 20, "minival": 4, "test": 1}
    assert set(folder.read_answers()) == {"2", "cat", "dog", "no", "red", "yes"}
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines()[2:]}
    assert rows["minival"][1:4] == ["4", "2", "100.0%"]
    assert rows["test"][3:] == ["-", "-"]


def test_empty_human_answers_are_kept_and_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = root / "downloads" / "v2_mscoco_train2014_annotations.json"
    document = json.loads(file.read_text())
    document["annotations"][3]["answers"][0]["answer"] = " "
    file.write_text(json.dumps(document))
    prepare_vqav2(root)
    assert "1 question has an empty human answer, kept" in capsys.readouterr().out


def test_minival_is_taken_from_the_feature_store(root: Path) -> None:
    store = root / "data" / "vqav2" / "features" / "val2014"
    rows = ((np.ones((1, 2), np.float32), np.ones((1, 4), np.float32)) for _ in MINIVAL)
    write_store(store, MINIVAL, rows, Layout(1, 2))
    assert prepare(root, "questions", "--from", root / "downloads", "--occurrences", 1) == 0
    minival = DataFolder(root / "data", "vqav2").read_splits(["minival"])["minival"]
    assert {record["img_id"] for record in minival} == set(MINIVAL)


def test_without_an_order_of_images_it_says_what_is_needed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(root, "questions", "--from", root / "downloads") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: which images are minival?") and "--minival-images" in error
    assert not (root / "data" / "vqav2").exists()


def test_lxmerts_files_keep_their_label_order(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = prepare_vqav2(root)
    lxmert = root / "lxmert"
    folder.path.rename(lxmert)
    answers = DataFolder.at(lxmert).read_answers()[::-1]
    (lxmert / "trainval_label2ans.json").write_text(json.dumps(answers))
    capsys.readouterr()
    assert prepare(root, "questions", "--lxmert", lxmert) == 0
    assert "no human answers" in capsys.readouterr().out
    assert folder.read_answers() == answers
    assert folder.read_splits(["train"])["train"] == DataFolder.at(lxmert).read_splits(["train"])["train"]
    assert not (folder.path / "annotations").exists()
    assert prepare(root, "questions", "--lxmert", lxmert, "--from", root / "downloads") == 0
    names = {path.name for path in (folder.path / "annotations").iterdir()}
    assert names == {"train.json", "nominival.json", "minival.json"}


def test_a_vocabulary_that_is_given_keeps_its_order(root: Path) -> None:
    answers = root / "answers.json"
    answers.write_text('["zebra", "cat", "never asked"]')
    flags = ("--from", root / "downloads", "--minival-images", root / "minival.json", "--answers", answers)
    assert prepare(root, "questions", *flags) == 0
    assert DataFolder(root / "data", "vqav2").read_answers() == ["zebra", "cat", "never asked"]


@pytest.mark.parametrize("rebuilt", [False, True])
def test_vqa_cp(root: Path, rebuilt: bool) -> None:
    if rebuilt:
        (root / "ids.txt").write_text("\n".join(map(str, cp_test_ids())))
        flags = ("--from", root / "downloads", "--test-ids", root / "ids.txt")
    else:
        flags = ("--from", write_vqacp(root / "cp"))
    assert prepare(root, "questions-cp", *flags, "--holdout", 0.2, "--occurrences", 1) == 0
    folder = DataFolder(root / "data", "vqacpv2")
    splits = folder.read_splits(["cp_train", "cp_val", "cp_test"])
    assert {record["question_id"] for record in splits["cp_test"]} == cp_test_ids()
    assert len(splits["cp_train"] + splits["cp_val"]) == 36
    assert folder.features == root / "data" / "vqav2" / "features"


def test_changing_priors_of_a_data_set(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = prepare_vqav2(root)
    flags = ("changing-priors", "--from", source.path, "--name", "priors", "--holdout", 0.2)
    assert prepare(root, *flags) == 0
    assert "100% of the answers change" in capsys.readouterr().out
    folder = DataFolder(root / "data", "priors")
    ours = folder.read_splits(["cp_train", "cp_val", "cp_test"])
    theirs = source.read_splits(["train", "nominival", "minival"])
    assert {record["question_id"] for split in ours.values() for record in split} == {
        record["question_id"] for split in theirs.values() for record in split
    }
    assert folder.read_answers() == source.read_answers()
    assert folder.ground_truth(["cp_test"])
    assert folder.features == source.features
    assert prepare(root, "changing-priors", "--from", source.path, "--name", "vqav2") == 2
    assert "written over itself" in capsys.readouterr().err


def test_own_data_and_its_check(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = root / "mine"
    mine.mkdir()
    rows = [{"question_id": n, "img_id": "i", "sent": "who?", "answer": "me"} for n in range(3)]
    (mine / "train.json").write_text(json.dumps(rows))
    assert prepare(root, "own", "--from", mine, "--name", "mine") == 0
    folder = DataFolder(root / "data", "mine")
    assert folder.read_splits(["train"])["train"][0]["label"] == {"me": 1.0}
    assert f"features go into {folder.own_features}" in " ".join(capsys.readouterr().out.split())
    assert vqa_prepare.main(["check", str(folder.path)]) == 1


@pytest.mark.parametrize(
    "flags",
    [
        ["questions"],
        ["questions", "--from", "no-such-folder"],
        ["questions-cp", "--from", "no-such-folder"],
        ["own", "--from", "no-such-folder", "--name", "x"],
        ["model", "--from", "no-such-folder"],
        ["changing-priors", "--from", "no-such-folder", "--name", "x"],
        ["check", "no-such-folder"],
        ["check", "data/mine", "--dataset", "mine"],
        ["check", "--dataset", "../up"],
        ["own", "--from", ".", "--name", "../up"],
        ["features", "no-such-file.tsv"],
        ["features", ".", "--image-set", "../up"],
        ["features", ".", "--dataset", "../up"],
    ],
)
def test_mistakes_get_one_sentence(
    flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert vqa_prepare.main(flags) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["no-such-command"],
        ["questions-cp", "--from", ".", "--holdout", "2"],
        ["questions-cp", "--from", ".", "--seed", "-1"],
    ],
)
def test_wrong_flags_get_one_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        vqa_prepare.main(flags)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
