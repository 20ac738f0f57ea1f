"""Several processes come to the numbers of one, stopped and resumed ones to those of uninterrupted ones."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tests.helpers.ranks import run_ranks

from common.errors import Interrupted
from kernels import dropout
from tasks import vqa
from tasks.finetune.args import VqaArgs
from training.signals import StopSignal

BATCH, VALIDATION = 28, 53
TIMES = ("seconds", "examples_per_second", "wall_seconds", "peak_memory_gb")
SNAP = Path("snap/vqa")
STOP = 13  # of eighteen steps of ten questions, in the middle of the second epoch


@pytest.fixture
def args(args: VqaArgs, tmp_path: Path) -> VqaArgs:
    """Of one of two processes that share batches of 28 of 85 questions: in the last step one gets nothing.

    With SGD: Adam makes whole steps even of gradients that are nothing but rounding.
    """
    shutil.copytree(Path(args.data), tmp_path / "data")
    cut(tmp_path / "data", "minival", VALIDATION)
    cut(tmp_path / "data", "nominival", 5)
    rates = {"lr": 0.3, "policy_lr": 0.3, "optim": "sgd", "policy_optim": "sgd", "dropout": 0.0}
    return replace(args, data="data", epochs=2, batch_size=BATCH // 2, precision="fp32", **rates)


def cut(data: Path, split: str, questions: int) -> None:
    file = data / "vqav2" / f"{split}.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:questions]))


def lines_of(version: str) -> list[dict[str, Any]]:
    """Everything recorded but the times, with official scores under names of their own."""
    lines = []
    for text in (SNAP / version / "metrics.jsonl").read_text().splitlines():
        line = {name: value for name, value in json.loads(text).items() if name not in TIMES}
        line |= line.pop("val_official", {})
        lines.append({n: v for n, v in line.items() if not isinstance(v, dict)})
    return lines


def train_watched(args: VqaArgs, stop: int | None) -> None:
    """Train, stopped after so many steps, and leave the first dropout mask of this process in a file."""
    masks, numbers = [], dropout._numbers

    def watched(*arguments: Any) -> torch.Tensor:
        masks.append(numbers(*arguments))
        return masks[-1]

    begin = StopSignal.__init__

    def start(self: StopSignal) -> None:
        begin(self)
        self.after_update = stop

    dropout._numbers, StopSignal.__init__ = watched, start
    try:
        vqa.main(args)
    except Interrupted:
        assert stop
    torch.save(masks[0], f"mask{os.environ['RANK']}.pt")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "questions", "changes"),
    [
        ("standard", 85, {}),
        ("SpotTune", 99, {"accumulate": 3}),
        ("SpotTune_Block", 85, {"group_by_length": False, "policy_every": 2, "gradient_checkpointing": True}),
        ("SpotTune_Block", 85, {"policy_holdout": 0.3, "policy_every": 2}),
    ],
)
def test_two_processes_come_to_the_numbers_of_one_with_the_same_batches(
    args: VqaArgs, strategy: str, questions: int, changes: dict[str, Any], tmp_path: Path, data: Path
) -> None:
    shutil.copy(data / "vqav2" / "nominival.json", tmp_path / "data" / "vqav2")
    cut(tmp_path / "data", "nominival", questions - 80)
    args = replace(args, strategy=strategy, **changes)
    printed = run_ranks(1, tmp_path, vqa.main, replace(args, version="one", batch_size=BATCH))
    assert "2 epochs, batch 28, seed 1\n1 process on cpu, fp32, 1 thread\n" in printed
    printed = run_ranks(2, tmp_path, vqa.main, replace(args, version="two"))
    assert "2 epochs, batch 2 x 14, seed 1\n2 processes on cpu, fp32, 1 thread each\n" in printed
    assert json.loads((SNAP / "two" / "env.json").read_text())["processes"] == 2
    one, two = lines_of("one"), lines_of("two")
    assert len(one) == len(two) >= 2 + 4
    for ours, theirs in zip(two, one, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-5)
    weights, expected = (load_file(SNAP / name / "BEST" / "model.safetensors") for name in ("two", "one"))
    for name, tensor in weights.items():
        assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-5), name
    if strategy != "standard":
        gates, expected = (np.load(SNAP / name / "usage.npz") for name in ("two", "one"))
        assert all((gates[name] == expected[name]).all() for name in ("train", "val", "val_by_type"))


@pytest.mark.slow
def test_a_stopped_pair_goes_on_to_the_same_lines_and_weights_and_its_dropout_differs(
    args: VqaArgs, tmp_path: Path
) -> None:
    rates = {"dropout": 0.2, "optim": "adamw", "lr": 3e-3}
    args = replace(args, strategy="SpotTune_Block", batch_size=5, save_every=5, **rates)
    run_ranks(2, tmp_path, train_watched, replace(args, version="whole"), None)
    masks = [torch.load(f"mask{rank}.pt") for rank in (0, 1)]
    size = min(map(torch.numel, masks))
    assert not torch.equal(*(mask.flatten()[:size] for mask in masks))
    run_ranks(2, tmp_path, train_watched, args, STOP)
    assert not (SNAP / "run" / "result.json").exists()
    assert "going on in epoch 2 after 4 steps" in run_ranks(2, tmp_path, train_watched, args, None)
    assert lines_of("run") == lines_of("whole")
    files = [file.relative_to(SNAP / "whole") for file in (SNAP / "whole").rglob("*.safetensors")]
    assert {file.parts[0] for file in files} == {"LAST", "BEST"}
    for file in files:
        ours, whole = (load_file(SNAP / name / file) for name in ("run", "whole"))
        assert ours.keys() == whole.keys()
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_answer_every_question_once_in_order(args: VqaArgs, tmp_path: Path) -> None:
    """Also where the last step is short or there are fewer questions than one step has places."""
    run_ranks(1, tmp_path, vqa.main, replace(args, strategy="SpotTune_Block", epochs=1))
    file = SNAP / "run" / "predictions" / "minival.json"
    test = replace(args, load="snap/vqa/run/BEST", test="minival", strategy=None)
    run_ranks(1, tmp_path, vqa.main, test)
    expected = file.read_text()
    assert len(json.loads(expected)) == VALIDATION
    for batch_size in (3, 6, 20):
        file.unlink()
        run_ranks(2, tmp_path, vqa.main, replace(test, batch_size=batch_size))
        assert file.read_text() == expected


def test_nothing_empty_is_gathered(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model without gates has nothing to gather of them, and NCCL would fail at that."""
    gather = Accelerator.gather

    def watched(self: Accelerator, tensors: Any) -> Any:
        for tensor in tensors if isinstance(tensors, list | tuple) else [tensors]:
            assert tensor.numel()
        return gather(self, tensors)

    monkeypatch.setattr(Accelerator, "gather", watched)
    vqa.main(replace(args, strategy="standard", epochs=1))
