"""Runs made before the code was rearranged are still read: assets/run_format_1 holds a small one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.helpers.paths import ASSETS

from tasks import vqa
from tasks.finetune.args import VqaArgs

OLD = ASSETS / "run_format_1"


def test_a_run_folder_of_format_1_evaluates_to_the_answers_it_gave_then(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD / "pretrained", "pretrained")
    shutil.copytree(OLD / "run", "snap/vqa/old")
    recorded = json.loads(Path("snap/vqa/old/predictions/minival.json").read_text())
    Path("snap/vqa/old/predictions/minival.json").unlink()
    best = json.loads(Path("snap/vqa/old/result.json").read_text())["best"]
    args = VqaArgs(
        version="old", load="snap/vqa/old/BEST", test="minival", data=str(data), tqdm=False, wandb="off"
    )
    assert vqa.main(args)["accuracy"] == best["val_accuracy"]
    assert json.loads(Path("snap/vqa/old/predictions/minival.json").read_text()) == recorded
