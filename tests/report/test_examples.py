"""Which questions a report shows, and what it says of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tests.helpers.runs import FIRST_ID, GATES, KEPT, QUESTIONS, write_run

from report.examples import Answered, Asked, Picture, choose_questions, describe_questions, disagreements
from report.run import Run

LIVE = np.array([live for *_, live in GATES])


def answered(run: Run) -> Answered:
    return Answered(run.scores("best"), run.examples(), LIVE)


def nothing(images: Mapping[int, str]) -> Asked:
    return Asked()


def test_of_one_run_the_sample_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    kept = run.examples().question_id.tolist()
    assert choose_questions([answered(run)], 200) == sorted(kept)
    assert len(choose_questions([answered(run)], 10)) == 10
    assert choose_questions([answered(run)._replace(examples=None)], 200) == []


def test_of_two_runs_those_come_first_on_which_they_disagree(tmp_path: Path) -> None:
    runs = [answered(write_run(tmp_path / name, seed)) for name, seed in (("a", 0), ("b", 1))]
    one, other = (each.scores.answer for each in runs)
    differing = (FIRST_ID + np.flatnonzero(one != other)).tolist()
    assert disagreements(runs) == differing and 10 < len(differing) < QUESTIONS
    sampled = set(runs[0].examples.question_id.tolist())
    chosen = choose_questions(runs, 10)
    assert len(chosen) == 10 and len(set(chosen) & set(differing)) >= 7
    assert set(chosen) <= sampled  # there are enough of which all is known
    assert len(choose_questions(runs, 200)) > KEPT


def test_a_question_says_what_its_run_kept_of_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    scores, examples = run.scores("best"), run.examples()

    def look_up(images: Mapping[int, str]) -> Asked:
        assert set(images) == {FIRST_ID, FIRST_ID + 1} and set(images.values()) == {"image_0"}
        picture = Picture("data:image/jpeg;base64,", 4, 3)
        return Asked({FIRST_ID: "what?"}, {FIRST_ID: [("red", "7 of 10")]}, {}, {"image_0": picture})

    found = describe_questions([answered(run)], [FIRST_ID, FIRST_ID + 1], look_up)
    first, second = found["questions"]
    assert (first["id"], first["text"], first["human"]) == (str(FIRST_ID), "what?", [("red", "7 of 10")])
    assert first["types"] == {"answer type": "yes/no", "question type": "count"}
    (outcome,) = first["runs"]
    assert [answer for answer, _ in outcome["answers"]] == examples.answers[0].tolist()
    assert [percent for _, percent in outcome["answers"]] == [75.0, 12.5, 10.0, 5.0, 1.0]
    assert outcome["score"] == scores.score[0]
    gates = np.unpackbits(np.frombuffer(bytes.fromhex(outcome["gates"]), np.uint8))[: len(GATES)]
    assert gates.tolist() == examples.gates[0].astype(int).tolist()
    # A gate that cannot reach the answer departs from nothing.
    assert outcome["unusual"] == (examples.gates[0] & LIVE).sum() < examples.gates[0].sum()
    # Of a question outside the sample only the answer is known.
    assert second["runs"] == [
        {
            "answers": [[str(scores.answer[1]), round(100 * float(scores.probability[1]), 1)]],
            "score": scores.score[1],
        }
    ]
    (image,) = found["images"]
    assert (
        image["name"] == "image_0" and image["picture"].width == 4 and first["image"] == second["image"] == 0
    )


def test_runs_that_lack_a_question_have_a_gap_there(tmp_path: Path) -> None:
    one, other = (answered(write_run(tmp_path / name)) for name in "ab")
    scores = other.scores
    fewer = scores._replace(
        **{
            name: getattr(scores, name)[1:]
            for name in ("question_id", "image", "score", "answer", "probability")
        },
        types={kind: names[1:] for kind, names in scores.types.items()},
    )
    found = describe_questions([one, other._replace(scores=fewer, examples=None)], [FIRST_ID], nothing)
    assert [bool(run) for run in found["questions"][0]["runs"]] == [True, False]
