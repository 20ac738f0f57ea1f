"""What is new is one place: a strategy or a policy is a row, a number is a field, a sink is a class."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks import vqa
from tasks.finetune import state
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.metrics import EpochMetrics, metric
from tasks.finetune.policies import POLICIES
from tasks.finetune.strategies import STRATEGIES, Strategy
from training import tracker

LANGUAGE_FROZEN = Strategy("Toy", "language layers stay as pre-trained", keeps=("encoder.layer",))
TOY_BLOCK = Strategy("ToyBlock", "decided per example: each layer, again", granularity="layer")


@pytest.mark.parametrize("toy", [LANGUAGE_FROZEN, TOY_BLOCK], ids=lambda toy: toy.name)
def test_a_strategy_is_one_row_in_help_and_in_a_run(
    args: VqaArgs, toy: Strategy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STRATEGIES, toy.name, toy)
    with pytest.raises(SystemExit, match="0"):
        parse_args(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{toy.name}: {toy.about}" in printed
    assert parse_args([f"--strategy={toy.name}"]).strategy == toy.name
    outcome = vqa.main(replace(args, strategy=toy.name, epochs=1))
    assert (outcome["gates"]["total"] > 0) == toy.adaptive
    test = VqaArgs(load="snap/vqa/run/BEST", data=args.data, test="minival", tqdm=False)
    assert vqa.main(test)["accuracy"] == outcome["val_accuracy"]


@dataclass(frozen=True)
class MoreMetrics(EpochMetrics):
    answers_used: int = metric(
        lambda epoch: len(set(epoch.evaluation.chosen.tolist())),
        log="answers {}",
        row="different answers given|{}",
    )


def test_a_number_is_one_field_in_metrics_result_log_and_table(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state, "EpochMetrics", MoreMetrics)
    outcome = vqa.main(replace(args, epochs=2))
    used = outcome["answers_used"]
    assert 1 <= used <= 4
    lines = [json.loads(line) for line in (args.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["answers_used"] for line in lines if "epoch" in line][-1] == used
    assert json.loads((args.folder / "result.json").read_text())["answers_used"] == used
    log = (args.folder / "train.log").read_text()
    epochs = [line.split() for line in log.splitlines() if line.startswith("epoch")]
    assert [words[-2:] for words in epochs][-1] == ["answers", str(used)] and len(epochs) == 2
    assert "different answers given" in log
    assert capsys.readouterr().out == log


def test_every_number_of_an_epoch_says_how_it_is_computed() -> None:
    for field in dataclasses.fields(EpochMetrics):
        assert callable(field.metadata["of"])


class Coin(nn.Module):
    """Decides without looking."""

    about = "no look"

    def __init__(self, spec: object, lxmert: nn.Module, gates: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(gates, 2))

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.logits.expand(len(inputs["input_ids"]), -1, -1)


def test_a_policy_network_is_one_row(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "coin", Coin)
    outcome = vqa.main(replace(args, policy="coin", epochs=1))
    test = VqaArgs(load="snap/vqa/run/BEST", data=args.data, test="minival", tqdm=False)
    assert vqa.main(test)["accuracy"] == outcome["val_accuracy"]


def test_a_sink_is_a_class_with_two_methods(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, dict[str, Any], int]] = []

    class Ear:
        def write(self, text: str, values: dict[str, Any], step: int) -> None:
            heard.append((text, dict(values), step))

        def close(self) -> None:
            heard.append(("closed", {}, -1))

    monkeypatch.setattr(tracker, "Terminal", Ear)
    vqa.main(replace(args, epochs=1))
    assert heard[-1][0] == "closed"
    assert any("val_accuracy" in values for _, values, _ in heard)
    assert {"policy/train", "policy/val"} <= {name for _, values, _ in heard for name in values}


def test_what_a_run_prints_fits_80_columns(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    vqa.main(replace(args, data=args.data, epochs=2))
    vqa.main(replace(args, load="snap/vqa/run/BEST", test="minival", strategy=None))
    printed = capsys.readouterr().out.splitlines()
    assert printed
    short = [line for line in printed if str(Path(args.pretrained).parent) not in line]
    assert [line for line in short if len(line) > 80] == []
