"""Data of your own: a folder with a file for each split, and feature stores.

    <folder>/
      <split>.json      a list of records
      features/<store>/ region features (see vqadata.features)

A record holds

    question_id   an integer, different for every question of the folder
    img_id        the image, as the feature store names it
    sent          the question
    answers       a list of 1 to 10 answers, one of each person asked; or
    answer        the only answer; or
    label         {answer: score between 0 and 1}, if scores are known already
    answer_type   yes/no, number or other; guessed from the answer if left out
    question_type any text to report results by; '' if left out
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from common.errors import DataError
from vqadata.answers import ANSWER_TYPES, guess_answer_type, soft_target, tidy
from vqadata.files import read_answer_list, read_json
from vqadata.official import annotation_fault, lacking, read_records, to_annotation
from vqadata.priors import usual_answer
from vqadata.questions import ANSWERS, RECORD, Prepared, lxmert_fault

FIELDS = ("question_id", "img_id", "sent")
NOT_SPLITS = frozenset({ANSWERS, RECORD, "features.json", "manifest.json"})


def prepare_own(folder: Path, occurrences: int = 1) -> Prepared:
    """The examples of a folder; DataError with the first fault if it has one.

    The vocabulary is `answers.json` if it is there; else every answer, as it is written, that is given to at
    least `occurrences` questions, the most frequent first.
    """
    seen: set[int] = set()
    records = {path.stem: read_split(path, seen) for path in split_files(folder)}
    if not records:
        raise DataError(f"{folder} holds no <split>.json.")
    for record in (record for split in records.values() for record in split):
        if "answer" in record and "answers" not in record:
            record["answers"] = [record["answer"]]
        if "answers" in record:
            record["answers"] = [tidy(answer) for answer in record["answers"]]
    answers = read_vocabulary(folder) or _count(records, occurrences)
    splits = {name: [_complete(record, set(answers)) for record in split] for name, split in records.items()}
    annotations = {
        name: [to_annotation(record) for record in split]
        for name, split in records.items()
        if all("answers" in record for record in split)
    }
    return Prepared(splits, annotations, answers)


def read_split(path: Path, seen: set[int] | None = None) -> list[dict[str, Any]]:
    """The records of a file; DataError with the first fault. `seen` collects question ids over files."""
    records = read_records(path, "questions")
    seen = set() if seen is None else seen
    for index, record in enumerate(records):
        if fault := record_fault(record, seen):
            raise DataError(f"{path}, record {index}: {fault}.")
    return records


def find_faults(folder: Path) -> Iterator[str]:
    """Every fault of a data set as "file, record, field and what is wrong", in file order."""
    paths = split_files(folder)
    if not paths:
        yield f"{folder}: holds no <split>.json"
    images, faults = _images_with_features(folder)
    yield from faults
    try:
        read_vocabulary(folder)
    except DataError as error:
        yield str(error)
    seen: set[int] = set()
    for path in paths:
        try:
            records = read_records(path, "questions")
        except DataError as error:
            yield str(error)
            continue
        for index, record in enumerate(records):
            fault = record_fault(record, seen)
            if not fault and images is not None and record["img_id"] not in images:
                fault = f"img_id {record['img_id']!r} has no features"
            if fault:
                yield f"{path}, record {index}: {fault}"


def record_fault(record: Any, seen: set[int]) -> str | None:
    """What is wrong with a record of the minimal format, naming the field; `seen` collects question ids."""
    if fault := lacking(record, FIELDS):
        return fault
    if record["question_id"] in seen:
        return f"question_id {record['question_id']} came before"
    seen.add(record["question_id"])
    for field in ("img_id", "sent"):
        if not isinstance(record[field], str) or not record[field].strip():
            return f"{field} is not a string with something in it"
    if fault := lxmert_fault(record, None):
        return fault
    if record.get("answer_type", "other") not in ANSWER_TYPES:
        return f"answer_type {record['answer_type']!r} is none of {', '.join(ANSWER_TYPES)}"
    if "answers" not in record and "answer" not in record:
        return None  # a question to answer, or one with a label
    if fault := annotation_fault(record):
        return fault
    answers = record["answers"] if "answers" in record else [record["answer"]]
    if not all(map(str.strip, answers)):
        return "answers holds an empty answer" if "answers" in record else "answer is empty"
    return None


def split_files(folder: Path) -> list[Path]:
    """The files of a folder that hold questions."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.")
    return sorted(path for path in folder.glob("*.json") if path.name not in NOT_SPLITS)


def read_vocabulary(folder: Path) -> list[str] | None:
    """`answers.json` of a folder, if it is there."""
    path = folder / "answers.json"
    return read_answer_list(path) if path.exists() else None


def features_folder(folder: Path) -> Path:
    """Where the feature stores of a data set are: `features/`, or what `features.json` points to.

    `features.json` holds {"folder": path from the data set's folder}: two data sets about the same images
    share their features. DataError if it holds anything else.
    """
    pointer = folder / "features.json"
    if not pointer.exists():
        return folder / "features"
    document = read_json(pointer)
    target = document.get("folder") if isinstance(document, dict) else None
    if not isinstance(target, str):
        raise DataError(f'{pointer} does not hold {{"folder": "<path>"}}.')
    return Path(os.path.normpath(folder / target))


def _images_with_features(folder: Path) -> tuple[set[str] | None, list[str]]:
    """The ids in all feature stores (None: there is none that can be read), and what is wrong with them."""
    images: set[str] = set()
    try:
        stores = features_folder(folder)
        manifests = sorted(stores.glob("*/manifest.json"))
        if not manifests:
            return None, [f"{stores}: holds no feature store"]
        for manifest in manifests:
            ids = read_json(manifest.parent / "image_ids.json")
            if not isinstance(ids, list) or not all(isinstance(image, str) for image in ids):
                return None, [f"{manifest.parent / 'image_ids.json'}: is not a list of image ids"]
            images.update(ids)
    except DataError as error:
        return None, [str(error)]
    return images, []


def _count(records: dict[str, list[dict[str, Any]]], occurrences: int) -> list[str]:
    counts: Counter[str] = Counter()
    for record in (record for split in records.values() for record in split):
        counts.update(set(record.get("answers", record.get("label", ()))))
    answers = [answer for answer, count in counts.items() if count >= occurrences]
    if not answers:
        raise DataError(f"No answer is given to {occurrences} questions or more.")
    return sorted(answers, key=lambda answer: (-counts[answer], answer))


def _complete(record: dict[str, Any], vocabulary: set[str]) -> dict[str, Any]:
    """LXMERT's record of one in the minimal format."""
    example = {field: record[field] for field in FIELDS}
    if "answers" not in record and "label" not in record:
        return example
    answers: Sequence[str] = record.get("answers", ())
    label = record["label"] if "label" in record else soft_target(answers, vocabulary)
    right = to_annotation(record).right if answers else usual_answer(record)
    return {
        **example,
        "label": label,
        "answer_type": record.get("answer_type", guess_answer_type(right)),
        "question_type": record.get("question_type", ""),
    }
