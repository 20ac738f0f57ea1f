"""The embedded data sets: scenes the repository draws itself, in the layout of every other data set.

    <split>.json          the questions of a split, 8 a scene
    features/scenes/      one feature store for all scenes
    images/<img_id>.png   for reports
    manifest.json         written last: recipe, library versions, checksums

Each differs from the world of pre-training in a way of its own, see EMBEDDED, so that it is known what there
is to adapt. In all of them some answers are replaced by another of their family, as annotators disagree:
enough to make it matter how the pre-trained model is adapted.

Each can be drawn again from another seed: `scenes-mixed-draw3` is what `scenes-mixed` is, from seed 3. What
is chosen on such a draw can be measured on scenes that the choice has not seen.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

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
from vqadata.files import is_there
from vqadata.folder import DataFolder
from vqadata.scenes import Question

GENERATOR = 3  # to be raised with every change of what is written, so that old folders are written again
SEED = 9595
QUESTIONS_PER_SCENE = 8
DISAGREEMENT = 0.15


class Look(NamedTuple):
    """How scenes are drawn, and in which wording they are asked about. Pre-training has Look(0.0, 0)."""

    style: float
    wording: int
    group: str = ""  # what their questions' records call it


@dataclass(frozen=True)
class Embedded:
    """An embedded data set."""

    stream: int  # of random numbers, one of those of `vqadata.scenes`
    splits: Mapping[str, int]  # scenes
    looks: Sequence[Look]  # scenes take turns
    rare: Mapping[str, Collection[str]] = field(default_factory=dict)  # answers, by split
    renamed: Mapping[str, str] = field(default_factory=dict)  # answers that get another name

    def look(self, scene: int) -> Look:
        """That of a scene, by its number."""
        return self.looks[scene % len(self.looks)]


CLEAN = Look(0.0, 0)
COLORS = tuple(scenes.COLORS)
NEXT_COLOR = dict(zip(COLORS, (*COLORS[1:], COLORS[0]), strict=True))
USUAL, OTHERS = scenes.ANSWERS[::2], scenes.ANSWERS[1::2]  # half of the answers of each family each
EMBEDDED = {
    # A shift at the input: darker and noisier scenes, another wording.
    "scenes": Embedded(scenes.FINE_TUNING, {"train": 320, "nominival": 80, "minival": 300}, [Look(0.38, 1)]),
    # Every other scene is one of pre-training, the rest is shifted at the input: what should be tuned depends
    # on the scene.
    "scenes-mixed": Embedded(
        scenes.MIXED,
        {"train": 320, "nominival": 80, "minival": 800},
        [Look(0.0, 0, "clean"), Look(0.6, 1, "shifted")],
    ),
    # A shift at the output: one half of the answers of each family is rare in training, the other in test.
    "scenes-cp": Embedded(
        scenes.PRIORS,
        {"cp_train": 400, "cp_val": 300, "cp_test": 300},
        [CLEAN],
        rare={"cp_train": OTHERS, "cp_val": OTHERS, "cp_test": USUAL},
    ),
    # A shift at the output: a colour that is asked for is called by the name of the next one. Questions that
    # tell a colour keep its name, or the shift would be one at the input too.
    "scenes-renamed": Embedded(
        scenes.RENAMED, {"train": 320, "nominival": 80, "minival": 300}, [CLEAN], renamed=NEXT_COLOR
    ),
}


class Draw(NamedTuple):
    """An embedded data set as a seed draws it; `number` is None in the default draw."""

    dataset: str
    number: int | None

    @property
    def embedded(self) -> Embedded:
        return EMBEDDED[self.dataset]

    @property
    def seed(self) -> int:
        return self.number or SEED


def parse_draw(name: str) -> Draw | None:
    """Which draw a data set's name stands for: scenes-cp-draw3, or scenes-cp; None if it is not embedded."""
    match = re.fullmatch(r"(.+?)(?:-draw([1-9]\d{0,8}))?", name)
    if not match or match[1] not in EMBEDDED:
        return None
    return Draw(match[1], int(match[2]) if match[2] else None)


def is_to_be_drawn(folder: DataFolder) -> bool:
    """Whether the first run on a data set writes it."""
    return parse_draw(folder.name) is not None and not (folder.is_prepared or is_there(folder.manifest_file))


