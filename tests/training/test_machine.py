"""What a run asks of its machine: seeds, batches, and how it is stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils.data import Dataset

from common.errors import Interrupted, RunError, StoreError
from training.machine import Machine


def seeded(rank: int, processes: int, seed: int = 1) -> Machine:
    """A process as it is once it has built the model."""
    machine = Machine()
    machine.rank, machine.processes = rank, processes
    torch.manual_seed(seed)
    torch.randn(10)
    machine.seed_processes(seed)
    return machine


def test_one_process_goes_on_with_the_generator_that_built_its_model() -> None:
    torch.manual_seed(1)
    expected = torch.randn(14)[10:]
    assert seeded(0, 1).gate_noise is None
    assert torch.equal(torch.randn(4), expected)


def test_processes_have_dropout_of_their_own() -> None:
    drawn = []
    for seed in (1, 2):
        for rank in range(3):
            seeded(rank, 3, seed)
            drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn)) == len(drawn)


def test_gate_noise_is_common_to_all_processes_and_that_of_a_single_one() -> None:
    seeded(0, 1)
    expected = torch.empty(6).exponential_()
    for rank in range(3):
        noise = torch.empty(6).exponential_(generator=seeded(rank, 3).gate_noise)
        assert torch.equal(noise, expected)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_processes_of_torchrun_without_a_gpu_work_together(
    processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without being told so, accelerate would take each of them for the only one."""
    told: dict[str, object] = {}

    def remember(**settings: object) -> None:
        told.update(settings)
        raise InterruptedError

    monkeypatch.setattr("training.machine.Accelerator", remember)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setenv("WORLD_SIZE", processes)
    with pytest.raises(InterruptedError):
        Machine()
    assert told["cpu"] == (processes == "2")


class Numbers(Dataset):
    """Ten examples; in the second batch something happens."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 10

    def __getitems__(self, indices: Sequence[int]) -> list[int]:
        if 3 in indices:
            self.act()
        return list(indices)


def damaged() -> None:
    raise StoreError("The store is damaged: write\n  it again: now.")


def signalled() -> None:
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
        os.kill(os.getpid(), signal.Signals[name])


def read(machine: Machine, act: Callable[[], None]) -> list[int]:
    with machine.heeding_signals():
        loader = machine.accelerator.prepare(machine.loader(Numbers(act), 3))
        return [number for batch in machine.batches(loader) for number in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_found_where_data_are_read_comes_in_its_own_words(workers: int) -> None:
    with pytest.raises(StoreError) as caught:
        read(Machine("fp32", workers=workers), damaged)
    assert str(caught.value) == "The store is damaged: write\n  it again: now."


def test_those_who_read_data_heed_no_signal() -> None:
    assert read(Machine("fp32", workers=2), signalled) == list(range(10))


def test_a_killed_reader_of_data_is_one_sentence() -> None:
    machine = Machine("fp32", workers=1)
    with pytest.raises(RunError, match=r"reads data was killed .* fewer --num_workers"):
        read(machine, lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_an_error_leaves_nobody_who_reads_data() -> None:
    begin = time.monotonic()
    with pytest.raises(StoreError):
        read(Machine("fp32", workers=2), damaged)
    assert not multiprocessing.active_children() and time.monotonic() - begin < 5  # torch waits for as long


def test_another_error_stays_what_it_is() -> None:
    with pytest.raises(RuntimeError, match=r"^a bug$"), Machine("fp32").heeding_signals():
        raise RuntimeError("a bug")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interruption_takes_the_exit_code_of_the_signal(number: signal.Signals) -> None:
    machine = Machine("fp32")
    with pytest.raises(Interrupted, match="saved") as caught, machine.heeding_signals():
        assert not machine.should_stop(1) and not machine.should_stop_evaluating(1)
        os.kill(os.getpid(), number)
        assert machine.should_stop(1) and machine.should_stop_evaluating(1)
        raise Interrupted("all is saved")
    assert caught.value.exit_code == 128 + number
