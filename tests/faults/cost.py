"""What saving costs a run of the embedded scenes at the defaults, and what part of it waits for the disk."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, Group, Noted
from tests.faults.place import Place
from tests.faults.process import Start, start
from tests.helpers.paths import ROOT

SHARE = 0.02  # of the time from the first step on
SPENT = "spent.json"


class Watch:
    """Seconds spent in functions, and how often; one that is called inside another counts only if nested."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}
        self._inside = 0

    def around(self, name: str, function: Callable[..., Any], *, nested: bool = False) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            with self._measured(name, counts=nested or not self._inside):
                return function(*arguments, **options)

        return watched

    @contextlib.contextmanager
    def _measured(self, name: str, *, counts: bool) -> Iterator[None]:
        begin = time.perf_counter()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            if counts:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
                self.calls[name] = self.calls.get(name, 0) + 1


def watch_saving() -> None:
    """Measure the trainer's two savings, checks included, and all of fsync; it is in a file at the end."""
    from tasks import vqa

    watch, begin = Watch(), time.perf_counter()
    vqa.save = watch.around("saving", vqa.save)
    vqa.keep_best = watch.around("saving", vqa.keep_best)
    os.fsync = watch.around("fsync", os.fsync, nested=True)
    spent = Path.cwd() / SPENT

    def write() -> None:
        total = time.perf_counter() - begin
        spent.write_text(json.dumps({"total": total, "calls": watch.calls, **watch.seconds}))

    atexit.register(write)


def of_the_scenes(place: Place) -> str | None:
    (place.root / "snap").mkdir()
    (place.root / "snap" / "pretrained").symlink_to(ROOT / "snap" / "pretrained")
    flags = (
        "--dataset",
        "scenes",
        "--version",
        "demo",
        "--strategy",
        "SpotTune_Block",
        "--no-tqdm",
        "--wandb",
        "off",
    )
    outcome = start(Start(flags, place.root, hooks=[watch_saving])).wait(1500)
    if outcome.code:
        return f"exit code {outcome.code}: {outcome.sentence}"
    spent = json.loads((place.root / SPENT).read_text())
    training = json.loads((place.root / "snap/vqa/demo/result.json").read_text())["seconds"]
    share = spent["saving"] / training
    fsync = spent.get("fsync", 0.0)
    text = (
        f"{spent['saving']:.2f} s of saving in {spent['calls']['saving']} calls, {100 * share:.2f} % of "
        f"{training:.0f} s of training; fsync {fsync:.2f} s, {100 * fsync / training:.2f} %"
    )
    return text if share > SHARE else Noted(text)


def cases(place: Place) -> list[Case]:
    return [Case("embedded scenes at the defaults", of_the_scenes, limit=1600)]


GROUP = Group("cost", "saving at the defaults, under 2 %", cases, alone=True)
