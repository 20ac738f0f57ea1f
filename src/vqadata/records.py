"""The one validator of records: training, checking and preparing all read their files here.

A record that cannot be used is refused with its file, its place in it and the field; nothing is dropped. So
whatever `vqa_prepare check` finds is what the trainer stops at, in the same words.

    split        {"question_id": 1, "img_id": "photo_17", "sent": "is it red?"}, and, if it is known, what
                 humans answered: "label" {answer: score in [0, 1]} in LXMERT's format, or in the minimal one
                 "answers", a list of 1 to 10, or "answer"; "answer_type", "question_type" and "group",
                 what results may be broken down by, can be left out
    question     one of the official question files: question_id, image_id (a number), question
    annotation   one of the official annotation files: question_id and answers (or a single answer)
    prediction   one of the challenge's format: question_id and answer
"""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.errors import DataError
from common.files import nfc, parse_json
from vqadata.answers import ANSWER_TYPES
from vqadata.files import Source, read_json, read_source

MAX_ANSWERS = 10  # to a question
FIELDS = ("question_id", "img_id", "sent")  # that every record of a split has

Record = dict[str, Any]
FaultOf = Callable[[Any], str | None]  # what is wrong with a record, naming the field, or None


def read_records(
    source: Source | Path, key: str, fault_of: FaultOf, seen: set[int] | None = None
) -> list[Record]:
    """The records of a file, in its order, none of which has a fault; DataError with the first that has.

    key: what an object holds its list under; a file may also be the list itself. seen: question ids of other
    files, which may not come again; those of this file are added.
    """
    records = read_list(source, key)
    for fault in find_faults(records, source, fault_of, set() if seen is None else seen):
        raise DataError(f"{fault}.")
    return records


def find_faults(
    records: Sequence[Any], source: Source | Path, fault_of: FaultOf, seen: set[int]
) -> Iterator[str]:
    """Every fault of a file's records as "file, record, field and what is wrong"."""
    for index, record in enumerate(records):
        fault = fault_of(record)
        if fault is None:
            question_id = record["question_id"]
            if question_id in seen:
                fault = f"question_id {question_id} came before"
            seen.add(question_id)
        if fault:
            yield f"{source}, record {index}: {fault}"


def read_list(source: Source | Path, key: str) -> list[Any]:
    """The list a file holds, or holds under `key`.

    Answer objects are reduced to their strings, and image ids are brought into the form of those of features.
    """
    text = read_source(source)
    name = source.member or source.path.name if isinstance(source, Source) else source.name
    with tqdm(total=text.count('"question_id"'), desc=name, unit="record", delay=1, disable=None) as bar:

        def hook(record: Record) -> Record:
            if "question_id" in record:
                bar.update()
            if isinstance(image_id := record.get("img_id"), str):
                record["img_id"] = nfc(image_id)
            return _reduce_answers(record)

        document = parse_json(text, source, hook, error=DataError)
    records = document.get(key) if isinstance(document, dict) else document
    if not isinstance(records, list):
        raise DataError(f"{source} is neither a list nor an object with a list of {key}.")
    if not records:
        raise DataError(f"{source} holds no {key}.")
    return records


def read_answers(path: Path) -> list[str]:
    """The answer list of a data set, or LXMERT's `trainval_label2ans.json`, in label order."""
    answers = read_json(path)
    if not isinstance(answers, list) or not answers or not all(map(_is_text, answers)):
        raise DataError(f"{path} is not a list of answers.")
    if len(set(answers)) != len(answers):
        raise DataError(f"{path} holds an answer twice; every label needs an answer of its own.")
    return answers


def record_fault(record: Any, vocabulary: Collection[str] | None = None) -> str | None:
    """What is wrong with a record of a split; with `vocabulary` it needs a label, of answers from there."""
    if fault := id_fault(record, FIELDS if vocabulary is None else (*FIELDS, "label")):
        return fault
    if fault := _blank_fault(record, ("img_id", "sent")) or _type_fault(record):
        return fault
    if "label" in record and (fault := _label_fault(record["label"], vocabulary)):
        return fault
    if "answers" not in record and "answer" not in record:
        return None
    if fault := _answers_fault(record):
        return fault
    if not all(map(str.strip, answers_of(record))):
        return "answers holds an empty answer" if "answers" in record else "answer is empty"
    return None


