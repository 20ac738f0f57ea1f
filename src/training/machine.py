"""The machine a run is on: its devices, processes and precision, through accelerate."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain, count, islice
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration, skip_first_batches
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    send_to_device,
    set_seed,
)
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler, default_convert
from tqdm import tqdm

from common.errors import Interrupted, RunError, UserError
from common.hardware import peak_resident, processor
from training.loader import EpochSampler, Part, SharedBatches
from training.signals import StopSignal, end_without, held_back, is_launched, serve, stop_on_signal

COLUMNS = 79  # of a terminal; in the last one some begin a new line
BAR = "{desc} {percentage:3.0f}% |{bar}|"


def hardware_name(device: torch.device) -> str:
    """The name of a GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


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
        self.started = time.perf_counter()
        precision = usual_precision() if precision == "auto" else precision
        self.precision = precision
        launched = int(os.environ.get("WORLD_SIZE", "1")) > 1
        without_gpu = torch.accelerator.current_accelerator(check_available=True) in (
            None,
            torch.device("mps"),
        )
        self.accelerator = Accelerator(
            cpu=launched and without_gpu,  # or accelerate takes each process of torchrun for the only one
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
        self.rank = self.accelerator.process_index
        self.gate_noise: torch.Generator | None = None  # see `seed_processes`
        self.stop = StopSignal()
        self._accumulate = accumulate
        self._workers = workers
        self._bars = bars
        self._agree_every = agree_every
        if self.processes > 1 and is_launched():
            words = (
                f"The launcher of this process ({os.getppid()}) was ended, and with it this process, unsaved."
            )
            end_without(os.getppid(), words)

    @property
    def device_name(self) -> str:
        """What a user knows the device as."""
        return hardware_name(self.device) if self.device.type == "cuda" else self.device.type

    @property
    def peak_memory(self) -> float:
        """Of this process, in GB: on a GPU the most that PyTorch has handed out, else the resident set."""
        on_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if on_gpu else peak_resident()
        return round(peak / 1e9, 3)

    def say(self, text: str) -> None:
        """Print on the main process."""
        if self.is_main:
            print(text)

    def seed_processes(self, seed: int) -> None:
        """Give each of several processes dropout of its own, once they have built the same model.

        Gate noise belongs to examples, whichever process gets them: `gate_noise` is then a generator in the
        same state everywhere, from which each process draws that of the whole batch. It goes on where the
        global generator is, from which a single process, that draws its own batch's, goes on itself.
        """
        if self.processes == 1:
            return
        on_cpu = self.device.type == "cpu"
        state = torch.get_rng_state() if on_cpu else torch.get_device_module().get_rng_state(self.device)
        self.gate_noise = torch.Generator(self.device)
        self.gate_noise.set_state(state)
        set_seed((seed * 1_000_003 + self.rank + 1) % 2**32)

    def loader(self, dataset: Dataset, batch_size: int) -> DataLoader:
        """Batches of a data set in its own order, for accelerate to prepare.

        Prepared, several processes get whole batches in turn, the last ones completed with examples that
        accelerate's `gather_for_metrics` drops again.
        """
        return self._loader(dataset, BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False))

    def training_loader(
        self, dataset: Dataset, batch_size: int, seed: int, lengths: Any = None
    ) -> DataLoader:
        """Batches in an order drawn from seed and epoch, prepared; see `EpochSampler`, for `lengths` too.

        `batch_size` is that of one process; its `batch_sampler` is a `SharedBatches`.
        """
        loader = self._shared(dataset, batch_size, seed, lengths, self._accumulate)
        # As for one process: accelerate would deal out again what is dealt out, and repeat examples.
        return prepare_data_loader(
            loader, self.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=True
        )

    def stream(self, dataset: Dataset, batch_size: int, seed: int, lengths: Any = None) -> Stream:
        """Batches in the order of `training_loader`, without end, beside those of another loader."""
        return Stream(self, self._shared(dataset, batch_size, seed, lengths))

    def _shared(
        self, dataset: Dataset, batch_size: int, seed: int, lengths: Any, accumulate: int = 1
    ) -> DataLoader:
        shared = batch_size * self.processes
        order = EpochSampler(len(dataset), seed, shared, lengths)
        return self._loader(dataset, SharedBatches(order, shared, self.processes, self.rank, accumulate))

    def _loader(self, dataset: Dataset, batches: Sampler[list[int]]) -> DataLoader:
        """The data set assembles its batches itself, as arrays, which `default_convert` makes tensors.

        The loader gets a generator of its own, so that starting an iteration (evaluation!) draws nothing from
        the global one, which dropout and gate noise use.
        """
        if self._workers:
            atexit.register(end_workers)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=default_convert,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self._workers > 0,
            worker_init_fn=partial(serve, os.getpid()),
            generator=torch.Generator(),
        )

    def progress_bar(self, title: str, total: int, done: int = 0) -> AbstractContextManager[tqdm]:
        """A bar over steps that disappears when full: what lasts is in the log.

        Its words fit a terminal, so that they are never cut; the bar itself gets the room that they leave.
        """
        hidden = not (self._bars and self.is_main)
        look = {"unit": "step", "leave": False, "ncols": COLUMNS, "bar_format": BAR}
        return tqdm(total=total, initial=done, desc=title, disable=hidden, **look)

    def batches(self, loader: DataLoader) -> Iterator[Any]:
        """The batches of a loader. A UserError in a process that reads them comes in its own words."""
        iterator = iter(loader)
        try:
            with held_back(signal.SIGTERM, self._workers > 0):
                first = list(islice(iterator, 1))  # which begins the workers
            yield from chain(first, iterator)
        except UserError as error:
            kind = type(error)
            # torch puts "Caught ... Original Traceback" before the words.
            _, _, words = str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
            raise kind(words.strip()) from None

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """A block in which a signal asks for a stop between two steps; see `training.signals`.

        Interrupted leaves it with the exit code of the signal; of several processes one has something to say,
        and none leaves before all do: a launcher ends the others as soon as one has ended. RunError if a
        process that reads data was killed.
        """
        try:
            with stop_on_signal(self.stop):
                try:
                    yield
                except Interrupted as stop:
                    self.accelerator.wait_for_everyone()
                    raise Interrupted(str(stop) if self.is_main else "", self.stop.exit_code) from None
        except BaseException as error:
            end_workers()
            if not str(error).startswith("DataLoader worker"):
                raise
            reason = str(error).strip(" .")
            raise RunError(
                f"A process that reads data was killed ({reason}). Was memory short? What was saved before "
                "is whole: run the same command again, with fewer --num_workers perhaps."
            ) from None

    def should_stop(self, updates: int) -> bool:
        """Whether to stop after this step; several processes must agree, and ask each other now and then."""
        return self._agreed(self.stop.is_due(updates), updates)

    def should_stop_evaluating(self, batches: int) -> bool:
        """The same after so many batches of an evaluation, in which all processes have equally many."""
        return self._agreed(self.stop.requested, batches)

    def _agreed(self, asked: bool, done: int) -> bool:
        if self.processes == 1:
            return asked
        if done % self._agree_every:
            return False
        vote = torch.tensor([self.stop.number if asked else 0], device=self.device)
        if number := int(self.accelerator.gather(vote).max()):
            self.stop.request(number)
        return number > 0


