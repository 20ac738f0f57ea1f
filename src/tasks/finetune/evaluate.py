"""Answering all questions of a data set, and how well that went."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive.usage import Usage
from common.errors import Interrupted, UserError
from tasks.finetune.gating import Decide, as_the_policy_does
from tasks.finetune.model import score
from training.finite import shown
from training.machine import Machine
from vqadata.dataset import VqaDataset
from vqadata.scoring import GroundTruth, official_scores, oracle_scores


class Evaluation(NamedTuple):
    """The answers to N questions, in the order of their data set."""

    question_ids: np.ndarray  # (N,)
    chosen: np.ndarray  # (N,) answer numbers
    scores: np.ndarray  # (N,) soft target of the chosen answer
    probabilities: np.ndarray  # (N,) of the chosen answer: its own, they need not sum to 1
    usage: Usage  # of the gates, by question type
    live: np.ndarray  # bool (G,), the gates that the answer depends on
    official: dict[str, Any] | None  # see `Exam.official_accuracy`
    by_group: dict[str, float] | None  # see `Exam.accuracy_by_group`
    choices: np.ndarray | None = None  # bool (N, G), the gates, if the exam keeps them

    @property
    def accuracy(self) -> float:
        """Soft-target accuracy in per cent."""
        return 100 * float(self.scores.astype(np.float64).mean())


class Exam(NamedTuple):
    """Questions to be answered, and what their answers are compared with."""

    splits: str  # they are of, comma-separated
    dataset: VqaDataset
    live: np.ndarray  # bool (G,), the gates that the answer depends on
    truth: GroundTruth | None  # what humans answered to exactly these questions, if it is at hand
    answers: Sequence[str]  # in label order
    decide: Decide = as_the_policy_does  # how gates come about
    keeps_choices: bool = False

    def official_accuracy(self, question_ids: np.ndarray, chosen: np.ndarray) -> dict[str, Any] | None:
        """In per cent: overall, by answer and question type, and the vocabulary's bound.

        question_ids, chosen (N,): what was asked and the number of the answer given. None without the truth.
        """
        if self.truth is None:
            return None
        chosen_answers = (self.answers[number] for number in chosen)
        scores = official_scores(self.truth, dict(zip(question_ids.tolist(), chosen_answers, strict=True)))
        return {
            "overall": scores.overall,
            "by_answer_type": {name: part.percent for name, part in scores.by_answer_type.items()},
            "by_question_type": {name: part.percent for name, part in scores.by_question_type.items()},
            "vocabulary_bound": oracle_scores(self.truth, self.answers).overall,
        }

    def accuracy_by_group(self, question_ids: np.ndarray, scores: np.ndarray) -> dict[str, float] | None:
        """Soft-target accuracy in per cent of the questions of each group; None where records name no groups.

        question_ids, scores (N,): some or all of the questions, in any order.
        """
        data = self.dataset
        if not any(data.groups):
            return None
        places = {number: place for place, number in enumerate(data.question_ids.tolist())}
        group = data.groups[data.group[[places[number] for number in question_ids.tolist()]]]
        return {
            str(name): 100 * float(scores[group == name].mean(dtype=np.float64)) for name in np.unique(group)
        }


@torch.no_grad()
def evaluate(machine: Machine, model: nn.Module, loader: DataLoader, exam: Exam) -> Evaluation:
    """Answer every question once, with gates as the exam decides; Interrupted if asked to stop.

    model, loader: as `accelerator.prepare` gave them, the loader over the exam's data set. UserError if what
    the model answers to a question is not finite: an accuracy over such answers would mean nothing.
    """
    accelerator = machine.accelerator
    adaptive = accelerator.unwrap_model(model.eval())
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    choices: list[Tensor] = []
    usage = Usage(len(exam.live), len(exam.dataset.question_types), machine.device)
    # Autocast around the whole loop: weights are rounded once for all batches and not once a batch.
    bar = machine.progress_bar("evaluation", len(loader))
    with accelerator.autocast(), torch.compiler.set_stance("force_eager"), bar as bar:
        for batch in machine.batches(loader):
            given = exam.decide(adaptive, batch["inputs"], batch["question_id"])
            output = model(**batch["inputs"] | given)
            logits = output.outputs
            scores = score(logits, batch["target"])
            # In one matrix: gates of a model that has none would be empty, and NCCL gathers nothing empty.
            numbers = torch.stack([scores, logits.float().amax(1).sigmoid()], dim=1)
            numbers_and_gates = torch.cat([numbers, output.gates_of(scores)], dim=1)
            answered = (batch["question_id"], logits.argmax(1), logits.isfinite().all(1))
            *answered, numbers_and_gates, question_type = accelerator.gather_for_metrics(
                (*answered, numbers_and_gates, batch["question_type"])
            )
            numbers, gates = numbers_and_gates.split([2, len(exam.live)], dim=1)
            usage.update(gates, question_type)
            if exam.keeps_choices:
                choices.append(gates.bool().cpu())
            for column, values in zip(columns, (*answered, *numbers.unbind(1)), strict=True):
                column.append(values)
            bar.update()
            if machine.should_stop_evaluating(len(columns[0])):
                raise Interrupted("Interrupted; nothing was written.")
    ids, chosen, finite, scores, probabilities = (torch.cat(column).cpu().numpy() for column in columns)
    if not finite.all():
        raise UserError(
            f"the model's answers to {(~finite).sum():,} of {len(ids):,} questions of {exam.splits} are not "
            f"finite ({shown(ids[~finite].tolist())}), so there is no accuracy. Look at the features of "
            "these questions' images; if it is all questions, the weights are spoilt."
        )
    more = (exam.official_accuracy(ids, chosen), exam.accuracy_by_group(ids, scores))
    kept = torch.cat(choices).numpy() if exam.keeps_choices else None
    return Evaluation(ids, chosen, scores, probabilities, usage, exam.live, *more, kept)
