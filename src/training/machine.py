"""The machine a run is on: its devices, processes and precision, through accelerate."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
)
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler, default_convert
from tqdm import tqdm

from training.loader import EpochSampler
from training.signals import StopSignal, stop_on_signal


class Machine:
    """What the trainer asks of the machine beyond accelerate's own `accelerator`.

    precision: auto, fp32, bf16 or fp16. accumulate: batches per optimizer step. workers: processes that read
    data ahead. bars: whether to show progress bars. agree_every: every so many optimizer steps, several
    processes ask each other whether to stop.
    """

    def __init__(
        self,
        precision: str = "auto",
        *,
        accumulate: int = 1,
        workers: int = 0,
        bars: bool = True,
        agree_every: int = 1,
    ) -> None:
        if precision == "auto":
            has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if has_bf16 else "fp32"
        self.precision = precision
        self.accelerator = Accelerator(
            mixed_precision="no" if precision == "fp32" else precision,
            # As plugins, because numbers and names would give way to variables of the environment.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulate),
            dynamo_plugin=TorchDynamoPlugin(backend="no"),
            dataloader_config=DataLoaderConfiguration(non_blocking=True),
            # A copy that no example of a step chose gets no gradient in that step.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process  # the one process that writes and speaks
        self.processes = self.accelerator.num_processes
        self.stop = StopSignal()
        self._workers = workers
        self._bars = bars
        self._agree_every = agree_every

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.is_main:
            print(text)

    def loader(self, dataset: Dataset, batch_size: int, order: Sampler[int] | None = None) -> DataLoader:
        """Whole batches of a data set, in its own order unless told another.

        The data set assembles them itself, as arrays, which torch's own `default_convert` makes tensors. The
        loader gets a generator of its own, so that starting an iteration (evaluation!) draws nothing from the
        global one, which dropout and gate noise use.
        """
        return DataLoader(
            dataset,
            batch_sampler=BatchSampler(order or SequentialSampler(dataset), batch_size, drop_last=False),
            collate_fn=default_convert,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self._workers > 0,
            generator=torch.Generator(),
        )

    def training_loader(
        self, dataset: Dataset, batch_size: int, seed: int, lengths: Any = None
    ) -> DataLoader:
        """The same in an order drawn from seed and epoch; see `EpochSampler`, for `lengths` too."""
        return self.loader(dataset, batch_size, EpochSampler(len(dataset), seed, batch_size, lengths))

    def progress_bar(self, title: str, total: int, done: int = 0) -> AbstractContextManager[tqdm]:
        """A bar over steps that disappears when full: what lasts is in the log."""
        hidden = not (self._bars and self.is_main)
        return tqdm(total=total, initial=done, desc=title, unit="step", leave=False, disable=hidden)

    def heeding_signals(self) -> AbstractContextManager[None]:
        """A block in which Ctrl-C and SIGTERM ask for a stop between two steps."""
        return stop_on_signal(self.stop)

    def should_stop(self, updates: int) -> bool:
        """Whether to stop after this step; several processes must agree, and ask each other now and then."""
        asked = self.stop.is_due(updates)
        if self.processes == 1 or updates % self._agree_every:
            return asked and self.processes == 1
        votes = torch.tensor(float(asked), device=self.device)
        return self.accelerator.reduce(votes, "sum").item() > 0
