"""From the published question and annotation files, LXMERT's, or your own, to the examples of a data set.

    VQA v2       train, nominival, minival, test
    VQA-CP v2    cp_train, cp_val (images held out of the published training split), cp_test
    your own     a split for each file

Examples are LXMERT's records. The soft targets from any source are equal: human answers counted as they are
and looked up in the vocabulary.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import DataError
from common.words import counted
from vqadata.answers import MIN_OCCURRENCES, build_vocabulary, guess_answer_type, soft_target, tidy
from vqadata.files import find_source, is_there, read_json, read_source
from vqadata.folder import DataFolder, Prepared
from vqadata.official import (
    Annotation,
    Answered,
    Question,
    coco_name,
    read_question_ids,
    read_vqav2,
    require,
    to_annotation,
)
from vqadata.own import read_own
from vqadata.records import FIELDS, Record, answers_of, read_answers, read_records, record_fault, usual_answer

MINIVAL_IMAGES = 5000  # the first of val2014_obj36.tsv
HOLDOUT = 0.05  # share of VQA-CP's training images that cp_val takes

LXMERT_SPLITS = ("train", "nominival", "minival", "test")
LXMERT_ANSWERS = "trainval_label2ans.json"


def prepare_vqav2(
    train: Sequence[Answered],
    val: Sequence[Answered],
    tests: Mapping[str, Sequence[Question]],
    minival: Collection[str],
    *,
    answers: Sequence[str] | None = None,
    occurrences: int = MIN_OCCURRENCES,
) -> Prepared:
    """train, nominival, minival, and the splits of `tests`, whose answers nobody tells.

    minival: the ids of the images of val2014 that are kept for validation. answers: the vocabulary, built
    from train and val if not given.
    """
    parts = {
        "train": train,
        "nominival": [pair for pair in val if pair.question.img_id not in minival],
        "minival": [pair for pair in val if pair.question.img_id in minival],
    }
    if not parts["minival"]:
        raise DataError(
            f"None of the {len(minival):,} minival images has a question in val2014; "
            "does the list hold ids such as COCO_val2014_000000000042?"
        )
    prepared = _prepare(parts, answers, occurrences)
    return add_tests(prepared, tests)


def add_tests(prepared: Prepared, tests: Mapping[str, Sequence[Question]]) -> Prepared:
    """The data set with these splits of questions without answers too, unless it has them."""
    records = {name: [question._asdict() for question in questions] for name, questions in tests.items()}
    new = {name: rows for name, rows in records.items() if name not in prepared.splits}
    return prepared._replace(splits=prepared.splits | new)


def prepare_lxmert(folder: Path, answers: Sequence[str] | None = None) -> Prepared:
    """VQA v2 from LXMERT's `train.json nominival.json minival.json`, and `test.json` if it is there.

    The label order is that of `trainval_label2ans.json` in the same folder if `answers` is not given. These
    files hold soft targets and no human answers, so there are no annotations.
    """
    names = [name for name in LXMERT_SPLITS if name != "test" or find_source(folder, "test.json")]
    require(folder, {f"{name}.json": "https://nlp.cs.unc.edu/data/lxmert_data/vqa/" for name in names})
    answers = list(answers) if answers else read_answers(folder / LXMERT_ANSWERS)
    vocabulary = set(answers)
    splits, seen = {}, set()
    for name in names:
        fault_of = record_fault if name == "test" else partial(record_fault, vocabulary=vocabulary)
        splits[name] = read_records(find_source(folder, f"{name}.json"), "questions", fault_of, seen)
    return Prepared(splits, {}, answers)


def annotate_lxmert(prepared: Prepared, folder: Path) -> Prepared:
    """LXMERT's splits with the published annotations in `folder`, for official scoring."""
    train, val = read_vqav2(folder)
    labelled = {name: records for name, records in prepared.splits.items() if name != "test"}
    return prepared._replace(annotations=annotate(labelled, [pair.annotation for pair in train + val]))


def annotate(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], annotations: Iterable[Annotation]
) -> dict[str, list[Annotation]]:
    """The annotations of each split, in the order of its records; DataError if one has none."""
    known = {annotation.question_id: annotation for annotation in annotations}
    for name, records in splits.items():
        missing = [record["question_id"] for record in records if record["question_id"] not in known]
        if missing:
            raise DataError(
                f"{name}: {counted(len(missing), 'question', 'has')} no annotation, first {missing[0]}."
            )
    return {name: [known[record["question_id"]] for record in records] for name, records in splits.items()}


def prepare_vqacp(
    train: Sequence[Answered],
    test: Sequence[Answered],
    *,
    holdout: float = HOLDOUT,
    seed: int = 0,
    answers: Sequence[str] | None = None,
    occurrences: int = MIN_OCCURRENCES,
) -> Prepared:
    """cp_train, cp_val, cp_test. cp_val: all training questions about a random share `holdout` of the images.

    A vocabulary that is built counts train and test: together they are VQA v2's train and val, from which the
    published vocabulary was made.
    """
    images = hold_out([pair.question.img_id for pair in train], holdout, seed)
    parts = {
        "cp_train": [pair for pair in train if pair.question.img_id not in images],
        "cp_val": [pair for pair in train if pair.question.img_id in images],
        "cp_test": test,
    }
    return _prepare(parts, answers, occurrences)


