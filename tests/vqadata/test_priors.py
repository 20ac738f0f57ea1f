"""A changing-priors split: groups stay together, every type changes, words are covered, the seed decides."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from vqadata.official import Annotation
from vqadata.priors import changing_priors, prepare_priors, prior_shift, usual_answer, word_coverage

COLORS = ("red", "blue", "green", "white", "black", "brown")


def records(count: int = 1200) -> list[dict[str, Any]]:
    """Questions of three types with several answers and of one type with a single one."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        thing = ("cat", "dog", "car", "tree")[rng.integers(4)]
        kind, sent, answer = (
            ("is there", f"is there a {thing}?", ("yes", "no")[rng.integers(2)]),
            ("what color", f"what color is the {thing}?", COLORS[rng.integers(6)]),
            ("how many", f"how many {thing}s?", str(min(rng.integers(5), rng.integers(5)))),
            ("why", f"why is the {thing} here?", "nobody knows"),
        )[number % 4]
        rows.append(
            {
                "question_id": number,
                "img_id": f"image {number // 5}",
                "sent": sent,
                "question_type": kind,
                "label": {"other": 0.3, answer: 0.9},
            }
        )
    return rows


def sides(rows: list[dict[str, Any]], in_test: list[bool]) -> dict[str, tuple[set[str], set[str]]]:
    """The usual answers of training and test, by question type."""
    answers: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for row, is_test in zip(rows, in_test, strict=True):
        answers[row["question_type"]][is_test].add(usual_answer(row))
    return answers


@pytest.mark.parametrize("seed", range(5))
def test_no_answer_of_a_type_is_on_both_sides_and_both_have_some(seed: int) -> None:
    rows = records()
    answers = sides(rows, changing_priors(rows, seed=seed))
    for kind in ("is there", "what color", "how many"):
        train, test = answers[kind]
        assert train and test and not train & test
    assert answers["why"] == ({"nobody knows"}, set())


@pytest.mark.parametrize("share", [0.2, 1 / 3, 0.6])
def test_about_the_share_of_a_type_with_many_answers_is_for_testing(share: float) -> None:
    rows = [row for row in records(2400) if row["question_type"] == "what color"]
    assert np.mean(changing_priors(rows, test_share=share)) == pytest.approx(share, abs=0.1)


def test_training_leaves_test_its_share_however_much_it_lacks() -> None:
    """Any two groups share a word of their own, so that training asks for another group at every turn."""
    rows = [
        {
            "sent": " ".join(f"pair{min(one, two)}x{max(one, two)}" for two in range(20) if two != one),
            "label": {f"answer{one}": 1.0},
        }
        for one in range(20)
    ]
    assert np.mean(changing_priors(rows, test_share=0.7)) == pytest.approx(0.7, abs=0.05)


def test_a_rare_answer_does_not_make_the_frequent_one_test() -> None:
    rows = [
        {"question_id": n, "sent": "?", "question_type": "is", "label": {"yes" if n < 95 else "no": 1}}
        for n in range(100)
    ]
    assert changing_priors(rows) == [False] * 95 + [True] * 5


def test_the_seed_decides() -> None:
    rows = records()
    assert changing_priors(rows, seed=1) == changing_priors(rows, seed=1)
    assert len({tuple(changing_priors(rows, seed=seed)) for seed in range(6)}) > 1


def test_words_of_test_are_covered_by_training() -> None:
    """Each colour names an object too: put into training if the colour as an answer goes to test."""
    rows = [
        {"question_id": 1, "sent": "what color?", "question_type": "color", "label": {answer: 1}}
        for answer in COLORS
    ]
    rows += [
        {"question_id": 1, "sent": f"is the {word} one here?", "question_type": f"is {word}", "label": label}
        for word in COLORS
        for label in ({"yes": 1}, {"no": 1})
    ]
    for seed in range(5):
        in_test = changing_priors(rows, seed=seed)
        assert word_coverage(rows, in_test) == 1.0


def test_training_takes_the_group_with_the_lacking_words() -> None:
    """Of the groups left, the one that knows "zebra" goes to training as soon as test asks for it."""
    texts = {"a": "zebra", "b": "zebra", **dict.fromkeys("cdefghijkl", "plain")}
    rows = [
        {"question_id": 1, "sent": text, "question_type": "what", "label": {answer: 1}}
        for answer, text in texts.items()
    ]
    covered = 0
    for seed in range(40):
        in_test = changing_priors(rows, test_share=0.3, seed=seed)
        asked = [row["sent"] == "zebra" and is_test for row, is_test in zip(rows, in_test, strict=True)]
        if any(asked):
            assert not all(asked[:2])
            covered += 1
    assert covered > 5


def test_mixing_lets_training_see_every_answer() -> None:
    rows = records()
    plain, mixed = changing_priors(rows), changing_priors(rows, mix=0.2)
    changed = np.mean(np.array(plain) != np.array(mixed))
    assert changed == pytest.approx(0.2, abs=0.04)
    assert prior_shift(rows, plain) == pytest.approx(1)
    assert 0.4 < prior_shift(rows, mixed) < 0.9
    assert all(test <= train for train, test in sides(rows, mixed).values())


def test_prior_shift_by_hand() -> None:
    def rows(*answers: str) -> list[dict[str, Any]]:
        return [{"sent": "", "label": {answer: 1.0}} for answer in answers]

    half = [False, False, True, True]
    assert prior_shift(rows("a", "b", "a", "b"), half) == 0
    assert prior_shift(rows("a", "a", "b", "b"), half) == 1
    assert prior_shift(rows("a", "a", "a", "b"), half) == 0.5
    assert prior_shift(rows("a", "b"), [True, True]) == 0


def test_parts_hold_every_question_once_and_validation_has_its_own_images() -> None:
    rows = records()
    annotations = [
        Annotation(row["question_id"], row["img_id"], row["question_type"], "other", ["x"], "x")
        for row in rows
    ]
    prepared = prepare_priors(rows, changing_priors(rows), annotations[::-1], ["yes"], holdout=0.1, seed=0)
    ids = {name: [row["question_id"] for row in split] for name, split in prepared.splits.items()}
    assert sorted(number for split in ids.values() for number in split) == list(range(len(rows)))
    images = {name: {row["img_id"] for row in split} for name, split in prepared.splits.items()}
    assert images["cp_val"] and not images["cp_train"] & images["cp_val"]
    for name, split in prepared.annotations.items():
        assert [annotation.question_id for annotation in split] == ids[name]
    with pytest.raises(DataError, match=r"cp_.*: 1 question has no annotation, first 0"):
        prepare_priors(rows, changing_priors(rows), annotations[1:], ["yes"], holdout=0.1, seed=0)


def test_one_answer_a_type_has_no_priors_to_change() -> None:
    rows = [row for row in records() if row["question_type"] == "why"]
    with pytest.raises(DataError, match="there are no priors to change"):
        prepare_priors(rows, changing_priors(rows), [], ["yes"], holdout=0.1, seed=0)
