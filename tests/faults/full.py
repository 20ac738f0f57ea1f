"""The disk is full: the run says so, LAST and BEST are whole, and it goes on exactly when there is room."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.cases import Case, Group
from tests.faults.equal import state
from tests.faults.mounts import fill, small_disk
from tests.faults.place import EPOCH, TRAINING, VALIDATION, Place, at_batch
from tests.faults.process import Hook, Outcome

ROOM = "3m"  # of the small disk; a run folder and its pictures take about one
WORDS = ("space", "full")


def filled(
    where: str, leave: int, hook_at: Callable[[Callable[[], None]], Hook] | None, begun: str
) -> Callable:
    """where: what lies on the small disk. hook_at: when it fills up; None: before the run."""

    def fault(place: Place) -> str | None:
        disk = place.take("data").root / where
        with small_disk(disk, ROOM):
            if begun == "stopped":
                shutil.copytree(place.prepared("stopped") / where, disk, dirs_exist_ok=True)
            return judged(place, disk)

    def judged(place: Place, disk: Path) -> str | None:
        if hook_at is None:
            fill(disk, leave)
        before = state(place.run / "LAST").keys(), state(place.run / "BEST").keys()
        hooks = [] if hook_at is None else [hook_at(lambda: fill(disk, leave))]
        outcome = place.train("--save_every", "1", hooks=hooks)
        if wrong := spoke_of_space(outcome):
            return wrong
        after = state(place.run / "LAST").keys(), state(place.run / "BEST").keys()
        if any(old - new for old, new in zip(before, after, strict=True)):
            return "LAST or BEST is no longer whole"
        (disk / "filling").unlink()
        return place.equal(place.train("--save_every", "1"))

    return fault


def spoke_of_space(outcome: Outcome) -> str | None:
    if outcome.traceback:
        return f"traceback: {outcome.traceback}"
    if outcome.code == 0:
        return None  # what did not fit only reports
    if outcome.code != 2 or "error: " not in outcome.err:
        return f"exit code {outcome.code}: {outcome.sentence}"
    if not any(word in outcome.sentence for word in WORDS):
        return f"the sentence has no word of space: {outcome.sentence}"
    return None


def limited(size: int, hook_at: Callable[[Callable[[], None]], Hook] | None) -> Callable[[Place], str | None]:
    """No file may become larger, as by a quota or ulimit -f."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def fault(place: Place) -> str | None:
        outcome = place.take("data").train("--save_every", "1", hooks=[hook_at(limit) if hook_at else limit])
        if outcome.traceback:
            return f"traceback: {outcome.traceback}"
        if outcome.code not in (0, 2) or (outcome.code and "error: " not in outcome.err):
            return f"exit code {outcome.code}: {outcome.sentence}"
        return place.equal(place.train("--save_every", "1"))

    return fault


def predictions_do_not_fit(place: Place) -> str | None:
    folder = place.take("finished").run / "predictions"
    with small_disk(folder, ROOM):
        fill(folder, 0)
        outcome = place.evaluate()
        return spoke_of_space(outcome) or (None if outcome.code else "it says nothing of the predictions")


def cases(place: Place) -> list[Case]:
    def step(number: int) -> Callable[[Callable[[], None]], Hook]:
        return lambda act: at_batch(number, act, TRAINING)

    def evaluation(act: Callable[[], None]) -> Hook:
        return at_batch(2, act, VALIDATION)

    def make(
        name: str, hook_at: Callable | None, leave: int, begun: str = "data", quick: bool = False
    ) -> Case:
        return Case(name, filled("snap/vqa/run", leave, hook_at, begun), quick)

    return [
        make("before the run, no byte left", None, 0),
        make("before the run, 100 KB left", None, 100_000),
        make("at the third step, no byte left", step(3), 0, quick=True),
        make("at the third step, 50 KB left", step(3), 50_000),
        make("at the third step, 300 KB left", step(3), 300_000),
        make("in the second epoch, no byte left", step(EPOCH + 2), 0),
        make("in the second epoch, 200 KB left", step(EPOCH + 2), 200_000),
        make("during an evaluation, no byte left", evaluation, 0),
        make("during an evaluation, 50 KB left", evaluation, 50_000),
        make("before a resume, no byte left", None, 0, "stopped", quick=True),
        make("before a resume, 100 KB left", None, 100_000, "stopped"),
        Case("visualizations on it", filled("visualizations", 0, None, "data")),
        Case("predictions on it", predictions_do_not_fit),
        Case("files of at most 100 KB", limited(100_000, None), quick=True),
        Case("files of at most 20 KB from the third step on", limited(20_000, step(3))),
    ]


GROUP = Group("full", "no space left", cases)
