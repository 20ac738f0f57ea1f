"""The published question and annotation files: VQA v2's, VQA-CP v2's flat lists, and lists of our own."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import DataError
from common.files import nfc
from vqadata.answers import guess_answer_type, most_frequent
from vqadata.files import Source, find_source, holds
from vqadata.records import annotation_fault, answers_of, question_fault, read_list, read_records

# Each file of VQA v2 and the published archive it comes in.
ARCHIVES = {
    "v2_OpenEnded_mscoco_train2014_questions.json": "v2_Questions_Train_mscoco.zip",
    "v2_OpenEnded_mscoco_val2014_questions.json": "v2_Questions_Val_mscoco.zip",
    "v2_OpenEnded_mscoco_test2015_questions.json": "v2_Questions_Test_mscoco.zip",
    "v2_OpenEnded_mscoco_test-dev2015_questions.json": "v2_Questions_Test_mscoco.zip",
    "v2_mscoco_train2014_annotations.json": "v2_Annotations_Train_mscoco.zip",
    "v2_mscoco_val2014_annotations.json": "v2_Annotations_Val_mscoco.zip",
}
COCO_SETS = ("train2014", "val2014", "test2015")  # of images
# The splits whose answers only the evaluation server knows, and what it calls them; both are about test2015.
SERVER_SPLITS = {"test": "test2015", "test-dev": "test-dev2015"}
ARCHIVE_HOST = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa/"
CP_FILES = tuple(
    f"vqacp_v2_{split}_{kind}.json" for split in ("train", "test") for kind in ("questions", "annotations")
)


class Question(NamedTuple):
    """A question in the words of LXMERT's records."""

    question_id: int
    img_id: str  # as features know it: COCO_val2014_000000000042
    sent: str


class Annotation(NamedTuple):
    """What humans answered to a question."""

    question_id: int
    image_id: int | str  # a number in the official files
    question_type: str
    answer_type: str  # one of ANSWER_TYPES
    answers: Sequence[str]  # 1 to 10
    right: str  # the one answer taken as right: `multiple_choice_answer`


class Answered(NamedTuple):
    """A question, and what humans answered to it."""

    question: Question
    annotation: Annotation


def require_vqav2(folder: Path) -> None:
    """DataError that lists the files of VQA v2's train and val that are not in `folder`."""
    require(
        folder, {name: ARCHIVE_HOST + archive for name, archive in ARCHIVES.items() if "_test" not in name}
    )


def read_vqav2(folder: Path) -> tuple[list[Answered], list[Answered]]:
    """train2014 and val2014 of VQA v2."""
    require_vqav2(folder)
    return _read_coco(folder, "train2014"), _read_coco(folder, "val2014")


def read_vqav2_tests(folder: Path) -> dict[str, list[Question]]:
    """The questions of test and of its part test-dev, of each whose file is there."""
    names = {split: f"v2_OpenEnded_mscoco_{part}_questions.json" for split, part in SERVER_SPLITS.items()}
    sources = {split: find_source(folder, name, ARCHIVES[name]) for split, name in names.items()}
    return {
        split: read_questions(source, "test2015")
        for split, source in sources.items()
        if source and holds(source)
    }


def results_name(split: str, name: str) -> str | None:
    """What the evaluation server wants predictions to be called; None for splits that it has not."""
    part = SERVER_SPLITS.get(split)
    return f"vqa_OpenEnded_mscoco_{part}_{name}_results.json" if part else None


def read_vqacp(folder: Path) -> tuple[list[Answered], list[Answered]]:
    """Train and test of VQA-CP v2, from its four published files."""
    require(folder, dict.fromkeys(CP_FILES, "no published host is left; --test-ids rebuilds it from VQA v2"))
    sources = [find_source(folder, name) for name in CP_FILES]
    return read_answered(*sources[:2], None), read_answered(*sources[2:], None)


