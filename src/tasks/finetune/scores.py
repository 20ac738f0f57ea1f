"""The official VQA accuracy of an evaluation, where the human answers are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.finetune.args import VqaArgs
from tasks.finetune.data import data_folder, split_names
from vqadata.scoring import GroundTruth, official_scores, oracle_scores, restrict


def load_key(args: VqaArgs, splits: str) -> GroundTruth | None:
    """What humans answered to the questions of these splits, or None if that of any is not there."""
    return data_folder(args).ground_truth(split_names(splits))


def official(
    truth: GroundTruth, question_ids: np.ndarray, chosen: np.ndarray, answers: Sequence[str]
) -> dict[str, Any]:
    """Official accuracy in per cent: overall, by answer type, by question type, and the vocabulary's bound.

    question_ids, chosen (N,): what was asked and the number of the answer given.
    """
    ids = question_ids.tolist()
    asked = restrict(truth, ids)
    scores = official_scores(asked, dict(zip(ids, (answers[number] for number in chosen), strict=True)))
    return {
        "overall": scores.overall,
        "by_answer_type": {name: part.percent for name, part in scores.by_answer_type.items()},
        "by_question_type": {name: part.percent for name, part in scores.by_question_type.items()},
        "vocabulary_bound": oracle_scores(asked, answers).overall,
    }
