from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import chain

import numpy as np
import pytest
import torch
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Dataset

from training.loader import EpochSampler, SharedBatches
from training.machine import Machine

SIZE, BATCH = 23, 4
LENGTHS = torch.randint(4, 21, (SIZE,), generator=torch.Generator().manual_seed(0)).tolist()
grouped_or_not = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["shuffled", "grouped"])


def order(
    epoch: int, seed: int = 1, lengths: list[int] | None = None, size: int = SIZE, batch: int = BATCH
) -> list[int]:
    sampler = EpochSampler(size, seed, batch, lengths)
    sampler.set_epoch(epoch)
    return list(sampler)


class Numbers(Dataset):
    """The numbers 0, 1, ..., as a data set that assembles its batches itself."""

    def __init__(self, size: int = SIZE) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> np.ndarray:
        return np.array(indices)


def loader(lengths: list[int] | None = None, workers: int = 0) -> DataLoader:
    return Machine(workers=workers).training_loader(Numbers(), BATCH, 1, lengths)


def shared_loader(rank: int, processes: int, size: int, lengths: list[int] | None) -> DataLoader:
    machine = Machine()
    machine.rank, machine.processes = rank, processes
    return machine.training_loader(Numbers(size), BATCH, 1, lengths)


def batches(loader: Iterable[torch.Tensor]) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def flat(batches: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


@grouped_or_not
def test_every_example_comes_once_an_epoch(lengths: list[int] | None) -> None:
    for epoch in range(5):
        assert sorted(order(epoch, lengths=lengths)) == list(range(SIZE))


@grouped_or_not
def test_the_order_is_a_function_of_seed_and_epoch_alone(lengths: list[int] | None) -> None:
    expected = order(3, lengths=lengths)
    torch.manual_seed(7)
    sampler = EpochSampler(SIZE, 1, BATCH, lengths)
    for epoch in (0, 1, 5, 3):  # whatever was drawn before
        sampler.set_epoch(epoch)
        drawn = list(sampler)
    assert drawn == expected == list(sampler)


@grouped_or_not
def test_epochs_and_seeds_differ_in_their_order(lengths: list[int] | None) -> None:
    orders = [tuple(order(epoch, seed, lengths)) for epoch in range(4) for seed in range(4)]
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("size", [1, 3, 4, 200, 203, 1003])
def test_grouping_keeps_every_example_and_puts_the_short_batch_last(size: int) -> None:
    lengths = np.random.default_rng(0).integers(4, 21, size)
    got = batches(Machine().training_loader(Numbers(size), BATCH, 0, lengths))
    assert sorted(flat(got)) == list(range(size))
    assert all(len(batch) == BATCH for batch in got[:-1])
    assert len(got[-1]) == (size % BATCH or BATCH)


def padding(order: list[int], lengths: np.ndarray, batch: int) -> int:
    """Padded places when each batch is as wide as its longest question."""
    rows = [lengths[order[start : start + batch]] for start in range(0, len(order), batch)]
    return sum(int(row.max() * len(row) - row.sum()) for row in rows)


def test_grouping_saves_most_of_the_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = (4 + rng.gamma(5.0, 1.1, 6000)).round().clip(5, 20).astype(int)  # as of VQA v2: mean 9.5
    assert lengths.mean() == pytest.approx(9.5, abs=0.2)
    shuffled = padding(order(0, size=6000, batch=32), lengths, 32)
    grouped = padding(order(0, lengths=lengths, size=6000, batch=32), lengths, 32)
    assert grouped < 0.1 * shuffled


def test_grouped_batches_come_in_no_order_of_length() -> None:
    lengths = np.random.default_rng(0).integers(4, 21, 3200)
    means = lengths[order(0, lengths=lengths, size=3200, batch=32)].reshape(-1, 32).mean(1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3


def test_without_a_sampler_the_order_is_that_of_the_data() -> None:
    assert flat(batches(Machine().loader(Numbers(), BATCH))) == list(range(SIZE))


def states() -> tuple[object, ...]:
    """Of the global generators of torch, Python and numpy."""
    of_numpy = np.random.get_state()[1]  # noqa: NPY002 - the global one is what this is about
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing_from_the_global_generators(workers: int) -> None:
    with_sampler = loader(workers=workers)
    in_order = Machine(workers=workers).loader(Numbers(), BATCH)
    before = states()
    for _ in range(2):
        assert len(batches(with_sampler)) == len(batches(in_order)) == 6
    assert states() == before


def test_workers_do_not_change_the_order() -> None:
    alone, helped = loader(), loader(workers=2)
    for epoch in (0, 1):
        for one in (alone, helped):
            one.set_epoch(epoch)
        assert batches(alone) == batches(helped)


@grouped_or_not
def test_epochs_have_their_order_and_a_resumed_one_the_rest_of_it(lengths: list[int] | None) -> None:
    prepared = loader(lengths)
    for epoch in (0, 2, 1):
        prepared.set_epoch(epoch)
        expected = order(epoch, lengths=lengths)
        whole = batches(prepared)
        assert flat(whole) == expected
        for done in (1, 3, 5):
            prepared.set_epoch(epoch)  # accelerate goes on to the next epoch by itself
            assert batches(skip_first_batches(prepared, done)) == whole[done:]
        prepared.set_epoch(epoch)
        assert batches(prepared) == whole  # skipping left nothing behind


@grouped_or_not
@pytest.mark.parametrize(("size", "processes"), [(23, 2), (23, 3), (24, 2), (25, 3), (2, 3), (1, 2)])
def test_processes_share_the_batches_of_one_and_repeat_nothing_that_counts(
    size: int, processes: int, lengths: list[int] | None
) -> None:
    lengths = lengths and (lengths * 2)[:size]
    expected = order(1, lengths=lengths, size=size, batch=BATCH * processes)
    loaders = [shared_loader(rank, processes, size, lengths) for rank in range(processes)]
    for loader in loaders:
        loader.set_epoch(1)
    seen = []
    steps = list(zip(*map(batches, loaders), strict=True))
    assert len(steps) == len(loaders[0]) == -(-size // (BATCH * processes))
    for number, parts in enumerate(steps):
        dealt = [loader.batch_sampler.part(number) for loader in loaders]
        taken = [examples[: part.examples] for examples, part in zip(parts, dealt, strict=True)]
        assert all(
            len(examples) == max(1, part.examples) for examples, part in zip(parts, dealt, strict=True)
        )
        assert max(map(len, taken)) - min(map(len, taken)) <= 1
        assert {part.batch for part in dealt} == {len(flat(taken))}
        assert set(flat(parts)) == set(flat(taken))  # who has nothing repeats what another trains on
        seen += flat(taken)
        weighed = [part.weight * np.mean(examples) for part, examples in zip(dealt, parts, strict=True)]
        assert np.mean(weighed) == pytest.approx(np.mean(flat(taken)))
    assert seen == expected


@pytest.mark.parametrize(("size", "processes", "accumulate"), [(23, 1, 3), (24, 1, 4), (25, 2, 2), (7, 3, 5)])
def test_the_batches_of_a_step_weigh_as_their_examples_do(size: int, processes: int, accumulate: int) -> None:
    """Losses are divided by `accumulate` where they are added up, also in a last step of fewer batches."""
    batch, values = BATCH * processes, np.random.default_rng(0).normal(size=size)
    dealt = [SharedBatches(range(size), batch, processes, rank, accumulate) for rank in range(processes)]
    for start in range(0, len(dealt[0]), accumulate):
        total = 0.0
        for number in range(start, min(start + accumulate, len(dealt[0]))):
            examples = values[number * batch : (number + 1) * batch]
            parts = [shared.part(number) for shared in dealt]
            total += np.mean([p.weight * examples[p.rows].mean() if p.examples else 0.0 for p in parts])
        step = values[start * batch : (start + accumulate) * batch]
        assert total / accumulate == pytest.approx(step.mean())


@grouped_or_not
def test_each_process_resumes_in_the_middle_of_an_epoch(lengths: list[int] | None) -> None:
    for rank in (0, 1):
        loader = shared_loader(rank, 2, SIZE, lengths)
        for epoch in (0, 2):
            loader.set_epoch(epoch)
            whole = batches(loader)
            for done in (1, 2):
                loader.set_epoch(epoch)
                assert batches(skip_first_batches(loader, done)) == whole[done:]


def test_accelerates_loaders_are_gathered_in_the_order_of_the_data() -> None:
    """What evaluation relies on: in the end accelerate drops what completes the last step."""
    shards = [
        prepare_data_loader(
            Machine().loader(Numbers(), BATCH), num_processes=2, process_index=rank, put_on_device=False
        )
        for rank in (0, 1)
    ]
    steps = zip(*map(batches, shards), strict=True)
    assert flat(first + second for first, second in steps)[:SIZE] == list(range(SIZE))


@grouped_or_not
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stream_is_one_epoch_after_another_wherever_it_is_taken_up(
    rank: int, lengths: list[int] | None
) -> None:
    machine = Machine()
    machine.rank, machine.processes = rank, 2
    loader = machine.training_loader(Numbers(), BATCH, 1, lengths)
    expected = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        expected += batches(loader)
    steps = len(loader)
    assert steps == 3
    for start in range(2 * steps):
        stream = machine.stream(Numbers(), BATCH, 1, lengths)
        for done in range(start, 3 * steps):
            batch, part = stream.take(done)
            assert batch.tolist() == expected[done]
            assert part == loader.batch_sampler.part(done % steps)


def test_a_stream_does_not_end_the_accumulation_of_the_loader_that_is_under_way() -> None:
    machine = Machine(accumulate=4)
    loader, stream = machine.training_loader(Numbers(), BATCH, 1), machine.stream(Numbers(5), BATCH, 1)
    model = machine.accelerator.prepare(torch.nn.Linear(1, 1))
    synced = []
    for number, _ in enumerate(loader):
        with machine.accelerator.accumulate(model):
            synced.append(machine.accelerator.sync_gradients)
        stream.take(number)
    assert synced == [False, False, False, True, False, True]


def test_a_stream_draws_nothing_from_the_global_generators() -> None:
    stream, before = Machine().stream(Numbers(), BATCH, 1), states()
    for done in range(10):
        stream.take(done)
    assert states() == before
