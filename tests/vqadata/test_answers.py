import json

import pytest
from tests.helpers.paths import LXMERT_LISTS, needs_shared_data

from vqadata.answers import convert_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("u.s.a.", "u.s.a"),
        ("etc..", "etc."),
        ("a cat", "cat"),
        ("An Apple", "apple"),
        ("the beach.", "beach"),
        ("the a man", "a man"),
        ("a", "a"),
        ("another", "another"),
        ("theater", "theater"),
        ("two", "2"),
        ("Ten.", "10"),
        ("the one", "1"),
        ("two dogs", "two dogs"),
        ("eleven", "eleven"),
        ("zero", "zero"),
        ("grey", "gray"),
        ("grey and white", "grey and white"),
        ("", ""),
        (".", ""),
    ],
)
def test_conversion(text: str, answer: str) -> None:
    assert convert_answer(text) == answer


@needs_shared_data
def test_every_vqa_answer_but_five_is_one_of_lxmerts() -> None:
    known = {entry["ans"] for entry in json.loads((LXMERT_LISTS / "all_ans.json").read_text())}
    answers = json.loads((LXMERT_LISTS / "trainval_label2ans.json").read_text())
    missing = [answer for answer in answers if convert_answer(answer) not in known]
    assert len(answers) == 3129
    assert missing == ["", "visilab", "5 star", "1 4", "1 world"]
    # The lists are already in converted form, so the conversion must leave all of it alone.
    assert {convert_answer(answer) for answer in known} == known
