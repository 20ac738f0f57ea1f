"""What lies where in a data set's folder."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError, UserError
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder, Prepared, json_list


def write_features(folder: DataFolder, name: str = "all") -> None:
    rows = [(np.ones((1, 2), np.float32), np.ones((1, 4), np.float32))]
    write_store(folder.store(name), [f"{name} 0"], rows, Layout(1, 2))


def prepared(**splits: list[Any]) -> Prepared:
    return Prepared(splits, {}, ["yes", "no"])


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/etc", "-x", "ü", "a b", "x\n"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    folder = DataFolder(tmp_path, "mine")
    for use in (
        lambda: DataFolder(tmp_path, name),
        lambda: folder.split_file(name),
        lambda: folder.store(name),
    ):
        with pytest.raises(DataError, match=r"name .* may hold letters, digits"):
            use()


def test_a_folder_that_is_named_by_its_path_may_have_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my questions").mkdir()
    assert DataFolder.at(tmp_path / "my questions").exists()
    monkeypatch.chdir(tmp_path / "my questions")
    assert DataFolder.at(Path()).name == "my questions"


def test_features_are_its_own_those_pointed_to_or_for_vqa_cp_those_of_vqa_v2(tmp_path: Path) -> None:
    mine, other, v2, cp = (DataFolder(tmp_path, name) for name in ("mine", "other", "vqav2", "vqacpv2"))
    assert mine.features == tmp_path / "mine" / "features"
    assert cp.features == v2.features == tmp_path / "vqav2" / "features"
    other.write(prepared(), mine.features)
    assert other.features == mine.features
    v2.write(prepared(), mine.features)
    assert cp.features == v2.features == mine.features
    cp.write(prepared(), other.own_features)
    assert cp.features == other.own_features


@pytest.mark.parametrize("content", ["[]", '{"folder": 1}', "{}"])
def test_a_pointer_to_nowhere_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "features.json").write_text(content)
    with pytest.raises(DataError, match=r'features\.json does not hold {"folder": "<path>"}'):
        _ = DataFolder.at(tmp_path).features


def test_splits_are_the_files_that_hold_questions(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    with pytest.raises(DataError, match="There is no folder"):
        folder.splits()
    folder.write(prepared(train=[], cp_val=[], nominival=[], val=[]), tmp_path)
    (folder.path / "._train.json").write_text("left by a file manager")
    assert folder.splits() == ["cp_val", "nominival", "train", "val"]
    assert folder.usual_splits() == (["train", "nominival"], ["cp_val"])


def test_what_a_run_needs_and_is_not_there(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    store = folder.features / "<image set>" / "manifest.json"
    assert folder.missing(["train"]) == [folder.split_file("train"), folder.answers_file, store]
    folder.write(prepared(train=[]))
    write_features(folder)
    assert folder.missing(["train"]) == []
    assert [manifest["feature_size"] for manifest in folder.manifests()] == [2]
    assert "all 0" in folder.open_features()


def test_ground_truth_is_there_for_all_splits_or_none(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    for number, split in enumerate(("one", "two")):
        assert folder.ground_truth(["one", "two"]) is None
        folder.ground_truth_file(split).parent.mkdir(parents=True, exist_ok=True)
        row = {"question_id": number, "answer": split}
        folder.ground_truth_file(split).write_text(json.dumps([row]))
    assert set(folder.ground_truth(["one", "two"])) == {0, 1}


def test_writing_again_removes_what_it_does_not_write(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    assert folder.write(prepared(one=[], two=[])) == []
    (folder.path / "notes.json").write_text("mine")
    assert folder.write(prepared(two=[])) == ["one.json"]
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"two.json", "answers.json", "prepared.json", "notes.json"}


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "mine")
    folder.write(prepared(one=[1]))
    before = {path: path.read_bytes() for path in folder.path.iterdir()}

    class Full(list):
        def __iter__(self) -> Iterator[Any]:
            yield {}
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="cannot be written: the disk is full"):
        folder.write(prepared(one=[2], two=Full()))
    assert {path: path.read_bytes() for path in folder.path.iterdir()} == before


def test_a_list_is_written_one_entry_per_line() -> None:
    assert "".join(json_list([{"a": 1}, "é"])) == '[\n{"a":1},\n"\\u00e9"\n]\n'
    assert json.loads("".join(json_list([], '{"annotations": [', "]}"))) == {"annotations": []}
