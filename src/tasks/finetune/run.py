"""A run that is set up: what its epochs work with, and what is saved of it."""

from collections.abc import Iterator
from typing import NamedTuple

from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tasks.finetune.args import VqaArgs
from tasks.finetune.state import TrainState
from training.finite import BadSteps
from training.machine import Machine
from training.run_folder import Stateful


class Run(NamedTuple):
    """The parts of a run; those that `Machine` prepared are as it gave them."""

    args: VqaArgs
    machine: Machine
    model: nn.Module
    optimizer: AcceleratedOptimizer
    schedule: LambdaLR
    total_updates: int
    loader: DataLoader
    valid_loader: DataLoader
    state: TrainState
    bad_steps: BadSteps

    @property
    def goes_on(self) -> bool:
        """Whether there is an epoch to train."""
        args, state = self.args, self.state
        patient = args.patience is None or state.epochs_without_best < args.patience
        return state.epoch < args.epochs and state.updates < self.total_updates and patient

    @property
    def parts(self) -> dict[str, Stateful]:
        """All that a resumed run must find again."""
        accelerator = self.machine.accelerator
        parts = {"model": accelerator.unwrap_model(self.model), "optimizer": self.optimizer}
        parts |= {"schedule": self.schedule, "counters": self.state, "bad_steps": self.bad_steps}
        return parts | ({"scaler": accelerator.scaler} if accelerator.scaler else {})

    def learned(self) -> Iterator[Tensor]:
        """The weights that are trained, and what the optimizers keep of them."""
        yield from (parameter for parameter in self.model.parameters() if parameter.requires_grad)
        for kept in self.optimizer.state.values():
            yield from (value for value in kept.values() if isinstance(value, Tensor))
