"""Bad input: each kind gets one sentence with file and record, and never any other exception."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.helpers.question_files import annotation, write_vqav2

from common.errors import DataError
from vqadata.files import Source, find_source, read_json
from vqadata.official import read_annotations, read_question_ids, read_questions, read_vqav2
from vqadata.questions import prepare_vqav2, read_minival_images, read_test_ids
from vqadata.records import read_answers, read_records, record_fault
from vqadata.scoring import read_predictions

QUESTIONS = "v2_OpenEnded_mscoco_val2014_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty \\(0 bytes\\)"),
        (b'{"questions": [{"question_id": 1, ', "is not valid JSON \\(line 1, character 34 of 34"),
        (b"\n[1, 2", "line 2"),
        (b'["caf\xe9"]', "is not UTF-8 text \\(byte 5\\)"),
        (b"[" * 100000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "is not valid JSON"),
        (b"[NaN]", "NaN is not a number"),
    ],
)
def test_broken_json(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"broken\.json.*{message}"):
        read_json(path)


def test_missing_file_and_folder_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json is missing"):
        read_json(tmp_path / "no.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_broken_archives(tmp_path: Path) -> None:
    whole = gzip.compress(b"[1]" * 1000)
    (tmp_path / "a.json.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"a\.json\.gz is damaged"):
        read_json(tmp_path / "a.json.gz")
    (tmp_path / "b.json.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"b\.json\.gz cannot be read: Not a gzipped file"):
        read_json(tmp_path / "b.json.gz")
    (tmp_path / "c.json.zip").write_bytes(b"PK not a zip")
    source = find_source(tmp_path, "c.json")
    with pytest.raises(DataError, match=r"c\.json in .*c\.json\.zip is damaged"):
        read_json(source)


def test_archive_without_the_expected_member(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.json.zip", "w") as archive:
        archive.writestr("other.json", "[]")
    with pytest.raises(DataError, match=r"d\.json\.zip does not hold d\.json, but other\.json"):
        read_json(find_source(tmp_path, "d.json"))


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "bom.json") == [1]


def change(record: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {name: value for name, value in (record | values).items() if value is not ...}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question_id": ...}, "record 1: lacks question_id"),
        ({"question_id": "5"}, "record 1: question_id is not an integer"),
        ({"question_id": 10}, "record 1: question_id 10 came before"),
        ({"answers": ...}, "record 1: lacks answers"),
        ({"answers": []}, "record 1: answers holds 0 answers; 1 to 10 are allowed"),
        ({"answers": ["a"] * 11}, "record 1: answers holds 11 answers"),
        ({"answers": "yes"}, "record 1: answers are not strings"),
        ({"answers": [{"answer": None}]}, "record 1: answers are not strings"),
        ({"answers": [{"text": "yes"}]}, "record 1: answers are not strings"),
        ({"answer_type": "colour"}, "record 1: answer_type 'colour' is none of yes/no, number, other"),
        ({"answer_type": ["other"]}, "record 1: answer_type is not a string"),
        ({"image_id": []}, "record 1: image_id is neither a number nor a string"),
    ],
)
def test_faulty_annotations(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    path = tmp_path / "a.json"
    rows = [annotation(10, 1), change(annotation(11, 1), **values)]
    path.write_text(json.dumps({"annotations": rows}))
    with pytest.raises(DataError, match=rf"a\.json.*{message}"):
        read_annotations(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (7, "record 0: is not an object"),
        ({"question_id": 1, "image_id": 2}, "record 0: lacks question"),
        ({"question_id": 1, "image_id": "2", "question": "?"}, "record 0: image_id is not an integer"),
        (
            {"question_id": 1, "image_id": 2, "question": 3},
            "record 0: question is not a string with something in it",
        ),
    ],
)
def test_faulty_questions(tmp_path: Path, row: Any, message: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"questions": [row]}))
    with pytest.raises(DataError, match=rf"q\.json.*{message}"):
        read_questions(path, "val2014")


def test_questions_without_image_set_must_name_it(tmp_path: Path) -> None:
    path = tmp_path / "q.json"
    path.write_text(json.dumps([{"question_id": 1, "image_id": 2, "question": "?"}]))
    with pytest.raises(DataError, match="lacks coco_split"):
        read_questions(path)


@pytest.mark.parametrize("document", ["{}", "3", '{"questions": 3}', '{"annotations": []}'])
def test_a_document_of_another_kind(tmp_path: Path, document: str) -> None:
    path = tmp_path / "q.json"
    path.write_text(document)
    with pytest.raises(DataError, match=r"q\.json is neither a list nor an object with a list of questions"):
        read_questions(path, "val2014")


def test_missing_files_are_listed_with_where_they_can_be_had(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    (tmp_path / QUESTIONS).unlink()
    (tmp_path / ANNOTATIONS).unlink()
    with pytest.raises(DataError) as error:
        read_vqav2(tmp_path)
    lines = str(error.value).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [QUESTIONS, ANNOTATIONS]
    assert "https://" in lines[1] and lines[1].endswith("v2_Questions_Val_mscoco.zip)")


@pytest.mark.parametrize("shortened", [QUESTIONS, ANNOTATIONS])
def test_questions_and_annotations_that_do_not_fit(tmp_path: Path, shortened: str) -> None:
    write_vqav2(tmp_path)
    document = json.loads((tmp_path / shortened).read_text())
    key = "questions" if "questions" in document else "annotations"
    lost = document[key].pop()["question_id"]
    (tmp_path / shortened).write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"1 questions of .* are not in .*{shortened}, the first is {lost}"):
        read_vqav2(tmp_path)


def test_question_and_annotation_about_different_images(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    document = json.loads((tmp_path / ANNOTATIONS).read_text())
    document["annotations"][0]["image_id"] = 3
    (tmp_path / ANNOTATIONS).write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"is about COCO_val2014_000000000512 in .* and about image 3 in"):
        read_vqav2(tmp_path)


def test_no_answer_is_frequent_enough(tmp_path: Path) -> None:
    parts = read_vqav2(write_vqav2(tmp_path))
    with pytest.raises(DataError, match="No answer is right for 1000 questions or more"):
        prepare_vqav2(*parts, {}, {"COCO_val2014_000000000501"}, occurrences=1000)


def test_answer_list_must_be_strings_that_differ(tmp_path: Path) -> None:
    for content, message in (('{"a": 1}', "not a list"), ("[1]", "not a list"), ('["a", "a"]', "twice")):
        (tmp_path / "answers.json").write_text(content)
        with pytest.raises(DataError, match=message):
            read_answers(tmp_path / "answers.json")


# ------------------------------------------------------------------------------------------- broken bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "question_id",
                    "image_id",
                    "question",
                    "questions",
                    "annotations",
                    "answers",
                    "answer",
                    "label",
                ]
                + ["answer_type", "question_type", "img_id", "sent", "coco_split", "multiple_choice_answer"]
            ),
            inner,
            max_size=8,
        )
    ),
    max_leaves=20,
)
GOOD = json.dumps([annotation(1, 2) | {"img_id": "i", "sent": "?", "question": "?", "coco_split": "val2014"}])
READERS: list[Callable[[Path], Any]] = [
    read_annotations,
    read_answers,
    read_minival_images,
    read_predictions,
    read_question_ids,
    read_questions,
    lambda path: read_questions(path, "val2014"),
    lambda path: read_records(path, "questions", record_fault),
    read_test_ids,
]


def read_with_all(path: Path) -> int:
    """How many readers accept a file; anything but a result or a DataError fails the test."""
    accepted = 0
    for reader in READERS:
        try:
            reader(path)
            accepted += 1
        except DataError as error:
            assert path.name in str(error)
    return accepted


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(document=JSON)
def test_readers_refuse_other_documents(document: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "other.json"
    path.write_text(json.dumps(document))
    read_with_all(path)


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(place=st.integers(0, len(GOOD) - 1), byte=st.integers(0, 255), cut=st.booleans())
def test_readers_refuse_broken_bytes(
    place: int, byte: int, cut: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(GOOD.encode())
    data[place] = byte
    path = tmp_path_factory.getbasetemp() / "broken.json"
    path.write_bytes(data[:place] if cut else data)
    accepted = read_with_all(path)
    assert not (cut and accepted)


@settings(deadline=None, max_examples=150, derandomize=True, database=None)
@given(data=st.data(), form=st.sampled_from(["gz", "zip"]))
def test_readers_refuse_broken_archives(
    data: st.DataObject, form: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"packed.json.{form}"
    if form == "gz":
        path.write_bytes(gzip.compress(GOOD.encode(), mtime=0))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("packed.json"), GOOD)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read_annotations(Source(path, "packed.json" if form == "zip" else None))
    except DataError as error:
        assert path.name in str(error)


def test_the_unbroken_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(GOOD)
    assert read_with_all(tmp_path / "good.json") >= 5
    assert read_json(tmp_path / "good.json")[0]["question_id"] == 1
