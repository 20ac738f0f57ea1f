"""The questions of a split as columns. They are kept on disk, because to read, check and encode takes long.

What is kept carries a checksum, and the digests of the split's file and of the tokenizer that it was made
with: anything else is made again. Nothing depends on it, so it is never a reason for an error.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from common.errors import UserError
from common.files import lock_file, replace_file, sha256_of
from vqadata.records import Record, read_records, record_fault

FORMAT = 3  # to be raised when the columns change, or what becomes of a record in them
CHECKSUM_BYTES = 32
NONE = np.zeros(0)
DAMAGE = (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile)

Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]  # questions -> ids (N, T), lengths (N,)


@dataclass(frozen=True)
class Questions:
    """N questions of T word pieces at most, with L labels in all: what a record holds, without its texts.

    Images, types, groups and answers are numbers, which count in the lists of their names.
    """

    token_ids: np.ndarray  # (N, T), padded at the end
    token_lengths: np.ndarray  # (N,)
    question_ids: np.ndarray  # (N,) int64
    image: np.ndarray  # (N,)
    question_type: np.ndarray  # (N,)
    answer_type: np.ndarray  # (N,)
    group: np.ndarray  # (N,)
    labelled: np.ndarray  # (N,) bool: whether there is a label, be it an empty one
    label_start: np.ndarray  # (N + 1,): of whose labels where the first one is
    label_answer: np.ndarray  # (L,)
    label_score: np.ndarray  # (L,) float32
    images: list[str]  # in order of appearance, as the other four
    question_types: list[str]  # '' for none
    answer_types: list[str]  # '' for none
    groups: list[str]  # '' for none
    answers: list[str]

    @classmethod
    def of(
        cls, records: Sequence[Record], token_ids: np.ndarray = NONE, token_lengths: np.ndarray = NONE
    ) -> Questions:
        """The columns of records without fault; the first two may be left out where nobody reads them."""
        images: dict[str, int] = {}
        types: dict[str, int] = {}
        answer_types: dict[str, int] = {}
        groups: dict[str, int] = {}
        answers: dict[str, int] = {}
        labels = [record.get("label", {}) for record in records]

        def numbers(texts: Any, table: dict[str, int]) -> np.ndarray:
            return np.fromiter((table.setdefault(text, len(table)) for text in texts), np.int32)

        return cls(
            token_ids,
            token_lengths,
            np.array([record["question_id"] for record in records], np.int64),
            numbers((record["img_id"] for record in records), images),
            numbers((record.get("question_type", "") for record in records), types),
            numbers((record.get("answer_type", "") for record in records), answer_types),
            numbers((record.get("group", "") for record in records), groups),
            np.array(["label" in record for record in records], bool),
            _starts(list(map(len, labels))),
            numbers((answer for label in labels for answer in label), answers),
            np.fromiter((score for label in labels for score in label.values()), np.float32),
            *map(list, (images, types, answer_types, groups, answers)),
        )

    def __len__(self) -> int:
        return len(self.question_ids)

    def of_first_images(self, count: int) -> Questions:
        """Those about the first `count` images, in order of appearance."""
        return self.of_images(np.arange(len(self.images)) < count)

    def of_images(self, chosen: np.ndarray) -> Questions:
        """Those about the images, in the order of `images`, where `chosen` (bool) is true."""
        kept, labels = chosen[self.image], np.diff(self.label_start)
        rows = {name: getattr(self, name)[kept] for name in _BY_QUESTION}
        rows |= {name: getattr(self, name)[np.repeat(kept, labels)] for name in _BY_LABEL}
        places = (np.cumsum(chosen) - 1).astype(self.image.dtype)  # of images among those that stay
        rows |= {"image": places[rows["image"]], "label_start": _starts(labels[kept])}
        return dataclasses.replace(self, **rows, images=list(compress(self.images, chosen)))


_BY_QUESTION = ("token_ids", "token_lengths", "question_ids", "labelled")
_BY_QUESTION += ("image", "question_type", "answer_type", "group")
_BY_LABEL = ("label_answer", "label_score")
_TABLES = {
    "image": "images",
    "question_type": "question_types",
    "answer_type": "answer_types",
    "group": "groups",
    "label_answer": "answers",
}


def join(parts: Sequence[Questions], pad: int) -> Questions:
    """The questions of all parts, one after the other; `pad` is the id of the word piece that fills rows."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.token_ids.shape[1] for part in parts)
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*_BY_QUESTION, *_BY_LABEL)}
    tables: dict[str, dict[str, int]] = {name: {} for name in _TABLES}
    for part in parts:
        values = {name: getattr(part, name) for name in columns}
        fill = ((0, 0), (0, longest - part.token_ids.shape[1]))
        values["token_ids"] = np.pad(part.token_ids, fill, constant_values=pad)
        for name, table in tables.items():
            texts = getattr(part, _TABLES[name])
            moved = np.array([table.setdefault(text, len(table)) for text in texts], np.int32)
            values[name] = moved[values[name]]
        for name, column in columns.items():
            column.append(values[name])
    joined = {name: np.concatenate(column) for name, column in columns.items()}
    starts = _starts(np.concatenate([np.diff(part.label_start) for part in parts]))
    return Questions(
        **joined, label_start=starts, **{_TABLES[name]: list(table) for name, table in tables.items()}
    )


