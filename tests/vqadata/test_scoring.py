"""Scores worked out by hand from the published rules, each rule and each quirk on its own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.paths import ROOT, VQA_SUBSET, needs_shared_data

from common.errors import DataError
from vqadata.answers import agreement, normalise
from vqadata.scoring import (
    GroundTruth,
    main,
    official_accuracy,
    official_scores,
    oracle_scores,
    read_ground_truth,
    read_predictions,
    restrict,
)


def annotation(
    answers: Sequence[str], number: int = 1, answer_type: str = "other", kind: str = "what"
) -> dict[str, Any]:
    """An annotation as the official files have it."""
    return {
        "question_id": number,
        "image_id": 7,
        "answer_type": answer_type,
        "question_type": kind,
        "multiple_choice_answer": answers[0],
        "answers": [
            {"answer": text, "answer_confidence": "yes", "answer_id": place}
            for place, text in enumerate(answers, start=1)
        ],
    }


def load(folder: Path, *annotations: dict[str, Any]) -> GroundTruth:
    path = folder / "annotations.json"
    path.write_text(json.dumps({"annotations": annotations}))
    return read_ground_truth(path)


def accuracy(folder: Path, answers: Sequence[str], prediction: str) -> float:
    return official_accuracy(load(folder, annotation(answers))[1], prediction)


# ----------------------------------------------------------------------------------------- the accuracy


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0), (10, 1.0)]
)
def test_ten_annotators_leave_one_out(tmp_path: Path, matches: int, expected: float) -> None:
    answers = ["cat"] * matches + [f"dog {number}" for number in range(10 - matches)]
    assert accuracy(tmp_path, answers, "cat") == expected


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["cat"], 1.0),  # the only annotator
        (["dog"], 0.0),
        (["cat", "cat"], 1.0),
        (["cat", "dog"], 0.5),  # left out: 0 of 1; the other left out: 1 of 1
        (["cat", "cat", "dog"], 2 / 3),  # 1/2, 1/2, 2/2
        (["cat", "dog", "owl", "pig"], 0.25),  # 0, 1/3, 1/3, 1/3
        (["cat"] * 3 + ["dog"], 0.75),  # 2/3, 2/3, 2/3, 3/3
    ],
)
def test_fewer_than_ten_annotators(tmp_path: Path, answers: list[str], expected: float) -> None:
    assert accuracy(tmp_path, answers, "cat") == pytest.approx(expected)


@pytest.mark.parametrize("annotators", range(1, 11))
def test_an_answer_all_annotators_gave_is_right_and_more_matches_never_score_less(annotators: int) -> None:
    scores = [agreement(count, annotators) for count in range(annotators + 1)]
    assert scores[0] == 0 and scores[-1] == 1
    assert scores == sorted(scores)


def test_answers_are_normalised_only_if_the_humans_disagree(tmp_path: Path) -> None:
    assert accuracy(tmp_path, ["two dogs"] * 10, "2 dogs") == 0
    assert accuracy(tmp_path, ["two dogs"] * 10, "two dogs") == 1
    assert accuracy(tmp_path, ["two dogs"] * 9 + ["dogs"], "2 dogs") == 1
    assert accuracy(tmp_path, ["Yes"] * 10, "yes") == 0
    assert accuracy(tmp_path, ["Yes"] * 9 + ["no"], "yes") == 1


def test_answers_that_differ_only_by_their_ends_are_identical(tmp_path: Path) -> None:
    answers = ["The cat"] * 5 + ["The cat\n", " The cat", "The\tcat", "The\ncat", "\tThe cat "]
    assert accuracy(tmp_path, answers, "cat") == 0
    assert accuracy(tmp_path, answers, "\nThe\tcat ") == 1


def test_spellings_that_mean_the_same_count_together(tmp_path: Path) -> None:
    answers = ["two", "2", "Two.", "the two"] + [f"dog {number}" for number in range(6)]
    assert accuracy(tmp_path, answers, "2") == 1


# ------------------------------------------------------------------------------------- the normalisation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        ("none", "0"),
        ("zero", "0"),
        ("Ten", "10"),
        ("eleven", "eleven"),
        ("one a day", "1 day"),
        # A full stop goes unless a digit follows; what stands before it does not matter.
        ("u.s.a.", "usa"),
        ("1.5", "1.5"),
        ("5.", "5"),
        ("v.2", "v.2"),
        ("." * 33, "."),  # at most 32 of them
        # A mark goes if a blank is beside it anywhere in the answer; else it becomes a blank.
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("red-green -blue", "redgreen blue"),
        ("yes/no", "yes no"),
        ("yes / no", "yes no"),
        ("what?", "what"),
        ("a,b", "b"),  # "a b" without its article
        # A comma between digits makes every mark disappear, not only the comma.
        ("1,000", "1000"),
        ("1,000-ton", "1000ton"),
        ("1, 2", "1 2"),
        # An apostrophe comes back if one is missing, in lower case.
        ("dont", "don't"),
        ("DONT", "don't"),
        ("couldntve", "couldntve"),  # two are missing
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("Ive", "ive"),  # the table's keys with a capital I never match
        ("im", "im"),
        ("lets", "lets"),
        ("somebody'd", "somebodyd"),  # the wrong way round in the table
        ("  two   spaces ", "2 spaces"),
        ("it's", "it's"),
        ("", ""),
    ],
)
def test_normalisation(text: str, expected: str) -> None:
    assert normalise(text) == expected


# ----------------------------------------------------------------------------------------------- scores


def three_questions(folder: Path) -> GroundTruth:
    return load(
        folder,
        annotation(["yes"] * 10, 1, "yes/no", "is"),
        annotation(["2"] * 3 + ["3"] * 7, 2, "number", "how many"),
        annotation(["cat"] * 10, 3, "other", "is"),
    )


def test_scores_overall_and_by_type(tmp_path: Path) -> None:
    scores = official_scores(three_questions(tmp_path), {3: "dog", 1: "yes", 2: "two"})
    assert scores.overall == pytest.approx(100 * 1.9 / 3)
    assert scores.questions == 3
    assert list(scores.by_answer_type) == ["yes/no", "number", "other"]
    assert [accuracy.percent for accuracy in scores.by_answer_type.values()] == pytest.approx([100, 90, 0])
    assert scores.by_question_type["is"] == (50.0, 2)
    assert scores.by_question_type["how many"].questions == 1


def test_oracle_is_the_best_the_vocabulary_can_do(tmp_path: Path) -> None:
    annotations = three_questions(tmp_path)
    assert oracle_scores(annotations, ["yes", "2", "3", "cat"]).overall == 100
    assert oracle_scores(annotations, ["two"]).overall == pytest.approx(30)  # "2" of the second question
    assert oracle_scores(annotations, ["Cat"]).overall == 0  # the humans agree, so case counts


def test_missing_and_unknown_questions_are_counted_and_named(tmp_path: Path) -> None:
    annotations = three_questions(tmp_path)
    with pytest.raises(DataError, match="2 questions are not answered: 2, 3; 1 answer has no annotation: 9"):
        official_scores(annotations, {1: "yes", 9: "no"})
    part = restrict(annotations, {1})
    assert official_scores(part, {1: "yes"}).overall == 100
    with pytest.raises(DataError, match="1 question has no annotation: 5"):
        restrict(annotations, {1, 5})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"question_id": 1}, "is neither a list nor an object with a list of predictions"),
        ([], "holds no predictions"),
        ([{"question_id": 1, "answer": "yes"}, 3], "record 1: is not an object"),
        ([{"question_id": 1}], "record 0: lacks answer"),
        ([{"question_id": "1", "answer": "yes"}], "record 0: question_id is not an integer"),
        ([{"question_id": True, "answer": "yes"}], "record 0: question_id is not an integer"),
        ([{"question_id": 1, "answer": 2}], "record 0: answer is not a string"),
        ([{"question_id": 1, "answer": "a"}] * 2, "record 1: question_id 1 came before"),
    ],
)
def test_wrong_predictions_are_refused(tmp_path: Path, document: object, message: str) -> None:
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=message):
        read_predictions(path)


def test_command_without_any_set_up(tmp_path: Path) -> None:
    """As a user types it: not installed, PYTHONPATH not set."""
    three_questions(tmp_path)
    predictions = tmp_path / "p.json"
    predictions.write_text(json.dumps([{"question_id": n, "answer": "yes"} for n in (1, 2, 3)]))
    command = [sys.executable, "src/vqadata/scoring.py", "--predictions", str(predictions), "--annotations"]
    done = subprocess.run(
        [*command, str(tmp_path / "annotations.json")],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.rsplit(maxsplit=2) for line in done.stdout.splitlines() if line]
    assert ["overall", "33.33", "3"] in rows and ["yes/no", "100.00", "1"] in rows
    assert ["is", "50.00", "2"] in rows and ["how many", "0.00", "1"] in rows


def test_command_scores_part_and_explains_mistakes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three_questions(tmp_path)
    predictions, questions = tmp_path / "p.json", tmp_path / "q.json"
    predictions.write_text(json.dumps([{"question_id": 1, "answer": "yes"}]))
    questions.write_text(json.dumps({"questions": [{"question_id": 1}]}))
    flags = ["--predictions", str(predictions), "--annotations", str(tmp_path / "annotations.json")]
    assert main([*flags, "--questions", str(questions)]) == 0
    assert "100.00" in capsys.readouterr().out
    assert main(flags) == 2
    assert capsys.readouterr().err.startswith(
        "error: The predictions do not fit the annotations (2 questions"
    )


@needs_shared_data
def test_the_real_subset_is_scored_fast_and_between_its_bounds() -> None:
    annotations = read_ground_truth(VQA_SUBSET / "v2_mscoco_train2014_annotations.json.gz")
    rng = random.Random(0)
    predictions = {
        number: rng.choice(list(key.accuracy)).capitalize() + rng.choice(["", ".", " "])
        for number, key in annotations.items()
    }
    start = time.perf_counter()
    scores = official_scores(annotations, predictions)
    assert time.perf_counter() - start < 2
    everyone = official_scores(annotations, dict.fromkeys(annotations, "yes"))
    # Capitals and full stops are forgiven only where the humans disagree, on 65% of the questions.
    assert 20 < scores.overall < 60
    assert everyone.by_answer_type["yes/no"].percent > 40 > 1 > everyone.by_answer_type["number"].percent
    best = {number: max(key.accuracy, key=key.accuracy.__getitem__) for number, key in annotations.items()}
    vocabulary = set(best.values())
    assert oracle_scores(annotations, vocabulary).overall == pytest.approx(
        official_scores(annotations, best).overall
    )
