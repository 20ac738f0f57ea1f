"""Questions as columns, and what of them is kept on disk: equal to what records say, or made again."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import files
from common.errors import DataError
from vqadata.encoded import Questions, join, read_questions
from vqadata.folder import DataFolder

PAD = 7
RECORDS: list[dict[str, Any]] = [
    {"question_id": 2**40, "img_id": "b", "sent": "is it", "label": {"yes": 1, "no": 0.3}},
    {"question_id": -3, "img_id": "a", "sent": "what", "label": {}, "question_type": "what", "group": "old"},
    {"question_id": 5, "img_id": "c", "sent": "is it so", "question_type": "is"},
    {
        "question_id": 6,
        "img_id": "a",
        "sent": "ä",
        "label": {"rouge": 0.6, "yes": 0.9},
        "question_type": "is",
    },
]


def encode(questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """A word piece a word."""
    lengths = np.array([len(text.split()) for text in questions])
    ids = np.full((len(questions), lengths.max()), PAD, np.uint16)
    for row, text in zip(ids, questions, strict=True):
        row[: len(text.split())] = list(map(len, text.split()))
    return ids, lengths


def fail(questions: Sequence[str]) -> Any:
    raise AssertionError("encoded again")


def of(records: Sequence[dict[str, Any]]) -> Questions:
    return Questions.of(records, *encode([record["sent"] for record in records]))


def texts_of(questions: Questions) -> list[dict[str, Any]]:
    """The columns as records again, word pieces in the place of sentences."""
    records = []
    for row, number in enumerate(questions.question_ids.tolist()):
        labels = range(*questions.label_start[row : row + 2])
        records.append(
            {
                "question_id": number,
                "img_id": questions.images[questions.image[row]],
                "sent": questions.token_ids[row, : questions.token_lengths[row]].tolist(),
                "padding": questions.token_ids[row, questions.token_lengths[row] :].tolist(),
                "question_type": questions.question_types[questions.question_type[row]],
                "group": questions.groups[questions.group[row]],
                "label": {
                    questions.answers[questions.label_answer[n]]: questions.label_score[n] for n in labels
                }
                if questions.labelled[row]
                else None,
            }
        )
    return records


def same(one: Questions, other: Questions) -> None:
    """Equal array for array, types included."""
    for field in dataclasses.fields(Questions):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, list):
            assert ours == theirs, field.name
        else:
            assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs), field.name


@pytest.fixture
def split(tmp_path: Path) -> Path:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(RECORDS))
    return path


@pytest.fixture
def kept(split: Path) -> Path:
    """Where the columns of the split are kept, which they are."""
    path = split.parent / "encoded" / "train.bin"
    read_questions(split, path, encode, "f")
    return path


def test_columns_say_what_the_records_say() -> None:
    found = texts_of(of(RECORDS))
    for record, row in zip(RECORDS, found, strict=True):
        label = record.get("label")
        assert row["label"] == (label if label is None else {a: np.float32(s) for a, s in label.items()})
        assert row["sent"] == list(map(len, record["sent"].split()))
        assert row["question_type"] == record.get("question_type", "")
        assert row["group"] == record.get("group", "")
        assert (row["question_id"], row["img_id"]) == (record["question_id"], record["img_id"])


def test_parts_are_joined_as_if_their_records_were_one_list() -> None:
    joined = join([of(RECORDS[:2]), of(RECORDS[2:3]), of(RECORDS[3:])], PAD)
    same(joined, of(RECORDS))
    assert joined.token_ids.shape == (4, 3)
    alone = of(RECORDS)
    assert join([alone], PAD) is alone


@pytest.mark.parametrize(("count", "rows"), [(1, [0]), (2, [0, 1, 3]), (3, [0, 1, 2, 3]), (9, [0, 1, 2, 3])])
def test_the_first_images_are_kept_with_all_their_questions(count: int, rows: list[int]) -> None:
    every = texts_of(of(RECORDS))
    few = of(RECORDS).of_first_images(count)
    assert texts_of(few) == [every[row] for row in rows]
    assert few.images == ["b", "a", "c"][:count]


@pytest.mark.parametrize("images", ["a", "bc", "ac", "bac"])
def test_chosen_images_are_kept_with_all_their_questions(images: str) -> None:
    whole = of(RECORDS)
    few = whole.of_images(np.array([image in images for image in whole.images]))
    assert {row["img_id"] for row in texts_of(few)} == set(images)
    assert texts_of(few) == [row for row in texts_of(whole) if row["img_id"] in images]
    assert few.images == [image for image in "bac" if image in images]
    assert few.image.dtype == whole.image.dtype and len(few.label_start) == len(few) + 1


def test_a_second_start_encodes_nothing_and_has_the_same_columns(split: Path, kept: Path) -> None:
    second = read_questions(split, kept, fail, "f")
    same(second, of(RECORDS))
    second.token_lengths[0] += 1  # as writable as if made anew


def test_another_file_or_tokenizer_is_encoded_and_takes_its_place(split: Path, kept: Path) -> None:
    with pytest.raises(AssertionError, match="encoded again"):
        read_questions(split, kept, fail, "another")
    split.write_text(json.dumps(RECORDS[1:]))
    same(read_questions(split, kept, encode, "f"), of(RECORDS[1:]))
    same(read_questions(split, kept, fail, "f"), of(RECORDS[1:]))
    assert sorted(path.name for path in kept.parent.iterdir()) == [".lock", "train.bin"]


def test_a_damaged_file_is_made_again(split: Path, kept: Path) -> None:
    whole = kept.read_bytes()
    flipped = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in range(0, len(whole), 97)]
    for content in [b"", whole[:31], whole[:-1], whole + b"x", b"\x80\x04." * 99, *flipped]:
        kept.write_bytes(content)
        same(read_questions(split, kept, encode, "f"), of(RECORDS))
        assert kept.read_bytes() == whole


def test_one_of_another_data_set_is_made_again(split: Path, kept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(RECORDS[:1]))
    mine = kept.with_name("other.bin")
    mine.write_bytes(kept.read_bytes())
    same(read_questions(other, mine, encode, "f"), of(RECORDS[:1]))


def test_a_fault_of_a_record_is_found_and_nothing_kept(split: Path, kept: Path) -> None:
    split.write_text(json.dumps([RECORDS[0], RECORDS[1] | {"sent": " "}]))
    before = kept.read_bytes()
    with pytest.raises(DataError, match=r"train\.json, record 1: sent is not"):
        read_questions(split, kept, encode, "f")
    assert kept.read_bytes() == before
    with pytest.raises(DataError, match=r"gone\.json is missing"):
        read_questions(split.with_name("gone.json"), kept, encode, "f")


@pytest.mark.parametrize("obstacle", ["file", "folder", "dangling"])
def test_a_place_where_nothing_can_be_kept_is_no_reason_to_fail(split: Path, obstacle: str) -> None:
    kept = split.parent / "encoded" / "train.bin"
    if obstacle == "file":
        kept.parent.write_text("in the way")
    elif obstacle == "folder":
        (kept / "in the way").mkdir(parents=True)
    else:
        kept.parent.symlink_to("nowhere/at/all")
    for _ in range(2):
        same(read_questions(split, kept, encode, "f"), of(RECORDS))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_disk_that_refuses_is_no_reason_to_fail(
    split: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_write", refuse)
    kept = split.parent / "encoded" / "train.bin"
    same(read_questions(split, kept, encode, "f"), of(RECORDS))
    assert not kept.exists()


def test_of_two_at_once_one_encodes_and_the_other_waits_for_it(split: Path) -> None:
    kept = split.parent / "encoded" / "train.bin"
    calls, found = [], []
    second = threading.Thread(target=lambda: found.append(read_questions(split, kept, slowly, "f")))

    def slowly(questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        calls.append(1)
        if len(calls) == 1:
            second.start()
            second.join(0.2)
            assert second.is_alive()
        return encode(questions)

    found.append(read_questions(split, kept, slowly, "f"))
    second.join()
    assert len(calls) == 1
    for questions in found:
        same(questions, of(RECORDS))


def test_a_file_that_is_replaced_while_it_is_read_is_not_kept(split: Path) -> None:
    kept = split.parent / "encoded" / "train.bin"

    def replaced(questions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        split.write_text(json.dumps(RECORDS[:1]))
        return encode(questions)

    same(read_questions(split, kept, replaced, "f"), of(RECORDS))
    assert not kept.exists()


def test_what_belongs_to_splits_that_are_gone_is_removed(split: Path, kept: Path) -> None:
    valid = split.with_name("valid.json")
    valid.write_text(json.dumps(RECORDS))
    split.unlink()
    read_questions(valid, kept.with_name("valid.bin"), encode, "f")
    assert sorted(path.name for path in kept.parent.iterdir()) == [".lock", "valid.bin"]


def test_a_question_id_of_another_split_is_named_from_what_is_kept_too(tmp_path: Path) -> None:
    folder = DataFolder.at(tmp_path)
    for name, records in (("train", RECORDS), ("valid", [RECORDS[3] | {"question_id": 9}, RECORDS[2]])):
        folder.split_file(name).write_text(json.dumps(records))
        folder.read_questions([name], encode, "f")
    assert folder.splits() == ["train", "valid"]
    assert list(folder.read_questions(["train", "train"], fail, "f")) == ["train"]
    with pytest.raises(DataError, match=r"valid\.json, record 1: question_id 5 came before"):
        folder.read_questions(["train", "valid"], fail, "f")


def test_nothing_that_is_kept_can_run_code_or_end_a_run(split: Path, kept: Path, tmp_path: Path) -> None:
    """Even with the right checksum."""

    class Evil:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "hacked"),)

    contents = [b"", b"PK"]
    for columns in ({}, {"text": np.array([1, 2], np.uint8)}, {"text": np.array([Evil()], object)}):
        archive = io.BytesIO()
        np.savez(archive, **columns)
        contents.append(archive.getvalue())
    for content in contents:
        kept.write_bytes(hashlib.sha256(content).digest() + content)
        same(read_questions(split, kept, encode, "f"), of(RECORDS))
    assert not (tmp_path / "hacked").exists()
