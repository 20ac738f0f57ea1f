"""Your own data: what the minimal format takes, what becomes of it, and which faults are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from vqadata.features import write_store
from vqadata.own import features_folder, find_faults, prepare_own


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {"question_id": number, "img_id": f"image_{number % 3}", "sent": f"what is {number}?"} | fields


def write(folder: Path, **splits: list[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def write_features(folder: Path) -> None:
    rows = ((np.ones((1, 2), np.float32), np.ones((1, 4), np.float32)) for _ in range(3))
    names = [f"image_{number}" for number in range(3)]
    write_store(folder / "features" / "all", names, rows, regions=1, feature_size=2)


def test_one_answer_ten_answers_or_scores(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        train=[
            record(1, answer=" red\n"),
            record(2, answers=["2"] * 3 + ["3"] * 7, question_type="how many"),
            record(3, answers=["yes", "yes", "no"]),
        ],
        valid=[record(4, label={"red": 0.5, "pink": 0.25}, answer_type="other")],
        test=[record(5)],
    )
    prepared = prepare_own(folder)
    assert prepared.answers == ["red", "2", "3", "no", "pink", "yes"]
    one, ten, three = prepared.splits["train"]
    assert (one["label"], one["answer_type"]) == ({"red": 1.0}, "other")
    assert (ten["label"], ten["answer_type"]) == ({"2": 0.9, "3": 1.0}, "number")
    assert (three["label"], three["answer_type"]) == ({"yes": 1.0 * 2 / 3, "no": 1 / 3}, "yes/no")
    assert prepared.splits["valid"][0]["label"] == {"red": 0.5, "pink": 0.25}
    assert prepared.splits["test"] == [record(5)]
    # Scores alone do not tell what humans answered: no official accuracy on that split.
    assert set(prepared.annotations) == {"train"}
    assert prepared.annotations["train"][2].right == "yes"


def test_vocabulary_is_built_or_given(tmp_path: Path) -> None:
    rows = [record(1, answer="a"), record(2, answer="a"), record(3, answer="b")]
    folder = write(tmp_path, train=rows)
    assert prepare_own(folder, occurrences=2).answers == ["a"]
    with pytest.raises(DataError, match="No answer is given to 3 questions or more"):
        prepare_own(folder, occurrences=3)
    (folder / "answers.json").write_text('["b", "c"]')
    prepared = prepare_own(folder)
    assert prepared.answers == ["b", "c"]
    assert [row["label"] for row in prepared.splits["train"]] == [{}, {}, {"b": 1.0}]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"sent": 3}, "sent is not a string with something in it"),
        ({"img_id": " "}, "img_id is not a string with something in it"),
        ({"question_id": 1}, "question_id 1 came before"),
        ({"question_id": 2.0}, "question_id is not an integer"),
        ({"answers": []}, "answers holds 0 answers; 1 to 10 are allowed"),
        ({"answers": ["a"] * 11}, "answers holds 11 answers; 1 to 10 are allowed"),
        ({"answers": ["a", " "]}, "answers holds an empty answer"),
        ({"answer": ""}, "answer is empty"),
        ({"answer": ["a"]}, "answer is not a string"),
        ({"label": {"a": 2}}, "label gives 'a' the score 2, which is not between 0 and 1"),
        ({"label": ["a"]}, "label is not an object of answer: score"),
        ({"answer_type": "colour"}, "answer_type 'colour' is none of yes/no, number, other"),
        ({"question_type": 5}, "question_type is not a string"),
        ({"img_id": "image_7"}, "img_id 'image_7' has no features"),
    ],
)
def test_a_fault_is_named_with_file_record_and_field(
    tmp_path: Path, fields: dict[str, Any], fault: str
) -> None:
    folder = write(tmp_path, train=[record(1, answer="a"), record(2) | fields])
    write_features(folder)
    assert list(find_faults(folder)) == [f"{folder / 'train.json'}, record 1: {fault}"]
    if "features" not in fault:
        with pytest.raises(DataError, match="record 1"):
            prepare_own(folder)


def test_faults_of_all_files_are_found(tmp_path: Path) -> None:
    folder = write(tmp_path, train=[record(1), {}], valid=[record(1), 5])
    (folder / "broken.json").write_text("[")
    (folder / "answers.json").write_text("{}")
    faults = list(find_faults(folder))
    assert [fault.split(str(folder))[1].split()[0] for fault in faults] == [
        "/features:",
        "/answers.json",
        "/broken.json",
        "/train.json,",
        "/valid.json,",
        "/valid.json,",
    ]


def test_no_faults_in_good_data(tmp_path: Path) -> None:
    folder = write(tmp_path, train=[record(1, answer="a"), record(2, label={})], valid=[record(3)])
    write_features(folder)
    assert list(find_faults(folder)) == []


def test_features_of_another_data_set(tmp_path: Path) -> None:
    write_features(tmp_path / "first")
    folder = write(tmp_path / "second", train=[record(1, answer="a")])
    (folder / "features.json").write_text('{"folder": "../first/features"}')
    assert features_folder(folder).resolve() == tmp_path / "first" / "features"
    assert list(find_faults(folder)) == []
    (folder / "features.json").write_text("[]")
    with pytest.raises(DataError, match="does not hold"):
        features_folder(folder)


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        prepare_own(tmp_path / "no")
    with pytest.raises(DataError, match=r"holds no <split>\.json"):
        prepare_own(tmp_path)