def read_questions(
    source: Source | Path, image_set: str | None = None, *, own: bool = False
) -> list[Question]:
    """Questions in file order; without `image_set` every record names its own in `coco_split`.

    own: of images that need not be COCO's, whose ids are then their names. DataError for a file or a record
    that cannot be used, and for a question id that comes twice.
    """
    fault_of = partial(question_fault, names_image_set=not (image_set or own), own=own)
    records = read_records(source, "questions", fault_of)
    return [
        Question(record["question_id"], _image_name(record, image_set), record["question"])
        for record in records
    ]


def _image_name(record: Mapping[str, Any], image_set: str | None) -> str:
    """As features know the image of an official question."""
    image_id, image_set = record["image_id"], image_set or record.get("coco_split")
    return coco_name(image_set, image_id) if image_set and type(image_id) is int else nfc(str(image_id))


def coco_name(image_set: str, image_id: int) -> str:
    """As features know an image of COCO by its number."""
    return f"COCO_{image_set}_{image_id:012d}"


def read_question_ids(path: Path) -> set[int]:
    """The question ids of an official question file, of a split of ours, or of a plain JSON list of ids."""
    rows = read_list(path, "questions")
    ids = [row.get("question_id") if isinstance(row, dict) else row for row in rows]
    for index, question_id in enumerate(ids):
        if type(question_id) is not int:
            raise DataError(f"{path}, record {index}: question_id is missing or not an integer.")
    return set(ids)


def read_annotations(source: Source | Path) -> list[Annotation]:
    """Annotations in file order.

    `answers` may be the official objects or strings, or a single `answer`. Question type and answer type may
    be left out. DataError for a file or a record that cannot be used, and for a question id that comes twice.
    """
    return [to_annotation(record) for record in read_records(source, "annotations", annotation_fault)]


def to_annotation(record: dict[str, Any]) -> Annotation:
    """A record without fault as an annotation; what may be left out is filled in."""
    answers = answers_of(record)
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


def _read_coco(folder: Path, image_set: str) -> list[Answered]:
    names = f"v2_OpenEnded_mscoco_{image_set}_questions.json", f"v2_mscoco_{image_set}_annotations.json"
    questions, annotations = (find_source(folder, name, ARCHIVES[name]) for name in names)
    return read_answered(questions, annotations, image_set)


def read_answered(
    questions: Source, annotations: Source, image_set: str | None, *, own: bool = False
) -> list[Answered]:
    """Questions and annotations, brought into the order of the questions; DataError if they do not fit.

    image_set, own: as in `read_questions`.
    """
    rows = read_questions(questions, image_set, own=own)
    by_id = {annotation.question_id: annotation for annotation in read_annotations(annotations)}
    for one, ids, other, other_ids in (
        (questions, [question.question_id for question in rows], annotations, by_id),
        (annotations, by_id, questions, {question.question_id for question in rows}),
    ):
        missing = [number for number in ids if number not in other_ids]
        if missing:
            raise DataError(
                f"{len(missing):,} questions of {one} are not in {other}, the first is {missing[0]}; "
                "are the two files of the same version?"
            )
    for question in rows:
        image_id = by_id[question.question_id].image_id
        same = question.img_id == nfc(str(image_id)) or question.img_id.endswith(f"_{image_id:0>12}")
        if image_id and not same:
            raise DataError(
                f"Question {question.question_id} is about {question.img_id} in {questions} "
                f"and about image {image_id} in {annotations}."
            )
    return [Answered(question, by_id[question.question_id]) for question in rows]


def require(folder: Path, files: Mapping[str, str]) -> None:
    """DataError that lists the files that are not there, and where each can be had."""
    missing = {
        name: where for name, where in files.items() if not find_source(folder, name, ARCHIVES.get(name))
    }
    if missing:
        lines = "".join(f"\n  {name}  ({where})" for name, where in missing.items())
        raise DataError(f"{folder} lacks files (plain, .gz or in their .zip):{lines}")
