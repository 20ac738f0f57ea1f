"""The published question and annotation files: VQA v2's, VQA-CP v2's flat lists, and lists of our own.

A record that cannot be used is refused with file, record and field; nothing is dropped.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from common.errors import DataError
from vqadata.answers import ANSWER_TYPES, guess_answer_type, most_frequent
from vqadata.files import Source, find_source, parse_json, read_text

MAX_ANSWERS = 10  # to a question
QUESTION_FIELDS = ("question_id", "image_id", "question")

# Each file of VQA v2 and the published archive it comes in.
ARCHIVES = {
    "v2_OpenEnded_mscoco_train2014_questions.json": "v2_Questions_Train_mscoco.zip",
    "v2_OpenEnded_mscoco_val2014_questions.json": "v2_Questions_Val_mscoco.zip",
    "v2_OpenEnded_mscoco_test2015_questions.json": "v2_Questions_Test_mscoco.zip",
    "v2_mscoco_train2014_annotations.json": "v2_Annotations_Train_mscoco.zip",
    "v2_mscoco_val2014_annotations.json": "v2_Annotations_Val_mscoco.zip",
}
TEST_QUESTIONS = "v2_OpenEnded_mscoco_test2015_questions.json"
ARCHIVE_HOST = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
CP_FILES = tuple(
    f"vqacp_v2_{split}_{kind}.json" for split in ("train", "test") for kind in ("questions", "annotations")
)


class Question(NamedTuple):
    question_id: int
    image_id: str  # as features know it: COCO_val2014_000000000042
    text: str


class Annotation(NamedTuple):
    """What humans answered to a question."""

    question_id: int
    image_id: int | str  # a number in the official files
    question_type: str
    answer_type: str  # one of ANSWER_TYPES
    answers: Sequence[str]  # 1 to MAX_ANSWERS
    right: str  # the one answer taken as right: `multiple_choice_answer`


class Annotated(NamedTuple):
    """Questions and what humans answered to each, in the same order."""

    questions: list[Question]
    annotations: list[Annotation]

    def choose(self, places: Sequence[int]) -> Annotated:
        """The questions at these places."""
        return Annotated([self.questions[i] for i in places], [self.annotations[i] for i in places])


def coco_name(image_set: str, image_id: int) -> str:
    """ "val2014", 42 -> "COCO_val2014_000000000042"."""
    return f"COCO_{image_set}_{image_id:012d}"


def require_vqav2(folder: Path) -> None:
    """DataError that lists the files of VQA v2's train and val that are not in `folder`."""
    require(
        folder, {name: ARCHIVE_HOST + archive for name, archive in ARCHIVES.items() if name != TEST_QUESTIONS}
    )


def read_vqav2(folder: Path) -> tuple[Annotated, Annotated]:
    """train2014 and val2014 of VQA v2."""
    require_vqav2(folder)
    return _read_coco(folder, "train2014"), _read_coco(folder, "val2014")


def read_vqav2_test(folder: Path) -> list[Question]:
    """The questions of test2015; none if their file is not there."""
    source = find_source(folder, TEST_QUESTIONS, ARCHIVES[TEST_QUESTIONS])
    return read_questions(source, "test2015") if source else []


def read_vqacp(folder: Path) -> tuple[Annotated, Annotated]:
    """Train and test of VQA-CP v2, from its four published files."""
    require(folder, dict.fromkeys(CP_FILES, "no published host is left; --test-ids rebuilds it from VQA v2"))
    sources = [find_source(folder, name) for name in CP_FILES]
    return _read_annotated(*sources[:2], None), _read_annotated(*sources[2:], None)


def read_questions(source: Source | Path, image_set: str | None = None) -> list[Question]:
    """Questions in file order; without `image_set` every record names its own in `coco_split`.

    DataError for a file or a record that cannot be used, and for a question id that comes twice.
    """
    fields = QUESTION_FIELDS if image_set else (*QUESTION_FIELDS, "coco_split")
    questions = []
    for index, record in enumerate(read_records(source, "questions")):
        fault = lacking(record, fields)
        if not fault and type(record["image_id"]) is not int:
            fault = "image_id is not an integer"
        if not fault and not isinstance(record["question"], str):
            fault = "question is not a string"
        if not fault and not isinstance(record.get("coco_split", ""), str):
            fault = "coco_split is not a string"
        if fault:
            raise DataError(f"{source}, record {index}: {fault}.")
        name = coco_name(image_set or record["coco_split"], record["image_id"])
        questions.append(Question(record["question_id"], name, record["question"]))
    refuse_duplicates([question.question_id for question in questions], source)
    return questions


def read_question_ids(path: Path) -> set[int]:
    """The question ids of an official question file, of a split of ours, or of a plain JSON list of ids."""
    document = parse_json(read_text(path), path)
    records = document.get("questions") if isinstance(document, dict) else document
    if not isinstance(records, list) or not records:
        raise DataError(f"{path} is not a list of questions.")
    ids = [record.get("question_id") if isinstance(record, dict) else record for record in records]
    for index, question_id in enumerate(ids):
        if type(question_id) is not int:
            raise DataError(f"{path}, record {index}: question_id is missing or not an integer.")
    return set(ids)


def read_annotations(source: Source | Path) -> list[Annotation]:
    """Annotations in file order.

    `answers` may be the official objects or strings, or a single `answer`. Question type and answer type may
    be left out. DataError for a file or a record that cannot be used, and for a question id that comes twice.
    """
    annotations = []
    for index, record in enumerate(read_records(source, "annotations")):
        fault = annotation_fault(record)
        if fault:
            raise DataError(f"{source}, record {index}: {fault}.")
        annotations.append(to_annotation(record))
    refuse_duplicates([annotation.question_id for annotation in annotations], source)
    return annotations


