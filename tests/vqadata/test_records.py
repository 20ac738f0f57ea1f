"""Each kind of fault is named by file, record and field, in the same words wherever the records are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.small import write_dataset

from common.errors import DataError
from tasks import vqa, vqa_prepare
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder
from vqadata.questions import prepare_lxmert
from vqadata.records import record_fault

GONE = object()  # a field that is left out


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "img_id": f"image_{number % 3}",
        "sent": f"what is {number}?",
        "label": {"a": 1},
        "answer_type": "other",
        "question_type": "what is",
    } | fields


FAULTS = [
    (7, "is not an object"),
    (None, "is not an object"),
    ([], "is not an object"),
    ({"question_id": GONE, "sent": GONE}, "lacks question_id, sent"),
    ({"question_id": "2"}, "question_id is not an integer"),
    ({"question_id": 2.0}, "question_id is not an integer"),
    ({"question_id": True}, "question_id is not an integer"),
    ({"question_id": None}, "question_id is not an integer"),
    ({"question_id": 2**63}, "question_id is beyond 64 bits"),
    ({"question_id": 1}, "question_id 1 came before"),
    ({"img_id": 7}, "img_id is not a string with something in it"),
    ({"img_id": " "}, "img_id is not a string with something in it"),
    ({"sent": ""}, "sent is not a string with something in it"),
    ({"sent": "\n"}, "sent is not a string with something in it"),
    ({"sent": ["who?"]}, "sent is not a string with something in it"),
    ({"sent": "half of \ud83d"}, "sent is not a string with something in it"),
    ({"label": ["a"]}, "label is not an object of answer: score"),
    ({"label": None}, "label is not an object of answer: score"),
    ({"label": {"a": 7}}, "label gives 'a' the score 7, which is not between 0 and 1"),
    ({"label": {"a": -0.1}}, "label gives 'a' the score -0.1, which is not between 0 and 1"),
    ({"label": {"a": True}}, "label gives 'a' the score True, which is not between 0 and 1"),
    ({"label": {"a": "1"}}, "label gives 'a' the score '1', which is not between 0 and 1"),
    ({"label": {"a": None}}, "label gives 'a' the score None, which is not between 0 and 1"),
    ({"label": {"a": 10**400}}, "label gives 'a' the score 1"),
    ({"answer_type": "colour"}, "answer_type 'colour' is none of yes/no, number, other"),
    ({"answer_type": ""}, "answer_type '' is none of yes/no, number, other"),
    ({"answer_type": None}, "answer_type is not a string"),
    ({"answer_type": ["other"]}, "answer_type is not a string"),
    ({"question_type": 5}, "question_type is not a string"),
    ({"question_type": None}, "question_type is not a string"),
    ({"group": 1}, "group is not a string"),
    ({"group": ["clean"]}, "group is not a string"),
    ({"answers": []}, "answers holds 0 answers; 1 to 10 are allowed"),
    ({"answers": ["a"] * 11}, "answers holds 11 answers; 1 to 10 are allowed"),
    ({"answers": ["a", " "]}, "answers holds an empty answer"),
    ({"answers": ["a", 1]}, "answers are not strings"),
    ({"answers": {"a": 1}}, "answers are not strings"),
    ({"answer": ""}, "answer is empty"),
    ({"answer": ["a"]}, "answer is not a string"),
]
NAMES = [f"{fault}, {number}" for number, (_, fault) in enumerate(FAULTS)]


def changed(number: int, fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    return {name: value for name, value in record(number, **fields).items() if value is not GONE}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """The data set data/mine without a fault, and nothing else."""
    monkeypatch.chdir(tmp_path)
    folder = DataFolder(Path("data"), "mine")
    images = [f"image_{number}" for number in range(3)]
    rows = ((np.ones((1, 2), np.float32), np.ones((1, 4), np.float32)) for _ in images)
    write_store(folder.store("all"), images, rows, Layout(1, 2))
    write(folder, train=[record(1), record(2, label={})], valid=[record(3, label={"a": 0, "b": 0.3})])
    folder.answers_file.write_text('["a", "b"]')
    return folder


def write(folder: DataFolder, **splits: list[Any]) -> None:
    for name, rows in splits.items():
        folder.split_file(name).write_text(json.dumps(rows))


def check(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[str]]:
    code = vqa_prepare.main(["check", *flags])
    return code, capsys.readouterr().out.splitlines()


def test_there_is_no_fault_in_good_data(mine: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert mine.read_splits(mine.splits())["train"] == [record(1), record(2, label={})]
    for command in (["check", "data/mine"], ["check", "--dataset", "mine"], ["doctor", "--dataset", "mine"]):
        assert vqa_prepare.main(command) == 0
        assert "--dataset mine can be trained on." in capsys.readouterr().out


@pytest.mark.parametrize(("fields", "fault"), FAULTS, ids=NAMES)
def test_training_checking_and_preparing_refuse_it_in_the_same_words(
    mine: DataFolder, pretrained: Path, capsys: pytest.CaptureFixture[str], fields: Any, fault: str
) -> None:
    write(mine, train=[record(1), changed(2, fields)])
    expected = f"data/mine/train.json, record 1: {fault}"
    code, lines = check(capsys, "data/mine")
    assert code == 1 and [line for line in lines if line.startswith(expected)]
    assert vqa.cli(["--dataset=mine", f"--pretrained={pretrained}", "--wandb=off", "--no-tqdm"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")
    assert vqa_prepare.main(["own", "--from", "data/mine", "--name", "other"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


@pytest.mark.parametrize(("fields", "fault"), FAULTS, ids=NAMES)
def test_lxmerts_files_are_held_to_the_same(tmp_path: Path, fields: Any, fault: str) -> None:
    rows = {"train": [record(1), changed(2, fields)], "nominival": [record(3)], "minival": [record(4)]}
    for name, records in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    with pytest.raises(DataError) as error:
        prepare_lxmert(tmp_path, ["a"])
    assert f"train.json, record 1: {fault}" in str(error.value)


def test_a_question_may_not_come_in_training_and_in_validation(
    mine: DataFolder, pretrained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mine, valid=[record(4), record(2)])
    expected = "data/mine/valid.json, record 1: question_id 2 came before"
    assert expected in check(capsys, "data/mine")[1]
    assert vqa.cli(["--dataset=mine", f"--pretrained={pretrained}", "--wandb=off", "--no-tqdm"]) == 2
    assert capsys.readouterr().err == f"error: {expected}.\n"


def test_splits_that_are_not_used_together_may_repeat_a_question(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mine, some_of_train=[record(1)])
    assert check(capsys, "data/mine")[0] == 0
    with pytest.raises(DataError, match=r"some_of_train\.json, record 0: question_id 1 came before"):
        mine.read_splits(["train", "some_of_train"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[]", "holds no questions"),
        ('{"questions": {}}', "is neither a list nor an object with a list of questions"),
        ('[{"question_id": 1, "img_id": "a", "sent": "?", "label": {"a": NaN}}]', "NaN is not a number"),
        ("[", "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_named(
    mine: DataFolder, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    mine.split_file("valid").write_text(content)
    code, lines = check(capsys, "data/mine")
    assert code == 1
    assert any(line.startswith(f"data/mine/valid.json {words}") or words in line for line in lines)
    with pytest.raises(DataError, match=rf"data/mine/valid\.json.*{words}"):
        mine.read_splits(["valid"])["valid"]


def test_the_first_ten_faults_of_all_files_are_shown(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mine, train=[{}] * 7, valid=[record(1), 5], test=[{}] * 30)
    code, lines = check(capsys, "data/mine")
    faults = [line for line in lines if ", record " in line]
    assert code == 1 and len(faults) == 10 and "... and more" in lines
    assert [fault.split(".json")[0] for fault in faults] == ["data/mine/train"] * 7 + ["data/mine/valid"] + [
        "data/mine/test"
    ] * 2
    assert "faulty     data/mine/test.json: 30 of 30 questions cannot be used" in lines


def test_images_without_features_are_named_by_the_first_record_about_them(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mine, train=[record(1), record(2, img_id="image_7"), record(4, img_id="image_7")])
    code, lines = check(capsys, "data/mine")
    assert code == 1
    assert lines.count("data/mine/train.json, record 1: img_id 'image_7' has no features") == 1
    assert "missing    train: 1 of 2 images have no features, the first: image_7" in lines


def test_the_records_of_the_helpers_and_of_lxmert_have_no_fault(tmp_path: Path) -> None:
    folder = DataFolder.at(write_dataset(tmp_path / "small"))
    assert len(folder.read_splits(folder.splits())) == 3
    lxmert = {
        "answer_type": "other",
        "img_id": "COCO_train2014_000000458752",
        "label": {"net": 1, "": 0.3},
        "question_id": 458752000,
        "question_type": "what is this",
        "sent": "What is this photo taken looking through?",
    }
    assert record_fault(lxmert) is None
    assert record_fault(lxmert, {"net"}) == "label holds '', which is not in the answer list"
    assert record_fault({name: lxmert[name] for name in ("img_id", "question_id", "sent")}) is None
