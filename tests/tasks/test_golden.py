"""Every strategy still trains to the numbers that were recorded before the code was rearranged.

    PYTHONPATH=src:. python tests/tasks/test_golden.py

records them anew, after a change of numbers that is meant.

A curve is the running mean of the loss after each step, of a run of twelve steps on the small data set.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.paths import ASSETS
from tests.helpers.small import write_dataset, write_pretrained

from tasks import vqa
from tasks.finetune.args import VqaArgs

RECORDED = ASSETS / "golden_curves.json"
ADAPTIVE = ("SpotTune", "SpotTune_Res", "SpotTune_Block")
RUNS = [("standard", "lxmert", "full"), ("Frozen", "lxmert", "full")]
RUNS += [(strategy, policy, "full") for strategy in ADAPTIVE for policy in ("lxmert", "light")]
RUNS += [("standard", "lxmert", "lora"), ("SpotTune", "light", "lora"), ("SpotTune_Block", "light", "lora")]
FINAL = ("train_loss", "train_accuracy", "val_accuracy", "gap", "share_tuned", "gate_variation")


def name_of(run: tuple[str, str, str]) -> str:
    strategy, policy, tuned = run
    return f"{strategy}, {policy}" + (f", {tuned}" if tuned != "full" else "")


def curve(run: tuple[str, str, str], data: Path, pretrained: Path) -> dict[str, Any]:
    """Train in the working folder; the losses, and the metrics of each epoch."""
    strategy, policy, tuned = run
    flags = {"epochs": 3, "batch_size": 28, "lr": 3e-3, "log_every": 1, "seed": 1}
    args = VqaArgs(
        version="-".join(run),
        strategy=strategy,
        policy=policy,
        tuned=tuned,
        embeddings="frozen" if tuned == "lora" else "train",
        dataset="vqav2",
        data=str(data),
        pretrained=str(pretrained),
        precision="fp32",
        tqdm=False,
        wandb="off",
        **flags,
    )
    vqa.main(args)
    lines = [json.loads(line) for line in (args.folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "epoch" in line]
    return {
        "losses": [line["train/loss"] for line in lines if "train/loss" in line],
        "epochs": [{name: line[name] for name in FINAL if line.get(name) is not None} for line in epochs],
    }


@pytest.mark.parametrize("run", RUNS, ids=name_of)
def test_the_curve_is_the_recorded_one(
    run: tuple[str, str, str],
    data: Path,
    pretrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    expected = json.loads(RECORDED.read_text(encoding="utf-8"))[name_of(run)]
    found = curve(run, data, pretrained)
    assert len(found["losses"]) == 12
    # Another processor rounds otherwise, by far less than any change of the method.
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    for epoch, recorded in zip(found["epochs"], expected["epochs"], strict=True):
        assert epoch == pytest.approx(recorded, rel=1e-5)


def record() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        data, pretrained = Path("data"), write_pretrained(Path("model"))
        write_dataset(data / "vqav2")
        curves = {name_of(run): curve(run, data, pretrained) for run in RUNS}
    RECORDED.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(record())
