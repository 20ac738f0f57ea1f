"""What the processes of a machine have in common, and what not."""

from __future__ import annotations

import pytest
import torch

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
