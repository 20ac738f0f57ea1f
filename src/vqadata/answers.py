"""Answers as strings: when two spellings mean the same answer, how right an answer is, and the vocabulary.

`convert_answer` is LXMERT's conversion between label lists; `normalise` is that of the official VQA accuracy,
whose published numbers include its quirks. They are two different things.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS, start=1)}
SAME_ANSWER = DIGITS | {"grey": "gray"}

YES_NO = frozenset({"yes", "no"})
ANSWER_TYPES = ("yes/no", "number", "other")

MIN_OCCURRENCES = 9  # of the published vocabulary of 3129 answers


def convert_answer(text: str) -> str:
    """The spelling under which LXMERT's pre-training knows an answer.

    Lower case, without a final full stop (only one) and a leading article; numbers up to ten in digits.
    """
    answer = text.strip().lower().removesuffix(".").strip()
    for article in ("a ", "an ", "the "):
        answer = answer.removeprefix(article).strip()
    return SAME_ANSWER.get(answer, answer)


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # the published code hands a flag of value 32 over in the place of the largest count
_OFFICIAL_ARTICLES = frozenset({"a", "an", "the"})
_OFFICIAL_NUMBERS = DIGITS | {"none": "0", "zero": "0"}

# A contraction is recognised when exactly one of its apostrophes is missing. Not in the list because they are
# other words without it: she'd, we'd, she'll, we'll, I'll, let's. Those with a capital I are in the published
# table but never match, because the text is in lower case by then.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
    mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
    they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
    when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_WITH_APOSTROPHE = {
    form[:place] + form[place + 1 :]: form
    for form in _CONTRACTIONS.split()
    for place, letter in enumerate(form)
    if letter == "'"
} | {"somebody'd": "somebodyd"}  # the wrong way round in the published table


def tidy(text: str) -> str:
    """An answer as the official accuracy always takes it: on one line, without blanks around it."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 18)
def normalise(text: str) -> str:
    """The spelling under which the official accuracy compares answers if the humans disagree.

    A punctuation mark next to a blank disappears, any other one becomes a blank; if a comma stands between
    two digits, every mark disappears. A full stop disappears unless a digit follows it. Then, in lower case
    and word by word: number words up to ten become digits, articles go, missing apostrophes come back.
    """
    answer = text
    joined = _DIGIT_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        alone = joined or f"{mark} " in text or f" {mark}" in text
        answer = answer.replace(mark, "" if alone else " ")
    answer = _PERIOD.sub("", answer, count=_MAX_PERIODS)
    words = (_OFFICIAL_NUMBERS.get(word, word) for word in answer.lower().split())
    return " ".join(_WITH_APOSTROPHE.get(word, word) for word in words if word not in _OFFICIAL_ARTICLES)


def agreement(count: int, annotators: int) -> float:
    """How right an answer is, in [0, 1], that `count` of the annotators gave.

    The mean over the annotators, each left out in turn, of min(1, matches among the others / 3): with ten of
    them 0, .3, .6, .9 and 1 for 0, 1, 2, 3 and 4 or more. With fewer than four, all the others must match
    instead of three of them, so that an answer all agree on is always right; a single annotator is right.
    """
    if annotators == 1:
        return float(count)
    enough = min(3, annotators - 1)
    matches = count * min(count - 1, enough) + (annotators - count) * min(count, enough)
    return matches / (annotators * enough)


def soft_target(answers: Sequence[str], vocabulary: Collection[str]) -> dict[str, float]:
    """{answer: score in (0, 1]} of the human answers, counted as they are, that the vocabulary holds."""
    scores = {answer: agreement(count, len(answers)) for answer, count in Counter(answers).items()}
    return {answer: score for answer, score in scores.items() if answer in vocabulary}


def most_frequent(answers: Sequence[str]) -> str:
    """The answer given most often; of several the first."""
    return Counter(answers).most_common(1)[0][0]


def guess_answer_type(answer: str) -> str:
    """The coarse type that results are reported by, for data that does not tell it."""
    if answer.lower() in YES_NO:
        return "yes/no"
    return "number" if re.fullmatch(r"\d+([.,]\d+)*", answer) else "other"


def build_vocabulary(
    answers: Iterable[tuple[int, str]],
    occurrences: int = MIN_OCCURRENCES,
    spelling: Callable[[str], str] = normalise,
) -> list[str]:
    """The answers of at least `occurrences` questions, in their `spelling`, the most frequent first.

    `answers` are pairs of a question id and an answer. Of VQA v2 that is the question's one right answer
    (`multiple_choice_answer`), in train and val; normalised, which leaves no comma in them, they are 3129.
    """
    questions: defaultdict[str, set[int]] = defaultdict(set)
    for question_id, answer in answers:
        questions[spelling(answer)].add(question_id)
    frequent = [answer for answer, ids in questions.items() if len(ids) >= occurrences]
    return sorted(frequent, key=lambda answer: (-len(questions[answer]), answer))
