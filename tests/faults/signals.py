"""Asked to stop by any signal, at any moment, a run saves, says so by its exit code, and goes on exactly."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from tests.faults.cases import Case, Group
from tests.faults.place import TRAINING, VALIDATION, Place, at_batch, send_self
from tests.faults.process import Hook, Outcome

ASKING = ("TERM", "INT", "HUP", "USR1", "USR2", "XCPU")
MOMENTS = {"first step": (1, TRAINING), "mid-epoch": (7, TRAINING), "evaluation": (2, VALIDATION)}
NOTHING_LOST = ("before the first step", "nothing was lost", "nothing was written")


def number_of(name: str) -> int:
    return signal.Signals[f"SIG{name}"].value


# As a shell says it of a process that a signal ended; scripts of schedulers ask for these.
EXIT_CODES = {name: 128 + number_of(name) for name in ASKING}


def stopped_and_resumed(hook: Hook, name: str, flags: tuple[str, ...] = ()) -> Callable[[Place], str | None]:
    def fault(place: Place) -> str | None:
        stopped = place.take("data").train(*flags, hooks=[hook])
        return saved(place, stopped, name) or place.equal(place.train(*flags))

    return fault


def saved(place: Place, outcome: Outcome, name: str) -> str | None:
    """What is wrong with how a run ended that was asked to stop."""
    if outcome.traceback:
        return f"traceback: {outcome.traceback}"
    if outcome.code != EXIT_CODES[name]:
        return f"exit code {outcome.code}, not {EXIT_CODES[name]}: {outcome.sentence}"
    if not (place.run / "LAST").is_dir():
        return f"nothing was saved: {outcome.sentence}"
    return None


def to_one(name: str, moment: str) -> Case:
    batch, examples = MOMENTS[moment]
    hook = at_batch(batch, send_self(number_of(name)), examples)
    quick = (name, moment) in {("TERM", "evaluation"), ("HUP", "first step"), ("USR1", "mid-epoch")}
    return Case(f"{name} at the {moment}", stopped_and_resumed(hook, name), quick)


def to_the_group(name: str) -> Case:
    """As scancel, systemd and docker do it: the processes that read data get the signal, too.

    A worker reads its second batch when it gets everybody's signal.
    """
    hook = at_batch(2, lambda: once(lambda: os.killpg(0, number_of(name))))
    return Case(
        f"{name} to the process group, with --num_workers 2",
        stopped_and_resumed(hook, name, ("--num_workers", "2")),
        quick=name == "TERM",
    )


def once(act: Callable[[], None]) -> None:
    """For what several workers come to: the first of them does it."""
    try:
        os.close(os.open("signalled", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    act()


def asked_twice(name: str, moment: str) -> Case:
    """The user is impatient; the second signal may cost the step, but what is said must be true."""
    batch, examples = MOMENTS[moment]

    def impatient() -> None:
        os.kill(os.getpid(), number_of(name))
        time.sleep(0.05)
        os.kill(os.getpid(), number_of(name))

    def fault(place: Place) -> str | None:
        outcome = place.take("data").train("--save_every", "1", hooks=[at_batch(batch, impatient, examples)])
        if outcome.traceback:
            return f"traceback: {outcome.traceback}"
        if outcome.code not in (EXIT_CODES[name], -number_of(name)):  # to a shell it is the same
            return f"exit code {outcome.code}, not {EXIT_CODES[name]}: {outcome.sentence}"
        words = outcome.out + outcome.err
        if moment != "first step" and any(text in words for text in NOTHING_LOST):
            return f"it says what is not true: {' '.join(words.split())[-120:]}"
        return place.equal(place.train("--save_every", "1"))

    return Case(f"{name} twice at the {moment}", fault, quick=(name, moment) == ("INT", "mid-epoch"))


def on_resume(place: Place) -> str | None:
    """A resumed run is stopped again: in the epoch that it took up in the middle."""
    outcome = place.take("stopped").train(hooks=[at_batch(1, send_self(signal.SIGTERM))])
    return saved(place, outcome, "TERM") or place.equal(place.train())


def cases(place: Place) -> list[Case]:
    return [
        *(to_one(name, moment) for name in ASKING for moment in MOMENTS),
        *(to_the_group(name) for name in ("TERM", "INT")),
        *(asked_twice("INT", moment) for moment in MOMENTS),
        asked_twice("TERM", "mid-epoch"),
        Case("TERM at the first step of a resumed run", on_resume),
    ]


GROUP = Group("signals", "asked to stop", cases)
