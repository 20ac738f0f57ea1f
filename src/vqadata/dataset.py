"""Questions, soft targets and region features, as batches.

A batch is assembled at once (`__getitems__`), as arrays: a loader over it collates with torch's
`default_convert`, which makes tensors of them without a copy.
"""

from collections.abc import Collection, Container, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from vqadata.features import FeatureStores


def split_names(splits: str) -> list[str]:
    """ "train,nominival" -> ["train", "nominival"]."""
    return [name for name in splits.split(",") if name]


def keep_images(records: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The records of the first `count` images, in order of appearance."""
    images = dict.fromkeys(record["img_id"] for record in records)
    kept = set(list(images)[:count])
    return [record for record in records if record["img_id"] in kept]


def images_fault(split: str, images: Collection[str], with_features: Container[str]) -> str | None:
    """Which of a split's images have no features, in words; None if all have."""
    missing = sorted(image for image in images if image not in with_features)
    if not missing:
        return None
    first = ", ".join(missing[:3])
    return f"{split}: {len(missing):,} of {len(images):,} images have no features, the first: {first}"


def answers_fault(records: Sequence[dict[str, Any]], answers: Collection[str]) -> str | None:
    """Why nothing can be learned from the answers of these records, nor scored against them; None if it can.

    A question without label is one whose answers nobody told: it must not count as answered wrong. An empty
    label says that none of its answers is among `answers`.
    """
    unlabelled = [record["question_id"] for record in records if "label" not in record]
    if len(unlabelled) == len(records):
        return f"none of its {len(records):,} questions has an answer"
    if unlabelled:
        count = f"{len(unlabelled):,} of its {len(records):,} questions"
        return f"{count} have no label, the first: question_id {unlabelled[0]}"
    vocabulary = set(answers)
    if not any(vocabulary.intersection(record["label"]) for record in records):
        return f"none of its {len(records):,} questions has an answer that is in the answer list"
    return None


class VqaDataset(Dataset):
    """Examples held as columns; N examples, T word pieces, A answers.

    records: as `DataFolder` reads them, of images that have features (see `images_fault`). token_ids (N, T),
    token_lengths (N,): their questions, tokenised.
    """

    def __init__(
        self,
        records: Sequence[dict[str, Any]],
        token_ids: np.ndarray,
        token_lengths: np.ndarray,
        stores: FeatureStores,
        answers: Sequence[str],
    ) -> None:
        self.length_step = 1  # batches are as long as the next multiple of it
        self.stores = stores
        self.token_ids = token_ids
        self.token_lengths = token_lengths
        self.images = list(dict.fromkeys(record["img_id"] for record in records))
        self.question_ids = np.array([record["question_id"] for record in records], np.int64)
        self.places = stores.locate(record["img_id"] for record in records)
        self.question_types, self.question_type = np.unique(
            [record.get("question_type", "") for record in records], return_inverse=True
        )
        self.num_answers = len(answers)
        self.labelled = answers_fault(records, answers) is None  # else there is nothing to score against
        self._label_start, self._label_answer, self._label_score = _pack_labels(records, answers)

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
        regions = self.stores.read(self.places[indices])
        return {
            "inputs": {
                "input_ids": self.token_ids[indices, :longest].astype(np.int64),
                "attention_mask": np.arange(longest) < lengths[:, None],
                "visual_feats": regions.features,
                "visual_pos": regions.boxes,
                "visual_attention_mask": regions.mask,
            },
            "target": self.targets(indices),
            "question_id": self.question_ids[indices],
            "question_type": self.question_type[indices].astype(np.int64),
        }

    def targets(self, indices: np.ndarray) -> np.ndarray:
        """Soft targets (B, A) in [0, 1]; all zero where no human answer is in the vocabulary."""
        target = np.zeros((len(indices), self.num_answers), np.float32)
        for row, index in enumerate(indices):
            labels = slice(self._label_start[index], self._label_start[index + 1])
            target[row, self._label_answer[labels]] = self._label_score[labels]
        return target


def _pack_labels(
    records: Sequence[dict[str, Any]], answers: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels as (start of each record, answer numbers, scores), without answers outside the vocabulary."""
    number = {answer: index for index, answer in enumerate(answers)}
    starts, chosen, scores = [0], [], []
    for record in records:
        for answer, score in record.get("label", {}).items():
            if answer in number:
                chosen.append(number[answer])
                scores.append(score)
        starts.append(len(chosen))
    return np.array(starts), np.array(chosen, np.int32), np.array(scores, np.float32)
