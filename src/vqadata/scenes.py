"""A small visual world: pictures of coloured shapes, and questions with one reading and one answer.

A scene has 3 to 7 objects on a 4 x 4 grid. Its regions are the objects' boxes, as LXMERT's are the boxes
of a detector, and a region's feature is its crop, 6 x 6 pixels in colour. Six families of questions are
asked, each in two wordings. A *style* shifts a scene away from the clean world (style 0) towards a darker
and noisier one (style 1). Everything is drawn from the random generator that is passed in.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 220),
    "yellow": (235, 215, 50),
    "purple": (140, 50, 170),
    "orange": (245, 140, 30),
    "gray": (130, 130, 130),
    "cyan": (60, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses"}
YES_NO = ("yes", "no")
NUMBERS = ("0", "1", "2", "3", "4", "5")
ANSWERS = (*YES_NO, *NUMBERS, *COLORS, *SHAPES)

CANVAS = 112  # pixels, width and height
GRID = 4
MAX_OBJECTS = 7
PATCH = 6  # a region's crop is resized to PATCH x PATCH
FEATURE_SIZE = PATCH * PATCH * 3

RARITY = 10  # a rare answer is asked for a tenth as often as another one

# Each use of the world has its own stream of random numbers, `default_rng([seed, use, number])`, so that no
# two of them share a scene whatever their seeds.
PRETRAINING, PRETRAINING_CHECK, FINE_TUNING, DISAGREEMENT, MIXED, PRIORS, RENAMED = range(7)


class Thing(NamedTuple):
    """One object; position of the centre and radius in pixels."""

    color: str
    shape: str
    x: float
    y: float
    radius: float
    rgb: tuple[int, int, int]


class Scene(NamedTuple):
    """A picture and its n regions; region i shows things[i]."""

    things: tuple[Thing, ...]
    image: np.ndarray  # (CANVAS, CANVAS, 3) uint8
    features: np.ndarray  # (n, FEATURE_SIZE) float32 in [-1, 1]
    boxes: np.ndarray  # (n, 4) float32: x1, y1, x2, y2 divided by CANVAS


class Question(NamedTuple):
    text: str
    answer: str
    family: str


def draw_scene(rng: np.random.Generator, style: float = 0.0) -> Scene:
    """A random scene."""
    things = _place_things(rng, style)
    darkest = int(225 - 225 * style)
    background = rng.integers(darkest, darkest + 30 + int(40 * style), 3)
    image = Image.new("RGB", (CANVAS, CANVAS), tuple(background.tolist()))
    canvas = ImageDraw.Draw(image)
    for thing in things:
        _draw_thing(canvas, thing)
    noisy = np.asarray(image) + rng.normal(0, 8 + 17 * style, (CANVAS, CANVAS, 3))
    pixels = noisy.clip(0, 255).astype(np.uint8)

    boxes = np.array([_detect(thing, rng) for thing in things])
    features = np.stack([_crop(pixels, box) for box in boxes])
    return Scene(things, pixels, features, (boxes / CANVAS).astype(np.float32))


def _place_things(rng: np.random.Generator, style: float) -> tuple[Thing, ...]:
    """3 to 7 things in cells of their own, of few colours and shapes: then counting and comparing matter."""
    cells = rng.permutation(GRID * GRID)[: rng.integers(3, MAX_OBJECTS + 1)].tolist()
    colors = rng.permutation(list(COLORS))[: rng.integers(2, 5)].tolist()
    shapes = rng.permutation(SHAPES)[: rng.integers(2, 5)].tolist()
    cell = CANVAS / GRID
    things = []
    for number in cells:
        color, shape = str(rng.choice(colors)), str(rng.choice(shapes))
        tint = COLORS[color] + rng.normal(0, 12 + 18 * style, 3)
        rgb = tuple(tint.clip(0, 255).astype(int).tolist())
        radius = rng.uniform(7, 13)
        x, y = rng.uniform(-0.9, 0.9, 2) * (cell / 2 - radius)
        x, y = x + (number % GRID + 0.5) * cell, y + (number // GRID + 0.5) * cell
        things.append(Thing(color, shape, float(x), float(y), float(radius), rgb))
    return tuple(things)


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y, r = thing.x, thing.y, thing.radius

    def box(half_width: float, half_height: float) -> list[float]:
        return [x - half_width, y - half_height, x + half_width, y + half_height]

    if thing.shape == "circle":
        canvas.ellipse(box(r, r), fill=thing.rgb)
    elif thing.shape == "square":
        canvas.rectangle(box(0.85 * r, 0.85 * r), fill=thing.rgb)
    elif thing.shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=thing.rgb)
    elif thing.shape == "star":
        corners = [(r if k % 2 == 0 else 0.42 * r, math.pi * (k / 5 - 0.5)) for k in range(10)]
        canvas.polygon([(x + d * math.cos(a), y + d * math.sin(a)) for d, a in corners], fill=thing.rgb)
    else:
        canvas.rectangle(box(0.3 * r, r), fill=thing.rgb)
        canvas.rectangle(box(r, 0.3 * r), fill=thing.rgb)


def _detect(thing: Thing, rng: np.random.Generator) -> np.ndarray:
    """The box x1, y1, x2, y2 in pixels that an imperfect detector finds."""
    x, y, reach = thing.x, thing.y, 1.1 * thing.radius
    box = np.array([x - reach, y - reach, x + reach, y + reach])
    return (box + rng.normal(0, 1.5, 4)).clip(0, CANVAS)


def _crop(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The pixels in a box as a feature, (FEATURE_SIZE,) in [-1, 1]."""
    crop = Image.fromarray(pixels).crop(tuple(box.round().astype(int).tolist()))
    small = crop.resize((PATCH, PATCH), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / 127.5 - 1


# Family: its two wordings. Pre-training asks in the first, fine-tuning in the second.
WORDINGS = {
    "what color": ("what color is the {shape}?", "what is the color of the {shape}?"),
    "what shape": ("what shape is the {color} object?", "what is the shape of the {color} object?"),
    "is there": ("is there {thing}?", "does the image contain {thing}?"),
    "how many": ("how many {group} are there?", "what number of {group} can be seen?"),
    "are there more": ("are there more {group} than {other}?", "do {group} outnumber {other}?"),
    "same": (
        "do the {a} and the {b} have the same {attribute}?",
        "is the {attribute} of the {a} equal to that of the {b}?",
    ),
}

Slots = dict[str, str]  # what fills the braces of a wording


def vocabulary() -> list[str]:
    """All words that a question can hold in either wording, sorted."""
    wordings = " ".join(wording for pair in WORDINGS.values() for wording in pair)
    fillers = ["a", "an", "object", "objects", "color", "shape", *COLORS, *SHAPES, *PLURALS.values()]
    return sorted({*re.findall(r"\w+|\?", re.sub(r"{\w+}", "", wordings)), *fillers})


def ask(
    things: Sequence[Thing],
    count: int,
    wording: int,
    rng: np.random.Generator,
    rare: Collection[str] = (),
) -> list[Question]:
    """`count` different questions about a scene, in wording 0 or 1.

    A family is drawn from those the scene has questions of, then an answer from those the family has here,
    then a question: the frequent answer of a scene is not asked for more often than the rare one. An answer
    that is `rare` is asked for a tenth as often.
    """
    offers = {family: offer for family in WORDINGS if (offer := offered(things, family))}
    families = list(offers)
    questions: dict[str, Question] = {}
    while len(questions) < count:
        family = families[rng.integers(len(families))]
        answers = list(offers[family])
        answer = answers[rng.integers(len(answers))]
        if answer in rare and rng.integers(RARITY):
            continue
        candidates = offers[family][answer]
        text = WORDINGS[family][wording].format(**candidates[rng.integers(len(candidates))])
        questions.setdefault(text, Question(text, answer, family))
    return list(questions.values())


def offered(things: Sequence[Thing], family: str) -> dict[str, list[Slots]]:
    """All questions of a family with a unique reading in this scene, by answer.

    Yes/no questions are offered only if both answers occur, so that neither is the better guess.
    """
    offer: defaultdict[str, list[Slots]] = defaultdict(list)
    for answer, slots in _FIND[family](things):
        offer[answer].append(slots)
    one_sided = len(offer) == 1 and offer.keys() <= set(YES_NO)
    return {} if one_sided else dict(offer)


def _attributes(things: Sequence[Thing], asked: str, told: str) -> Iterator[tuple[str, Slots]]:
    """The `asked` attribute of each thing that has its `told` one alone."""
    counts = Counter(getattr(thing, told) for thing in things)
    for thing in things:
        if counts[getattr(thing, told)] == 1:
            yield getattr(thing, asked), {told: getattr(thing, told)}


def _existence(things: Sequence[Thing]) -> Iterator[tuple[str, Slots]]:
    """Three in five absent pairs have a colour and a shape that are present, if there is such a pair."""
    present = {(thing.color, thing.shape) for thing in things}
    colors = {thing.color for thing in things}
    shapes = {thing.shape for thing in things}
    absent = [pair for pair in product(COLORS, SHAPES) if pair not in present]
    mixed_up = [(color, shape) for color, shape in absent if color in colors and shape in shapes]
    # Strangers are many and mix-ups few: repeating a mix-up is what makes drawing it more likely.
    repeats = round(1.5 * (len(absent) - len(mixed_up)) / max(1, len(mixed_up)))
    pairs = [("yes", pair) for pair in sorted(present)]
    pairs += [("no", pair) for pair in absent + mixed_up * (repeats - 1)]
    for answer, (color, shape) in pairs:
        article = "an" if color[0] in "aeiou" else "a"
        yield answer, {"thing": f"{article} {color} {shape}"}


def _groups(things: Sequence[Thing]) -> tuple[dict[str, int], dict[str, int]]:
    """How many things have each colour, and each shape."""
    count = Counter(value for thing in things for value in (thing.color, thing.shape))
    colors = {f"{color} objects": count[color] for color in COLORS}
    return colors, {plural: count[shape] for shape, plural in PLURALS.items()}


def _counts(things: Sequence[Thing]) -> Iterator[tuple[str, Slots]]:
    colors, shapes = _groups(things)
    for group, size in (colors | shapes).items():
        if str(size) in NUMBERS:
            yield str(size), {"group": group}


def _comparisons(things: Sequence[Thing]) -> Iterator[tuple[str, Slots]]:
    """Two groups of colours or two of shapes, both present."""
    for groups in _groups(things):
        for group, other in permutations((group for group, size in groups.items() if size), 2):
            answer = "yes" if groups[group] > groups[other] else "no"
            yield answer, {"group": group, "other": other}


def _same_attribute(things: Sequence[Thing]) -> Iterator[tuple[str, Slots]]:
    """Two things, named uniquely, without giving the asked attribute of both away."""
    for attribute in ("color", "shape"):
        named = [name for thing in things for name in _names(thing, things, attribute)]
        for (a, thing_a, told_a), (b, thing_b, told_b) in permutations(named, 2):
            if thing_a is not thing_b and not (told_a and told_b):
                alike = getattr(thing_a, attribute) == getattr(thing_b, attribute)
                yield "yes" if alike else "no", {"a": a, "b": b, "attribute": attribute}


def _names(thing: Thing, things: Sequence[Thing], asked: str) -> Iterator[tuple[str, Thing, bool]]:
    """(phrase that fits this thing alone, the thing, whether the phrase tells the asked attribute).

    "The red object" is no name when colours are compared: it says that nothing else is red.
    """
    color, shape = thing.color, thing.shape
    if asked == "color" and sum(other.shape == shape for other in things) == 1:
        yield shape, thing, False
    if asked == "shape" and sum(other.color == color for other in things) == 1:
        yield f"{color} object", thing, False
    if sum((other.color, other.shape) == (color, shape) for other in things) == 1:
        yield f"{color} {shape}", thing, True


_FIND = {
    "what color": partial(_attributes, asked="color", told="shape"),
    "what shape": partial(_attributes, asked="shape", told="color"),
    "is there": _existence,
    "how many": _counts,
    "are there more": _comparisons,
    "same": _same_attribute,
}
