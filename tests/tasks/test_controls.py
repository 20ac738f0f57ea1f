"""What the choice per input is worth: gates exchanged, fixed, random, and both copies averaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adaptive.adapt import Adaptive
from common.errors import UserError
from tasks import vqa
from tasks.finetune import controls
from tasks.finetune.args import VqaArgs
from tasks.finetune.controls import CONTROLS, EXCHANGED, Trial, most_told
from tasks.finetune.gating import given

BY_NAME = {control.name: control for control in CONTROLS}


def gates_of(name: str, chosen: np.ndarray, types: np.ndarray, seed: int = 0) -> np.ndarray:
    return BY_NAME[name].gates(chosen, types, np.random.default_rng(seed))


@pytest.fixture
def chosen() -> np.ndarray:
    return np.random.default_rng(1).random((400, 5)) < [0.0, 0.2, 0.5, 0.9, 1.0]


@pytest.fixture
def types() -> np.ndarray:
    return np.random.default_rng(2).integers(3, size=400)


def as_sets(gates: np.ndarray) -> list[tuple]:
    return sorted(map(tuple, gates.tolist()))


def test_exchanging_keeps_every_row_and_within_types_those_of_the_type(
    chosen: np.ndarray, types: np.ndarray
) -> None:
    for name in ("exchanged between questions", "exchanged within question types"):
        exchanged = gates_of(name, chosen, types)
        assert as_sets(exchanged) == as_sets(chosen) and (exchanged != chosen).any()
    for kind in range(3):
        assert as_sets(exchanged[types == kind]) == as_sets(chosen[types == kind])


def test_other_controls_are_what_they_are_called(chosen: np.ndarray, types: np.ndarray) -> None:
    share = chosen.mean(0)
    assert gates_of("fixed mask: each gate's majority", chosen, types).tolist() == (share > 0.5).tolist()
    assert gates_of("all tuned", chosen, types).tolist() == [1.0] * 5
    assert gates_of("all frozen", chosen, types).tolist() == [0.0] * 5
    assert gates_of("both copies, averaged by share", chosen, types) == pytest.approx(share)
    assert gates_of("both copies, half and half", chosen, types).tolist() == [0.5] * 5
    random = gates_of("random, each gate as often", chosen, types)
    assert random.mean(0) == pytest.approx(share, abs=0.08) and random.dtype == bool
    assert not random[:, 0].any() and random[:, 4].all()


def test_gates_reach_the_questions_that_they_are_given_to() -> None:
    ids = np.array([30, 10, 20])
    gates = np.array([[True, False], [False, True], [True, True]])
    decide = given(gates, ids)
    found = decide(None, {}, torch.tensor([20, 20, 30, 10]))["gates"]
    assert found.tolist() == gates[[2, 2, 0, 1]].tolist()


class Machine:
    """Answers right where the first gate is as `right` says, and counts how often it is asked."""

    asked = 0


def trial(chosen: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Questions that are answered right if the first gate is that of the question."""
    right = chosen[:, 0].astype(float)
    ids = np.arange(len(chosen))
    Machine.asked = 0

    def evaluate(machine: Any, model: Any, loader: Any, exam: Any) -> SimpleNamespace:
        Machine.asked += 1
        asked = SimpleNamespace(gates=SimpleNamespace(total=chosen.shape[1]))
        decided = exam.decide(asked, {}, torch.arange(len(ids)))
        gates = decided["gates"].numpy() if decided else chosen
        scores = 1.0 - np.abs(np.broadcast_to(gates, chosen.shape)[:, 0].astype(float) - right)
        return SimpleNamespace(question_ids=ids, scores=scores, choices=chosen)

    class Exam(SimpleNamespace):
        def _replace(self, **how: Any) -> Exam:
            return Exam(**vars(self) | how)

    dataset = SimpleNamespace(
        question_type=right.astype(int),
        image=ids // 4,
        column=lambda field: (np.array(["a", "b"]), right.astype(int)),
    )
    monkeypatch.setattr(controls, "evaluate", evaluate)
    live = np.ones(chosen.shape[1], bool)
    exam = Exam(dataset=dataset, truth=None, decide=lambda *_: {}, live=live)
    return Trial(None, None, None, exam)


def test_a_choice_that_matters_costs_what_exchanging_it_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = np.random.default_rng(3).random((800, 3)) < 0.5
    found = trial(chosen, monkeypatch)
    outcomes = {control.name: found.under(control) for control in CONTROLS}
    exchanged = outcomes["exchanged between questions"]
    assert exchanged.accuracy == pytest.approx(50, abs=3)
    mean, low, high = exchanged.difference
    assert mean == pytest.approx(exchanged.accuracy - 100) and low < mean < high < -40
    # Within types, which are what the gate follows, nothing is lost.
    assert outcomes["exchanged within question types"].difference == (0.0, 0.0, 0.0)
    assert outcomes["both copies, half and half"].accuracy == pytest.approx(50)
    assert outcomes["all tuned"].accuracy == pytest.approx(100 * chosen[:, 0].mean())
    assert found.information()["question_type"] == pytest.approx(1.0, abs=0.02)


def test_gates_that_are_the_chosen_ones_cost_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    found = trial(np.ones((40, 3), bool), monkeypatch)
    assert Machine.asked == 1
    for name in ("exchanged between questions", "fixed mask: each gate's majority", "all tuned"):
        assert found.under(BY_NAME[name]).difference == (0.0, 0.0, 0.0)
    assert Machine.asked == 1
    found.under(BY_NAME["all frozen"])
    assert Machine.asked == 2