def question_fault(record: Any, *, names_image_set: bool, own: bool = False) -> str | None:
    """What is wrong with an official question; `names_image_set`: it must say its own in `coco_split`.

    own: of images that need not be COCO's, whose ids may be names.
    """
    fields = ("question_id", "image_id", "question", *(["coco_split"] if names_image_set else []))
    if fault := id_fault(record, fields):
        return fault
    if type(record["image_id"]) is not int and not own:
        return "image_id is not an integer"
    if type(record["image_id"]) is not int and _blank_fault(record, ["image_id"]):
        return "image_id is neither a number nor a string with something in it"
    return _blank_fault(record, fields[2:])


def annotation_fault(record: Any) -> str | None:
    """What is wrong with an annotation. Question and answer type may be left out, answers may be empty."""
    if fault := id_fault(record, ("question_id",)):
        return fault
    if "answers" not in record and "answer" not in record:
        return "lacks answers"
    if fault := _answers_fault(record):
        return fault
    if type(record.get("image_id", "")) not in (int, str):
        return "image_id is neither a number nor a string"
    if not _is_text(record.get("multiple_choice_answer", "")):
        return "multiple_choice_answer is not a string"
    return _type_fault(record)


def prediction_fault(record: Any) -> str | None:
    """What is wrong with a prediction."""
    if fault := id_fault(record, ("question_id", "answer")):
        return fault
    return None if _is_text(record["answer"]) else "answer is not a string"


def id_fault(record: Any, fields: Sequence[str]) -> str | None:
    """The fault of a record that is no object, lacks a field, or whose question_id is no 64-bit integer."""
    if not isinstance(record, dict):
        return "is not an object"
    if missing := [field for field in fields if field not in record]:
        return f"lacks {', '.join(missing)}"
    if type(record["question_id"]) is not int:
        return "question_id is not an integer"
    if not -(2**63) <= record["question_id"] < 2**63:
        return "question_id is beyond 64 bits"
    return None


def answers_of(record: Record) -> list[str]:
    """What humans answered, as `answers` or as a single `answer`."""
    return record["answers"] if "answers" in record else [record["answer"]]


def usual_answer(record: Mapping[str, Any]) -> str:
    """The answer most humans gave; '' for an example without label."""
    label = record.get("label") or {"": 0.0}
    return max(label, key=label.__getitem__)


def _blank_fault(record: Record, fields: Sequence[str]) -> str | None:
    for field in fields:
        if not _is_text(record[field]) or not record[field].strip():
            return f"{field} is not a string with something in it"
    return None


def _type_fault(record: Record) -> str | None:
    for field in ("question_type", "answer_type", "group"):
        if not _is_text(record.get(field, "")):
            return f"{field} is not a string"
    if record.get("answer_type", "other") not in ANSWER_TYPES:
        return f"answer_type {record['answer_type']!r} is none of {', '.join(ANSWER_TYPES)}"
    return None


def _label_fault(label: Any, vocabulary: Collection[str] | None) -> str | None:
    if not isinstance(label, dict) or not all(map(_is_text, label)):
        return "label is not an object of answer: score"
    for answer, score in label.items():
        if type(score) not in (int, float) or not 0 <= score <= 1:
            return f"label gives {answer!r} the score {score!r}, which is not between 0 and 1"
        if vocabulary is not None and answer not in vocabulary:
            return f"label holds {answer!r}, which is not in the answer list"
    return None


def _answers_fault(record: Record) -> str | None:
    answers = answers_of(record)
    if not isinstance(answers, list) or not all(map(_is_text, answers)):
        return "answers are not strings" if "answers" in record else "answer is not a string"
    if not 1 <= len(answers) <= MAX_ANSWERS:
        return f"answers holds {len(answers)} answers; 1 to {MAX_ANSWERS} are allowed"
    return None


def _is_text(value: Any) -> bool:
    """Whether a value is a string that can be written again: half a surrogate pair cannot."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False


def _reduce_answers(record: Record) -> Record:
    """Ten objects become ten shared strings as soon as they are read: a tenth of the memory."""
    answers = record.get("answers")
    if isinstance(answers, list):
        record["answers"] = [
            sys.intern(text) if type(text) is str else text
            for text in (entry.get("answer") if isinstance(entry, dict) else entry for entry in answers)
        ]
    return record
