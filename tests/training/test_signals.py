"""Stopping between two steps: which signals ask for it, and what a second one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from training.signals import StopSignal, stop_on_signal

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that reached the handlers which were there before."""
    numbers: list[int] = []
    before = [signal.signal(number, lambda number, frame: numbers.append(number)) for number in ASKING]
    yield numbers
    for number, handler in zip(ASKING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_sets_the_flag_and_the_second_acts_at_once(
    number: signal.Signals, heard: list[int]
) -> None:
    stop = StopSignal()
    with stop_on_signal(stop):
        assert not stop.is_due(100)
        os.kill(os.getpid(), number)
        assert stop.is_due(0)
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]


def test_a_second_ctrl_c_is_a_keyboard_interrupt(heard: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stop = StopSignal()
    with pytest.raises(KeyboardInterrupt), stop_on_signal(stop):
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        os.kill(os.getpid(), signal.SIGINT)


def test_what_nohup_ignores_stays_ignored(heard: list[int]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    with stop_on_signal(stop):
        os.kill(os.getpid(), signal.SIGHUP)
        assert not stop.requested
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("failing", [False, True])
def test_handlers_are_as_before_afterwards(failing: bool, heard: list[int]) -> None:
    before = [signal.getsignal(number) for number in ASKING]
    try:
        with stop_on_signal(StopSignal()):
            during = [signal.getsignal(number) for number in ASKING]
            if failing:
                raise ArithmeticError
    except ArithmeticError:
        pass
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in ASKING] == before


def test_a_stop_can_be_set_for_after_an_update() -> None:
    stop = StopSignal()
    stop.after_update = 3
    assert [stop.is_due(updates) for updates in range(5)] == [False, False, False, True, True]
