"""The order of examples, and who of several processes gets which.

The order is a function of seed and epoch alone, so that a resumed run goes on exactly. Processes share the
batches that one process would have, so that their number changes no number that comes out.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.utils.data import BatchSampler, Sampler

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


class Part(NamedTuple):
    """What one process gets of a batch that several share.

    rows: at least one, for all processes take every step together. examples: how many of these count: all, or
    none where a batch has fewer examples than there are processes. batch: examples of all processes. weight:
    on the mean loss of this process. The mean over the processes, and over as many batches as are accumulated
    for a step, is then the mean over the examples of the step, also if it is the last and smaller one.
    """

    rows: slice
    examples: int
    batch: int
    weight: float


class SharedBatches(Sampler[list[int]]):
    """The parts that one of several processes gets of batches of `batch_size` in the order of `sampler`.

    Each batch is cut into as many runs of neighbours as there are processes, equally long up to one example,
    the last and short batch too: nothing is repeated to complete it. A process for which nothing is left
    repeats an example of its neighbour, which does not count. accumulate: batches a step.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, processes: int = 1, rank: int = 0, accumulate: int = 1
    ) -> None:
        self.sampler = sampler  # accelerate's `set_epoch` looks for this name
        self.batch_size = batch_size
        self.processes = processes
        self.rank = rank
        self.accumulate = accumulate

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(BatchSampler(self.sampler, self.batch_size, drop_last=False)):
            yield batch[self.part(number).rows]

    def part(self, number: int) -> Part:
        """What this process gets of the batch of that number in an epoch, counted from 0."""
        batch = min(self.batch_size, len(self.sampler) - number * self.batch_size)
        start, stop = (batch * rank // self.processes for rank in (self.rank, self.rank + 1))
        examples = stop - start
        rows = slice(start, max(stop, start + 1))
        whole = self.accumulate * self.batch_size
        step = min(whole, len(self.sampler) - number // self.accumulate * whole)  # its examples
        return Part(rows, examples, batch, self.processes * self.accumulate * examples / step)
