"""JSON files: read plain, gzipped or from a zip archive; written aside, then renamed."""

from __future__ import annotations

import gzip
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from common.errors import DataError

# What gzip and zipfile raise when the bytes they are given are no whole archive.
_DAMAGE = (EOFError, ValueError, RuntimeError, ArithmeticError, struct.error, zlib.error, zipfile.BadZipFile)


class Source(NamedTuple):
    """Where a JSON document is: a file, or with `member` a file inside the zip archive `path`."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.member} in {self.path}" if self.member else str(self.path)


def find_source(folder: Path, name: str, archive: str | None = None) -> Source | None:
    """`name` in `folder`: as it is, as `name.gz`, or as a member of `name.zip` or of `archive`."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return Source(path)
    for path in (folder / f"{name}.zip", folder / (archive or f"{name}.zip")):
        if path.exists():
            return Source(path, name)
    return None


def read_text(source: Source | Path) -> str:
    """The text of a document; DataError if it is missing, empty, damaged or not UTF-8."""
    source = source if isinstance(source, Source) else Source(source)
    try:
        data = _read_bytes(source)
    except FileNotFoundError:
        raise DataError(f"{source} is missing; see data/README.md for where it comes from.") from None
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror or error}.") from None
    except _DAMAGE as error:
        raise DataError(f"{source} is damaged ({error}); download or copy it again.") from None
    if not data:
        raise DataError(f"{source} is empty (0 bytes); download or copy it again.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start}).") from None


def parse_json(text: str, source: Source | Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The JSON document `text`, every object of it passed through `hook`; DataError if it is not valid."""
    try:
        return json.loads(text, object_hook=hook, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source} is not valid JSON (line {error.lineno}, character {error.pos} of {len(text)}: "
            f"{error.msg}); was a download or copy cut short?"
        ) from None
    except RecursionError:
        raise DataError(f"{source} is not valid JSON for our purpose: it is nested too deeply.") from None
    except ValueError as error:
        raise DataError(f"{source} is not valid JSON ({error}).") from None


def read_json(source: Source | Path) -> Any:
    """A JSON document from a plain file, a .gz or a member of a .zip."""
    return parse_json(read_text(source), source)


def read_answer_list(path: Path) -> list[str]:
    """Answers in label order, as in `answers.json` and in LXMERT's `trainval_label2ans.json`."""
    answers = read_json(path)
    if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
        raise DataError(f"{path} is not a list of answers.")
    if len(set(answers)) != len(answers):
        raise DataError(f"{path} holds an answer twice; every label needs an answer of its own.")
    return answers


def json_list(rows: Iterable[Any], before: str = "[", after: str = "]") -> Iterator[str]:
    """The text of a JSON list, one entry a line, in pieces."""
    encode = json.JSONEncoder(separators=(",", ":")).encode
    yield before
    for number, row in enumerate(rows):
        yield (",\n" if number else "\n") + encode(row)
    yield f"\n{after}\n"


def write_together(folder: Path, files: Mapping[str, Iterable[str]], stale: Iterable[str] = ()) -> None:
    """Write text files, given in pieces by their path below `folder`: all of them or none.

    Every file is written aside; only when the last one is complete do they get their names, in the place of
    the `stale` files. The last of `files` is removed first and named last, so that whoever needs it never
    sees old and new files side by side. DataError if the disk is full or the folder cannot be written.
    """
    parts: dict[Path, Path] = {}
    try:
        for name, pieces in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            parts[part] = path
            with part.open("w", encoding="utf-8") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
        for old in (*list(parts.values())[-1:], *(folder / name for name in stale)):
            old.unlink(missing_ok=True)
        for part, path in parts.items():
            part.replace(path)
    except OSError as error:
        raise DataError(f"Nothing was written: {folder} cannot be written to ({error.strerror}).") from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)


def _read_bytes(source: Source) -> bytes:
    if source.member:
        with zipfile.ZipFile(source.path) as archive:
            return archive.read(_member(archive, source))
    data = source.path.read_bytes()
    return gzip.decompress(data) if source.path.suffix == ".gz" else data


def _member(archive: zipfile.ZipFile, source: Source) -> str:
    """The member of that name, in whatever folder of the archive."""
    names = [name for name in archive.namelist() if PurePosixPath(name).name == source.member]
    if not names:
        raise DataError(
            f"{source.path} does not hold {source.member}, "
            f"but {', '.join(archive.namelist()[:3]) or 'nothing'}."
        )
    return names[0]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
