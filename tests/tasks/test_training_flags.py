"""Flags that change how a step is computed: what they must change, and what they must not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lxmert.tokens import load_tokenizer
from tasks import vqa
from tasks.finetune import args as finetune_args
from tasks.finetune.args import VqaArgs
from tasks.finetune.data import load_splits
from training.optim import geometric
from vqadata.folder import DataFolder


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """One epoch of five whole steps."""
    return replace(args, strategy="SpotTune", epochs=1, batch_size=20)


def losses_of(args: VqaArgs) -> list[float]:
    """Mean loss since the epoch's start, after each update."""
    vqa.main(args)
    lines = map(json.loads, (args.folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


def test_two_half_batches_accumulated_are_one_whole_batch(args: VqaArgs) -> None:
    plain = replace(args, strategy="standard", dropout=0.0, group_by_length=False)
    whole = losses_of(replace(plain, version="whole"))
    halves = losses_of(replace(plain, version="halves", batch_size=10, accumulate=2))
    assert len(whole) == 5
    assert halves == pytest.approx(whole, rel=1e-4)


def test_the_last_step_of_an_epoch_averages_over_its_own_examples(args: VqaArgs) -> None:
    """100 examples are steps of 60 and 40, the 40 as a batch or as one of 30 and one of 10.

    With SGD, which makes a larger step of a larger gradient, as Adam does not.
    """
    plain = {"strategy": "standard", "dropout": 0.0, "group_by_length": False, "optim": "sgd", "lr": 0.1}
    args = replace(args, **plain, epochs=2, clip=1e6)
    whole = losses_of(replace(args, version="whole", batch_size=60))
    parts = losses_of(replace(args, version="parts", batch_size=30, accumulate=2))
    assert len(whole) == 4
    assert parts == pytest.approx(whole, rel=1e-5)


def test_each_step_records_its_learning_rate_and_the_end_what_the_run_took(args: VqaArgs) -> None:
    """Two of five steps warm up, so the rates are 1/2, 1, and then thirds on the way to 0."""
    outcome = vqa.main(replace(args, strategy="standard", lr=0.06, warmup=0.4, precision="fp32"))
    lines = [json.loads(line) for line in (args.folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert rates == pytest.approx(expected_rates(0.06, warm=2, steps=5))
    assert (outcome["precision"], outcome["threads"]) == ("fp32", torch.get_num_threads())
    assert 0.05 < outcome["peak_memory_gb"] < 50
    assert outcome["wall_seconds"] > outcome["seconds"] > 0
    log = (args.folder / "train.log").read_text()
    assert "training time" in log and "total time" in log


def expected_rates(peak: float, warm: int, steps: int) -> list[float]:
    """Of each step: up to the peak in `warm` steps, and down to 0 at the end."""
    return [peak * min(step / warm, (steps - step) / (steps - warm)) for step in range(steps)]


@pytest.mark.parametrize("strategy", ["standard", "SpotTune", "SpotTune_Block"])
def test_gradient_checkpointing_changes_no_number(args: VqaArgs, strategy: str) -> None:
    """Dropout and gates are the same when a layer is computed again in backward."""
    kept, computed_again = (
        losses_of(replace(args, strategy=strategy, version=str(flag), gradient_checkpointing=flag))
        for flag in (False, True)
    )
    assert computed_again == pytest.approx(kept, rel=1e-6)


def test_routing_changes_no_number_but_by_rounding(args: VqaArgs) -> None:
    """Without dropout, which the two ways draw in another order, and without Adam, which makes steps of full
    size of gradients that are nothing but rounding."""
    plain = replace(args, dropout=0.0, optim="sgd", policy_optim="sgd")
    routed, dense = (
        losses_of(replace(plain, version=routing, routing=routing)) for routing in ("routed", "dense")
    )
    assert routed == pytest.approx(dense, rel=1e-5)


def test_the_policy_learns_on_every_kth_step_only(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    clip = vqa.clip_gradients

    def watch(accelerator: object, modules: object, max_norm: float) -> Tensor:
        _, policy = modules = list(modules)
        learned.append(any(p.grad is not None and p.grad.any() for p in policy.parameters()))
        return clip(accelerator, modules, max_norm)

    monkeypatch.setattr(vqa, "clip_gradients", watch)
    vqa.main(replace(args, policy_every=2))
    assert learned == [True, False, True, False, True]


def test_the_temperature_falls_geometrically_to_its_end() -> None:
    assert [geometric(8.0, 0.5, share) for share in (0.0, 0.5, 1.0)] == pytest.approx([8.0, 2.0, 0.5])
    assert geometric(8.0, None, 0.5) == 8.0


@pytest.mark.parametrize(("flag", "images"), [("tiny", "IMAGES_TINY"), ("fast", "IMAGES_FAST")])
def test_tiny_and_fast_keep_so_many_images_of_every_split_and_mix_none(
    args: VqaArgs, flag: str, images: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_args, images, 3)
    some = replace(args, **{flag: True})
    folder, tokenizer = DataFolder(Path(args.data), "vqav2"), load_tokenizer(args.pretrained)
    names = ("train,nominival", "nominival", "minival")
    datasets = load_splits(
        folder, dict(zip(names, names, strict=True)), tokenizer, folder.read_answers(), some.images
    )
    places = {
        name: set(map(tuple, dataset.places.tolist())) for name, dataset in zip(names, datasets, strict=True)
    }
    assert {name: len(rows) for name, rows in places.items()} == {
        "train,nominival": 6,
        "nominival": 3,
        "minival": 3,
    }
    assert places["nominival"] < places["train,nominival"]
    assert not places["minival"] & places["train,nominival"]
