"""Numbers that are none: noticed before they are in anything that is kept, without waiting for the device."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from common.errors import RunError
from common.words import plural
from training.optim import JointOptimizer

SHOWN = 8  # question ids in a sentence


class BadStep(NamedTuple):
    """An optimizer step whose loss or gradient is not finite."""

    step: int
    ids: list[int]  # of the examples that made it so, or of all of its examples if none stands out


class BadSteps:
    """The steps of a run whose loss or gradient is not finite; at most `limit` are left out, then it ends.

    The device decides by itself whether a step is taken: `guard` never waits for it. What it decided is read
    in `settle`, where the host waits anyway. From the first step above the limit on no step is taken, so that
    the weights stay as they were before it.
    """

    def __init__(self, limit: int, accelerator: Accelerator) -> None:
        self.found: list[BadStep] = []
        self._limit = limit
        self._accelerator = accelerator
        self._count = torch.zeros((), device=accelerator.device)
        # Of the step that is being accumulated, and of those to be settled: ids, and whose logits are finite.
        self._batches: list[tuple[Tensor, Tensor]] = []
        self._losses: list[Tensor] = []
        self._pending: list[tuple[int, Tensor, list[tuple[Tensor, Tensor]]]] = []

    def watch(self, loss: Tensor, logits: Tensor, ids: Tensor) -> None:
        """Take note of a batch: its loss (), its logits (B, A), the ids (B,) of its examples."""
        self._batches.append((ids, logits.detach().isfinite().all(1)))
        self._losses.append(loss.detach())

    def guard(self, optimizer: JointOptimizer, norms: Tensor, step: int) -> None:
        """Let `optimizer` leave out the coming step if it is bad; norms: those of all gradients.

        In fp16 gradients overflow now and then: the scaler leaves out such a step, which is not a bad one.
        """
        good = torch.stack(
            [rows.all() for _, rows in self._batches] + [*torch.stack(self._losses).isfinite()]
        )
        good = good.all() & (norms.isfinite().all() if self._accelerator.scaler is None else True)
        bad = self._accelerator.reduce((~good).float(), "sum") > 0
        self._count += bad
        optimizer.skip = bad | (self._count > self._limit)
        self._pending.append((step, bad, self._batches))
        self._batches, self._losses = [], []

    def settle(self) -> list[BadStep]:
        """The bad steps since the last call; RunError if they are more than the limit allows in all."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        flags = torch.stack([bad for _, bad, _ in pending]).tolist()
        new = [
            self._explain(step, parts) for bad, (step, _, parts) in zip(flags, pending, strict=True) if bad
        ]
        self.found += new
        return new

    def require_few(self, where: str) -> None:
        """RunError if more were found than the limit allows; where: what says more."""
        if len(self.found) <= self._limit:
            return
        first = self.found[self._limit]
        raise RunError(
            f"step {first.step} gave a loss or a gradient that is not finite, with {shown(first.ids)}. All "
            f"that was saved is as it was; {where}. Look at the features of these questions' images, try a "
            "smaller --lr, or leave out up to N such steps with --max-bad-steps N."
        )

    def state_dict(self) -> dict[str, Any]:
        return {"found": [list(bad) for bad in self.found]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.found = [BadStep(*entry) for entry in state["found"]]
        self._count.fill_(len(self.found))

    def _explain(self, step: int, parts: list[tuple[Tensor, Tensor]]) -> BadStep:
        ids = [number for part, good in parts for number in part[~good].tolist()]
        ids = gather_object(ids) or gather_object([number for part, _ in parts for number in part.tolist()])
        return BadStep(step, ids)


def require_finite(tensors: Iterable[Tensor], step: int) -> None:
    """RunError if what is about to be saved after this step is not finite; waits for the device once."""
    good = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    if good and not torch.stack(good).all():
        raise RunError(
            f"after step {step} the weights, or what the optimizer keeps of them, are not finite. They are "
            "not saved: all that was saved before is as it was. Try a smaller --lr or --policy_lr."
        )


def shown(ids: list[int]) -> str:
    """The first ids in words."""
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"{plural(len(ids), 'question')} {', '.join(map(str, ids[:SHOWN]))}{more}"
