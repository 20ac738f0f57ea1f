"""What a run shows of its policy cannot spoil the run."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tqdm import tqdm

from tasks.finetune import messages
from tasks.finetune.ask import answer_lines
from tasks.finetune.evaluate import BREAKDOWNS
from tasks.finetune.metrics import EpochMetrics, FinalMetrics
from training.machine import Machine
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
    state: Any = SimpleNamespace(history=[epoch], best=epoch, seconds=1.0, wall_seconds=2.0, policy_steps=0)
    monkeypatch.setattr(Path, "is_dir", refuse)
    table = messages.summary_table(state, FinalMetrics(60.0, 10.0), Path("snap/vqa/run"))
    assert "best weights" in table and "pictures" not in table


def test_the_longest_epoch_line_and_bar_fit_a_terminal() -> None:
    metrics = EpochMetrics(
        epoch=14, train_loss=12.5, train_accuracy=100.0, val_accuracy=99.99, gap=-10.01, share_tuned=0.55,
        val_official={"overall": 99.99},
    )  # fmt: skip
    line = messages.epoch_line(metrics, 14, 36_187.0)
    assert line.startswith("epoch 14/14 train 100.00 val 99.99 vqa 99.99 gap -10.01 tuned 0.55")
    assert len(line) <= 80
    assert messages.epoch_line(replace(metrics, val_official=None), 14, 187.0).endswith(", 03:07 left")
    bar: Any = SimpleNamespace(format_dict={"rate": 385.0})
    means = {"loss": 12.575, "accuracy": 99.9, "share_tuned": 0.55}
    title = "epoch 14/14" + messages.progress_text(means, bar, 32) + messages.left(36_187.0)
    shown = io.StringIO()
    with Machine().progress_bar(title, 20_000) as real:
        real.fp = shown
        text = tqdm.format_meter(**{**real.format_dict, "prefix": title, "n": 12_345})
    assert title in text and " 62% |" in text and len(text) <= 79


def test_long_paths_stand_below_the_table() -> None:
    epoch = EpochMetrics(epoch=1, train_accuracy=50.0, val_accuracy=50.0, gap=0.0)
    state: Any = SimpleNamespace(history=[epoch], best=epoch, seconds=1.0, wall_seconds=200.0, policy_steps=0)
    folder = Path("snap/vqa/compare-scenes-SpotTune_Block-LoRA8-0")
    table = messages.summary_table(state, FinalMetrics(60.0, 10.0), folder)
    assert max(map(len, table.splitlines())) <= 80
    assert str(folder / "BEST") in table
    assert re.search("training time +1 s\ntotal time +3 min\n", table)


def test_long_answers_fit_a_terminal() -> None:
    answers = {"a very long answer " * 20 + end: 0.5 for end in ("this", "that")} | {"yes": 1.0}
    lines = list(answer_lines(answers))
    assert max(map(len, lines)) <= 80
    assert len(lines) == 4  # also two that begin alike
