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
    """Turn the first Ctrl-C or SIGTERM into a request to stop; the second acts at once."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    for number in previous:
        signal.signal(number, request)
    try:
        yield
    finally:
        restore()
