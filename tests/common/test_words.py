import pytest

from common.words import counted, cut, duration


@pytest.mark.parametrize(
    ("number", "thing", "words"),
    [
        (1, "epoch", "1 epoch"),
        (0, "epoch", "0 epochs"),
        (12_345, "validation question", "12,345 validation questions"),
        (2, "process", "2 processes"),
        (1, "process", "1 process"),
        (2, "query", "2 queries"),
        (3, "key", "3 keys"),
    ],
)
def test_one_is_singular_and_all_else_plural(number: int, thing: str, words: str) -> None:
    assert counted(number, thing) == words


def test_the_verb_goes_with_the_number() -> None:
    assert [counted(number, "row", "was") for number in (1, 2)] == ["1 row was", "2 rows were"]


def test_long_texts_are_cut_and_short_ones_are_not() -> None:
    assert (cut("what is", 7), cut("what is it", 7)) == ("what is", "what i…")


def test_times_are_in_the_unit_that_fits() -> None:
    assert [duration(seconds) for seconds in (58.4, 720, 12_240)] == ["58 s", "12 min", "3.4 h"]
