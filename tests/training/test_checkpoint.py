from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from training.checkpoint import open_aside, save_state, stop_on_signal, swap_in, whole_folder


class PowerCut(BaseException):
    """The machine stops: nothing handles this."""


class Operations:
    """Counts what is done to folders and stops before, in the middle of, or after the n-th of them."""

    def __init__(self, stop_at: int, where: str) -> None:
        self.left, self.where = stop_at, where

    def perform(self, half: Callable[[], Any], whole: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left == 0:
            {"before": lambda: None, "within": half, "after": whole}[self.where]()
            raise PowerCut
        return whole()


def write(folder: Path, number: int) -> None:
    """Save a folder of two files that belong together."""
    fresh = open_aside(folder)
    for name in ("weights", "moments"):
        (fresh / name).write_text(str(number))
    swap_in(folder)


def number_in(folder: Path) -> int:
    """Which save a folder is of; both files must be."""
    numbers = {(folder / name).read_text() for name in ("weights", "moments")}
    assert len(numbers) == 1
    return int(numbers.pop())


def cut_power(stop_at: int, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = Operations(stop_at, where)
    rmtree, rename, mkdir, write_text = shutil.rmtree, Path.rename, Path.mkdir, Path.write_text

    def slow_rmtree(path: Path, ignore_errors: bool = False) -> None:
        def half() -> None:
            for file in sorted(path.glob("*"))[:1]:
                file.unlink()

        operations.perform(half, lambda: rmtree(path, ignore_errors=ignore_errors))

    def slow_rename(path: Path, target: Path) -> Path:
        return operations.perform(lambda: None, lambda: rename(path, target))

    def slow_mkdir(path: Path, **options: Any) -> None:
        operations.perform(lambda: None, lambda: mkdir(path, **options))

    def slow_write(path: Path, text: str) -> int:
        return operations.perform(lambda: write_text(path, ""), lambda: write_text(path, text))

    monkeypatch.setattr(shutil, "rmtree", slow_rmtree)
    monkeypatch.setattr(Path, "rename", slow_rename)
    monkeypatch.setattr(Path, "mkdir", slow_mkdir)
    monkeypatch.setattr(Path, "write_text", slow_write)


@pytest.mark.parametrize("where", ["before", "within", "after"])
def test_whenever_the_machine_stops_a_whole_folder_is_found(tmp_path: Path, where: str) -> None:
    stops = 0
    for stop_at in range(1, 20):
        folder = tmp_path / str(stop_at) / "LAST"
        write(folder, 1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            cut_power(stop_at, where, monkeypatch)
            try:
                write(folder, 2)
            except PowerCut:
                stops += 1
        found = whole_folder(folder)
        assert found is not None
        assert number_in(found) in (1, 2)
        write(folder, 3)  # what was left behind is in nobody's way
        assert number_in(whole_folder(folder)) == 3
        assert [path.name for path in folder.parent.iterdir()] == ["LAST"]
    assert 6 <= stops < 19  # every operation was the last one once


def test_a_folder_stopped_twice_in_the_same_place_is_still_whole(tmp_path: Path) -> None:
    for stop_at in range(1, 10):
        folder = tmp_path / str(stop_at) / "LAST"
        write(folder, 1)
        for number in (2, 3):
            with pytest.MonkeyPatch.context() as monkeypatch:
                cut_power(stop_at, "within", monkeypatch)
                with suppress(PowerCut):
                    write(folder, number)
            assert number_in(whole_folder(folder)) in range(1, number + 1)


def test_the_first_save_is_found_only_when_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "LAST"
    assert whole_folder(folder) is None
    fresh = open_aside(folder)
    (fresh / "weights").write_text("half")
    assert whole_folder(folder) is None
    assert not any(open_aside(folder).iterdir())
    write(folder, 1)
    assert whole_folder(folder) == folder


def test_a_saved_state_is_one_folder_that_brings_everything_back(tmp_path: Path) -> None:
    accelerator = Accelerator()
    model = accelerator.prepare(nn.Linear(2, 2))
    saved = model.weight.detach().clone()
    folder = tmp_path / "LAST"
    for _ in range(2):
        torch.manual_seed(3)
        save_state(accelerator, folder)
    drawn = torch.rand(3)
    with torch.no_grad():
        model.weight.zero_()
    accelerator.load_state(str(folder))
    assert torch.equal(model.weight, saved)
    assert torch.equal(torch.rand(3), drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["LAST"]


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """The signals that reached the handlers which were there before."""
    numbers: list[int] = []
    numbered = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: numbers.append(number)) for number in numbered]
    yield numbers
    for number, handler in zip(numbered, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_sets_the_flag_and_the_second_acts_at_once(
    number: signal.Signals, heard: list[int]
) -> None:
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert heard == []
        os.kill(os.getpid(), number)
        assert heard == [number]


def test_a_second_ctrl_c_is_a_keyboard_interrupt(heard: list[int]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("failing", [False, True])
def test_handlers_are_as_before_afterwards(failing: bool, heard: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        with stop_on_signal():
            during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
            if failing:
                raise ArithmeticError
    except ArithmeticError:
        pass
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
