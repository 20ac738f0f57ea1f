"""How far a run is, and what it has counted: everything that a resumed run must find again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from adaptive.usage import Usage

COUNTERS = ("epoch", "step", "updates", "seconds")


class Progress:
    """Counters, running sums of the epoch under way, and the history of the finished ones.

    epoch: finished epochs. step: finished batches of the epoch under way. updates: optimizer steps in all,
    which the trainer counts.
    history: metrics of each finished epoch. shares: "train" and "val", the share tuned of each gate (G,) in
    each finished epoch. by_type: that of the last validation, by question type (K, G).
    """

    def __init__(self, device: torch.device, gates: int, groups: int, *, main_process: bool = True) -> None:
        self.epoch = 0
        self.step = 0
        self.updates = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.shares: dict[str, list[Tensor]] = {"train": [], "val": []}
        self.by_type: Tensor | None = None
        self.sums = torch.zeros(4, device=device)  # of loss, score, share tuned and examples
        self.usage = Usage(gates, groups, device)
        self.main_process = main_process

    def count(self, loss: Tensor, scores: Tensor, gates: Tensor | None, group: Tensor) -> None:
        """Count one step: loss (), the batch's mean; scores (B,); gates (B, G) or None; group (B,).

        Nothing here waits for the device.
        """
        examples = len(scores)
        share = loss.new_zeros(()) if gates is None else gates.detach().mean()
        mean = torch.stack([loss.detach().float(), scores.mean(), share, loss.new_ones(())])
        self.sums += mean * examples
        if gates is not None:
            self.usage.update(gates, group)
        self.step += 1

    def means(self) -> dict[str, float]:
        """Of the epoch so far: loss, accuracy in per cent, share tuned."""
        loss, accuracy, share, examples = self.sums.tolist()
        examples = max(examples, 1.0)
        return {
            "loss": loss / examples,
            "accuracy": 100 * accuracy / examples,
            "share_tuned": share / examples,
        }

    def finish_epoch(self, metrics: dict[str, float], validation: Usage) -> None:
        """Enter an epoch into the history and set the counts back."""
        self.history.append(metrics)
        self.shares["train"].append(self.usage.share().cpu())
        self.shares["val"].append(validation.share().cpu())
        self.by_type = validation.share_by_group().cpu()
        self.epoch += 1
        self.step = 0
        for tensor in self._counts():
            tensor.zero_()

    @property
    def best(self) -> dict[str, float]:
        """The epoch with the highest validation accuracy, the earliest of equals."""
        return max(self.history, key=lambda metrics: metrics["val_accuracy"])

    def pool(self, accelerator: Accelerator) -> None:
        """Bring the counts of all processes together in the main one, which is the one that is saved."""
        for tensor in self._counts():
            total = accelerator.reduce(tensor, "sum")
            tensor.copy_(total if self.main_process else torch.zeros_like(total))

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.sums, self.usage.tuned, self.usage.examples

    def state_dict(self) -> dict[str, Any]:
        """For accelerate, which saves and loads it with the rest of the state."""
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "history": self.history,
            "shares": self.shares,
            "by_type": self.by_type,
            "counts": self._counts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in (*COUNTERS, "history", "shares", "by_type"):
            setattr(self, name, state[name])
        if self.main_process:
            for tensor, saved in zip(self._counts(), state["counts"], strict=True):
                tensor.copy_(saved)


def share_by_split(progress: Progress) -> dict[str, np.ndarray]:
    """The share tuned of each gate in each epoch, (E, G), of "train" and "val"."""
    return {split: torch.stack(shares).numpy() for split, shares in progress.shares.items()}
