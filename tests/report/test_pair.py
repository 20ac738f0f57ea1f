"""Two ways of answering the same questions, compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from report.pair import Pair, describe, differing_arguments, pair_of_runs
from report.run import Run
from report.statistics import paired_interval


def pair() -> Pair:
    """Forty questions about ten images; B is right where A is not in eight, and wrong in three more."""
    one = np.tile([1.0, 0.0], 20)
    other = one.copy()
    other[1:16:2] = 1.0
    other[20:26:2] = 0.3
    answers = np.where(np.stack([one, other]) == 1, "right", "wrong")
    answers[1, -1] = "otherwise wrong"
    kind = np.where(np.arange(40) < 30, "how many", "")
    return Pair(["a", "b"], np.arange(40) // 4, np.stack([one, other]), answers, {"question type": kind})


def test_accuracies_differences_and_intervals_by_type() -> None:
    two = pair()
    text = describe(two)
    lines = {line.strip().split("  ")[0]: line.split()[-6:] for line in text.splitlines() if "[" in line}
    for name, chosen in (("all", np.ones(40, bool)), ("how many", two.types["question type"] == "how many")):
        one, other = 100 * two.scores[:, chosen]
        interval = paired_interval(other - one, two.image[chosen])
        numbers = f"{chosen.sum()} {one.mean():.2f} {other.mean():.2f} {other.mean() - one.mean():+.2f}"
        expected = f"{numbers} [{interval.low:+.2f}, {interval.high:+.2f}]"
        assert " ".join(lines[name]) == expected
    assert "question type\n" in text and "\n  (none)  " in text  # questions of no type
    starts = [line.split("  ")[0] for line in text.splitlines()]
    assert starts.index("all") > starts.index("question type")  # the overall figure comes last
    assert max(map(len, text.splitlines())) <= 80


def test_disagreements_are_counted() -> None:
    text = " ".join(describe(pair()).split())
    assert (
        "different answers to 12 of 40 questions (30.0%): B scores higher on 8, A on 3, and both the" in text
    )
    assert "the same on 1." in text and "draws the 10 images" in text


def test_questions_about_one_image_have_no_interval() -> None:
    two = pair()
    (line,) = (
        line for line in describe(two._replace(image=np.zeros(40))).splitlines() if line.startswith("all  ")
    )
    assert line.endswith("none")


def write_run(folder: Path, questions: int, **arguments: object) -> Run:
    (folder / "scores").mkdir(parents=True)
    (folder / "args.json").write_text(json.dumps({"valid": "minival", "version": folder.name, **arguments}))
    number = np.arange(questions)
    columns = {"question_id": number, "image": number.astype(str), "answer": number.astype(str)}
    for name, epoch in (("minival", 2), ("minival-last", 3)):
        score = (number + epoch) % 2
        np.savez(folder / "scores" / f"{name}.npz", epoch=epoch, score=score, probability=score, **columns)
    return Run(folder)


def test_runs_are_compared_at_the_last_or_the_best_epoch(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, 9) for name in "ab"]
    assert pair_of_runs(runs).names == ["a, epoch 3", "b, epoch 3"]
    best = pair_of_runs(runs, "best")
    assert best.names == ["a, epoch 2", "b, epoch 2"]
    assert best.scores.tolist() == [[0, 1, 0, 1, 0, 1, 0, 1, 0]] * 2


def test_runs_on_other_questions_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="answered different questions"):
        pair_of_runs([write_run(tmp_path / name, count) for name, count in (("a", 9), ("b", 10))])


def test_arguments_are_named_where_they_differ_or_only_one_run_knows_them(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", 9, lr=1e-3, seed=1, label="x", rank=None)
    other = write_run(tmp_path / "b", 9, lr=3e-4, seed=1, label="y", rank=8, newer=True)
    found = {"lr": ["0.001", "0.0003"], "rank": ["not given", "8"], "newer": ["not given", "True"]}
    assert differing_arguments([one, other]) == found
    assert differing_arguments([one, other, one])["rank"] == ["not given", "8", "not given"]
    text = describe(pair_of_runs([one, other]), found)
    assert "arguments that differ:\n  --lr: A 0.001, B 0.0003\n" in text
    assert "none that decides its numbers" in describe(pair_of_runs([one, one]), {})
