"""Between the trainer and the machine: accelerate, loaders, progress bars, agreeing to stop."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import DistributedDataParallelKwargs
from torch.utils.data import DataLoader, Sampler, default_convert
from tqdm import tqdm

from tasks.finetune.args import VqaArgs
from training.checkpoint import StopSignal
from training.loader import make_loader
from vqadata.dataset import VqaDataset


def make_accelerator(args: VqaArgs) -> Accelerator:
    """Devices, processes and precision."""
    precision = args.precision
    if precision == "auto":
        has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=args.accumulate,
        dataloader_config=DataLoaderConfiguration(non_blocking=True),
        # A copy that no example of a step chose gets no gradient in that step.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )


def loader_over(
    dataset: VqaDataset, args: VqaArgs, batch_size: int, order: Sampler | None = None
) -> DataLoader:
    """A loader over whole batches, in the data set's order unless told another."""
    return make_loader(
        dataset,
        batch_size,
        collate=default_convert,
        sampler=order,
        workers=args.num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def progress_bar(
    args: VqaArgs, accelerator: Accelerator, title: str, total: int, done: int = 0
) -> AbstractContextManager[tqdm]:
    """A bar over steps that disappears when full: what lasts is in the log lines."""
    hidden = not (args.tqdm and accelerator.is_main_process)
    return tqdm(total=total, initial=done, desc=title, unit="step", leave=False, disable=hidden)


def stop_agreed(args: VqaArgs, accelerator: Accelerator, stop: StopSignal, updates: int) -> bool:
    """Whether to stop after this step; several processes must agree, and ask each other now and then."""
    if accelerator.num_processes == 1:
        return bool(stop)
    if updates % args.log_every:
        return False
    asked = torch.tensor(float(bool(stop)), device=accelerator.device)
    return accelerator.reduce(asked, "sum").item() > 0
