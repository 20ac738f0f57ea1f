"""JSON documents, read from a plain file, a .gz or a .zip."""

import gzip
import struct
import zlib
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile

from common.errors import DataError
from common.files import is_hidden, parse_json

# What gzip and zipfile raise when the bytes they are given are no whole archive.
_DAMAGE = (EOFError, ValueError, RuntimeError, ArithmeticError, struct.error, zlib.error, BadZipFile)


class Source(NamedTuple):
    """Where a JSON document is: a file, or with `member` a file inside the zip archive `path`."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return f"{self.member} in {self.path}" if self.member else str(self.path)


def find_source(folder: Path, name: str, archive: str | None = None) -> Source | None:
    """`name` in `folder`: as it is, as `name.gz`, or as a member of `name.zip` or of `archive`."""
    for path in (folder / name, folder / f"{name}.gz"):
        if is_there(path):
            return Source(path)
    for path in (folder / f"{name}.zip", folder / (archive or f"{name}.zip")):
        if is_there(path):
            return Source(path, name)
    return None


def holds(source: Source) -> bool:
    """Whether a document is in the archive found for it; of a damaged one, reading says what is wrong."""
    with suppress(*_DAMAGE, OSError), ZipFile(source.path) as archive:
        return source.member is None or _place(archive, source.member) is not None
    return True


def is_there(path: Path) -> bool:
    """Whether there is such a file or folder; DataError if nobody may look."""
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def read_source(source: Source | Path) -> str:
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


def read_json(source: Source | Path) -> Any:
    """A JSON document from a plain file, a .gz or a member of a .zip."""
    return parse_json(read_source(source), source, error=DataError)


def _read_bytes(source: Source) -> bytes:
    if not source.member:
        data = source.path.read_bytes()
        return gzip.decompress(data) if source.path.suffix == ".gz" else data
    with ZipFile(source.path) as archive:
        if place := _place(archive, source.member):
            return archive.read(place)
        names = ", ".join(archive.namelist()[:3]) or "nothing"
    raise DataError(f"{source.path} does not hold {source.member}, but {names}.")


def _place(archive: ZipFile, name: str) -> str | None:
    """Where a file is in an archive, in whatever folder of it."""
    return next((n for n in archive.namelist() if PurePosixPath(n).name == name and not is_hidden(n)), None)
