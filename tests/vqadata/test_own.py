"""Your own data: what the minimal format takes, and what becomes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import DataError
from vqadata.folder import DataFolder
from vqadata.questions import prepare_own


def record(number: int, **fields: Any) -> dict[str, Any]:
    return {"question_id": number, "img_id": f"image_{number % 3}", "sent": f"what is {number}?"} | fields


def write(path: Path, **splits: list[Any]) -> DataFolder:
    path.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (path / f"{name}.json").write_text(json.dumps(rows))
    return DataFolder.at(path)


def test_one_answer_ten_answers_or_scores(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        train=[
            record(1, answer=" red\n"),
            record(2, answers=["2"] * 3 + ["3"] * 7, question_type="how many", group="clean"),
            record(3, answers=["yes", "yes", "no"]),
        ],
        valid=[record(4, label={"red": 0.5, "pink": 0.25}, answer_type="other")],
        test=[record(5, group="dark")],
    )
    prepared = prepare_own(folder)
    assert prepared.answers == ["red", "2", "3", "no", "pink", "yes"]
    one, ten, three = prepared.splits["train"]
    assert (one["label"], one["answer_type"]) == ({"red": 1.0}, "other")
    assert (ten["label"], ten["answer_type"]) == ({"2": 0.9, "3": 1.0}, "number")
    assert ten["group"] == "clean" and "group" not in one
    assert (three["label"], three["answer_type"]) == ({"yes": 1.0 * 2 / 3, "no": 1 / 3}, "yes/no")
    assert prepared.splits["valid"][0]["label"] == {"red": 0.5, "pink": 0.25}
    assert prepared.splits["test"] == [record(5, group="dark")]
    # Scores alone do not tell what humans answered: no official accuracy on that split.
    assert set(prepared.annotations) == {"train"}
    assert prepared.annotations["train"][2].right == "yes"


def test_vocabulary_is_built_or_given(tmp_path: Path) -> None:
    rows = [record(1, answer="a"), record(2, answer="a"), record(3, answer="b")]
    folder = write(tmp_path, train=rows)
    assert prepare_own(folder, occurrences=2).answers == ["a"]
    with pytest.raises(DataError, match="No answer is given to 3 questions or more"):
        prepare_own(folder, occurrences=3)
    folder.answers_file.write_text('["b", "c"]')
    prepared = prepare_own(folder)
    assert prepared.answers == ["b", "c"]
    assert [row["label"] for row in prepared.splits["train"]] == [{}, {}, {"b": 1.0}]


def test_a_question_may_not_come_again_in_any_split(tmp_path: Path) -> None:
    folder = write(tmp_path, test=[record(1)], train=[record(2), record(1)])
    with pytest.raises(DataError, match=r"train\.json, record 1: question_id 1 came before\."):
        prepare_own(folder)


def test_a_folder_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        prepare_own(DataFolder.at(tmp_path / "no"))
    with pytest.raises(DataError, match=r"holds no <split>\.json"):
        prepare_own(DataFolder.at(tmp_path))
