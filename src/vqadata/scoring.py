"""The official VQA accuracy, and the soft-target accuracy that LXMERT reports during training.

    python src/vqadata/scoring.py --predictions P --annotations A [--questions Q]

scores a file in the challenge's format, [{"question_id": 1, "answer": "yes"}, ...], against annotations.

The two accuracies differ. The official one compares answers after a normalisation (unless all humans gave the
same answer) and counts every human answer. The soft-target one looks the prediction up, letter for letter,
among those human answers that are in the vocabulary.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

if __name__ == "__main__":  # as a script it is not in a package: make it one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.errors import DataError
from vqadata.answers import ANSWER_TYPES, agreement, normalise, tidy
from vqadata.files import read_json
from vqadata.official import Annotation, lacking, read_annotations, read_question_ids, refuse_duplicates


class Key(NamedTuple):
    """What scoring needs to know of one question."""

    answer_type: str
    question_type: str
    normalised: bool  # the humans disagree, so answers are compared after normalisation
    accuracy: dict[str, float]  # of each human answer, in [0, 1]; of any other answer it is 0


Annotations = dict[int, Key]  # by question id


class Accuracy(NamedTuple):
    percent: float
    questions: int


class Scores(NamedTuple):
    """Official accuracy in per cent. Types come in the order of ANSWER_TYPES, and by name."""

    overall: float
    questions: int
    by_answer_type: dict[str, Accuracy]
    by_question_type: dict[str, Accuracy]


def load_annotations(path: Path) -> Annotations:
    """The annotations of a file, ready for scoring; DataError if it or a record in it cannot be used."""
    return scoring_key(read_annotations(path))


def scoring_key(annotations: Iterable[Annotation]) -> Annotations:
    """The accuracy of every human answer.

    Leaving one annotator out in turn, an answer scores min(1, matches among the others / 3), and the mean of
    that is its accuracy (`agreement`, which also has the rule for fewer than ten annotators).
    """
    keys = {}
    for annotation in annotations:
        answers = [tidy(answer) for answer in annotation.answers]
        normalised = len(set(answers)) > 1
        counts = Counter(map(normalise, answers) if normalised else answers)
        accuracy = {answer: agreement(count, len(answers)) for answer, count in counts.items()}
        keys[annotation.question_id] = Key(
            annotation.answer_type, annotation.question_type, normalised, accuracy
        )
    return keys


def official_accuracy(key: Key, answer: str) -> float:
    """The official accuracy of an answer to one question, in [0, 1]."""
    answer = tidy(answer)
    return key.accuracy.get(normalise(answer) if key.normalised else answer, 0.0)


def official_scores(annotations: Annotations, predictions: Mapping[int, str]) -> Scores:
    """Score {question id: answer}; DataError unless exactly the annotated questions are answered."""
    _check_questions(annotations, predictions)
    return _average(
        annotations, {q: official_accuracy(key, predictions[q]) for q, key in annotations.items()}
    )


def oracle_scores(annotations: Annotations, vocabulary: Iterable[str]) -> Scores:
    """The scores of a model that picks the best answer of the vocabulary each time: no model gets higher."""
    plain = {tidy(answer) for answer in vocabulary}
    normal = {normalise(answer) for answer in plain}

    def best(key: Key) -> float:
        known = normal if key.normalised else plain
        return max((score for answer, score in key.accuracy.items() if answer in known), default=0.0)

    return _average(annotations, {question_id: best(key) for question_id, key in annotations.items()})


def soft_target_accuracy(records: Sequence[Mapping[str, Any]], predictions: Mapping[int, str]) -> float:
    """What LXMERT reports: the mean soft target of the predicted answers, in per cent.

    `records` are examples with `question_id` and `label`. DataError if one of them is not answered.
    """
    missing = [record["question_id"] for record in records if record["question_id"] not in predictions]
    if missing or not records:
        raise DataError(f"{len(missing)} of {len(records)} questions are not answered: {_some(missing)}.")
    scores = [record.get("label", {}).get(predictions[record["question_id"]], 0.0) for record in records]
    return 100 * sum(scores) / len(scores)


def read_predictions(path: Path) -> dict[int, str]:
    """{question id: answer} of a file in the challenge's format; DataError names file and record."""
    records = read_json(path)
    if not isinstance(records, list) or not records:
        raise DataError(f'{path} is not a list of predictions, [{{"question_id": 1, "answer": "yes"}}, ...].')
    for index, record in enumerate(records):
        fault = lacking(record, ("question_id", "answer"))
        if not fault and not isinstance(record["answer"], str):
            fault = "answer is not a string"
        if fault:
            raise DataError(f"{path}, record {index}: {fault}.")
    refuse_duplicates([record["question_id"] for record in records], path)
    return {record["question_id"]: record["answer"] for record in records}


