"""Two ways of answering the same questions: where they differ, by how much, and how sure that is."""

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common import markdown
from common.errors import RunError
from report.run import Run
from report.statistics import RESAMPLES, Interval, paired_interval

WHEREABOUTS = {"version", "output", "label"}  # arguments that say where a run is and not what it did


class Pair(NamedTuple):
    """What A and B answered to the same N questions."""

    names: Sequence[str]  # of A and of B
    image: np.ndarray  # (N,) what each question is about
    scores: np.ndarray  # (2, N), in [0, 1]
    answers: np.ndarray  # (2, N) str
    types: Mapping[str, np.ndarray]  # (N,) str by kind, such as "question type"


def pair_of_runs(runs: Sequence[Run], at: str = "last", split: str | None = None) -> Pair:
    """Two runs on their validation questions, `at` the "last" epoch or the "best" one, or on another split.

    RunError if one has not ended an epoch, was not tested on the split, or answered other questions.
    """
    one, other = (run.scores(at, split) for run in runs)
    if not np.array_equal(one.question_id, other.question_id):
        names = " and ".join(str(run.folder) for run in runs)
        raise RunError(f"{names} answered different questions: compare runs on the same ones.")
    names = [f"{run.name}, epoch {scores.epoch}" for run, scores in zip(runs, (one, other), strict=True)]
    scores = np.stack([one.score, other.score]).astype(np.float64)
    answers = np.stack([one.answer.astype(str), other.answer.astype(str)])
    return Pair(names, one.image, scores, answers, one.types)


def differing_arguments(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Of each argument that runs do not share, but for where they are, the value in each run, as text."""
    given = [run.arguments for run in runs]
    names = dict.fromkeys(name for arguments in given for name in arguments if name not in WHEREABOUTS)
    values = {name: [arguments.get(name) for arguments in given] for name in names}
    return {
        name: list(map(plain, of_each))
        for name, of_each in values.items()
        if any(value != of_each[0] for value in of_each)
    }


class Part(NamedTuple):
    """How well A and B answered some of the questions, in per cent."""

    kind: str  # such as "question type"; '' for all questions
    name: str
    questions: int
    one: float
    other: float
    difference: Interval | None  # of B - A in points; None for questions about one image


def parts_of(pair: Pair) -> Iterator[Part]:
    """The questions of each type, kind by kind, and all of them last."""
    for kind, names in pair.types.items():
        for name in sorted(set(names.tolist()), key=lambda name: (not name, name)):
            yield _part(kind, name or markdown.UNNAMED, pair, names == name)
    yield _part("", "all", pair, np.ones(pair.scores.shape[1], bool))


def describe(pair: Pair, arguments: Mapping[str, Sequence[str]] | None = None) -> str:
    """Accuracies of both, by type and over all questions, and how often they disagree; for a terminal.

    arguments: those that differ between the runs, see `differing_arguments`; None if they are no runs.
    """
    rows = [["", "questions", "A (%)", "B (%)", "B - A", "95 % interval"]]
    for kind, of_kind in itertools.groupby(parts_of(pair), lambda part: part.kind):
        rows += [[kind, *[""] * 5]] if kind else []
        rows += [_line(part) for part in of_kind]
    parts = ["\n".join(f"{letter}: {name}" for letter, name in zip("AB", pair.names, strict=True))]
    if arguments is not None:
        texts = (f"  --{name}: A {one}, B {other}" for name, (one, other) in arguments.items())
        lines = list(map(_filled, texts)) or ["  none that decides its numbers"]
        parts.append("\n".join(["arguments that differ:", *lines]))
    parts.append(markdown.aligned(rows))
    parts += [_filled(text) for text in sentences(pair)]
    return "\n\n".join(parts)


def _part(kind: str, name: str, pair: Pair, chosen: np.ndarray) -> Part:
    """Of the questions that are `chosen` (N,)."""
    one, other = 100 * pair.scores[:, chosen]
    images = pair.image[chosen]
    interval = paired_interval(other - one, images) if len(np.unique(images)) > 1 else None
    return Part(kind, name, len(images), float(one.mean()), float(other.mean()), interval)


def _line(part: Part) -> list[str]:
    """Its cells."""
    cells = [
        "  " * bool(part.kind) + part.name,
        f"{part.questions:,}",
        f"{part.one:.2f}",
        f"{part.other:.2f}",
    ]
    interval = part.difference
    between = f"[{interval.low:+.2f}, {interval.high:+.2f}]" if interval else "none"
    return [*cells, f"{part.other - part.one:+.2f}", between]


def sentences(pair: Pair, letters: Sequence[str] = "AB") -> Iterator[str]:
    """On how many questions the two, called by letters, disagree, and what the intervals mean."""
    one, other = pair.scores
    differ, images = pair.answers[0] != pair.answers[1], len(np.unique(pair.image))
    better, worse = int((other > one).sum()), int((other < one).sum())
    yield (
        f"They give different answers to {differ.sum():,} of {len(differ):,} questions "
        f"({differ.mean():.1%}): {letters[1]} scores higher on {better:,}, {letters[0]} on {worse:,}, and "
        f"both the same on {differ.sum() - better - worse:,}."
    )
    yield (
        f"Intervals are percentiles of a paired bootstrap that draws the {images:,} images, with all their "
        f"questions, {RESAMPLES:,} times: one that includes 0 does not tell which is better. Those by type "
        "are not corrected for their number. What another seed would change is not part of them."
    )


def plain(value: Any) -> str:
    """The value of an argument as people read it."""
    return "not given" if value is None else str(value)


def _filled(text: str) -> str:
    return textwrap.fill(text, markdown.COLUMNS, subsequent_indent="    " * text.startswith(" "))
