"""Runs of the trainer on the device: resumed, evaluated again, and not kept waiting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tests.helpers.step import LORA, VARIANTS, choices
from tests.helpers.stop import stop_after
from tests.helpers.waits import waits_for

from common.errors import Interrupted
from tasks import vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.state import TrainState
from tasks.finetune.strategies import STRATEGIES

PRECISIONS = ("fp32", "bf16")
# How often a step waits: where rows go to the copy they chose, the host must know how many they are.
WAITS = dict.fromkeys(LORA, 0) | {name: int(strategy.adaptive) for name, strategy in STRATEGIES.items()}


@pytest.fixture(params=PRECISIONS)
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """accelerate remembers one for the whole process, where a run is the only one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield request.param
    AcceleratorState._reset_state(reset_partial_state=True)


def recorded(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    args: VqaArgs, variant: str, precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, and without an option that asks for determinism."""
    args = replace(args, **choices(variant), precision=precision, epochs=2)
    vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Interrupted):
            vqa.main(args)
    vqa.main(args)
    folders = Path("snap/vqa/whole"), Path("snap/vqa/run")
    assert json.loads((folders[1] / "env.json").read_text())["device"].startswith(device.type)
    assert recorded(folders[0]) == recorded(folders[1])
    for part in ("LAST/state", "BEST/model"):
        whole, resumed = (load_file(folder / f"{part}.safetensors") for folder in folders)
        assert whole.keys() == resumed.keys()
        assert not [name for name in whole if not torch.equal(whole[name], resumed[name])]


@pytest.mark.parametrize("variant", VARIANTS)
def test_evaluating_again_gives_the_same_answers_and_the_accuracy_of_the_training(
    args: VqaArgs, variant: str, precision: str, device: torch.device
) -> None:
    outcome = vqa.main(replace(args, **choices(variant), precision=precision, epochs=2))
    test = replace(args, strategy=None, load="snap/vqa/run/BEST", test="minival", precision=precision)
    predictions = []
    for _ in range(2):
        assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
        predictions.append(Path("snap/vqa/run/predictions/minival.json").read_text())
    assert predictions[0] == predictions[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_waits_for_the_plan_of_its_routing_and_for_nothing_else(
    args: VqaArgs, variant: str, precision: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the end of the first step to the end of the last: all that the trainer does, loading included."""
    places: list[int] = []
    count = TrainState.count
    with waits_for(device) as waits:

        def count_and_mark(self: TrainState, *arguments: Any) -> None:
            count(self, *arguments)
            places.append(len(waits))

        monkeypatch.setattr(TrainState, "count", count_and_mark)
        vqa.main(
            replace(args, **choices(variant), precision=precision, epochs=1, batch_size=12, log_every=1000)
        )
    steps = len(places) - 1
    assert steps >= 8
    assert waits, "the saving and the evaluation wait, if waiting is noticed at all"
    assert places[-1] - places[0] == WAITS[variant] * steps, "\n".join(waits[places[0] : places[-1]])