def test_a_gate_tells_nothing_of_a_label_that_it_has_nothing_to_do_with() -> None:
    """The plug-in estimate of the largest of many is far from 0; what is left of it here is not."""
    rng = np.random.default_rng(0)
    chosen, label = rng.random((500, 100)) < 0.5, rng.integers(8, size=500)
    assert most_told(chosen, label) < 0.004
    chosen[:, 7] = label % 2
    assert most_told(chosen, label) == pytest.approx(1.0, abs=0.05)  # less what chance tells


def test_a_run_says_what_its_choice_is_worth(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = vqa.main(replace(args, policy_lr=0.01, epochs=2))
    printed = capsys.readouterr().out
    assert outcome["worth_low"] <= outcome["worth"] <= outcome["worth_high"]
    assert {*outcome["information"]} == {"question_type"}
    assert "worth of the choice per input (points)" in printed
    assert f"{outcome['worth']:+.2f} [{outcome['worth_low']:+.2f}, {outcome['worth_high']:+.2f}]" in printed
    assert "most that a gate tells of question_type (bits)" in printed
    assert max(map(len, printed.splitlines())) <= 80 or args.pretrained in printed
    assert json.loads(Path("snap/vqa/run/result.json").read_text()) == outcome
    assert "worth" not in vqa.main(replace(args, version="plain", strategy="standard", epochs=1))


def test_the_worth_of_each_group_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the gates of a group are all the same, exchanging them within it would cost nothing."""
    rng = np.random.default_rng(3)
    found = trial(rng.random((800, 3)) < 0.5, monkeypatch)
    outcome = found.under(EXCHANGED, draws=1)
    groups = found.groups()
    assert [*groups] == ["a", "b"] and sum(groups.values()).tolist() == [1] * 800
    assert found.mean(outcome.differences) == outcome.difference
    for members in groups.values():
        mean, low, high = found.mean(outcome.differences, members)
        assert mean == pytest.approx(outcome.differences[members].mean()) and low < mean < high
    one_image = np.arange(800) < 4
    lonely = found.mean(outcome.differences, one_image)
    assert lonely.low is lonely.high is None
    assert str(lonely) == f"{lonely.mean:+.2f} (one image: no interval)"


def test_a_run_on_groups_says_what_the_choice_is_worth_in_each(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(args.data, "data")
    file = Path("data/vqav2/minival.json")
    records = json.loads(file.read_text())
    for number, record in enumerate(records):
        record["group"] = "clean" if number % 3 else "shifted"
    file.write_text(json.dumps(records))
    outcome = vqa.main(replace(args, data="data", policy_lr=0.01, epochs=1))
    by_group = outcome["worth_by_group"]
    assert [*by_group] == ["clean", "shifted"]
    total = sum(
        by_group[name]["worth"] * sum(r["group"] == name for r in records) for name in by_group
    ) / len(records)
    assert total == pytest.approx(outcome["worth"])
    shares = [part["share_tuned"] for part in by_group.values()]
    assert min(shares) <= outcome["share_tuned"] <= max(shares)
    printed = capsys.readouterr().out
    for name, part in by_group.items():
        assert f"  worth in {name} " in printed and f"{part['share_tuned']:.3f}" in printed


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_controls_of_a_run_are_evaluations_of_its_best_weights(
    args: VqaArgs, tuned: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = vqa.main(replace(args, tuned=tuned, policy="light", policy_lr=0.01, epochs=2))
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, controls=True)
    capsys.readouterr()
    outcome = vqa.main(test)
    assert outcome["accuracy"] == trained["best"]["val_accuracy"]
    rows = {row["gates"]: row for row in outcome["controls"]}
    assert [*rows] == [*BY_NAME]
    for row in rows.values():
        assert row["mean"] == pytest.approx(row["accuracy"] - outcome["accuracy"], abs=1e-4)
        assert row["low"] <= row["mean"] + 1e-9 and row["mean"] <= row["high"] + 1e-9
    printed = capsys.readouterr().out.splitlines()
    assert all(any(line.startswith(name) for line in printed) for name in BY_NAME)
    assert max(map(len, printed)) <= 80
    saved = json.loads(Path("snap/vqa/run/controls/minival.json").read_text())
    assert saved["controls"] == outcome["controls"]

    forward = Adaptive.forward
    for name, value in (("all tuned", 1.0), ("all frozen", 0.0)):

        def forced(self: Adaptive, value: float = value, **inputs: Any) -> Any:
            return forward(self, gates=torch.full((len(inputs["input_ids"]), 1), value), **inputs)

        with monkeypatch.context() as patch:
            patch.setattr(Adaptive, "forward", forced)
            found = vqa.main(replace(test, controls=False))["accuracy"]
        assert rows[name]["accuracy"] == pytest.approx(found, abs=1e-4)


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ({"strategy": "standard"}, {}, "--strategy standard has no gates"),
        ({}, {"evaluate_gates": "average"}, "add --evaluate-gates argmax"),
    ],
)
def test_without_a_choice_there_is_nothing_to_compare(
    args: VqaArgs, train: dict[str, Any], test: dict[str, Any], words: str
) -> None:
    vqa.main(replace(args, epochs=1, max_steps=1, **train))
    follow_up = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, controls=True)
    with pytest.raises(UserError, match=words):
        vqa.main(replace(follow_up, **test))


def test_the_worth_is_that_of_the_best_epoch(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[Trial] = []
    under = Trial.under

    def watched(self: Trial, *arguments: Any, **options: Any) -> Any:
        trials.append(self)
        return under(self, *arguments, **options)

    monkeypatch.setattr(Trial, "under", watched)
    outcome = vqa.main(replace(args, lr=0.3, epochs=3))
    (only,) = trials
    assert 100 * only.scores.mean() == pytest.approx(outcome["best"]["val_accuracy"])
    assert EXCHANGED.draws > 1