def restrict(annotations: Annotations, question_ids: Collection[int]) -> Annotations:
    """The annotations of these questions only; DataError if one of them has none."""
    missing = [question_id for question_id in question_ids if question_id not in annotations]
    if missing:
        raise DataError(f"{len(missing)} questions have no annotation: {_some(missing)}.")
    return {question_id: annotations[question_id] for question_id in question_ids}


def table(scores: Scores) -> str:
    """Scores as lines of text."""
    rows = [("overall", Accuracy(scores.overall, scores.questions)), None]
    rows += [*scores.by_answer_type.items(), None, *scores.by_question_type.items()]
    width = max(len(row[0]) for row in rows if row)
    lines = [f"{'official VQA accuracy':<{max(width, 21)}}  {'%':>6}  {'questions':>9}"]
    for row in rows:
        if row is None:
            lines.append("")
        else:
            name, accuracy = row
            lines.append(f"{name or '-':<{max(width, 21)}}  {accuracy.percent:6.2f}  {accuracy.questions:9,}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0, or 2 with a sentence if the files cannot be scored."""
    parser = _Parser(description="Score predictions with the official VQA accuracy.")
    parser.add_argument(
        "--predictions",
        type=Path,
        required=True,
        metavar="P",
        help='the challenge\'s format: [{"question_id": 1, "answer": "yes"}, ...]',
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="A",
        help="VQA v2's or VQA-CP's annotation file, or a split's in data/<dataset>/annotations/; may be .gz",
    )
    parser.add_argument(
        "--questions",
        type=Path,
        metavar="Q",
        help="score only the questions of this file: an official one or data/<dataset>/<split>.json",
    )
    args = parser.parse_args(argv)
    try:
        annotations = load_annotations(args.annotations)
        if args.questions:
            annotations = restrict(annotations, read_question_ids(args.questions))
        scores = official_scores(annotations, read_predictions(args.predictions))
    except DataError as error:
        parser.error(str(error))
    print(table(scores))
    return 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage text in front of it."""
        self.exit(2, f"error: {message}\n")


def _check_questions(annotations: Annotations, predictions: Mapping[int, str]) -> None:
    missing = [question_id for question_id in annotations if question_id not in predictions]
    unknown = [question_id for question_id in predictions if question_id not in annotations]
    if missing or unknown:
        parts = [
            f"{len(ids):,} {what}: {_some(ids)}"
            for ids, what in (
                (missing, "questions are not answered"),
                (unknown, "answers have no annotation"),
            )
            if ids
        ]
        raise DataError(
            f"The predictions do not fit the annotations ({'; '.join(parts)}); exactly the annotated "
            "questions must be answered. To score part of an annotation file, name the part with --questions."
        )


def _average(annotations: Annotations, accuracies: Mapping[int, float]) -> Scores:
    by_answer_type: defaultdict[str, list[float]] = defaultdict(list)
    by_question_type: defaultdict[str, list[float]] = defaultdict(list)
    for question_id, accuracy in accuracies.items():
        by_answer_type[annotations[question_id].answer_type].append(accuracy)
        by_question_type[annotations[question_id].question_type].append(accuracy)
    everything = _mean(list(accuracies.values()))
    return Scores(
        everything.percent,
        everything.questions,
        {name: _mean(by_answer_type[name]) for name in ANSWER_TYPES if name in by_answer_type},
        {name: _mean(by_question_type[name]) for name in sorted(by_question_type)},
    )


def _mean(accuracies: Sequence[float]) -> Accuracy:
    return Accuracy(100 * sum(accuracies) / len(accuracies), len(accuracies))


def _some(question_ids: Sequence[int]) -> str:
    return ", ".join(map(str, question_ids[:3])) + (", ..." if len(question_ids) > 3 else "")


if __name__ == "__main__":
    sys.exit(main())
