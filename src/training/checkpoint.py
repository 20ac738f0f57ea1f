"""Folders that are whole or absent, and stopping between two steps."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate import Accelerator


class StopSignal:
    """True once the user has asked to stop."""

    requested = False

    def __bool__(self) -> bool:
        return self.requested


@contextmanager
def stop_on_signal() -> Iterator[StopSignal]:
    """Turn the first Ctrl-C or SIGTERM into a flag that the step loop looks at; the second acts at once."""
    stop = StopSignal()
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
        yield stop
    finally:
        restore()


def open_aside(folder: Path) -> Path:
    """An empty folder beside `folder`, to be filled and then swapped in."""
    fresh = _beside(folder, "new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    return fresh


def swap_in(folder: Path) -> None:
    """Put what `open_aside` gave, now filled, in the place of `folder`.

    Whenever the machine stops, `folder` or its predecessor is there and whole; see `whole_folder`.
    """
    old = _beside(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    _beside(folder, "new").rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def whole_folder(folder: Path) -> Path | None:
    """The folder, or what was about to be replaced when the machine stopped, or None."""
    return next((path for path in (folder, _beside(folder, "old")) if path.is_dir()), None)


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Save everything prepared or registered, and the random states of every process, as one whole folder."""
    if accelerator.is_main_process:
        open_aside(folder)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(_beside(folder, "new")))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        swap_in(folder)
    accelerator.wait_for_everyone()


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