def read_records(source: Source | Path, key: str) -> list[Any]:
    """The list a file holds, or holds under `key`. Answer objects are reduced to their strings."""
    text = read_text(source)
    with tqdm(total=text.count('"question_id"'), desc=_name(source), unit="record", delay=1) as bar:

        def hook(record: dict[str, Any]) -> dict[str, Any]:
            if "question_id" in record:
                bar.update()
            return _reduce_answers(record)

        document = parse_json(text, source, hook)
    records = document.get(key) if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise DataError(f"{source} is neither a list nor an object with a list of {key}.")
    if not records:
        raise DataError(f"{source} holds no {key}.")
    return records


def to_annotation(record: dict[str, Any]) -> Annotation:
    """A record without fault as an annotation; what may be left out is filled in."""
    answers = record["answers"] if "answers" in record else [record["answer"]]
    right = record.get("multiple_choice_answer", most_frequent(answers))
    return Annotation(
        record["question_id"],
        record.get("image_id", record.get("img_id", "")),
        record.get("question_type", ""),
        record.get("answer_type", guess_answer_type(right)),
        answers,
        right,
    )


def annotation_json(annotation: Annotation) -> dict[str, Any]:
    """An annotation as a record of the official format, but without the annotators' confidence."""
    return {
        "question_id": annotation.question_id,
        "image_id": annotation.image_id,
        "question_type": annotation.question_type,
        "answer_type": annotation.answer_type,
        "multiple_choice_answer": annotation.right,
        "answers": [{"answer": text, "answer_id": n} for n, text in enumerate(annotation.answers, start=1)],
    }


def annotation_fault(record: Any) -> str | None:
    """What is wrong with an annotation, naming the field, or None."""
    if fault := lacking(record, ("question_id",)):
        return fault
    if "answers" not in record and "answer" not in record:
        return "lacks answers"
    answers = record["answers"] if "answers" in record else [record["answer"]]
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        return "answers are not strings" if "answers" in record else "answer is not a string"
    if not 1 <= len(answers) <= MAX_ANSWERS:
        return f"answers holds {len(answers)} answers; 1 to {MAX_ANSWERS} are allowed"
    if type(record.get("image_id", "")) not in (int, str):
        return "image_id is neither a number nor a string"
    for field in ("question_type", "answer_type", "multiple_choice_answer"):
        if not isinstance(record.get(field, ""), str):
            return f"{field} is not a string"
    if record.get("answer_type", "other") not in ANSWER_TYPES:
        return f"answer_type {record['answer_type']!r} is none of {', '.join(ANSWER_TYPES)}"
    return None


def lacking(record: Any, fields: Sequence[str]) -> str | None:
    """The fault of a record that is no object, lacks a field or has no integer question_id; else None."""
    if not isinstance(record, dict):
        return "is not an object"
    if missing := [field for field in fields if field not in record]:
        return f"lacks {', '.join(missing)}"
    if type(record["question_id"]) is not int:
        return "question_id is not an integer"
    return None


def refuse_duplicates(question_ids: Sequence[int], source: object) -> None:
    """DataError if a question id comes twice."""
    if len(set(question_ids)) == len(question_ids):
        return
    seen: set[int] = set()
    twice = [index for index, number in enumerate(question_ids) if number in seen or seen.add(number)]
    raise DataError(
        f"{source}: {len(twice)} records have a question_id that came before, the first is record {twice[0]} "
        f"(question {question_ids[twice[0]]})."
    )


def _read_coco(folder: Path, image_set: str) -> Annotated:
    names = f"v2_OpenEnded_mscoco_{image_set}_questions.json", f"v2_mscoco_{image_set}_annotations.json"
    questions, annotations = (find_source(folder, name, ARCHIVES[name]) for name in names)
    return _read_annotated(questions, annotations, image_set)


def _read_annotated(questions: Source, annotations: Source, image_set: str | None) -> Annotated:
    """Questions and annotations, brought into the order of the questions; DataError if they do not fit."""
    asked = read_questions(questions, image_set)
    answered = {annotation.question_id: annotation for annotation in read_annotations(annotations)}
    for there, ids, here, others in (
        (questions, [question.question_id for question in asked], annotations, answered),
        (annotations, answered, questions, {question.question_id for question in asked}),
    ):
        lost = [number for number in ids if number not in others]
        if lost:
            raise DataError(
                f"{len(lost):,} questions of {there} are not in {here}, the first is {lost[0]}; "
                "are the two files of the same version?"
            )
    for question in asked:
        image_id = answered[question.question_id].image_id
        if image_id and not question.image_id.endswith(f"_{image_id:0>12}"):
            raise DataError(
                f"Question {question.question_id} is about {question.image_id} in {questions} "
                f"and about image {image_id} in {annotations}."
            )
    return Annotated(asked, [answered[question.question_id] for question in asked])


def _reduce_answers(record: dict[str, Any]) -> dict[str, Any]:
    """Ten objects become ten shared strings as soon as they are read: a tenth of the memory."""
    answers = record.get("answers")
    if isinstance(answers, list):
        record["answers"] = [
            sys.intern(text) if type(text) is str else text
            for text in (entry.get("answer") if isinstance(entry, dict) else entry for entry in answers)
        ]
    return record


def require(folder: Path, files: Mapping[str, str]) -> None:
    """DataError that lists the files that are not there, and where each can be had."""
    missing = {
        name: where for name, where in files.items() if not find_source(folder, name, ARCHIVES.get(name))
    }
    if missing:
        lines = "".join(f"\n  {name}  ({where})" for name, where in missing.items())
        raise DataError(f"{folder} lacks files (plain, .gz or in their .zip):{lines}")


def _name(source: Source | Path) -> str:
    return source.member or source.path.name if isinstance(source, Source) else source.name
