"""Stopping between two steps: which signals ask for it, what a second one does, and who heeds none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.helpers.paths import SRC

from training import signals
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


@pytest.fixture
def no_echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every signal is one of its own, however soon it comes."""
    monkeypatch.setattr(signals, "ECHO", 0.0)


@pytest.mark.parametrize("number", ASKING)
def test_the_first_signal_is_a_request_and_gives_the_exit_code(
    number: signal.Signals, heard: list[int]
) -> None:
    stop = StopSignal()
    with stop_on_signal(stop):
        assert not stop.is_due(100)
        os.kill(os.getpid(), number)
        assert stop.is_due(0) and heard == []
    assert stop.exit_code == 128 + number


@pytest.mark.parametrize("number", ASKING)
def test_only_an_impatient_user_is_obeyed_at_once(
    number: signal.Signals, heard: list[int], no_echo: None
) -> None:
    """The system repeats SIGXCPU every second; a scheduler may repeat its warning."""
    with stop_on_signal(StopSignal()):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), number)
    assert heard == ([number] if number in (signal.SIGINT, signal.SIGTERM) else [])


def test_the_echo_of_a_signal_is_no_impatience(heard: list[int]) -> None:
    """`timeout` signals a process and then its group, a launcher passes on what all have got."""
    stop = StopSignal()
    with stop_on_signal(stop):
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert heard == [] and stop.exit_code == 143


def test_a_second_ctrl_c_is_a_keyboard_interrupt(heard: list[int], no_echo: None) -> None:
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


# A process that begins another, writes a line when that is ready, and is killed; `{}` is what the other does.
PARENT = """
import os, signal, time
from training.signals import *
parent = os.getpid()
with held_back(signal.SIGTERM, True):
    child = os.fork()
if not child:
    {}
    print(os.getpid(), flush=True)
    time.sleep(60)
os.wait()
"""


def start(child: str) -> tuple[subprocess.Popen[str], int]:
    """The parent, and the process id of its child. Both write to the parent's output."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(child)],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return process, int(process.stdout.readline())


@pytest.mark.parametrize("act", ["serve(parent)", "end_without(parent, 'the launcher has ended')"])
def test_who_serves_or_was_launched_ends_when_its_parent_is_killed(act: str) -> None:
    process, _ = start(act)
    process.kill()
    said, _ = process.communicate(timeout=10)  # ends when nobody is left who could write
    assert said == ("the launcher has ended\n" if "launcher" in act else "")


@pytest.mark.parametrize("act", ["serve(parent)", "pass"])
def test_who_reads_data_heeds_no_signal_from_its_first_instant(act: str) -> None:
    """SIGTERM is held back until it does not matter; the others have the handlers of the trainer before."""
    process, child = start(act)
    for number in ASKING if act != "pass" else [signal.SIGTERM]:
        os.kill(child, number)
    os.kill(child, signal.SIGCONT)
    assert process.poll() is None
    os.kill(child, signal.SIGKILL)
    assert process.wait(10) == 0
    process.stdout.close()


@pytest.mark.parametrize(("launched", "ignored", "expected"), [(1, 1, True), (0, 1, False), (0, 0, True)])
def test_only_a_run_that_was_launched_ends_with_its_parent(
    launched: int, ignored: int, expected: bool, heard: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shell of a run begun with `nohup` may end before it."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    if ignored:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert signals.is_launched() == expected
