"""Ctrl-C that arrives during a given step."""

from __future__ import annotations

import pytest

from training.signals import StopSignal


def stop_after(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every run stop after that optimizer step, as if it had been asked to during it."""
    start = StopSignal.__init__

    def start_with_a_stop(self: StopSignal) -> None:
        start(self)
        self.after_update = update

    monkeypatch.setattr(StopSignal, "__init__", start_with_a_stop)
