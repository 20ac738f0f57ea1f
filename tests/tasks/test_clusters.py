"""--policy clusters:K: groups of images that nobody named, and a learned choice for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.cluster.vq import kmeans2
from tests.helpers.small import ANSWERS
from tests.helpers.stop import stop_after
from torch import Tensor

from adaptive.adapt import Adaptive
from common.errors import Interrupted, UserError
from lxmert.loading import load_pretrained
from tasks import vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import read_best
from tasks.finetune.clusters import _lloyd, k_means
from tasks.finetune.model import build
from tasks.finetune.spec import ModelSpec

BEST = Path("snap/vqa/run/BEST")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, policy="clusters:3", policy_lr=0.1, epochs=2)


@pytest.fixture
def model(args: VqaArgs) -> Adaptive:
    spec = ModelSpec.of(args)
    return build(spec, load_pretrained(spec), ANSWERS)[0].eval()


def blobs(centres: Tensor, each: int = 40) -> Tensor:
    noise = torch.Generator().manual_seed(5)
    return torch.cat([centre + 0.1 * torch.randn(each, 2, generator=noise) for centre in centres])


def test_from_the_same_start_centres_are_those_of_scipy() -> None:
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(1))
    centres = _lloyd(points, points[:4].clone())
    expected, _ = kmeans2(points.numpy(), points[:4].numpy(), iter=200, minit="matrix")
    assert np.allclose(centres, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_groups_that_lie_apart_are_found_from_any_seed(seed: int) -> None:
    true = torch.tensor([[0.0, 0.0], [8.0, 0.0], [0.0, 8.0], [8.0, 8.0]])
    found = k_means(blobs(true), 4, seed)
    assert torch.cdist(true, found).min(1).values.max() < 0.1


def test_fewer_different_points_than_centres_is_no_error() -> None:
    points = torch.ones(6, 2)
    assert torch.equal(k_means(points, 3), torch.ones(3, 2))


def test_gates_depend_on_the_images_group_alone(model: Adaptive, inputs: dict[str, Tensor]) -> None:
    policy = model.policy
    means = (inputs["visual_feats"] * inputs["visual_attention_mask"][..., None]).sum(1)
    means = means / inputs["visual_attention_mask"].sum(1, keepdim=True)
    policy.centres.copy_(means[[4, 0, 2]])
    with torch.no_grad():
        policy.logit[:, 0] = torch.tensor([1.0, -2.0, 3.0])
        tuned = policy(**inputs)[..., 1]
        other_words = {**inputs, "input_ids": inputs["input_ids"].flip(0)}
        assert torch.equal(policy(**other_words)[..., 1], tuned)
    assert tuned[[4, 0, 2], 0].tolist() == [1.0, -2.0, 3.0]
    assert torch.equal(model(**inputs).gates[:, 0], (tuned[:, 0] > 0).float())


def test_padding_does_not_move_an_image_to_another_group(model: Adaptive, inputs: dict[str, Tensor]) -> None:
    policy = model.policy
    policy.centres.copy_(inputs["visual_feats"][:3, 0])
    with torch.no_grad():
        policy.logit[:, 0] = torch.tensor([1.0, 2.0, 3.0])
        features = inputs["visual_feats"][:3, :1]
        padded = torch.cat([features, torch.full_like(features, 100.0)], dim=1)
        mask = torch.tensor([[True, False]] * 3)
        assert policy(visual_feats=padded, visual_attention_mask=mask)[:, 0, 1].tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("holdout", [0.0, 0.4])
def test_a_run_learns_a_choice_for_each_group_and_keeps_both(args: VqaArgs, holdout: float) -> None:
    outcome = vqa.main(replace(args, policy_holdout=holdout))
    saved = load_file(BEST / "model.safetensors")
    start = torch.logit(torch.tensor(ModelSpec.policy_start))
    assert saved["policy.centres"].any(1).all() and (saved["policy.logit"] != start).any(1).sum() > 1
    assert outcome["label"].endswith("clusters:3 gates")
    test = VqaArgs(load=str(BEST), test="minival", data=args.data, tqdm=False, wandb="off", batch_size=7)
    best = read_best(BEST).metrics["val_accuracy"]
    assert vqa.main(test)["accuracy"] == best


def test_groups_do_not_depend_on_the_seed_nor_on_what_is_held_out(args: VqaArgs) -> None:
    found = []
    for version, seed, holdout in (("a", 1, 0.0), ("b", 2, 0.4)):
        vqa.main(replace(args, version=version, seed=seed, policy_holdout=holdout, epochs=1))
        found.append(load_file(f"snap/vqa/{version}/BEST/model.safetensors")["policy.centres"])
    assert torch.equal(*found)


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        vqa.main(args)
    assert vqa.main(args)["val_accuracy"] == whole["val_accuracy"]
    weights = [load_file(f"snap/vqa/{name}/BEST/model.safetensors") for name in ("whole", "run")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("clusters:1", "the number of groups is 2 or more"),
        ("clusters:two", "the number of groups is 2 or more"),
        ("clusters:1000", "there are 25 training images to group"),
    ],
)
def test_a_number_of_groups_that_cannot_be_is_refused(args: VqaArgs, policy: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        vqa.main(replace(args, policy=policy))
    assert not Path("snap").exists()