def prepare_own(source: DataFolder, occurrences: int = 1) -> Prepared:
    """The examples of a folder in a format of `vqadata.own`; DataError with its first fault.

    The vocabulary is the folder's answer list if it has one; else every answer, as it is written, that is
    given to at least `occurrences` questions, the most frequent first.
    """
    records = read_own(source)
    everything = [record for split in records.values() for record in split]
    for record in everything:
        if "answers" in record or "answer" in record:
            record["answers"] = [tidy(answer) for answer in answers_of(record)]
    if is_there(source.answers_file):
        answers = source.read_answers()
    else:
        given = (
            (record["question_id"], answer)
            for record in everything
            for answer in record.get("answers", record.get("label", ()))
        )
        answers = build_vocabulary(given, occurrences, spelling=str)
    if not answers:
        raise DataError(f"No answer is given to {occurrences} questions or more.")
    splits = {name: [_complete(record, set(answers)) for record in split] for name, split in records.items()}
    annotations = {
        name: [to_annotation(record) for record in split]
        for name, split in records.items()
        if all("answers" in record for record in split)
    }
    return Prepared(splits, annotations, answers)


def hold_out(image_ids: Sequence[str], share: float, seed: int) -> set[str]:
    """A random share of the images, at least one; the seed and the set of images determine it."""
    images = sorted(set(image_ids))
    if len(images) < 2:
        raise DataError("A validation part needs at least two training images.")
    count = min(max(1, round(share * len(images))), len(images) - 1)
    chosen = np.random.default_rng(seed).choice(len(images), count, replace=False)
    return {images[number] for number in chosen}


def rebuild_vqacp(folder: Path, test_ids: Collection[int]) -> tuple[list[Answered], list[Answered]]:
    """Train and test of VQA-CP v2: all of VQA v2's train and val, split by the ids of the test questions."""
    train, val = read_vqav2(folder)
    vqav2 = train + val
    unknown = set(test_ids) - {pair.question.question_id for pair in vqav2}
    if unknown:
        raise DataError(
            f"{len(unknown):,} of {len(test_ids):,} test question ids are not in VQA v2's train and val, "
            f"the smallest is {min(unknown)}."
        )
    train = [pair for pair in vqav2 if pair.question.question_id not in test_ids]
    test = [pair for pair in vqav2 if pair.question.question_id in test_ids]
    if not train or not test:
        raise DataError("The test question ids leave nothing for training, or nothing for test.")
    return train, test


def read_minival_images(path: Path) -> set[str]:
    """The images of minival.

    `path` is LXMERT's `minival.json` (all its images), or a list of image ids in the row order of
    `val2014_obj36.tsv`, such as the `image_ids.json` of a feature store (the first 5000): as features know
    them, or COCO's numbers. DataError for anything else.
    """
    entries = read_json(path)
    if isinstance(entries, list) and entries:
        if all(type(entry) is int and entry > 0 for entry in entries):
            entries = [coco_name("val2014", entry) for entry in entries]
        if all(isinstance(entry, str) for entry in entries):
            return set(entries[:MINIVAL_IMAGES])
        if all(isinstance(entry, dict) and isinstance(entry.get("img_id"), str) for entry in entries):
            return {entry["img_id"] for entry in entries}
    raise DataError(
        f"{path} is neither a list of image ids, which are texts or whole numbers, nor LXMERT's minival.json."
    )


def read_test_ids(path: Path) -> set[int]:
    """Question ids from a text file, one per line, or from a JSON list of ids or of records."""
    text = read_source(path)
    if text.lstrip().startswith(("[", "{")):
        return read_question_ids(path)
    lines = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    for number, line in lines.items():
        if not re.fullmatch("[0-9]{1,18}", line):
            raise DataError(f"{path}, line {number}: {line[:40]!r} is not a question id.")
    return set(map(int, lines.values()))


def _prepare(
    parts: Mapping[str, Sequence[Answered]], answers: Sequence[str] | None, occurrences: int
) -> Prepared:
    if not answers:
        right = (
            (pair.question.question_id, pair.annotation.right) for part in parts.values() for pair in part
        )
        answers = build_vocabulary(right, occurrences)
    if not answers:
        raise DataError(
            f"No answer is right for {occurrences} questions or more; choose fewer --occurrences."
        )
    vocabulary = set(answers)
    splits = {name: [_record(*pair, vocabulary) for pair in part] for name, part in parts.items()}
    annotations = {name: [pair.annotation for pair in part] for name, part in parts.items()}
    return Prepared(splits, annotations, list(answers))


def _record(question: Question, annotation: Annotation, vocabulary: Collection[str]) -> Record:
    return {
        **question._asdict(),
        "label": soft_target(annotation.answers, vocabulary),
        "answer_type": annotation.answer_type,
        "question_type": annotation.question_type,
    }


def _complete(record: Record, vocabulary: Collection[str]) -> Record:
    """LXMERT's record of one in the minimal format."""
    example = {field: record[field] for field in (*FIELDS, "group") if field in record}
    if "answers" not in record and "label" not in record:
        return example
    answers: Sequence[str] = record.get("answers", ())
    right = to_annotation(record).right if answers else usual_answer(record)
    return {
        **example,
        "label": record["label"] if "label" in record else soft_target(answers, vocabulary),
        "answer_type": record.get("answer_type", guess_answer_type(right)),
        "question_type": record.get("question_type", ""),
    }
