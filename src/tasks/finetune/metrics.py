"""What is known of a finished epoch, and of a finished run: a new number is one new field of a dataclass.

From there it gets into metrics.jsonl, W&B, the log line, the closing table and result.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from adaptive.usage import variation
from tasks.finetune.evaluate import Evaluation


class Epoch(NamedTuple):
    """A finished epoch, as metrics are computed from it."""

    number: int  # from 1
    training: Mapping[str, float]  # running means: loss, accuracy in per cent, share_tuned
    evaluation: Evaluation
    seconds: float  # in training steps
    wall_seconds: float  # since the run began, in all calls of its command
    peak_memory: float  # since then, in GB
    examples: int  # trained on


class End(NamedTuple):
    """A finished run, as metrics are computed from it."""

    last: EpochMetrics
    own: Evaluation | None  # of a sample of the training questions, by the last epoch's model


def metric(of: Callable[[Any], Any], log: str = "", row: str = "") -> Any:
    """A field: how it is computed, and how it reads in the log line and in the closing table.

    `log` and `row` are format strings; that of a row is its label and its value, with a | between them. Left
    empty, or where the value is None, there is no such entry.
    """
    return dataclasses.field(default=None, metadata={"of": of, "log": log, "row": row})


class Metrics:
    """A dataclass of metrics. Accuracies are in per cent. What does not apply to a run is None."""

    @classmethod
    def of(cls: type[AnyMetrics], source: Any) -> AnyMetrics:
        """Each metric computed from `source`."""
        return cls(**{field.name: field.metadata["of"](source) for field in dataclasses.fields(cls)})

    def values(self) -> dict[str, Any]:
        """What applies to this run, by name."""
        named = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in named if value is not None}

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each row of the closing table."""
        return [tuple(row.split("|")) for row in self._formatted("row")]

    def _formatted(self, where: str) -> list[str]:
        values = self.values()
        return [
            field.metadata[where].format(values[field.name])
            for field in dataclasses.fields(self)
            if field.name in values and field.metadata[where]
        ]


AnyMetrics = TypeVar("AnyMetrics", bound=Metrics)


@dataclass(frozen=True)
class EpochMetrics(Metrics):
    """What is measured in every epoch, from an `Epoch`."""

    epoch: int = metric(lambda epoch: epoch.number)
    train_loss: float = metric(lambda epoch: epoch.training["loss"])
    train_accuracy: float = metric(
        lambda epoch: epoch.training["accuracy"],
        log="train {:.2f}",
        row="train accuracy (soft target, running, last epoch)|{:.2f} %",
    )
    val_by_answer_type: dict[str, float] | None = metric(  # noqa: RUF009 - metric is dataclasses.field
        lambda epoch: epoch.evaluation.by.get("answer_type")
    )
    val_by_question_type: dict[str, float] | None = metric(  # noqa: RUF009
        lambda epoch: epoch.evaluation.by.get("question_type")
    )
    val_by_group: dict[str, float] | None = metric(  # noqa: RUF009
        lambda epoch: epoch.evaluation.by.get("group")
    )
    val_accuracy: float = metric(
        lambda epoch: epoch.evaluation.accuracy,
        log="val {:.2f}",
        row="validation accuracy (soft target, last epoch)|{:.2f} %",
    )
    val_official: dict[str, Any] | None = metric(  # noqa: RUF009
        lambda epoch: epoch.evaluation.official, log="vqa {0[overall]:.2f}"
    )
    gap: float = metric(
        lambda epoch: epoch.training["accuracy"] - epoch.evaluation.accuracy,
        log="gap {:+.2f}",
        row="gap|{:+.2f} points",
    )
    share_tuned: float | None = metric(
        lambda epoch: _mean_of_live(epoch.evaluation, lambda share: share),
        log="tuned {:.2f}",
        row="share tuned (validation)|{:.3f}",
    )
    gate_variation: float | None = metric(
        lambda epoch: _mean_of_live(epoch.evaluation, variation),
        row="departures from a gate's usual choice|{:.3f} (0: fixed mask)",
    )
    seconds: float = metric(lambda epoch: epoch.seconds)
    examples_per_second: float = metric(lambda epoch: epoch.examples / epoch.seconds)
    wall_seconds: float | None = metric(lambda epoch: epoch.wall_seconds)
    peak_memory_gb: float | None = metric(lambda epoch: epoch.peak_memory)

    def log_text(self, epochs: int) -> str:
        """One line for an epoch out of so many."""
        return " ".join([f"epoch {self.epoch:>2}/{epochs}", *self._formatted("log")])


@dataclass(frozen=True)
class FinalMetrics(Metrics):
    """What is measured once, after the last epoch, from an `End`: it takes an evaluation more.

    The own train accuracy is that of the model that is validated, without dropout, where the running one is
    the mean over an epoch of training steps; so is the gap.
    """

    own_train_accuracy: float | None = metric(
        lambda end: end.own and end.own.accuracy,
        row="train accuracy (without dropout, a fixed sample)|{:.2f} %",
    )
    own_gap: float | None = metric(
        lambda end: end.own and end.own.accuracy - end.last.val_accuracy, row="own gap|{:+.2f} points"
    )


def _mean_of_live(evaluation: Evaluation, measure: Callable[[Any], Any]) -> float | None:
    """The mean over the live gates of `measure` of their share tuned; None without gates."""
    share = evaluation.usage.share().cpu()[torch.from_numpy(evaluation.live)]
    return measure(share).mean().item() if len(share) else None
