"""Two ways of answering the same questions: where they differ, by how much, and how sure that is."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common import markdown
from common.errors import RunError
from report.run import Run
from report.statistics import RESAMPLES, paired_interval

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


def differing_arguments(runs: Sequence[Run]) -> list[str]:
    """A line for each argument that two runs do not share, but for where they are."""
    one, other = (run.arguments for run in runs)
    names = dict.fromkeys([*one, *other])
    return [
        f"--{name}: A {_plain(one.get(name))}, B {_plain(other.get(name))}"
        for name in names
        if name not in WHEREABOUTS and one.get(name) != other.get(name)
    ]


def describe(pair: Pair, arguments: Sequence[str] | None = None) -> str:
    """Accuracies of both, over all questions and by type, and how often they disagree; for a terminal.

    arguments: what differs between the runs, a line each; None if they are no runs.
    """
    count = pair.scores.shape[1]
    heading = ["", "questions", "A (%)", "B (%)", "B - A", "95 % interval"]
    rows = [_line("all", pair, np.ones(count, bool))]
    for kind, names in pair.types.items():
        rows.append([kind, *[""] * 5])
        rows += [_line(f"  {name or '-'}", pair, names == name) for name in np.unique(names)]
    parts = ["\n".join(f"{letter}: {name}" for letter, name in zip("AB", pair.names, strict=True))]
    if arguments is not None:
        lines = [_filled(f"  {line}") for line in arguments] or ["  none that decides its numbers"]
        parts.append("\n".join(["arguments that differ:", *lines]))
    parts.append(markdown.aligned([heading, *rows]))
    parts += [_filled(text) for text in _sentences(pair)]
    return "\n\n".join(parts)


def _line(name: str, pair: Pair, chosen: np.ndarray) -> list[str]:
    """The cells of the questions that are `chosen` (N,)."""
    one, other = 100 * pair.scores[:, chosen]
    cells = [name, f"{chosen.sum():,}", f"{one.mean():.2f}", f"{other.mean():.2f}"]
    cells.append(f"{(other - one).mean():+.2f}")
    if len(np.unique(pair.image[chosen])) < 2:
        return [*cells, "none"]
    interval = paired_interval(other - one, pair.image[chosen])
    return [*cells, f"[{interval.low:+.2f}, {interval.high:+.2f}]"]


def _sentences(pair: Pair) -> Iterator[str]:
    one, other = pair.scores
    differ, images = pair.answers[0] != pair.answers[1], len(np.unique(pair.image))
    better, worse = int((other > one).sum()), int((other < one).sum())
    yield (
        f"They give different answers to {differ.sum():,} of {len(differ):,} questions "
        f"({differ.mean():.1%}): B scores higher on {better:,}, A on {worse:,}, and both the same on "
        f"{differ.sum() - better - worse:,}."
    )
    yield (
        f"Intervals are percentiles of a paired bootstrap that draws the {images:,} images, with all their "
        f"questions, {RESAMPLES:,} times: one that includes 0 does not tell which is better. Those by type "
        "are not corrected for their number. What another seed would change is not part of them."
    )


def _plain(value: Any) -> str:
    return "not given" if value is None else str(value)


def _filled(text: str) -> str:
    return textwrap.fill(text, markdown.COLUMNS, subsequent_indent="    " * text.startswith(" "))
