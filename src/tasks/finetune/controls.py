"""What the choice per input is worth: the same weights under gates that were not chosen for the question.

`CONTROLS` is the one table of such gates. If a model answers as well when questions get each other's gates,
then which copies run does not depend on the input in any way that helps, however good the accuracy is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from adaptive.usage import Usage, information
from common.errors import Interrupted
from report.statistics import paired_interval
from tasks.finetune.best import load_best, read_best
from tasks.finetune.evaluate import Evaluation, Exam, evaluate
from tasks.finetune.gating import chooses, given, weighed
from tasks.finetune.run import Run
from tasks.finetune.setup import Setup
from training.machine import Machine
from training.run_folder import RunFolder
from vqadata.dataset import FIELDS

DRAWS = 5  # of gates that are drawn, for the mean of their accuracies
SHUFFLES = 20  # of labels, for what finite numbers of questions pretend to tell

Gates = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Control:
    """Gates to hold a policy's against.

    gates: from the gates (N, G), bool, that the policy chose for N questions, and the types (N,) of these, to
    gates (N, G), bool, or weights (G,) with which both copies are averaged. Every call with the generator may
    give others.
    """

    name: str
    gates: Gates
    draws: int = 1


def _exchanged(chosen: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return chosen[rng.permutation(len(chosen))]


def _exchanged_within(chosen: np.ndarray, types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    source = np.arange(len(chosen))
    for kind in np.unique(types):
        members = np.flatnonzero(types == kind)
        source[members] = rng.permutation(members)
    return chosen[source]


EXCHANGED = Control("exchanged between questions", _exchanged, DRAWS)
CONTROLS = (
    EXCHANGED,
    Control("exchanged within question types", _exchanged_within, DRAWS),
    Control("fixed mask: each gate's majority", lambda chosen, *_: np.float32(chosen.mean(0) > 0.5)),
    Control("all tuned", lambda chosen, *_: np.ones(chosen.shape[1], np.float32)),
    Control("all frozen", lambda chosen, *_: np.zeros(chosen.shape[1], np.float32)),
    Control(
        "random, each gate as often", lambda chosen, _, rng: rng.random(chosen.shape) < chosen.mean(0), DRAWS
    ),
    Control("both copies, averaged by share", lambda chosen, *_: chosen.mean(0, dtype=np.float32)),
    Control("both copies, half and half", lambda chosen, *_: np.full(chosen.shape[1], 0.5, np.float32)),
)


class Difference(NamedTuple):
    """A mean over questions in points, and the 95 % interval of it, None if all are about one image."""

    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f} (one image: no interval)"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


class Outcome(NamedTuple):
    """How well a model does under other gates than its policy's."""

    name: str
    accuracy: float  # in per cent, the mean of all draws
    difference: Difference  # to the accuracy under the gates that were chosen
    differences: np.ndarray  # (N,) the same of each question


class Trial:
    """The questions of an exam, answered under the gates chosen for them, to be answered under others.

    machine, model, loader, exam: those of `evaluate`. evaluation: of the exam, with its choices, if it has
    been answered already.
    """

    def __init__(
        self,
        machine: Machine,
        model: nn.Module,
        loader: DataLoader,
        exam: Exam,
        evaluation: Evaluation | None = None,
    ) -> None:
        # Official scores of other gates would take long, and nobody asks for them.
        self._answer = lambda **how: evaluate(machine, model, loader, exam._replace(truth=None, **how))
        evaluation = evaluation or self._answer(keeps_choices=True)
        self.exam = exam
        self.chosen = evaluation.choices
        self.question_ids = evaluation.question_ids
        self.scores = evaluation.scores.astype(np.float64)

    def under(self, control: Control, draws: int | None = None) -> Outcome:
        """One evaluation a draw, or none where the gates turn out to be those that were chosen."""
        rng = np.random.default_rng(0)
        types = self.exam.dataset.question_type
        gates = [control.gates(self.chosen, types, rng) for _ in range(draws or control.draws)]
        scores = 100 * np.mean([self._scores(drawn) for drawn in gates], axis=0)
        differences = scores - 100 * self.scores
        return Outcome(control.name, float(scores.mean()), self.mean(differences), differences)

    def mean(self, values: np.ndarray, of: np.ndarray | None = None) -> Difference:
        """The mean of values (N,) over all questions, or those that a mask (N,) names."""
        of = np.ones(len(values), bool) if of is None else of
        images = self.exam.dataset.image[of]
        if (images == images[0]).all():
            return Difference(float(values[of].mean()), None, None)
        return Difference(*paired_interval(values[of], images)[:3])

    def groups(self) -> dict[str, np.ndarray]:
        """Which questions (N,) are of each group, if the records name any."""
        names, numbers = self.exam.dataset.column("group")
        return {str(name): numbers == number for number, name in enumerate(names)} if any(names) else {}

    def information(self) -> dict[str, float]:
        """Bits that gates tell about each label of their questions, by its name; see `most_told`."""
        labels = {name: self.exam.dataset.column(name)[1] for name in FIELDS}
        chosen = self.chosen[:, self.exam.live]
        return {name: most_told(chosen, label) for name, label in labels.items() if label.any()}

    def _scores(self, gates: np.ndarray) -> np.ndarray:
        if (gates == self.chosen)[:, self.exam.live].all():
            return self.scores
        decide = given(gates, self.question_ids) if gates.ndim == 2 else weighed(gates)
        return self._answer(decide=decide).scores.astype(np.float64)


