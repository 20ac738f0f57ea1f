"""Batches of a data set, compared with what a per-example reading of its records gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_convert

from common.errors import DataError
from vqadata.dataset import VqaDataset, answers_fault, images_fault
from vqadata.encoded import Questions
from vqadata.feature_layout import Layout
from vqadata.features import FeatureStores, write_store

ANSWERS = ["yes", "no", "2", "red"]
SIZE = 3


def record(number: int, image: str, label: dict[str, float], **other: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "img_id": image,
        "sent": "?",
        "label": label,
        "question_type": "what",
    } | other


RECORDS = [
    record(10, "b", {"yes": 1.0, "no": 0.3}),
    record(11, "a", {}, question_type="is"),
    record(12, "c", {"red": 0.9, "crimson": 0.6}, group="new"),
    record(13, "a", {"crimson": 1.0}, group="known"),
    record(14, "b", {"2": 0.3, "yes": 0.3, "red": 0.3}, question_type="how many"),
]
LENGTHS = np.array([4, 2, 6, 3, 5])
REGIONS = {"a": 2, "b": 4, "c": 1}


@pytest.fixture
def images() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return {
        name: (rng.normal(size=(n, SIZE)).astype(np.float32), rng.random((n, 4)).astype(np.float32))
        for name, n in REGIONS.items()
    }


@pytest.fixture
def dataset(tmp_path: Path, images: dict[str, tuple[np.ndarray, np.ndarray]]) -> VqaDataset:
    write_store(
        tmp_path / "all",
        list(images),
        images.values(),
        Layout(5, SIZE, "float32"),
    )
    token_ids = np.arange(1, 31).reshape(5, 6) * (np.arange(6) < LENGTHS[:, None])
    return VqaDataset(Questions.of(RECORDS, token_ids, LENGTHS), FeatureStores(tmp_path), ANSWERS)


@pytest.mark.parametrize("indices", [[0], [3, 1], [4, 2, 0, 1], [1, 1, 3]])
def test_a_batch_equals_its_examples_one_by_one(
    dataset: VqaDataset, images: dict[str, tuple[np.ndarray, np.ndarray]], indices: list[int]
) -> None:
    (batch,) = DataLoader(dataset, batch_sampler=[indices], collate_fn=default_convert)
    inputs = batch["inputs"]
    tokens = max(LENGTHS[index] for index in indices)
    regions = max(REGIONS[RECORDS[index]["img_id"]] for index in indices)
    assert inputs["input_ids"].shape == (len(indices), tokens)
    assert inputs["visual_feats"].shape == (len(indices), regions, SIZE)
    for row, index in enumerate(indices):
        example = RECORDS[index]
        features, boxes = images[example["img_id"]]
        n, length = len(features), LENGTHS[index]
        ids = inputs["input_ids"][row].tolist()
        assert ids == [6 * index + place + 1 for place in range(length)] + [0] * (tokens - length)
        assert inputs["attention_mask"][row].tolist() == [place < length for place in range(tokens)]
        assert torch.equal(inputs["visual_feats"][row, :n], torch.from_numpy(features))
        assert torch.equal(inputs["visual_pos"][row, :n], torch.from_numpy(boxes))
        assert not inputs["visual_feats"][row, n:].any() and not inputs["visual_pos"][row, n:].any()
        assert inputs["visual_attention_mask"][row].tolist() == [place < n for place in range(regions)]
        target = [example["label"].get(answer, 0.0) for answer in ANSWERS]
        torch.testing.assert_close(batch["target"][row], torch.tensor(target), rtol=0, atol=0)
        assert batch["question_id"][row] == example["question_id"]
        assert dataset.question_types[batch["question_type"][row]] == example["question_type"]


def test_batches_for_a_compiled_model_are_padded_to_few_shapes_with_the_same_in_them(
    dataset: VqaDataset,
) -> None:
    plain = [dataset.__getitems__([index])["inputs"] for index in range(len(dataset))]
    dataset.length_step = 2
    padded = [dataset.__getitems__([index])["inputs"] for index in range(len(dataset))]
    assert {inputs["visual_feats"].shape[1] for inputs in padded} == {5}
    assert {inputs["input_ids"].shape[1] % 2 for inputs in padded} == {0}
    for one, other in zip(plain, padded, strict=True):
        for name, tensor in one.items():
            assert np.array_equal(other[name][:, : tensor.shape[1]], tensor), name
            assert not other[name][:, tensor.shape[1] :].any(), name


def test_groups_are_named_in_order_and_each_example_has_the_number_of_its_own(dataset: VqaDataset) -> None:
    assert dataset.groups.tolist() == ["", "known", "new"]
    assert [dataset.groups[number] for number in dataset.group] == ["", "", "new", "known", ""]


def test_one_example_is_a_batch_of_one(dataset: VqaDataset) -> None:
    one, batch = dataset[2], dataset.__getitems__([2])
    for name, column in (one | one.pop("inputs")).items():
        assert np.array_equal(column, batch[name] if name in batch else batch["inputs"][name]), name


def test_images_without_features_are_counted_and_named() -> None:
    assert images_fault("train", ["b", "a"], {"a": 0, "b": 1, "c": 2}) is None
    fault = images_fault("train", {"d": 7, "b": 1, "c": 3, "a": 0}, ["b"])
    assert fault == "train: 3 of 4 images have no features, the first: a, c, d"
    assert images_fault("train", list("abcde"), []).endswith("the first: a, b, c")


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([{"yes": 1.0}, {}], None),
        ([{}, {"crimson": 1.0, "red": 0.3}], None),
        ([None, None], "none of its 2 questions has an answer"),
        ([{}, {}], "none of its 2 questions has an answer that is in the answer list"),
        ([{"crimson": 1.0}], "none of its 1 question has an answer that is in the answer list"),
        ([{"yes": 1.0}, None, None], "2 of its 3 questions have no label, the first: question_id 1"),
    ],
)
def test_questions_that_nobody_answered_are_told_from_those_with_a_rare_answer(
    dataset: VqaDataset, labels: list[dict[str, float] | None], fault: str | None
) -> None:
    records = [record(number, "a", label) for number, label in enumerate(labels)]
    for entry in records:
        if entry["label"] is None:
            del entry["label"]
    questions = Questions.of(records)
    assert answers_fault(questions, ANSWERS) == fault
    assert VqaDataset(questions, dataset.stores, ANSWERS).labelled == (fault is None)


def test_a_split_by_image_gives_each_question_to_one_side_with_all_that_belongs_to_it(
    dataset: VqaDataset,
) -> None:
    dataset.more_inputs["gates"] = dataset.question_ids[:, None]
    for seed in range(10):
        sides = dataset.split(1 / 3, seed)
        ids = [side.question_ids.tolist() for side in sides]
        assert sorted(ids[0] + ids[1]) == dataset.question_ids.tolist()
        images = [{RECORDS[number - 10]["img_id"] for number in side} for side in ids]
        assert list(map(len, images)) == [2, 1] and not images[0] & images[1]
        for side, numbers in zip(sides, ids, strict=True):
            assert numbers == sorted(numbers)  # the order of the data
            found = side.__getitems__(range(len(side)))
            expected = dataset.__getitems__([number - 10 for number in numbers])
            for name, column in (found | found.pop("inputs")).items():
                whole = expected[name] if name in expected else expected["inputs"][name]
                assert np.array_equal(column, whole), name


def test_which_images_are_split_off_depends_on_names_and_seed_only(dataset: VqaDataset) -> None:
    backwards = VqaDataset(Questions.of(RECORDS[::-1], np.zeros((5, 6)), LENGTHS), dataset.stores, ANSWERS)
    ours, theirs = (
        [{*part.split(1 / 3, seed)[1].question_ids.tolist()} for seed in range(20)]
        for part in (dataset, backwards)
    )
    assert ours == theirs
    assert {tuple(sorted(ids)) for ids in ours} == {(10, 14), (11, 13), (12,)}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 1.0])
def test_a_split_that_leaves_nothing_on_one_side_is_refused(dataset: VqaDataset, share: float) -> None:
    with pytest.raises(DataError, match="of 3 training images leaves none on one side"):
        dataset.split(share, 0)
