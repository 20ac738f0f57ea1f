"""Questions that a report shows one by one: which ones, their likeliest answers, the gates that ran tuned."""

from collections.abc import Sequence

import numpy as np

from tasks.finetune.evaluate import Evaluation

EXAMPLES = 200  # questions that are kept
CHANCE, UNUSUAL, WRONG = "drawn at random", "unusual routing", "surely wrong"  # why a question is kept
SHARES = {UNUSUAL: 0.3, WRONG: 0.3}  # of the examples; the others are drawn at random
RIGHT = 0.5  # the least score of an answer that does not count as wrong


def example_columns(evaluation: Evaluation, answers: Sequence[str]) -> dict[str, np.ndarray]:
    """The examples of an evaluation as the columns of `report.run.Examples`, all but the epoch.

    answers: in label order. Where no gates were chosen, there are none.
    """
    choices = evaluation.choices
    if choices is None:
        choices = np.zeros((len(evaluation.chosen), 0), bool)
    usual = choices.mean(0) > 0.5
    departing = (choices != usual)[:, evaluation.live[: len(usual)]].sum(1)
    reasons = choose_examples(evaluation.scores, evaluation.probabilities, departing)
    places = sorted(reasons)
    return {
        "question_id": evaluation.question_ids[places],
        "why": np.array([reasons[place] for place in places]),
        "answers": np.array(answers)[evaluation.likeliest[places]],
        "probabilities": evaluation.likelihoods[places],
        "gates": choices[places],
        "usual": usual,
    }


def choose_examples(
    scores: np.ndarray, probabilities: np.ndarray, departing: np.ndarray, most: int = EXAMPLES
) -> dict[int, str]:
    """Up to `most` places of N questions, and why each was chosen.

    scores, probabilities (N,): of the answers given. departing (N,): how many gates did not take their usual
    choice. Those drawn at random depend on N alone, so that runs on the same questions have them in common.
    """
    by_chance = np.random.default_rng(0).permutation(len(scores))
    wrong = np.flatnonzero(scores < RIGHT)
    rankings = {
        UNUSUAL: np.argsort(-departing, kind="stable")[: np.count_nonzero(departing)],
        WRONG: wrong[np.argsort(-probabilities[wrong], kind="stable")],
    }
    counts = {reason: int(share * most) for reason, share in SHARES.items()}
    chosen = dict.fromkeys(by_chance[: most - sum(counts.values())].tolist(), CHANCE)

    def add(reason: str, ranking: np.ndarray, count: int) -> None:
        new = [place for place in ranking.tolist() if place not in chosen]
        chosen.update(dict.fromkeys(new[:count], reason))

    for reason, ranking in rankings.items():
        add(reason, ranking, counts[reason])
    add(CHANCE, by_chance, most - len(chosen))  # what the others left
    return chosen
