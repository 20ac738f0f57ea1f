"""Small question and annotation files in the published formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TRAIN, VAL = "train2014", "val2014"
WORDS = ("cat", "dog", "red", "two", "yes", "no")


def question(number: int, image: int) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": f"what is number {number}?"}


def answers(number: int) -> list[str]:
    """Ten answers: one word by 3, one by 2, one by 5 or 1 + 4 people."""
    first, second, third = (WORDS[(number + step) % len(WORDS)] for step in range(3))
    return [first] * 3 + [second] * 2 + ([third] * 5 if number % 2 else [third] + ["zebra"] * 4)


def annotation(number: int, image: int) -> dict[str, Any]:
    given = answers(number)
    return {
        "question_id": number,
        "image_id": image,
        "question_type": "what is" if number % 3 else "what",
        "answer_type": "other",
        "multiple_choice_answer": given[0],
        "answers": [
            {"answer": text, "answer_confidence": "maybe", "answer_id": place}
            for place, text in enumerate(given, start=1)
        ],
    }


def numbers(image_set: str, images: int = 12) -> list[tuple[int, int]]:
    """(question id, image id), two questions an image; the sets differ in both."""
    first = 0 if image_set == TRAIN else 500
    return [(10 * image + place, image) for image in range(first + 1, first + images + 1) for place in (0, 1)]


def write_vqav2(folder: Path, *, test: bool = False) -> Path:
    """The five files of VQA v2; annotations in another order than questions."""
    folder.mkdir(parents=True, exist_ok=True)
    for image_set in (TRAIN, VAL):
        pairs = numbers(image_set)
        write(folder / f"v2_OpenEnded_mscoco_{image_set}_questions.json", "questions", question, pairs)
        write(folder / f"v2_mscoco_{image_set}_annotations.json", "annotations", annotation, pairs[::-1])
    if test:
        write(folder / "v2_OpenEnded_mscoco_test2015_questions.json", "questions", question, [(9000, 900)])
    return folder


def write(path: Path, key: str, record: Any, pairs: list[tuple[int, int]]) -> None:
    path.write_text(json.dumps({"info": {}, key: [record(*pair) for pair in pairs]}))


def write_vqacp(folder: Path) -> Path:
    """The four files of VQA-CP v2: flat lists; every fourth question is for testing."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [(pair, image_set) for image_set in (TRAIN, VAL) for pair in numbers(image_set)]
    for split, chosen in (
        ("test", pairs[::4]),
        ("train", [pair for pair in pairs if pair not in pairs[::4]]),
    ):
        for kind, record in (("questions", question), ("annotations", annotation)):
            rows = [record(*pair) | {"coco_split": image_set} for pair, image_set in chosen]
            (folder / f"vqacp_v2_{split}_{kind}.json").write_text(json.dumps(rows))
    return folder


def cp_test_ids() -> set[int]:
    """The test questions of `write_vqacp`."""
    return {pair[0] for pair in [*numbers(TRAIN), *numbers(VAL)][::4]}
