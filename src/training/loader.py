"""The order of examples, as a function of seed and epoch alone, so that a resumed run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler


class EpochSampler(Sampler[int]):
    """All examples once an epoch, in an order drawn from (seed, epoch)."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader; its own `set_epoch` passes it on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.size, generator=generator).tolist())


def make_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    collate: Callable[[Any], Any],
    sampler: Sampler[int] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """A loader over whole batches; without a sampler, in the data set's order.

    It gets a generator of its own, so that starting an iteration (evaluation!) draws nothing from the global
    one, which dropout and gate noise use.
    """
    order = sampler if sampler is not None else torch.utils.data.SequentialSampler(dataset)
    return DataLoader(
        dataset,
        batch_sampler=BatchSampler(order, batch_size, drop_last=False),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
