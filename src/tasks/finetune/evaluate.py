"""Answering all questions of a data set, and how well that went."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from adaptive.usage import Usage
from common.errors import Interrupted
from tasks.finetune.model import score
from training.machine import Machine
from vqadata.dataset import VqaDataset
from vqadata.scoring import GroundTruth, official_scores, oracle_scores


class Evaluation(NamedTuple):
    """The answers to N questions, in the order of their data set."""

    question_ids: np.ndarray  # (N,)
    chosen: np.ndarray  # (N,) answer numbers
    scores: np.ndarray  # (N,) soft target of the chosen answer
    usage: Usage  # of the gates, by question type
    live: np.ndarray  # bool (G,), the gates that the answer depends on
    official: dict[str, Any] | None  # see `Exam.official_accuracy`

    @property
    def accuracy(self) -> float:
        """Soft-target accuracy in per cent."""
        return 100 * float(self.scores.astype(np.float64).mean())


class Exam(NamedTuple):
    """Questions to be answered, and what their answers are compared with."""

    dataset: VqaDataset
    live: np.ndarray  # bool (G,), the gates that the answer depends on
    truth: GroundTruth | None  # what humans answered to exactly these questions, if it is at hand
    answers: Sequence[str]  # in label order

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


@torch.no_grad()
def evaluate(machine: Machine, model: nn.Module, loader: DataLoader, exam: Exam) -> Evaluation:
    """Answer every question once, with the likelier copy at every gate; Interrupted if asked to stop.

    model, loader: as `accelerator.prepare` gave them, the loader over the exam's data set.
    """
    accelerator = machine.accelerator
    model.eval()
    columns: tuple[list[Tensor], ...] = ([], [], [])
    usage = Usage(len(exam.live), len(exam.dataset.question_types), machine.device)
    # Autocast around the whole loop: weights are rounded once for all batches and not once a batch.
    with accelerator.autocast(), machine.progress_bar("evaluation", len(loader)) as bar:
        for batch in machine.batches(loader):
            output = model(**batch["inputs"])
            logits = output.outputs
            answered = (batch["question_id"], logits.argmax(1), score(logits, batch["target"]))
            *answered, gates, question_type = accelerator.gather_for_metrics(
                (*answered, output.gates_of(logits), batch["question_type"])
            )
            usage.update(gates, question_type)
            for column, values in zip(columns, answered, strict=True):
                column.append(values)
            bar.update()
            if machine.should_stop_evaluating(len(columns[0])):
                raise Interrupted("Interrupted; nothing was written.")
    ids, chosen, scores = (torch.cat(column).cpu().numpy() for column in columns)
    return Evaluation(ids, chosen, scores, usage, exam.live, exam.official_accuracy(ids, chosen))