def usual_precision() -> str:
    """What "auto" means here: bf16 on a GPU that has it, else fp32."""
    has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_bf16 else "fp32"


class Stream:
    """Batches without end, which a run takes now and then while it goes through those of another loader.

    They do not go through accelerate, which takes the loader begun last for the one that a run goes through.
    """

    def __init__(self, machine: Machine, loader: DataLoader) -> None:
        self._machine = machine
        self._loader = loader
        self._batches: Iterator[tuple[Any, Part]] | None = None

    def take(self, done: int) -> tuple[Any, Part]:
        """The batch after the `done` ones taken before, and the part of it that this process has."""
        if self._batches is None:
            self._batches = self._after(done)
        return next(self._batches)

    def _after(self, done: int) -> Iterator[tuple[Any, Part]]:
        parts = self._loader.batch_sampler
        first, skipped = divmod(done, len(self._loader))
        for epoch in count(first):
            parts.sampler.set_epoch(epoch)
            loader = skip_first_batches(self._loader, skipped) if skipped else self._loader
            for number, batch in enumerate(self._machine.batches(loader), skipped):
                yield send_to_device(batch, self._machine.device, non_blocking=True), parts.part(number)
            skipped = 0


def end_workers() -> None:
    """End at once what reads data for this process.

    torch asks them to end and waits for seconds, in vain if garbage collection came to their queues first;
    Python then sends the signal that they do not heed, and waits for good.
    """
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's raises an error for each
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()
            worker.join()
    signal.signal(signal.SIGCHLD, handler)
