"""--routing auto: measured at the start, said, kept, and without a trace in the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.stop import stop_after

from common.errors import Interrupted
from tasks import vqa
from tasks.finetune import routing
from tasks.finetune.args import VqaArgs, parse_args

RUN = Path("snap/vqa/run")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, strategy="SpotTune_Block", epochs=1)


def losses(run: Path = RUN) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


def slow(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """A clock on which one of the two ways takes longer."""
    readings = iter(range(10**6))

    def now(device: torch.device) -> float:
        number = next(readings)  # two a step: routed, dense, routed, ...
        step, ends = divmod(number, 2)
        return 100.0 * step + (2.0 if (step % 2 == 1) == (way == "dense") else 1.0) * ends

    monkeypatch.setattr(routing, "_now", now)


@pytest.mark.parametrize(("slower", "chosen"), [("dense", "routed"), ("routed", "dense")])
def test_auto_takes_the_faster_way_says_so_and_records_it(
    args: VqaArgs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    slower: str,
    chosen: str,
) -> None:
    slow(monkeypatch, slower)
    vqa.main(replace(args, routing="auto"))
    assert json.loads((RUN / "args.json").read_text())["routing"] == chosen
    output = " ".join(capsys.readouterr().out.split())
    assert f"routing: {chosen}, as a step took" in output
    assert "1.000 s" in output and "2.000 s" in output


def test_measuring_leaves_no_trace_in_the_numbers(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    vqa.main(replace(args, routing="routed"))
    expected = losses()
    assert expected
    slow(monkeypatch, "dense")
    vqa.main(replace(args, routing="auto", version="auto"))
    assert losses(RUN.with_name("auto")) == expected


@pytest.mark.parametrize("again", [None, "auto", "dense"])
def test_a_resumed_run_stays_with_what_was_chosen(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch, again: str | None
) -> None:
    with monkeypatch.context() as stopping, pytest.raises(Interrupted):
        slow(stopping, "routed")
        stop_after(1, stopping)
        vqa.main(replace(args, routing="auto"))
    monkeypatch.setattr(routing, "_measure", lambda *given: pytest.fail("it was measured again"))
    vqa.main(replace(args, routing=again))
    assert json.loads((RUN / "args.json").read_text())["routing"] == "dense"


def test_a_cpu_routes_without_measuring(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the same command gives the same numbers, to the bit."""
    monkeypatch.setattr(routing, "_measure", lambda *given: pytest.fail("it was measured"))
    vqa.main(args)
    assert json.loads((RUN / "args.json").read_text())["routing"] == "routed"


def test_without_memory_for_both_copies_it_routes(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loss, calls = routing.vqa_loss, []

    def fails(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        calls.append(logits)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")
        return loss(logits, target)

    monkeypatch.setattr(routing, "vqa_loss", fails)
    vqa.main(replace(args, routing="auto"))
    assert "there is no memory" in " ".join(capsys.readouterr().out.split())
    assert json.loads((RUN / "args.json").read_text())["routing"] == "routed"


@pytest.mark.parametrize("way", ["auto", "routed", "dense"])
def test_low_rank_copies_have_nothing_to_route(way: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--tuned", "lora", "--routing", way])
    assert "nothing to route" in capsys.readouterr().err
