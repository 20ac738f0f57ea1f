"""Data sets of any size for measurements: as many questions and images as asked for, and no features."""

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json
from vqadata.answers import ANSWER_TYPES, build_vocabulary, soft_target
from vqadata.feature_layout import FORMAT, IMAGE_IDS, MANIFEST, Layout, pack_row, store_checksum
from vqadata.folder import DataFolder, Prepared
from vqadata.official import Annotation, Answered, Question, read_vqav2

ID_STEP = 10**10  # between the question ids of repetitions: larger than any of VQA v2
VALID_EVERY = 25  # a question in so many is for validation: 26,000 of 650,000, as in VQA v2
WORDS = range(4, 13)  # of a drawn question
ANSWERS = 3129


def real_questions(folder: Path) -> list[Answered]:
    """VQA v2's train and val, or the part of it that is in `folder`."""
    train, val = read_vqav2(folder)
    return train + val


def drawn_questions(words: Sequence[str], count: int = 5600) -> list[Answered]:
    """Questions of random `words`, with answers on which ten people agree more or less."""
    rng = np.random.default_rng(0)
    questions = []
    for number in range(count):
        sentence = " ".join(rng.choice(words, rng.choice(WORDS))) + "?"
        right = int(rng.zipf(1.5)) % ANSWERS
        answers = [f"answer {right + int(other)}" for other in rng.integers(0, 3, 10)]
        kind = f"type {number % 65}", ANSWER_TYPES[number % len(ANSWER_TYPES)]
        question = Question(number, f"image_{number}", sentence)
        questions.append(Answered(question, Annotation(number, 0, *kind, answers, answers[0])))
    return questions


def write_dataset(folder: DataFolder, questions: Sequence[Answered], count: int, images: int) -> None:
    """`count` of the questions, repeated with new ids, about `images` images, whose features are zeros.

    Splits are train and minival, which has annotations. The features take no room on a disk that stores
    files with holes as such.
    """
    answers = build_vocabulary(((q.question_id, a.right) for q, a in questions), 1)[:ANSWERS]
    vocabulary = set(answers)
    pairs = list(_repeated(questions, count, images))
    records: dict[str, list[dict[str, Any]]] = {"train": [], "minival": []}
    for number, (question, annotation) in enumerate(pairs):
        record = question._asdict() | {
            "label": soft_target(annotation.answers, vocabulary),
            "answer_type": annotation.answer_type,
            "question_type": annotation.question_type,
        }
        records["minival" if number % VALID_EVERY == 0 else "train"].append(record)
    annotations = [annotation for _, annotation in pairs[::VALID_EVERY]]
    folder.write(Prepared(records, {"minival": annotations}, answers))
    write_empty_store(folder.store("all"), images, Layout(36, 2048))


def write_empty_store(path: Path, images: int, layout: Layout) -> None:
    """A whole store, with row checksums, of features that are all zero, in files that are mostly holes."""
    path.mkdir(parents=True)
    zeros = np.zeros((layout.regions, layout.feature_size), np.float32)
    row = pack_row(layout, zeros, zeros[:, :4])
    for (name, (dtype, shape)), value in zip(layout.columns().items(), row, strict=True):
        array = np.lib.format.open_memmap(path / f"{name}.npy", "w+", dtype, (images, *shape))
        if any(value):  # else what is not written is zero
            array[...] = np.frombuffer(value, dtype).reshape(shape)
        del array
    write_json(path / IMAGE_IDS, [image_id(number) for number in range(images)])
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    manifest = {"format": FORMAT, "images": images, **vars(layout), "source": "zeros", "faults": []}
    write_json(path / MANIFEST, manifest | {"bytes": sizes, "checksum": store_checksum(path)})


def image_id(number: int) -> str:
    return f"COCO_train2014_{number:012d}"


def _repeated(questions: Sequence[Answered], count: int, images: int) -> Iterator[Answered]:
    """Question after question, again and again; each image has as many as any other, up to one."""
    for number, (question, annotation) in enumerate(islice(cycle(questions), count)):
        question_id = question.question_id + number // len(questions) * ID_STEP
        yield Answered(
            question._replace(question_id=question_id, img_id=image_id(number * images // count)),
            annotation._replace(question_id=question_id),
        )
