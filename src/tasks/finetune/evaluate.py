"""Answering all questions of a data set, and how well that went."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive.usage import Usage
from common.errors import Interrupted, UserError
from common.markdown import UNNAMED
from tasks.finetune.gating import Decide, as_the_policy_does
from tasks.finetune.model import score
from training.finite import shown
from training.machine import Machine
from vqadata.answers import ANSWER_TYPES
from vqadata.dataset import VqaDataset
from vqadata.scoring import Accuracy, GroundTruth, official_scores, oracle_scores

LIKELIEST = 5  # answers that are kept of each question
BREAKDOWNS = ("answer_type", "question_type", "group")  # fields of records that accuracies are given by
DIGITS = 4  # of official accuracies and those by type


class Evaluation(NamedTuple):
    """The answers to N questions, in the order of their data set."""

    question_ids: np.ndarray  # (N,)
    chosen: np.ndarray  # (N,) answer numbers
    scores: np.ndarray  # (N,) soft target of the chosen answer
    likeliest: np.ndarray  # (N, K) answer numbers, the likeliest first; K is LIKELIEST, or all answers
    likelihoods: np.ndarray  # (N, K) their probabilities: each answer's own, they need not sum to 1
    usage: Usage  # of the gates, by question type
    live: np.ndarray  # bool (G,), the gates that the answer depends on
    official: dict[str, Any] | None  # see `Exam.official_accuracy`
    by: dict[str, dict[str, float]]  # see `Exam.accuracies_by`
    choices: np.ndarray | None = None  # bool (N, G), the gates, if the exam keeps them

    @property
    def accuracy(self) -> float:
        """Soft-target accuracy in per cent."""
        return 100 * float(self.scores.astype(np.float64).mean())

    @property
    def probabilities(self) -> np.ndarray:
        """Those of the chosen answers, (N,)."""
        return self.likelihoods[:, 0]


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
        """In per cent: by answer and question type, the vocabulary's bound, and overall.

        question_ids, chosen (N,): what was asked and the number of the answer given. None without the truth.
        """
        if self.truth is None:
            return None
        chosen_answers = (self.answers[number] for number in chosen)
        scores = official_scores(self.truth, dict(zip(question_ids.tolist(), chosen_answers, strict=True)))

        def plain(parts: Mapping[str, Accuracy]) -> dict[str, float]:
            return {name or UNNAMED: round(part.percent, DIGITS) for name, part in parts.items()}

        return {
            "by_answer_type": plain(scores.by_answer_type),
            "by_question_type": plain(scores.by_question_type),
            "vocabulary_bound": round(oracle_scores(self.truth, self.answers).overall, DIGITS),
            "overall": round(scores.overall, DIGITS),
        }

    def accuracies_by(self, question_ids: np.ndarray, scores: np.ndarray) -> dict[str, dict[str, float]]:
        """Soft-target accuracy in per cent by answer type, question type and group, where records name them.

        question_ids, scores (N,): some or all of the questions, in any order. Answer types are in the order
        of ANSWER_TYPES, others in that of the alphabet; questions without a name come last, as UNNAMED.
        """
        data = self.dataset
        places = {number: place for place, number in enumerate(data.question_ids.tolist())}
        rows = [places[number] for number in question_ids.tolist()]
        accuracies = {}
        for field in BREAKDOWNS:
            names, number = getattr(data, f"{field}s").tolist(), getattr(data, field)[rows]
            if any(names):
                order = [name for name in ANSWER_TYPES if name in names]
                order += [name for name in names if name and name not in order]
                order += [""] * ("" in names)
                parts = {name: scores[number == names.index(name)] for name in order}
                accuracies[field] = {
                    name or UNNAMED: round(100 * float(part.mean(dtype=np.float64)), DIGITS)
                    for name, part in parts.items()
                    if len(part)
                }
        return accuracies


@torch.no_grad()
def evaluate(machine: Machine, model: nn.Module, loader: DataLoader, exam: Exam) -> Evaluation:
    """Answer every question once, with gates as the exam decides; Interrupted if asked to stop.

    model, loader: as `accelerator.prepare` gave them, the loader over the exam's data set. UserError if what
    the model answers to a question is not finite: an accuracy over such answers would mean nothing.
    """
    accelerator = machine.accelerator
    adaptive = accelerator.unwrap_model(model.eval())
    columns: tuple[list[Tensor], ...] = ([], [], [], [], [])
    kept_answers = min(LIKELIEST, len(exam.answers))
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
            top = logits.float().topk(kept_answers)
            # In one matrix: gates of a model that has none would be empty, and NCCL gathers nothing empty.
            numbers_and_gates = torch.cat(
                [scores[:, None], top.values.sigmoid(), output.gates_of(scores)], dim=1
            )
            answered = (batch["question_id"], logits.argmax(1), logits.isfinite().all(1), top.indices)
            *answered, numbers_and_gates, question_type = accelerator.gather_for_metrics(
                (*answered, numbers_and_gates, batch["question_type"])
            )
            numbers, gates = numbers_and_gates.split([1 + kept_answers, len(exam.live)], dim=1)
            usage.update(gates, question_type)
            if exam.keeps_choices:
                choices.append(gates.bool())
            for column, values in zip(columns, (*answered, numbers), strict=True):
                column.append(values)
            bar.update()
            if machine.should_stop_evaluating(len(columns[0])):
                raise Interrupted("Interrupted; nothing was written.")
    ids, chosen, finite, likeliest, numbers = (torch.cat(column).cpu().numpy() for column in columns)
    if not finite.all():
        raise UserError(
            f"the model's answers to {(~finite).sum():,} of {len(ids):,} questions of {exam.splits} are not "
            f"finite ({shown(ids[~finite].tolist())}), so there is no accuracy. Look at the features of "
            "these questions' images; if it is all questions, the weights are spoilt."
        )
    scores = numbers[:, 0]
    more = (exam.official_accuracy(ids, chosen), exam.accuracies_by(ids, scores))
    kept = torch.cat(choices).cpu().numpy() if exam.keeps_choices else None
    answers = (chosen, scores, likeliest, numbers[:, 1:])
    return Evaluation(ids, *answers, usage, exam.live, *more, kept)
