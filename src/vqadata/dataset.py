"""Questions, soft targets and region features, as batches.

A batch is assembled at once (`__getitems__`), as arrays: a loader over it collates with torch's
`default_convert`, which makes tensors of them without a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Container, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from common.errors import DataError
from common.words import counted
from vqadata.encoded import Questions
from vqadata.features import FeatureStores

FIELDS = ("question_type", "answer_type", "group")  # of records, by which questions can be told apart


def split_names(splits: str) -> list[str]:
    """ "train,nominival" -> ["train", "nominival"]."""
    return [name for name in splits.split(",") if name]


def images_fault(split: str, images: Collection[str], with_features: Container[str]) -> str | None:
    """Which of a split's images have no features, in words; None if all have."""
    missing = sorted(image for image in images if image not in with_features)
    if not missing:
        return None
    first = ", ".join(missing[:3])
    return f"{split}: {len(missing):,} of {len(images):,} images have no features, the first: {first}"


def answers_fault(questions: Questions, answers: Collection[str]) -> str | None:
    """Why nothing can be learned from the answers to these questions, nor scored by them; None if it can.

    A question without label is one whose answers nobody told: it must not count as answered wrong. An empty
    label says that none of its answers is among `answers`.
    """
    count, unlabelled = f"{counted(len(questions), 'question')}", questions.question_ids[~questions.labelled]
    if len(unlabelled) == len(questions):
        return f"none of its {count} has an answer"
    if len(unlabelled):
        return f"{len(unlabelled):,} of its {count} have no label, the first: question_id {unlabelled[0]}"
    given = {questions.answers[number] for number in np.unique(questions.label_answer)}
    if given.isdisjoint(answers):
        return f"none of its {count} has an answer that is in the answer list"
    return None


class VqaDataset(Dataset):
    """Examples held as columns; N examples, T word pieces, A answers.

    questions: N of them, about images that have features (see `images_fault`); answers: in label order.
    question_types, answer_types and groups are the names that occur, sorted, '' where a record has none;
    question_type, answer_type and group (N,) the number of each example's.
    """

    def __init__(self, questions: Questions, stores: FeatureStores, answers: Sequence[str]) -> None:
        self.length_step = 1  # batches are as long as the next multiple of it; beyond 1, of all regions
        self.more_inputs: dict[str, np.ndarray] = {}  # (N, ...), that the model is called with besides
        self.left_out: dict[str, int] = {}  # questions that are not here, for want of features, by split
        self.stores = stores
        self.token_ids = questions.token_ids
        self.token_lengths = questions.token_lengths
        self.images = questions.images
        self.image = questions.image  # of each question, its place among them
        self.question_ids = questions.question_ids
        self.places = stores.locate(questions.images)[questions.image]
        self.question_types, self.question_type = _by_name(questions.question_types, questions.question_type)
        self.answer_types, self.answer_type = _by_name(questions.answer_types, questions.answer_type)
        self.groups, self.group = _by_name(questions.groups, questions.group)
        self.num_answers = len(answers)
        self.labelled = answers_fault(questions, answers) is None  # else there is nothing to score against
        starts, self._label_answer, self._label_score = _labels_among(questions, answers)
        self._label_start, self._label_stop = starts[:-1], starts[1:]

    def __len__(self) -> int:
        return len(self.question_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Any]:
        """A batch of B examples, trimmed to its longest question, see `length_step`, and its fullest image.

        inputs: what the model is called with: input_ids, attention_mask (B, T); visual_feats (B, R, D);
        visual_pos (B, R, 4); visual_attention_mask (B, R). target (B, A); question_id, question_type (B,).
        """
        indices = np.asarray(indices)
        lengths = self.token_lengths[indices]
        longest = -(-int(lengths.max()) // self.length_step) * self.length_step
        longest = min(longest, self.token_ids.shape[1])
        regions = self.stores.read(self.places[indices], whole=self.length_step > 1)
        return {
            "inputs": {
                "input_ids": self.token_ids[indices, :longest].astype(np.int64),
                "attention_mask": np.arange(longest) < lengths[:, None],
                "visual_feats": regions.features,
                "visual_pos": regions.boxes,
                "visual_attention_mask": regions.mask,
                **{name: column[indices] for name, column in self.more_inputs.items()},
            },
            "target": self.targets(indices),
            "question_id": self.question_ids[indices],
            "question_type": self.question_type[indices].astype(np.int64),
        }

    def column(self, field: str) -> tuple[np.ndarray, np.ndarray]:
        """The values of a field of the records, sorted, and the number of each example's, (N,).

        '' is the value of records without it; of a field that is not in `FIELDS` there are no values.
        """
        if field not in FIELDS:
            return np.array([], str), np.zeros(len(self), np.int64)
        return getattr(self, f"{field}s"), getattr(self, field)

    def split(self, share: float, seed: int) -> tuple[VqaDataset, VqaDataset]:
        """The questions about all images but a share of them, and those about that share.

        Which images these are depends on their names and on `seed`. DataError if one side would be empty.
        """
        count = len(self.images)
        order = sorted(range(count), key=lambda n: sha256(f"{seed} {self.images[n]}".encode()).digest())
        apart = np.isin(self.image, order[: round(share * count)])
        if apart.all() or not apart.any():
            raise DataError(f"A share of {share:g} of {count:,} training images leaves none on one side.")
        return self._at(~apart), self._at(apart)

    def _at(self, rows: np.ndarray) -> VqaDataset:
        """The questions at these places, bool (N,)."""
        part = copy.copy(self)
        for name in _COLUMNS:
            setattr(part, name, getattr(self, name)[rows])
        part.more_inputs = {name: column[rows] for name, column in self.more_inputs.items()}
        return part

    def omissions(self) -> list[str]:
        """Which questions are not here, for want of features, in words; of each split a sentence."""
        return [
            f"left out, as their images have no features: {counted(count, 'question')} of {split}"
            for split, count in self.left_out.items()
        ]

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Soft targets (B, A) in [0, 1]; all zero where no human answer is in the vocabulary."""
        target = np.zeros((len(indices), self.num_answers), np.float32)
        for row, index in enumerate(indices):
            labels = slice(self._label_start[index], self._label_stop[index])
            target[row, self._label_answer[labels]] = self._label_score[labels]
        return target


def _by_name(names: Sequence[str], numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those names that occur, sorted, and the place of each number's name among them."""
    occurring, places = np.unique(numbers, return_inverse=True)
    sorted_names, order = np.unique(np.array(names)[occurring], return_inverse=True)
    return sorted_names, order[places]


_COLUMNS = (
    *("token_ids", "token_lengths", "image", "question_ids", "places"),
    *("question_type", "answer_type", "group", "_label_start", "_label_stop"),
)


def _labels_among(questions: Questions, answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels in the vocabulary as (start of each question's, answer numbers, scores)."""
    number = {answer: index for index, answer in enumerate(answers)}
    numbers = np.array([number.get(answer, -1) for answer in questions.answers], np.int32)
    chosen = numbers[questions.label_answer]
    known = chosen >= 0
    before = np.concatenate([[0], np.cumsum(known)])  # how many of the labels before each are known
    return before[questions.label_start], chosen[known], questions.label_score[known]
