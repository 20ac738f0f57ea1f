"""A changing-priors split of any data set: what is the usual answer in training is not the usual one in test.

The idea is that of VQA-CP (Agrawal et al., "Don't Just Assume; Look and Answer", CVPR 2018): questions of one
question type with the same answer form a group, and a group goes to one side as a whole. Sides are chosen
greedily such that the words of the test questions and answers also occur in training: in turns, a group that
there is room for goes to test, and the group that knows most of the words that training lacks by then goes to
training. The priors change, the concepts do not.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from common.errors import DataError
from vqadata.folder import Prepared
from vqadata.official import Annotation
from vqadata.questions import annotate, hold_out
from vqadata.records import usual_answer

TEST_SHARE = 1 / 3

Record = Mapping[str, Any]


class Group(NamedTuple):
    question_type: str
    answer: str
    places: list[int]  # of its questions among the records
    words: frozenset[str]  # the concepts: all words of its questions and its answer


def changing_priors(
    records: Sequence[Record], *, test_share: float = TEST_SHARE, mix: float = 0.0, seed: int = 0
) -> list[bool]:
    """Whether each record is for testing; the seed and the records determine it.

    About `test_share` of the questions of a type are. A type with several answers has one of them or more on
    either side; a type with a single answer is for training. With `mix`, so large a random share of all
    questions changes sides in the end, so that training has seen every answer to a question type; at 0 a
    question type and answer are on one side only.
    """
    rng = np.random.default_rng(seed)
    groups = _group(records)
    groups = [groups[number] for number in rng.permutation(len(groups))]
    in_test = np.zeros(len(records), bool)
    for group, is_test in zip(groups, _assign(groups, test_share), strict=True):
        in_test[group.places] = is_test
    return (in_test ^ (rng.random(len(records)) < mix)).tolist()


def prepare_priors(
    records: Sequence[Record],
    in_test: Sequence[bool],
    annotations: Sequence[Annotation],
    answers: list[str],
    *,
    holdout: float,
    seed: int,
) -> Prepared:
    """cp_train, cp_val and cp_test; cp_val holds all training questions about a share of the images.

    annotations: of all records, in any order, or of none of them.
    """
    train = [record for record, is_test in zip(records, in_test, strict=True) if not is_test]
    held = hold_out([record["img_id"] for record in train], holdout, seed)
    splits = {
        "cp_train": [record for record in train if record["img_id"] not in held],
        "cp_val": [record for record in train if record["img_id"] in held],
        "cp_test": [record for record, is_test in zip(records, in_test, strict=True) if is_test],
    }
    if not splits["cp_test"]:
        raise DataError("No question type has several answers: there are no priors to change.")
    return Prepared(splits, annotate(splits, annotations) if annotations else {}, answers)


def prior_shift(records: Sequence[Record], in_test: Sequence[bool]) -> float:
    """How much the answers change, in [0, 1]: 0 equal distributions, 1 no answer in common.

    Total variation distance between the answers of train and test within each question type, averaged over
    the test questions of types that have questions on both sides.
    """
    answers: defaultdict[str, tuple[Counter[str], Counter[str]]] = defaultdict(lambda: (Counter(), Counter()))
    for record, is_test in zip(records, in_test, strict=True):
        answers[record.get("question_type", "")][is_test][usual_answer(record)] += 1
    weighted, questions = 0.0, 0
    for train, test in answers.values():
        if train and test:
            distance = sum(
                abs(train[answer] / train.total() - test[answer] / test.total()) for answer in train | test
            )
            weighted += test.total() * distance / 2
            questions += test.total()
    return weighted / questions if questions else 0.0


def word_coverage(records: Sequence[Record], in_test: Sequence[bool]) -> float:
    """The share, in [0, 1], of the different words of the test side that the training side has too."""
    words: tuple[set[str], set[str]] = (set(), set())
    for record, is_test in zip(records, in_test, strict=True):
        words[is_test].update(_words(record))
    train, test = words
    return len(test & train) / len(test) if test else 1.0


def _group(records: Sequence[Record]) -> list[Group]:
    places: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    words: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for place, record in enumerate(records):
        key = (record.get("question_type", ""), usual_answer(record))
        places[key].append(place)
        words[key].update(_words(record))
    return [Group(*key, places[key], frozenset(words[key])) for key in sorted(places)]


def _assign(groups: Sequence[Group], test_share: float) -> np.ndarray:
    """Whether each group is for testing, bool (groups,); groups in random order."""
    _, kind = np.unique([group.question_type for group in groups], return_inverse=True)
    split = _Split(groups, kind, test_share * np.bincount(kind, [len(group.places) for group in groups]))
    for this in dict.fromkeys(kind.tolist()):
        of_type = np.flatnonzero(kind == this).tolist()
        kept = max(of_type, key=lambda number: (split.gain[number], split.size[number]))
        split.put(kept, in_test=False)
        of_type.remove(kept)
        if of_type:
            fitting = [number for number in of_type if split.fits(number)]
            split.put(fitting[0] if fitting else min(of_type, key=split.size.__getitem__), in_test=True)
    for number in range(len(groups)):
        if split.open[number] and split.fits(number):
            split.put(number, in_test=True)
        best = split.most_needed()
        if best is not None:
            split.put(best, in_test=False)
    return split.in_test


class _Split:
    """A growing test and training side, and which words test has and training lacks.

    groups: G of them; kind (G,): the number of each one's question type; room (types,): how many questions of
    a type test is to have.
    """

    def __init__(self, groups: Sequence[Group], kind: np.ndarray, room: np.ndarray) -> None:
        self.groups = groups
        self.kind = kind
        self.room = room  # what of it is left
        self.size = np.array([len(group.places) for group in groups])
        self.waiting = np.bincount(kind, self.size)  # questions of a type in open groups
        self.open = np.ones(len(groups), bool)  # on neither side yet
        self.in_test = np.zeros(len(groups), bool)
        self._having: defaultdict[str, list[int]] = defaultdict(list)  # groups by word
        for number, group in enumerate(groups):
            for word in group.words:
                self._having[word].append(number)
        self._train_words: set[str] = set()
        self._missing: set[str] = set()  # words of test that training lacks
        self.gain = np.zeros(len(groups), np.int64)  # how many such words a group has

    def fits(self, number: int) -> bool:
        """Whether test ends nearer to its share of the type with the group than without it."""
        return bool(self.size[number] < 2 * self.room[self.kind[number]])

    def put(self, number: int, in_test: bool) -> None:
        """Put a group on a side."""
        words, kind = self.groups[number].words, self.kind[number]
        self.open[number] = False
        self.waiting[kind] -= self.size[number]
        if in_test:
            self.in_test[number] = True
            self.room[kind] -= self.size[number]
            self._count(words - self._train_words - self._missing, 1)
            self._missing |= words - self._train_words
        else:
            self._count(words & self._missing, -1)
            self._missing -= words
            self._train_words |= words

    def most_needed(self) -> int | None:
        """The open group with most words that training lacks, if any, among those that test can spare."""
        spare = self.open & (self.waiting[self.kind] - self.size >= self.room[self.kind])
        gain = np.where(spare, self.gain, 0)
        best = int(gain.argmax())
        return best if gain[best] else None

    def _count(self, words: Iterable[str], change: int) -> None:
        for word in words:
            self.gain[self._having[word]] += change


def _words(record: Record) -> list[str]:
    return re.findall(r"\w+", f"{record['sent']} {usual_answer(record)}".lower())
