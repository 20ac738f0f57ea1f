"""Stopping between two steps, when the user asks for it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopSignal:
    """Whether the run was asked to stop; `after_update` is another way to ask, for tests."""

    def __init__(self) -> None:
        self.requested = False
        self.after_update: int | None = None

    def is_due(self, updates: int) -> bool:
        """Whether to stop now that so many optimizer steps are done."""
        return self.requested or (self.after_update is not None and updates >= self.after_update)


@contextmanager
def stop_on_signal(stop: StopSignal) -> Iterator[None]:
    """Turn the first signal that asks to end into a request to stop; the second acts at once."""
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"]  # where the system has them
    held = {number: signal.getsignal(number) for number in signal.Signals if number.name in names}

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    def restore() -> None:
        for number, handler in held.items():
            signal.signal(number, handler)

    for number, handler in held.items():
        signal.signal(number, handler if handler == signal.SIG_IGN else request)  # `nohup` asks to go on
    try:
        yield
    finally:
        restore()
