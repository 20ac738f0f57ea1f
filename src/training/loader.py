"""The order of examples, as a function of seed and epoch alone, so that a resumed run goes on exactly."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

POOL = 50  # batches that are sorted by length together


class EpochSampler(Sampler[int]):
    """All examples once an epoch, in an order drawn from (seed, epoch).

    With `lengths` (N,), batches of `batch_size` neighbours are alike in length, which saves padding: the
    shuffled examples are sorted within pools of 50 batches, then the batches are shuffled.
    """

    def __init__(
        self, size: int, seed: int, batch_size: int = 1, lengths: Sequence[int] | None = None
    ) -> None:
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.lengths = None if lengths is None else torch.as_tensor(lengths)
        self.epoch = 0

    def __len__(self) -> int:
        return self.size

    def set_epoch(self, epoch: int) -> None:
        """Called by the `set_epoch` of accelerate's loader."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.size, generator=generator)
        if self.lengths is not None:
            order = self._group(order, generator)
        return iter(order.tolist())

    def _group(self, order: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pools = order.split(POOL * self.batch_size)
        order = torch.cat([pool[self.lengths[pool].argsort(stable=True)] for pool in pools])
        whole = len(order) // self.batch_size * self.batch_size
        batches = order[:whole].view(-1, self.batch_size)
        shuffled = batches[torch.randperm(len(batches), generator=generator)]
        return torch.cat([shuffled.flatten(), order[whole:]])
