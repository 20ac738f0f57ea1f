"""Where a run is, and what it has counted: everything that a resumed run must find again."""

import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from adaptive.usage import Usage
from tasks.finetune.evaluate import Evaluation
from tasks.finetune.metrics import End, Epoch, EpochMetrics, FinalMetrics

COUNTERS = ("epoch", "step", "updates", "policy_steps", "seconds")


class TrainState:
    """Counters, running sums of the current epoch, and the history of the finished ones.

    epoch: finished epochs. step: finished batches of the current epoch. updates: optimizer steps in all.
    policy_steps: those on held-out questions. seconds: in training steps. wall_seconds: from the start of the
    command, in all calls of it together. history: the metrics of each finished epoch. shares: "train" and
    "val", the share tuned of each gate (G,) in each finished epoch. by_type: that of the last validation, by
    question type (K, G).

    live: bool (G,), the gates that the answer depends on; shares tuned are means over these. rank: that of
    this process among several, each of which counts for itself. noise: the generator that they share.
    started: when the command was, by `time.perf_counter`.
    """

    def __init__(
        self,
        device: torch.device,
        live: np.ndarray,
        question_types: int,
        *,
        rank: int = 0,
        noise: torch.Generator | None = None,
        started: float | None = None,
    ) -> None:
        self.epoch = 0
        self.step = 0
        self.updates = 0
        self.policy_steps = 0
        self.seconds = 0.0
        self._begin(0.0, time.perf_counter() if started is None else started)
        self.history: list[EpochMetrics] = []
        self.shares: dict[str, list[Tensor]] = {"train": [], "val": []}
        self.by_type: Tensor | None = None
        self._sums = torch.zeros(4, device=device)  # of loss, score, share tuned and examples
        self._live_weights = torch.from_numpy(live / max(1, live.sum())).float().to(device)
        self._usage = Usage(len(live), question_types, device)
        self._pooled = self._flat()[None]
        self._rank = rank
        self._noise = noise

    def count(
        self, loss: Tensor, scores: Tensor, gates: Tensor, question_type: Tensor, examples: int
    ) -> None:
        """Count one step: loss (), the batch's mean; scores (B,); gates (B, G); question_type (B,).

        examples: how many of them count, all or none. Nothing here waits for the device.
        """
        gates = gates.detach().nan_to_num(0.0)  # of a policy that is not finite: the step is left out
        share = (gates @ self._live_weights).mean()
        mean = torch.stack([loss.detach().float(), scores.mean(), share, torch.ones_like(share)])
        # A step that is not finite is left out, see training.finite; it must not spoil the means either.
        self._sums += torch.where(mean.isfinite().all(), mean * examples, torch.zeros_like(mean))
        self._usage.update(gates[:examples], question_type[:examples])
        self.step += 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Of the epoch so far: loss, accuracy in per cent, and with gates the share tuned.

        They are those of all processes, which all must ask for them.
        """
        return self._means(accelerator.reduce(self._sums, "sum"))

    def _means(self, sums: Tensor) -> dict[str, float]:
        loss, accuracy, share, examples = sums.tolist()
        examples = max(examples, 1.0)
        means = {"loss": loss / examples, "accuracy": 100 * accuracy / examples}
        return means | ({"share_tuned": share / examples} if len(self._live_weights) else {})

    def finish_epoch(self, evaluation: Evaluation, peak_memory: float) -> EpochMetrics:
        """Enter an epoch into the history, set the counts back, return its metrics.

        The counts must have been pooled. peak_memory: of this call of the command so far, in GB.
        """
        self._fill(self._pooled.sum(0))
        examples = int(self._sums[-1])
        before = sum(metrics.seconds for metrics in self.history)
        seconds = self.seconds - before
        peak_memory = max([peak_memory, *(metrics.peak_memory_gb or 0.0 for metrics in self.history)])
        measured = (seconds, self.wall_seconds, peak_memory, examples)
        metrics = EpochMetrics.of(Epoch(self.epoch + 1, self._means(self._sums), evaluation, *measured))
        self.history.append(metrics)
        self.shares["train"].append(self._usage.share().cpu())
        self.shares["val"].append(evaluation.usage.share().cpu())
        self.by_type = evaluation.usage.share_by_group().cpu()
        self.epoch += 1
        self.step = 0
        self._pooled.zero_()
        self._fill(self._pooled[0])
        return metrics

    def finish(self, own: Evaluation | None) -> FinalMetrics:
        """What is measured once, after the last epoch; own: the answers to training questions, or None."""
        return FinalMetrics.of(End(self.history[-1], own))

    @property
    def wall_seconds(self) -> float:
        """From the start of the command, in all calls of it together."""
        return self._earlier_calls + time.perf_counter() - self._started

    @property
    def seconds_an_update(self) -> float:
        """What an optimizer step of this call took, with a share of everything else, such as evaluations."""
        began, updates = self._pace
        return (time.perf_counter() - began) / max(1, self.updates - updates)

    def _begin(self, earlier_calls: float, started: float) -> None:
        """Begin to time this call of the command, after others that took so many seconds."""
        self._earlier_calls, self._started = earlier_calls, started
        self._pace = time.perf_counter(), self.updates

    @property
    def best(self) -> EpochMetrics:
        """The epoch with the highest validation accuracy, the earliest of equals."""
        return max(self.history, key=lambda metrics: metrics.val_accuracy)

    @property
    def epochs_without_best(self) -> int:
        """How many epochs have ended since the best one."""
        return self.epoch - self.best.epoch if self.history else 0

    def pool(self, accelerator: Accelerator) -> None:
        """Collect the counts of all processes, before they are saved and at the end of an epoch.

        Each goes on with its own, and a resumed one takes its own up again: sums that were added up in
        another order would be rounded otherwise than those of an uninterrupted run.
        """
        self._pooled = accelerator.gather(self._flat()[None])

    def state_dict(self) -> dict[str, Any]:
        """For accelerate, which saves and loads it with the rest of the state."""
        return {
            **{name: getattr(self, name) for name in COUNTERS},
            "wall_seconds": self.wall_seconds,
            "history": [metrics.values() for metrics in self.history],
            "shares": self.shares,
            "by_type": self.by_type,
            "counts": self._pooled,
            "noise": self._noise.get_state() if self._noise else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = {"policy_steps": 0, "wall_seconds": 0.0} | state  # which states of older runs do not have
        for name in (*COUNTERS, "shares", "by_type"):
            setattr(self, name, state[name])
        self._begin(state["wall_seconds"], self._started)
        self.history = [EpochMetrics(**values) for values in state["history"]]
        self._fill(state["counts"][self._rank])
        if self._noise:
            self._noise.set_state(state["noise"])

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._sums, self._usage.tuned, self._usage.examples

    def _flat(self) -> Tensor:
        """All counts of this process, as one vector."""
        return torch.cat([tensor.flatten() for tensor in self._counts()])

    def _fill(self, flat: Tensor) -> None:
        """The inverse of `_flat`."""
        counts = self._counts()
        for tensor, part in zip(counts, flat.split([tensor.numel() for tensor in counts]), strict=True):
            tensor.copy_(part.view_as(tensor))
