"""Your own data: what the minimal format takes, and what becomes of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.question_files import annotation, question

from common.errors import DataError
from vqadata.folder import DataFolder
from vqadata.own import read_own, read_table
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


# ------------------------------------------------------------------------------------------------- tables


def table(path: Path, text: str, name: str = "train") -> DataFolder:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}.csv").write_text(text, encoding="utf-8")
    return DataFolder.at(path)


def test_a_table_is_the_records_that_its_lines_say(tmp_path: Path) -> None:
    text = (
        "Image,question,answers,question_type\r\n"
        'photos/red car.JPG,"what colour, please?",red| red |pink,what\r\n'
        "\r\n"
        "17,is it?,yes,\r\n"
        'a.b,"say ""no""",,\r\n'
    )
    assert read_own(table(tmp_path, text)) == {
        "train": [
            {
                "question_id": 1,
                "img_id": "red car",
                "sent": "what colour, please?",
                "answers": ["red", "red", "pink"],
                "question_type": "what",
            },
            {"question_id": 2, "img_id": "17", "sent": "is it?", "answers": ["yes"]},
            {"question_id": 3, "img_id": "a.b", "sent": 'say "no"'},
        ]
    }


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_spreadsheets_of_all_countries_save_the_same_table(tmp_path: Path, delimiter: str, mark: str) -> None:
    lines = [["img_id", "sent", "answer", "question_id"], ["a.jpg", "is it?", "yes", "-5"]]
    text = mark + "\n".join(map(delimiter.join, lines))
    assert read_own(table(tmp_path, text))["train"] == [
        {"question_id": -5, "img_id": "a.jpg", "sent": "is it?", "answer": "yes"}
    ]


def test_tables_and_records_of_one_folder_are_numbered_apart(tmp_path: Path) -> None:
    write(tmp_path, a=[record(4)])
    for name in ("b", "c"):
        folder = table(tmp_path, "image,question\nx,is it?\nx,was it?\n", name)
    ids = {split: [row["question_id"] for row in rows] for split, rows in read_own(folder).items()}
    assert ids == {"a": [4], "b": [5, 6], "c": [7, 8]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,question,anwser\na,is it?,yes\n", "has the column 'anwser', which nothing is known of"),
        ("question,answer\nis it?,yes\n", "has no column image"),
        ("image,answer\na,yes\n", "has no column question"),
        ("image,img_id,question\na,a,is it?\n", "two columns of one meaning"),
        ("image,question,answer,answers\na,is it?,yes,yes\n", "two columns of one meaning"),
        ("image,question\na,is it?\na,is it, though?\n", "line 3 has 3 columns where the first has 2"),
        ('image,question\na,"is it?\n', "line 2 is no line of a table"),
        ("image,question\n", "holds no questions"),
        ("image,question\na,\n", "record 0: lacks sent"),
        ("image,question,question_id\na,is it?,\n", "record 0: lacks question_id"),
        ("image,question,question_id\na,is it?,one\n", "record 0: question_id is not an integer"),
        ("image,question,answers\na,is it?,yes|\n", "record 0: answers holds an empty answer"),
        (f"image,question,answers\na,is it?,{'|'.join('abcdefghijk')}\n", "holds 11 answers"),
        ("image,question,answer_type\na,is it?,colour\n", "answer_type 'colour' is none of"),
    ],
)
def test_a_mistake_in_a_table_is_one_sentence_with_its_place(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=rf"train\.csv.*{words}"):
        read_own(table(tmp_path, text))


