from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from tests.helpers.paths import SHARED, needs_shared_data

import lxmert.sources
import lxmert.tokens
from common.errors import CheckpointError
from lxmert.tokens import encode, load_tokenizer, unknown_words

VOCABULARY = SHARED / "bert-base-uncased-vocab.txt"
SMALL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "what", "color", "##s", "is", "the", "cat", "?"]
PAD, UNK, CLS, SEP, WHAT, COLOR, PLURAL, IS, THE, CAT, MARK = range(11)


@pytest.fixture
def small(tmp_path: Path) -> str:
    (tmp_path / "vocab.txt").write_text("\n".join(SMALL) + "\n")
    return str(tmp_path)


@pytest.fixture
def real(tmp_path: Path) -> str:
    (tmp_path / "vocab.txt").write_text(VOCABULARY.read_text(encoding="utf-8"), encoding="utf-8")
    return str(tmp_path)


def greedy_pieces(text: str, vocabulary: dict[str, int], most: int) -> list[int]:
    """BERT's algorithm for plain ASCII: lower case, punctuation apart, longest known prefix first."""
    spaced = "".join(c if c.isalnum() else f" {c} " for c in text.lower())
    ids = []
    for word in spaced.split():
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary)
            end = next(ends, None)
            if end is None:
                pieces, start = [vocabulary["[UNK]"]], len(word)
            else:
                pieces.append(vocabulary[prefix + word[start:end]])
                start = end
        ids += pieces
    return [vocabulary["[CLS]"], *ids[: most - 2], vocabulary["[SEP]"]]


def test_word_pieces_of_the_small_vocabulary(small: str) -> None:
    ids, lengths = encode(load_tokenizer(small), ["What COLORS is the cat?", "cat", "", "a dog"])
    assert lengths.tolist() == [9, 3, 2, 4]
    assert ids.tolist() == [
        [CLS, WHAT, COLOR, PLURAL, IS, THE, CAT, MARK, SEP],
        [CLS, CAT, SEP, PAD, PAD, PAD, PAD, PAD, PAD],
        [CLS, SEP, PAD, PAD, PAD, PAD, PAD, PAD, PAD],
        [CLS, UNK, UNK, SEP, PAD, PAD, PAD, PAD, PAD],
    ]
    assert ids.dtype == np.uint16


def test_a_long_question_keeps_its_first_18_word_pieces_and_both_ends(small: str) -> None:
    ids, lengths = encode(load_tokenizer(small), ["cat " * 17 + "what is", "cat"])
    assert lengths.tolist() == [20, 3]
    assert ids[0].tolist() == [CLS] + [CAT] * 17 + [WHAT, SEP]


@needs_shared_data
def test_real_vocabulary_agrees_with_the_algorithm_written_out(real: str) -> None:
    pieces = VOCABULARY.read_text(encoding="utf-8").splitlines()
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    questions = [
        "What is the man's surfboard made of?",
        "Is this a Zamboni-driver (or not)?",
        "How many giraffes are unphotographable?",
        "Where are the e-readers, i-pods & 35mm cameras",
        "What " + "untrustworthily " * 12 + "end?",
        "QUESTION?",
    ]
    ids, lengths = encode(load_tokenizer(real), questions)
    expected = [greedy_pieces(question, vocabulary, 20) for question in questions]
    assert [row[:n].tolist() for row, n in zip(ids, lengths, strict=True)] == expected
    assert max(map(len, expected)) == 20
    assert vocabulary["[CLS]"] == 101


@needs_shared_data
def test_accents_are_dropped_as_in_the_uncased_vocabulary(real: str) -> None:
    ids, _ = encode(load_tokenizer(real), ["Café?", "cafe?"])
    assert ids[0].tolist() == ids[1].tolist()


def test_batches_do_not_change_the_result(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(small)
    questions = ["cat", "what is the cat?", "is", "the colors", "what?"]
    whole = encode(tokenizer, questions)
    monkeypatch.setattr(lxmert.tokens, "BATCH", 2)
    for one, other in zip(whole, encode(tokenizer, questions), strict=True):
        assert np.array_equal(one, other)


def test_no_questions_give_empty_arrays(small: str) -> None:
    ids, lengths = encode(load_tokenizer(small), [])
    assert ids.shape == (0, 0)
    assert lengths.shape == (0,)


def test_a_hub_id_asks_for_the_tokenizer_files_only(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ["vocab.txt", "tokenizer_config.json", "config.json", "model.safetensors", "README.md"]
    requested = []

    def download(source: str, allow_patterns: list[str]) -> str:
        requested.extend(filter_repo_objects(there, allow_patterns=allow_patterns))
        return small

    monkeypatch.setattr(lxmert.sources, "snapshot_download", download)
    assert load_tokenizer("someone/lxmert").tokenize("the CAT") == ["the", "cat"]
    assert requested == ["vocab.txt", "tokenizer_config.json"]


def test_a_folder_without_a_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer.*vocab\.txt"):
        load_tokenizer(str(tmp_path))


def test_a_vocabulary_without_the_special_pieces_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\ncat\n")
    with pytest.raises(CheckpointError, match=r"\[SEP\]"):
        load_tokenizer(str(tmp_path))


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_tokenizer(str(tmp_path))


def test_a_cased_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*SMALL, "a", "A"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(CheckpointError, match="upper case"):
        load_tokenizer(str(tmp_path))


def test_words_that_cannot_be_spelled_are_counted(small: str) -> None:
    questions = ["What is life?", "is the CAT life or a cat", "what colors"]
    assert unknown_words(load_tokenizer(small), questions) == {"life": 2, "or": 1, "a": 1}


def test_a_vocabulary_may_be_a_file_of_any_name(small: str, tmp_path: Path) -> None:
    file = Path(small, "vocab.txt").rename(tmp_path / "pieces")
    ids, _ = encode(load_tokenizer(str(file)), ["What COLORS"])
    assert ids.tolist() == [[CLS, WHAT, COLOR, PLURAL, SEP]]


def test_a_vocabulary_file_that_names_a_piece_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pieces").write_text("\n".join([*SMALL, "cat", "dog"]))
    with pytest.raises(CheckpointError, match="names a piece twice"):
        load_tokenizer(str(tmp_path / "pieces"))


def test_offline_the_error_says_where_a_vocabulary_may_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(lxmert.sources, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match=r"vocab\.txt is enough: put it beside .* --vocab FILE"):
        load_tokenizer("google-bert/bert-base-uncased")
