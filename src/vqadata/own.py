"""Data of your own: a folder with a file for each split, whose records are in the minimal format.

See `vqadata.records` for that format; data/README.md shows it to its users.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from common.errors import DataError
from vqadata.answers import guess_answer_type, soft_target, tidy
from vqadata.files import is_there
from vqadata.folder import DataFolder, Prepared
from vqadata.official import to_annotation
from vqadata.priors import usual_answer
from vqadata.records import FIELDS, answers_of

Record = dict[str, Any]


def prepare_own(source: DataFolder, occurrences: int = 1) -> Prepared:
    """The examples of a folder; DataError with the first fault if it has one.

    The vocabulary is the folder's answer list if it has one; else every answer, as it is written, that is
    given to at least `occurrences` questions, the most frequent first.
    """
    records = source.read_splits(source.splits())
    if not records:
        raise DataError(f"{source.path} holds no <split>.json.")
    everything = [record for split in records.values() for record in split]
    for record in everything:
        if "answers" in record or "answer" in record:
            record["answers"] = [tidy(answer) for answer in answers_of(record)]
    answers = source.read_answers() if is_there(source.answers_file) else _vocabulary(everything, occurrences)
    splits = {name: [_complete(record, set(answers)) for record in split] for name, split in records.items()}
    annotations = {
        name: [to_annotation(record) for record in split]
        for name, split in records.items()
        if all("answers" in record for record in split)
    }
    return Prepared(splits, annotations, answers)


def _vocabulary(records: Iterable[Record], occurrences: int) -> list[str]:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(set(record.get("answers", record.get("label", ()))))
    answers = [answer for answer, count in counts.items() if count >= occurrences]
    if not answers:
        raise DataError(f"No answer is given to {occurrences} questions or more.")
    return sorted(answers, key=lambda answer: (-counts[answer], answer))


def _complete(record: Record, vocabulary: set[str]) -> Record:
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
