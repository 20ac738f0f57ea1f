"""Killed at random moments, once or twice, a run still comes to the numbers of an undisturbed one."""

from __future__ import annotations

import random
import signal
import time

from tests.faults.cases import Case, Group
from tests.faults.place import Place

LONG = ("--epochs", "16", "--save_every", "2")  # several seconds
QUICK = ("--epochs", "5", "--save_every", "2")


def killed(seed: int, times: int, flags: tuple[str, ...]) -> Case:
    """The run is killed so many times, always at a random moment of what is left of it, then goes on."""

    def fault(place: Place) -> str | None:
        place.undisturbed(*flags)  # made first, so that it does not disturb what is measured
        rng = random.Random(seed)
        place.take("data")
        duration = measure(place, flags)
        for _ in range(times):
            run = place.start(*flags)
            time.sleep(rng.uniform(0.02, duration))
            run.send(signal.SIGKILL)
            run.wait()
        return place.equal_and_tidy(place.train(*flags), *flags)

    return Case(f"{'twice' if times > 1 else 'once'}, seed {seed}", fault)


def measure(place: Place, flags: tuple[str, ...]) -> float:
    """Seconds that the undisturbed run takes here and now, as far as an earlier case measured it."""
    file = place.cache / f"seconds-{'-'.join(flags).strip('-')}"
    if not file.exists():
        other = Place(place.root / "measured", place.cache)
        other.root.mkdir()
        file.write_text(str(other.take("data").train(*flags).seconds))
    return float(file.read_text())


def cases(place: Place) -> list[Case]:
    full = [killed(seed, 1, LONG) for seed in range(30)] + [killed(seed, 2, LONG) for seed in range(30, 40)]
    quick = [killed(seed, 1, QUICK) for seed in range(40, 44)] + [killed(44, 2, QUICK)]
    return full + [Case(case.name, case.fault, quick=True) for case in quick]


GROUP = Group("kill", "kill -9 at a random moment", cases)
