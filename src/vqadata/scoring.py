"""The official VQA accuracy, and the soft-target accuracy that LXMERT reports during training.

    python src/vqadata/scoring.py --predictions P --annotations A [--questions Q]

scores a file in the challenge's format, [{"question_id": 1, "answer": "yes"}, ...], against annotations.

The two accuracies differ. The official one compares answers after a normalisation (unless all humans gave the
same answer) and counts every human answer. The soft-target one looks the prediction up, letter for letter,
among those human answers that are in the vocabulary.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":  # as a script it is not in a package: make it one
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from common.cli import Parser, run_command
from common.errors import DataError
from common.words import counted
from vqadata.answers import ANSWER_TYPES, agreement, normalise, tidy
from vqadata.official import Annotation, read_annotations, read_question_ids
from vqadata.records import prediction_fault, read_records


class HumanAnswers(NamedTuple):
    """What scoring needs to know of one question."""

    answer_type: str
    question_type: str
    normalised: bool  # the humans disagree, so answers are compared after normalisation
    accuracy: dict[str, float]  # of each human answer, in [0, 1]; of any other answer it is 0


GroundTruth = dict[int, HumanAnswers]  # by question id


class Accuracy(NamedTuple):
    percent: float
    questions: int


class Scores(NamedTuple):
    """Official accuracy in per cent. Types come in the order of ANSWER_TYPES, and by name."""

    overall: float
    questions: int
    by_answer_type: dict[str, Accuracy]
    by_question_type: dict[str, Accuracy]


def read_ground_truth(path: Path) -> GroundTruth:
    """The annotations of a file, ready for scoring; DataError if it or a record in it cannot be used."""
    return make_ground_truth(read_annotations(path))


def make_ground_truth(annotations: Iterable[Annotation]) -> GroundTruth:
    """The accuracy of every human answer, as `agreement` has it."""
    truth = {}
    for annotation in annotations:
        answers = [tidy(answer) for answer in annotation.answers]
        normalised = len(set(answers)) > 1
        counts = Counter(map(normalise, answers) if normalised else answers)
        accuracy = {answer: agreement(count, len(answers)) for answer, count in counts.items()}
        truth[annotation.question_id] = HumanAnswers(
            annotation.answer_type, annotation.question_type, normalised, accuracy
        )
    return truth


def official_accuracy(human: HumanAnswers, answer: str) -> float:
    """The official accuracy of an answer to one question, in [0, 1]."""
    answer = tidy(answer)
    return human.accuracy.get(normalise(answer) if human.normalised else answer, 0.0)


def official_scores(truth: GroundTruth, predictions: Mapping[int, str]) -> Scores:
    """Score {question id: answer}; DataError unless exactly the annotated questions are answered."""
    _check_questions(truth, predictions)
    return _average(truth, {q: official_accuracy(human, predictions[q]) for q, human in truth.items()})


def oracle_scores(truth: GroundTruth, vocabulary: Iterable[str]) -> Scores:
    """The scores of a model that picks the best answer of the vocabulary each time: no model gets higher."""
    plain = {tidy(answer) for answer in vocabulary}
    normal = {normalise(answer) for answer in plain}

    def best(human: HumanAnswers) -> float:
        known = normal if human.normalised else plain
        return max((score for answer, score in human.accuracy.items() if answer in known), default=0.0)

    return _average(truth, {question_id: best(human) for question_id, human in truth.items()})


def read_predictions(path: Path) -> dict[int, str]:
    """{question id: answer} of a file in the challenge's format; DataError names file and record."""
    records = read_records(path, "predictions", prediction_fault)
    return {record["question_id"]: record["answer"] for record in records}


def restrict(truth: GroundTruth, question_ids: Collection[int]) -> GroundTruth:
    """What humans answered to these questions only; DataError if one of them has no annotation."""
    missing = [question_id for question_id in question_ids if question_id not in truth]
    if missing:
        raise DataError(f"{counted(len(missing), 'question', 'has')} no annotation: {_some(missing)}.")
    return {question_id: truth[question_id] for question_id in question_ids}


def table(scores: Scores) -> str:
    """Scores as lines of text."""
    overall = {"overall": Accuracy(scores.overall, scores.questions)}
    heading = "official VQA accuracy"
    width = max(map(len, [heading, *scores.by_answer_type, *scores.by_question_type]))
    blocks = [
        [f"{name or '-':<{width}}  {percent:6.2f}  {count:9,}" for name, (percent, count) in block.items()]
        for block in (overall, scores.by_answer_type, scores.by_question_type)
    ]
    return f"{heading:<{width}}  {'%':>6}  {'questions':>9}\n" + "\n\n".join(map("\n".join, blocks))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; exit code 0, or 2 with a sentence if the files cannot be scored."""
    parser = Parser(description="Score predictions with the official VQA accuracy.")
    for flag, needed, what in (
        ("--predictions", True, 'the challenge\'s format: [{"question_id": 1, "answer": "yes"}, ...]'),
        ("--annotations", True, "an official annotation file, or data/<dataset>/annotations/<split>.json"),
        ("--questions", False, "score only these: an official question file, or data/<dataset>/<split>.json"),
    ):
        parser.add_argument(
            flag, type=Path, required=needed, metavar=flag[2].upper(), help=f"{what}; may be .gz"
        )
    args = parser.parse_args(argv)

    def score() -> None:
        truth = read_ground_truth(args.annotations)
        if args.questions:
            truth = restrict(truth, read_question_ids(args.questions))
        print(table(official_scores(truth, read_predictions(args.predictions))))

    return run_command(score, "interrupted")


def _check_questions(truth: GroundTruth, predictions: Mapping[int, str]) -> None:
    misfits = {
        ("question", "is", "not answered"): [number for number in truth if number not in predictions],
        ("answer", "has", "no annotation"): [number for number in predictions if number not in truth],
    }
    faults = [
        f"{counted(len(numbers), what, verb)} {how}: {_some(numbers)}"
        for (what, verb, how), numbers in misfits.items()
        if numbers
    ]
    if faults:
        raise DataError(
            f"The predictions do not fit the annotations ({'; '.join(faults)}); exactly the annotated "
            "questions must be answered. To score part of an annotation file, name the part with --questions."
        )


def _average(truth: GroundTruth, accuracies: Mapping[int, float]) -> Scores:
    by_answer_type: defaultdict[str, list[float]] = defaultdict(list)
    by_question_type: defaultdict[str, list[float]] = defaultdict(list)
    for question_id, accuracy in accuracies.items():
        by_answer_type[truth[question_id].answer_type].append(accuracy)
        by_question_type[truth[question_id].question_type].append(accuracy)
    return Scores(
        *_mean(list(accuracies.values())),
        {name: _mean(by_answer_type[name]) for name in ANSWER_TYPES if name in by_answer_type},
        {name: _mean(by_question_type[name]) for name in sorted(by_question_type)},
    )


def _mean(accuracies: Sequence[float]) -> Accuracy:
    return Accuracy(100 * sum(accuracies) / len(accuracies), len(accuracies))


def _some(question_ids: Sequence[int]) -> str:
    return ", ".join(map(str, question_ids[:3])) + (", ..." if len(question_ids) > 3 else "")


if __name__ == "__main__":
    sys.exit(main())