def test_a_table_that_is_not_in_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes("image,question\na,größer?\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"train\.csv is not UTF-8 text \(byte"):
        read_own(DataFolder.at(tmp_path))


@given(st.text(alphabet='imagequestion,;\t"|\n\r0-9 \0\u0301ä', max_size=80) | st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_whatever_a_table_holds_it_is_read_or_refused_in_one_way(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "train.csv")
        file.write_bytes(f"image,question\n{text}".encode(errors="replace"))
        try:
            records = read_table(file)
        except DataError:
            return
    assert records and all(row["question_id"] == n for n, row in enumerate(records, start=1))


# --------------------------------------------------------------------------------------- the official format


def official(path: Path, name: str, rows: list[Any], kind: str = "questions") -> DataFolder:
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{name}_{kind}.json").write_text(json.dumps({kind: rows}))
    return DataFolder.at(path)


def test_questions_and_annotations_in_the_official_format(tmp_path: Path) -> None:
    official(tmp_path, "train", [question(1, 17), question(2, 18) | {"image_id": "red car"}])
    rows = [annotation(2, 18) | {"image_id": "red car"}, annotation(1, 17)]
    official(tmp_path, "train", rows, "annotations")
    folder = official(tmp_path, "test", [question(3, 17)])
    prepared = prepare_own(folder)
    assert prepared.splits["test"] == [{"question_id": 3, "img_id": "17", "sent": "what is number 3?"}]
    one, two = prepared.splits["train"]
    assert (one["img_id"], two["img_id"]) == ("17", "red car")
    # Three of ten people said one thing, two another, five a third.
    assert sorted(one["label"].values()) == [0.6, 0.9, 1.0]
    assert one["question_type"] == "what is"
    assert {name: len(rows) for name, rows in prepared.annotations.items()} == {"train": 2}
    assert prepared.annotations["train"][1].image_id == "red car"
    assert prepared.annotations["train"][0].right == rows[1]["multiple_choice_answer"]


@pytest.mark.parametrize(
    ("questions", "annotations", "split"),
    [
        ("v2_OpenEnded_mscoco_train2014", "v2_mscoco_train2014", "train"),
        ("OpenEnded_mscoco_val2014", "mscoco_val2014", "val"),
    ],
)
def test_published_names_say_the_split_and_the_images(
    tmp_path: Path, questions: str, annotations: str, split: str
) -> None:
    official(tmp_path, questions, [question(1, 17)])
    folder = official(tmp_path, annotations, [annotation(1, 17)], "annotations")
    ((name, rows),) = read_own(folder).items()
    assert (name, rows[0]["img_id"]) == (split, f"COCO_{split}2014_000000000017")
    assert len(rows[0]["answers"]) == 10


@pytest.mark.parametrize(
    ("rows", "answered", "words"),
    [
        ([question(1, 17) | {"image_id": None}], None, "image_id is neither a number nor a string"),
        ([question(1, 17) | {"image_id": " "}], None, "image_id is neither a number nor a string"),
        ([question(1, 17)], [annotation(1, 18)], "Question 1 is about 17 in .* and about image 18 in"),
        ([question(1, 17)], [annotation(2, 17)], "1 questions of .* are not in .*, the first is 1"),
        ([{"question_id": 1}], None, "record 0: lacks image_id, question"),
    ],
)
def test_a_mistake_in_the_official_format_is_one_sentence(
    tmp_path: Path, rows: list[Any], answered: list[Any] | None, words: str
) -> None:
    folder = official(tmp_path, "train", rows)
    if answered:
        official(tmp_path, "train", answered, "annotations")
    with pytest.raises(DataError, match=words):
        read_own(folder)


def test_questions_of_a_split_come_from_one_file_and_ids_differ_between_all(tmp_path: Path) -> None:
    folder = table(write(tmp_path / "two", train=[record(1)]).path, "image,question\na,is it?\n")
    with pytest.raises(DataError, match=r"train\.json and .*train\.csv both hold the questions of train"):
        read_own(folder)
    folder = official(tmp_path / "again", "valid", [question(1, 2)])
    write(folder.path, train=[record(1)])
    with pytest.raises(DataError, match=r"valid_questions\.json, record 0: question_id 1 came before"):
        read_own(folder)
    folder = official(tmp_path / "stray", "train", [annotation(1, 17)], "annotations")
    with pytest.raises(
        DataError, match=r"train_annotations\.json has no questions beside it, train_questions"
    ):
        read_own(folder)
