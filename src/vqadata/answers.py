"""Answers as strings: when two spellings mean the same answer."""

from __future__ import annotations

ARTICLES = ("a ", "an ", "the ")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SAME_ANSWER = {word: str(value) for value, word in enumerate(NUMBERS, start=1)} | {"grey": "gray"}


def convert_answer(text: str) -> str:
    """The spelling under which LXMERT's pre-training knows an answer.

    Lower case, without a final full stop (only one) and without a leading article; numbers up to ten in
    digits. This is the conversion of the original code's answer table, for matching answers between label
    lists. It is not the normalisation of the official VQA accuracy.
    """
    answer = text.strip().lower().removesuffix(".").strip()
    for article in ARTICLES:
        answer = answer.removeprefix(article).strip()
    return SAME_ANSWER.get(answer, answer)