def ensure_scenes(folder: DataFolder, embedded: Embedded, seed: int = SEED) -> bool:
    """Write the data set into its folder unless it is there already; true if it was written.

    An unfinished folder, or one of another recipe, is written again; one that a user prepared is left alone.
    Processes that start at the same time wait for the one that writes.
    """
    if folder.is_prepared or _is_written(folder, embedded, seed):
        return False
    with write_errors_explained(folder.path, DataError):
        folder.path.mkdir(parents=True, exist_ok=True)
        with (folder.path / ".lock").open("w") as lock:
            lock_file(lock, wait=True)
            if _is_written(folder, embedded, seed):  # by the process that had the lock
                return False
            write_scenes(folder, embedded, seed)
            return True


def write_scenes(folder: DataFolder, embedded: Embedded, seed: int = SEED) -> None:
    """Write the data set into its folder, over whatever version of it is there; the seed determines it."""
    folder.manifest_file.unlink(missing_ok=True)
    images = folder.path / "images"
    images.mkdir(parents=True, exist_ok=True)
    split_of = [split for split, size in embedded.splits.items() for _ in range(size)]
    image_ids = [f"scene_{number:06d}" for number in range(len(split_of))]
    questions: list[list[Question]] = []
    pixels, regions = hashlib.sha256(), hashlib.sha256()

    def rows() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        bar = tqdm(image_ids, desc=f"drawing {folder.name}", unit="scene")
        for number, image_id in enumerate(bar):
            rng, look = np.random.default_rng([seed, embedded.stream, number]), embedded.look(number)
            scene = scenes.draw_scene(rng, look.style)
            rare = embedded.rare.get(split_of[number], ())
            questions.append(scenes.ask(scene.things, QUESTIONS_PER_SCENE, look.wording, rng, rare))
            Image.fromarray(scene.image).save(images / f"{image_id}.png", compress_level=1)
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
    for position, (split, size) in enumerate(embedded.splits.items()):
        rng = np.random.default_rng([seed, scenes.DISAGREEMENT, position])
        answered = disagree(questions[first : first + size], DISAGREEMENT, rng)
        contents[folder.split_file(split)] = [
            _record(embedded, first + offset, number, question)
            for offset, questions_of_scene in enumerate(answered)
            for number, question in enumerate(questions_of_scene)
        ]
        first += size
    files: dict[str, Content] = {
        path.name: json.dumps(content, indent=1) + "\n" for path, content in contents.items()
    }
    checksums |= {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    libraries = {"numpy": np.__version__, "pillow": PIL.__version__}
    manifest = _recipe(embedded, seed) | libraries | {"sha256": checksums}
    files[folder.manifest_file.name] = json.dumps(manifest, indent=1) + "\n"
    replace_files(folder.path, files)


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


def _record(embedded: Embedded, scene: int, number: int, question: Question) -> dict[str, Any]:
    """A question in LXMERT's format."""
    group = embedded.look(scene).group
    return {
        "question_id": 100 * scene + number,
        "img_id": f"scene_{scene:06d}",
        "sent": question.text,
        "label": {embedded.renamed.get(question.answer, question.answer): 1.0},
        "answer_type": guess_answer_type(question.answer),
        "question_type": question.family,
        **({"group": group} if group else {}),
    }


def _recipe(embedded: Embedded, seed: int) -> dict[str, Any]:
    """What decides the data set, as JSON has it."""
    look, *others = embedded.looks
    looks = {"looks": [each._asdict() for each in embedded.looks]}
    recipe = {
        "generator": GENERATOR,
        "seed": seed,
        "scenes": dict(embedded.splits),
        "questions_per_scene": QUESTIONS_PER_SCENE,
        **(looks if others else {"style": look.style, "wording": look.wording}),
        "disagreement": DISAGREEMENT,
        "rare": {split: list(answers) for split, answers in embedded.rare.items()},
        "renamed": dict(embedded.renamed),
    }
    return {name: value for name, value in recipe.items() if value != {}}


def _is_written(folder: DataFolder, embedded: Embedded, seed: int) -> bool:
    try:
        manifest = read_json(folder.manifest_file, DataError)
    except DataError:
        return False
    return isinstance(manifest, dict) and _recipe(embedded, seed).items() <= manifest.items()
