"""Questions one by one, as a report shows them: what was asked and answered, and which gates ran tuned."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from report.run import Examples, Scores

DISAGREEING = 0.7  # the largest share of questions that are shown because runs disagree on them


class Picture(NamedTuple):
    """An image, small enough for a page."""

    url: str  # with its bytes, data:image/jpeg;base64,...
    width: int  # pixels
    height: int


@dataclass
class Asked:
    """What a data set says of some questions."""

    texts: dict[int, str] = field(default_factory=dict)  # by question id, as `human`
    human: dict[int, list[tuple[str, str]]] = field(
        default_factory=dict
    )  # answers, and how often or how right
    boxes: dict[str, list[list[float]]] = field(default_factory=dict)  # by image: x1, y1, x2, y2, 0..1
    pictures: dict[str, Picture] = field(default_factory=dict)  # by image
    faults: list[str] = field(default_factory=list)  # why some of it is missing


LookUp = Callable[[Mapping[int, str]], Asked]  # of questions, by id the name of their image


class Answered(NamedTuple):
    """How one run answered its validation questions in its best epoch, as far as that is known."""

    scores: Scores | None
    examples: Examples | None
    live: np.ndarray  # bool (G,), the gates that the answer depends on


def choose_questions(answered: Sequence[Answered], most: int) -> list[int]:
    """Ids of up to `most` questions: the samples of the runs, and of several those on which they disagree.

    Questions that are in more samples are preferred, since more is known of them.
    """
    sampled: dict[int, int] = {}
    for _, examples, _ in answered:
        for question in examples.question_id.tolist() if examples else ():
            sampled[question] = sampled.get(question, 0) + 1
    order = sorted(sampled, key=lambda question: -sampled[question])
    if len(answered) > 1:
        differing = sorted(disagreements(answered), key=lambda question: -sampled.get(question, 0))
        order = list(dict.fromkeys([*differing[: int(DISAGREEING * most)], *order]))
    return sorted(order[:most])


def disagreements(answered: Sequence[Answered]) -> list[int]:
    """Ids of the questions to which not all runs gave the same answer."""
    given: dict[int, set[str]] = {}
    for scores, _, _ in answered:
        if scores:
            for question, answer in zip(scores.question_id.tolist(), scores.answer.tolist(), strict=True):
                given.setdefault(question, set()).add(answer)
    return [question for question, answers in given.items() if len(answers) > 1]


def describe_questions(
    answered: Sequence[Answered], questions: Sequence[int], look_up: LookUp
) -> dict[str, Any]:
    """All that a page needs to show these questions, for JSON.

    "questions"; the "images" that they number; "faults", sentences on what the data set does not say.
    """
    tables = [_by_question(each, questions) for each in answered]
    common = {}
    for question in questions:
        known = [table[question] for table in tables if question in table]
        common[question] = {
            name: value for entry in reversed(known) for name, value in entry["asked"].items()
        }
    asked = look_up({question: facts["image"] for question, facts in common.items() if "image" in facts})
    differing = set(disagreements(answered))
    images = list(dict.fromkeys(facts["image"] for facts in common.values() if "image" in facts))
    entries = [
        {
            **common[question],
            "id": str(question),  # a number of 64 bits is none in JavaScript
            "image": images.index(common[question]["image"]) if "image" in common[question] else None,
            "text": asked.texts.get(question, ""),
            "human": asked.human.get(question, []),
            "differ": question in differing,
            "runs": [table[question]["answered"] if question in table else None for table in tables],
        }
        for question in questions
    ]
    described = [
        {"name": image, "picture": asked.pictures.get(image), "boxes": asked.boxes.get(image, [])}
        for image in images
    ]
    return {"questions": entries, "images": described, "faults": asked.faults}


def _by_question(answered: Answered, questions: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Of these questions by id: what was "asked", and how it was "answered"."""
    scores, examples, live = answered
    table: dict[int, dict[str, Any]] = {}
    if scores:
        for place in np.flatnonzero(np.isin(scores.question_id, questions)).tolist():
            types = {kind: str(names[place]) for kind, names in scores.types.items()}
            best = [str(scores.answer[place]), _percent(scores.probability[place])]
            table[int(scores.question_id[place])] = {
                "asked": {"image": str(scores.image[place]), "types": types},
                "answered": {"answers": [best], "score": round(float(scores.score[place]), 3)},
            }
    if examples:
        departing = examples.gates != examples.usual
        departing[:, ~live[: departing.shape[1]]] = False
        for place in np.flatnonzero(np.isin(examples.question_id, questions)).tolist():
            question = int(examples.question_id[place])
            entry = table.setdefault(question, {"asked": {}, "answered": {}})
            pairs = zip(examples.answers[place].tolist(), examples.probabilities[place].tolist(), strict=True)
            entry["asked"]["why"] = str(examples.why[place])
            entry["answered"] |= {
                "answers": [[answer, _percent(probability)] for answer, probability in pairs],
                "gates": np.packbits(examples.gates[place]).tobytes().hex(),
                "departing": np.packbits(departing[place]).tobytes().hex(),
                "unusual": int(departing[place].sum()),
            }
    return table


def _percent(probability: float) -> float:
    return round(100 * float(probability), 1)
