"""The embedded data set: 700 scenes the repository draws itself, in the layout of every other data set.

    train.json nominival.json   320 + 80 scenes x 8 questions, to fine-tune on
    minival.json                300 other scenes x 8 questions, to validate on
    features/scenes/            one feature store for all scenes
    images/<img_id>.png         for reports
    manifest.json               written last: recipe, library versions, checksums

The scenes differ from those of pre-training in style and wording, and some answers are replaced by another of
their family, as annotators disagree: enough to make it matter how the pre-trained model is adapted.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from common.errors import DataError
from common.files import Content, lock_file, read_json, replace_files, write_errors_explained
from vqadata import scenes
from vqadata.answers import guess_answer_type
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder
from vqadata.scenes import Question

GENERATOR = 3  # to be raised with every change of what is written, so that old folders are written again
SEED = 9595
SPLITS = {"train": 320, "nominival": 80, "minival": 300}  # scenes
QUESTIONS_PER_SCENE = 8
STYLE = 0.38
WORDING = 1  # pre-training asks in wording 0
DISAGREEMENT = 0.15


def ensure_scenes(root: Path, *, seed: int = SEED, splits: Mapping[str, int] = SPLITS) -> bool:
    """Write the data set into `root` unless it is there already; true if it was written.

    An unfinished folder, or one of another recipe, is written again. Processes that start at the same time
    wait for the one that writes.
    """
    if _is_written(root, seed, splits):
        return False
    with write_errors_explained(root, DataError):
        root.mkdir(parents=True, exist_ok=True)
        with (root / ".lock").open("w") as lock:
            lock_file(lock, wait=True)
            if _is_written(root, seed, splits):  # by the process that had the lock
                return False
            write_scenes(root, seed=seed, splits=splits)
            return True


def write_scenes(root: Path, *, seed: int = SEED, splits: Mapping[str, int] = SPLITS) -> None:
    """Write the data set into `root`, over whatever version of it is there; the seed determines it."""
    folder = DataFolder.at(root)
    folder.manifest_file.unlink(missing_ok=True)
    (root / "images").mkdir(parents=True, exist_ok=True)
    image_ids = [f"scene_{number:06d}" for number in range(sum(splits.values()))]
    questions: list[list[Question]] = []
    pixels, regions = hashlib.sha256(), hashlib.sha256()

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, image_id in enumerate(tqdm(image_ids, desc="drawing scenes", unit="scene")):
            rng = np.random.default_rng([seed, scenes.FINE_TUNING, number])
            scene = scenes.draw_scene(rng, STYLE)
            questions.append(scenes.ask(scene.things, QUESTIONS_PER_SCENE, WORDING, rng))
            Image.fromarray(scene.image).save(root / "images" / f"{image_id}.png", compress_level=1)
            pixels.update(scene.image.tobytes())
            regions.update(scene.features.tobytes() + scene.boxes.tobytes())
            yield scene.features, scene.boxes

    write_store(
        folder.own_features / "scenes",
        image_ids,
        rows(),
        Layout(scenes.MAX_OBJECTS, scenes.FEATURE_SIZE),
        source=f"drawn by vqadata.sample, generator {GENERATOR}, seed {seed}",
    )
    checksums = {"images (pixels)": pixels.hexdigest(), "features and boxes": regions.hexdigest()}
    contents: dict[Path, Any] = {folder.answers_file: list(scenes.ANSWERS)}
    first = 0
    for position, (split, size) in enumerate(splits.items()):
        rng = np.random.default_rng([seed, scenes.DISAGREEMENT, position])
        answered = disagree(questions[first : first + size], DISAGREEMENT, rng)
        contents[folder.split_file(split)] = [
            _record(first + offset, number, question)
            for offset, questions_of_scene in enumerate(answered)
            for number, question in enumerate(questions_of_scene)
        ]
        first += size
    files: dict[str, Content] = {
        path.name: json.dumps(content, indent=1) + "\n" for path, content in contents.items()
    }
    checksums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    libraries = {"numpy": np.__version__, "pillow": PIL.__version__}
    manifest = _recipe(seed, splits) | libraries | {"sha256": checksums}
    files[folder.manifest_file.name] = json.dumps(manifest, indent=1) + "\n"
    replace_files(root, files)


def disagree(
    questions: Sequence[Sequence[Question]], share: float, rng: np.random.Generator
) -> list[list[Question]]:
    """Give a random share of the questions the answer of a random question of their family.

    `questions` are those of each scene. By chance the other answer may be the same one: of a yes/no family
    only about half of the share ends up wrong.
    """
    pools: defaultdict[str, list[str]] = defaultdict(list)
    for question in (question for of_scene in questions for question in of_scene):
        pools[question.family].append(question.answer)

    def answer(question: Question) -> Question:
        if rng.random() >= share:
            return question
        pool = pools[question.family]
        return question._replace(answer=pool[rng.integers(len(pool))])

    return [[answer(question) for question in of_scene] for of_scene in questions]


def _record(scene: int, number: int, question: Question) -> dict[str, Any]:
    """A question in LXMERT's format."""
    return {
        "question_id": 100 * scene + number,
        "img_id": f"scene_{scene:06d}",
        "sent": question.text,
        "label": {question.answer: 1.0},
        "answer_type": guess_answer_type(question.answer),
        "question_type": question.family,
    }


def _recipe(seed: int, splits: Mapping[str, int]) -> dict[str, Any]:
    return {
        "generator": GENERATOR,
        "seed": seed,
        "scenes": dict(splits),
        "questions_per_scene": QUESTIONS_PER_SCENE,
        "style": STYLE,
        "wording": WORDING,
        "disagreement": DISAGREEMENT,
    }


def _is_written(root: Path, seed: int, splits: Mapping[str, int]) -> bool:
    try:
        manifest = read_json(DataFolder.at(root).manifest_file, DataError)
    except DataError:
        return False
    return isinstance(manifest, dict) and _recipe(seed, splits).items() <= manifest.items()
