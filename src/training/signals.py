"""Stopping between two steps when a signal asks for it; ending when whoever started a process is no more."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from common.cli import ASKING

IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # a second one acts at once; the system repeats XCPU every second
ECHO = (
    1.0  # seconds in which a second signal is the first once more: timeout, launchers and terminals do that
)
WATCH_EVERY = 0.2  # seconds


class StopSignal:
    """Whether the run was asked to stop, and by which signal; `after_update` is another way, for tests."""

    def __init__(self) -> None:
        self.requested = False
        self.number = int(signal.SIGINT)
        self.after_update: int | None = None

    def is_due(self, updates: int) -> bool:
        """Whether to stop now that so many optimizer steps are done."""
        return self.requested or (self.after_update is not None and updates >= self.after_update)

    def request(self, number: int) -> None:
        self.requested, self.number = True, number

    @property
    def exit_code(self) -> int:
        """As a shell says it of a process that the signal ended."""
        return 128 + self.number


@contextmanager
def stop_on_signal(stop: StopSignal) -> Iterator[None]:
    """Turn a signal that asks to end into a request to stop. A later SIGINT or SIGTERM acts at once."""
    held = {number: signal.getsignal(number) for number in ASKING}
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not stop.requested:
            first = time.monotonic()
            stop.request(number)
        elif number in IMPATIENT and time.monotonic() > first + ECHO:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    for number, handler in held.items():
        signal.signal(number, handler if handler == signal.SIG_IGN else handle)  # `nohup` asks to go on
    try:
        yield
    finally:
        restore()


@contextmanager
def held_back(number: int, needed: bool) -> Iterator[None]:
    """A block in which a signal waits, if `needed`; processes that begin in it never get the signal.

    A process that reads data is killed by SIGTERM until it has come to `serve`.
    """
    if needed:
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        if needed:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def serve(parent: int, worker: int = 0) -> None:
    """Make this process one that reads data for `parent`: it heeds no signal, and ends when the parent has.

    So whoever signals all processes of a run (scancel, systemd, a terminal) has its main process save.
    """
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    end_without(parent)


def end_without(parent: int, last_words: str = "") -> None:
    """From now on, end this process, where it is, as soon as its parent is not `parent` any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_EVERY)
        try:
            if last_words:
                print(last_words, file=sys.stderr, flush=True)
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="end without parent", daemon=True).start()


def is_launched() -> bool:
    """Whether a launcher started this process, rather than a shell that may end before it."""
    return "TORCHELASTIC_RUN_ID" in os.environ or signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
