"""What a run shows of its policy cannot spoil the run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tasks.finetune import messages
from tasks.finetune.evaluate import BREAKDOWNS
from tasks.finetune.metrics import FinalMetrics
from training.run_folder import RunFolder

GATES = {
    "stream": np.array(["language", "vision"]),
    "layer": np.array([1, 1]),
    "component": np.array(["layer", "layer"]),
    "live": np.array([True, True]),
}


class Tracker:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.pictures: list[Path] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def record(self, values: dict[str, Path], step: int) -> None:
        self.pictures += values.values()


def show(folder: Path) -> Tracker:
    """Show the policy of a run of one epoch, in `folder`."""
    tracker = Tracker()
    dataset = SimpleNamespace(question_types=["colour", "$\\count"])
    setup = SimpleNamespace(
        sizes={"gates": {"total": 2}},
        labels=GATES,
        exam=SimpleNamespace(dataset=dataset),
        spec=SimpleNamespace(evaluate_gates="argmax"),
    )
    shares = {split: [torch.tensor([0.5, 1.0])] for split in ("train", "val")}
    state: Any = SimpleNamespace(epoch=1, updates=4, shares=shares, by_type=torch.ones(2, 2))
    run: Any = RunFolder(folder / "run", None, SimpleNamespace(is_main_process=True))
    run.tracker = tracker
    run.path.mkdir()
    messages.show_policy(run, "SpotTune on mine", setup, state)
    return tracker


def test_a_policy_is_drawn_for_training_and_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tracker = show(tmp_path)
    assert tracker.said == []
    names = ["epoch_01_train.png", "epoch_01_val.png"]
    assert [path.name for path in tracker.pictures] == names
    assert all(path.is_file() for path in tracker.pictures)
    with np.load(tmp_path / "run" / "usage.npz") as usage:
        assert usage["val"].tolist() == [[0.5, 1.0]]


def raising(error: Exception) -> Callable[..., None]:
    def draw(*_: Any) -> None:
        raise error

    return draw


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("a bug of the drawing library"), "RuntimeError: a bug of the drawing library"),
        (ValueError("no such font"), "ValueError: no such font"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_a_failed_drawing_costs_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("report.policy_plot.draw_policy", raising(error))
    (sentence,) = show(tmp_path).said
    assert " ".join(sentence.split()) == f"The policy's pictures are missing ({said}); training goes on."
    assert max(map(len, sentence.splitlines())) <= 80


def test_without_a_drawing_library_there_are_no_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "report.policy_plot", None)
    (sentence,) = show(tmp_path).said
    assert sentence.startswith("The policy's pictures are missing (ModuleNotFoundError")


def test_a_folder_of_pictures_that_may_not_be_looked_at_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    epoch = SimpleNamespace(
        **dict.fromkeys(("val_official", *(f"val_by_{field}" for field in BREAKDOWNS))),
        **{"rows": lambda: [("accuracy", "50 %")], "epoch": 1, "val_accuracy": 50.0},
    )
    state: Any = SimpleNamespace(history=[epoch], best=epoch, seconds=1.0, policy_steps=0)
    monkeypatch.setattr(Path, "is_dir", refuse)
    table = messages.summary_table(state, FinalMetrics(60.0, 10.0), Path("snap/vqa/run"), "minival")
    assert "best weights" in table and "pictures" not in table