def most_told(chosen: np.ndarray, label: np.ndarray) -> float:
    """Bits of mutual information between the label of a question and that gate which tells most about it.

    chosen (N, G), bool; label (N,), numbers from 0. The plug-in estimate of `adaptive.usage` is too
    large, by (K - 1) / (2 N ln 2) bits a gate for K labels (Miller 1955), and the largest of G estimates by
    more. So the mean of the largest ones with the labels shuffled is taken off (the bootstrap correction in
    Panzeri et al. 2007, J. Neurophysiology 98, 1064); what would be negative is 0.
    """
    gates = torch.from_numpy(chosen)

    def largest(label: np.ndarray) -> float:
        usage = Usage(chosen.shape[1], int(label.max()) + 1, gates.device)
        usage.update(gates, torch.from_numpy(label.astype(np.int64)))
        return information(usage.tuned, usage.examples).max().item()

    rng = np.random.default_rng(0)
    by_chance = np.mean([largest(rng.permutation(label)) for _ in range(SHUFFLES)])
    return max(0.0, largest(label) - float(by_chance))


class GroupWorth(NamedTuple):
    """The same of the questions of one group."""

    cost: Difference
    share_tuned: float  # of the decisions of live gates


@dataclass(frozen=True)
class Worth:
    """What it is worth to choose for each input; all parts are empty where nothing is chosen."""

    cost: Difference | None = None  # of exchanging gates between questions, in points
    information: Mapping[str, float] = field(default_factory=dict)  # see `Trial`
    groups: Mapping[str, GroupWorth] = field(default_factory=dict)  # where records name groups

    def values(self) -> dict[str, Any]:
        """For result.json."""
        if self.cost is None:
            return {}
        values = {**_worth_values(self.cost), "information": dict(self.information)}
        by_group = {
            name: _worth_values(cost) | {"share_tuned": share} for name, (cost, share) in self.groups.items()
        }
        return values | ({"worth_by_group": by_group} if by_group else {})

    def rows(self) -> list[tuple[str, str]]:
        """For the closing table."""
        if self.cost is None:
            return []
        rows = [("worth of the choice per input (points)", str(self.cost))]
        for name, (cost, share) in self.groups.items():
            rows += [(f"  worth in {name}", str(cost)), (f"  share tuned in {name}", f"{share:.3f}")]
        return rows + _information_rows(self.information)


def _worth_values(cost: Difference) -> dict[str, float | None]:
    return dict(zip(("worth", "worth_low", "worth_high"), cost, strict=True))


def worth_of_choice(run: Run, folder: RunFolder, setup: Setup) -> Worth:
    """Of the best epoch, on the validation questions: by one exchange of gates, so two evaluations in all.

    Where the gates are the same for all questions it is 0, after one. The model has the weights of BEST
    afterwards, so everything must have been saved before.
    """
    if not chooses(setup.spec):
        return Worth()
    load_best(read_best(folder.best), run.machine.accelerator.unwrap_model(run.model), setup.weights)
    try:
        trial = Trial(run.machine, run.model, run.valid_loader, setup.exam)
        lost = 0.0 - trial.under(EXCHANGED, draws=1).differences  # not -0.0, which prints its sign
    except Interrupted:
        advice = "all is saved. Run the same command again for its last evaluations."
        raise Interrupted(f"Interrupted; {advice}") from None
    tuned = trial.chosen[:, trial.exam.live]
    groups = {
        name: GroupWorth(trial.mean(lost, members), float(tuned[members].mean()))
        for name, members in trial.groups().items()
    }
    return Worth(trial.mean(lost), trial.information(), groups)


@dataclass(frozen=True)
class Controls:
    """How a model does under all `CONTROLS`."""

    chosen: float  # accuracy under the gates that were chosen, in per cent
    outcomes: Sequence[Outcome]
    information: Mapping[str, float]  # see `Trial`

    def values(self) -> dict[str, Any]:
        """For a JSON file: accuracies in per cent, differences in points."""
        rows = [
            {"gates": name, "accuracy": accuracy, **difference._asdict()}
            for name, accuracy, difference, _ in self.outcomes
        ]
        return {"accuracy": self.chosen, "controls": rows, "information": dict(self.information)}

    def table(self) -> str:
        """A text of 80 columns."""
        lines = [
            f"{'gates':<34}{'accuracy':>10}    difference, 95 % interval",
            f"{'as chosen':<34}{self.chosen:>8.2f} %",
            *(f"{name:<34}{accuracy:>8.2f} %    {cost}" for name, accuracy, cost, _ in self.outcomes),
            *(f"{name:<42}  {value}" for name, value in _information_rows(self.information)),
            "Differences to the chosen gates are in points; intervals are from a paired",
            f"bootstrap over images. Exchanged and random gates: the mean of {DRAWS} draws.",
        ]
        return "\n".join(lines)


def try_controls(trial: Trial) -> Controls:
    """All of them, each as many evaluations as it has draws."""
    outcomes = [trial.under(control) for control in CONTROLS]
    return Controls(100 * float(trial.scores.mean()), outcomes, trial.information())


def _information_rows(bits: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(f"most that a gate tells of {name} (bits)", f"{value:.3f}") for name, value in bits.items()]