def read_questions(file: Path, kept: Path, encode: Encode, fingerprint: str) -> Questions:
    """The questions of a split's file, from what is `kept` of it if that is so; DataError for a fault.

    encode: splits them into word pieces, and fingerprint: identifies how.
    """
    try:
        digest = sha256_of(file)
    except OSError:
        digest = ""  # whoever reads it says why it cannot be read
    key = f"{FORMAT} {digest} {fingerprint}"
    if questions := _load(kept, key):
        return questions
    with ExitStack() as stack:
        with suppress(OSError):  # another process of this run, or another run, may be making the same
            kept.parent.mkdir(exist_ok=True)
            lock_file(stack.enter_context((kept.parent / ".lock").open("ab")), wait=True)
        if questions := _load(kept, key):
            return questions
        content = _encoded(file, encode, key)
        if sha256_of(file) == digest:  # else it was replaced in between
            _keep(kept, content, file.parent)
    return _unpack(content, key)


def _encoded(file: Path, encode: Encode, key: str) -> bytes:
    """The bytes to be kept. Nothing else is left of the records: they take ten times as much memory."""
    records = read_records(file, "questions", record_fault)
    questions = Questions.of(records, *encode([record["sent"] for record in records]))
    return _pack(questions, key)


def _keep(path: Path, content: bytes, splits: Path) -> None:
    """Write what can be written, and remove what belongs to splits that are gone."""
    with suppress(UserError, OSError):
        replace_file(path, content)
        for other in path.parent.glob(f"*{path.suffix}"):
            if not (splits / f"{other.stem}.json").exists():
                other.unlink()


def _load(path: Path, key: str) -> Questions | None:
    """What is kept there, if it is of this key and whole."""
    with suppress(*DAMAGE):
        content = path.read_bytes()
        if hashlib.sha256(memoryview(content)[CHECKSUM_BYTES:]).digest() == content[:CHECKSUM_BYTES]:
            return _unpack(content, key)
    return None


def _pack(questions: Questions, key: str) -> bytes:
    """A checksum, and an .npz archive of the columns and, as JSON, of everything else."""
    columns = {field.name: getattr(questions, field.name) for field in dataclasses.fields(questions)}
    lists = {name: columns.pop(name) for name in _TABLES.values()}
    text = json.dumps([key, lists]).encode()
    archive = io.BytesIO()
    np.savez(archive, text=np.frombuffer(text, np.uint8), **columns)
    return hashlib.sha256(archive.getbuffer()).digest() + archive.getbuffer()


def _unpack(content: bytes, key: str) -> Questions | None:
    """What `_pack` packed with this key."""
    with np.load(io.BytesIO(memoryview(content)[CHECKSUM_BYTES:]), allow_pickle=False) as archive:
        found, lists = json.loads(archive["text"].tobytes())
        if found != key:
            return None
        return Questions(**{name: archive[name] for name in archive.files if name != "text"}, **lists)


def _starts(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
