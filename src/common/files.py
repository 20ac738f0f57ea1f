"""Files and folders that are whole or absent, whenever the machine stops.

What is new is written aside and brought to the disk before it gets its name, and what it replaces is removed
only when the new name is on the disk too: a power cut leaves the one or the other, never a file of no bytes.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from common.errors import UserError

Content = bytes | str | Iterable[str]  # a file's text may come in pieces

NOT_FOR_FOLDERS = {errno.EINVAL, errno.EBADF, errno.EOPNOTSUPP}  # some network disks sync files only

OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how libraries in Rust, such as safetensors, say it
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
LONGEST_NAME = 200  # characters: disks allow 255 or a little less, and what is written aside has a longer one
CHECKSUMS = "checksums.json"  # in a folder written by `replace_folder`: the sha256 of each of its files


def replace_file(path: Path, content: Content) -> None:
    """Write one file whole; its folder is made if need be. UserError if that cannot be done."""
    replace_files(path.parent, {path.name: content})


def replace_files(folder: Path, files: Mapping[str, Content], stale: Iterable[str] = ()) -> None:
    """Write several files, given by their paths below `folder`, all of them or none.

    Only when the last one is complete do they get their names, in the place of the `stale` files. The last of
    `files` is removed first and named last, so that whoever needs it never sees old and new files side by
    side. UserError, with everything as it was, if the disk is full or the folder cannot be written.
    """
    asides: dict[Path, Path] = {}
    try:
        with write_errors_explained(folder):
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                aside = path.with_name(f".{path.name}.new")
                asides[aside] = path
                _write(aside, content)
            last = list(asides.values())[-1:] if len(asides) > 1 else []
            for old in (*last, *(folder / name for name in stale)):
                old.unlink(missing_ok=True)
            for aside, path in asides.items():
                aside.replace(path)
            for parent in {path.parent for path in asides.values()}:
                flush(parent)
    finally:
        for aside in asides:
            aside.unlink(missing_ok=True)


@contextmanager
def replace_folder(folder: Path, earlier: Path | None = None) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` when the block ends without an error.

    Whenever the machine stops, `folder` or its predecessor is there and whole: see `latest_complete`. Files
    are as readable as the user's umask says, whatever wrote them, and their checksums lie beside them. The
    predecessor is removed, or gets the name `earlier`. UserError if the disk is full.
    """
    fresh, old = aside_of(folder), aside_of(folder, "old")
    with write_errors_explained(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            yield fresh
            sums = {path.relative_to(fresh).as_posix(): sha256_of(path) for path in _files_of(fresh)}
            text = json.dumps({"sha256": sums}, indent=1) + "\n"
            (fresh / CHECKSUMS).write_text(text, encoding="utf-8")
            _flush_tree(fresh)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        flush(folder.parent)
        if earlier and old.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            old.rename(earlier)
        shutil.rmtree(old, ignore_errors=True)


def fault_of(folder: Path) -> str | None:
    """What is wrong with a folder that `replace_folder` wrote, or None if every file is as it was."""
    if not (folder / CHECKSUMS).is_file():
        return f"{folder / CHECKSUMS} is missing"
    try:
        for name, checksum in read_json(folder / CHECKSUMS)["sha256"].items():
            if not (folder / name).is_file():
                return f"{folder / name} is missing"
            if sha256_of(folder / name) != checksum:
                return f"{folder / name} is not what was written: its checksum differs"
    except (UserError, AttributeError, KeyError, TypeError):
        return f"{folder / CHECKSUMS} is damaged"
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"
    return None


def aside_of(folder: Path, suffix: str = "new") -> Path:
    """Where `replace_folder` has its new folder filled, for processes that fill it together.

    With the suffix "old": where it keeps the one that is about to be replaced.
    """
    return folder.with_name(f".{folder.name}.{suffix}")  # hidden: nobody else's folder has this name


def latest_complete(folder: Path) -> Path | None:
    """The folder, or the one it was about to replace when the machine stopped, or None."""
    return next((path for path in (folder, aside_of(folder, "old")) if path.is_dir()), None)


def remove_leftovers(folder: Path) -> None:
    """Remove what a process that was killed left unfinished in a folder that is nobody else's now."""
    for path in folder.glob(".*.*"):
        named = folder / path.stem[1:]
        if path.suffix == ".new" or (path.suffix == ".old" and named.exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in NOT_FOR_FOLDERS):
            raise
    finally:
        os.close(descriptor)


def lock_file(file: IO[Any], *, wait: bool = False) -> bool | None:
    """Lock an open file until it is closed or this process ends; false if another process has the lock.

    wait: for the other process instead. None on a disk without locks, as some network file systems are: they
    say so in many ways (ENOSYS, ENOLCK, EOPNOTSUPP, EINVAL, EIO), and a lock is worth no run.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file whole."""
    replace_file(path, json.dumps(content, indent=1) + "\n")


@contextmanager
def write_errors_explained(where: object, error: type[UserError] = UserError) -> Iterator[None]:
    """Turn the system's refusal to write into a sentence."""
    try:
        yield
    except Exception as refusal:
        number = getattr(refusal, "errno", None)
        if number is None and (said := OS_ERROR.search(str(refusal))):
            number = int(said[1])
        if number is None and not isinstance(refusal, OSError):
            raise
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise error(f"{where} cannot be written: the disk is full. Free some space.") from None
        raise error(f"{where} cannot be written: {os.strerror(number) if number else refusal}.") from None


def read_text(path: Path, error: type[UserError] = UserError) -> str:
    """The text of a file; `error` if it is missing, unreadable or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise error(f"{path} is missing.") from None
    except UnicodeDecodeError as fault:
        raise error(f"{path} is not UTF-8 text (byte {fault.start}).") from None
    except OSError as fault:
        raise error(f"{path} cannot be read: {fault.strerror or fault}.") from None


def read_json(path: Path, error: type[UserError] = UserError) -> Any:
    """A JSON document; `error` if there is none."""
    return parse_json(read_text(path, error), path, error=error)


def parse_json(
    text: str,
    where: object,
    hook: Callable[[dict[str, Any]], Any] | None = None,
    *,
    error: type[UserError] = UserError,
) -> Any:
    """The JSON document `text`, every object of it passed through `hook`; `error` if it is not valid.

    NaN and infinity, which are no JSON, are refused. `where` is what the error names.
    """
    try:
        return json.loads(text, object_hook=hook, parse_constant=_refuse_constant)
    except json.JSONDecodeError as fault:
        raise error(
            f"{where} is not valid JSON (line {fault.lineno}, character {fault.pos} of {len(text)}: "
            f"{fault.msg}); was a download or copy cut short?"
        ) from None
    except RecursionError:
        raise error(f"{where} is not valid JSON for our purpose: it is nested too deeply.") from None
    except ValueError as fault:
        raise error(f"{where} is not valid JSON ({fault}).") from None


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def visible(folder: Path, pattern: str = "*") -> list[Path]:
    """The paths below a folder that fit a pattern, in order, without those that `is_hidden`."""
    return sorted(path for path in folder.glob(pattern) if not is_hidden(path.relative_to(folder).as_posix()))


def is_hidden(name: str) -> bool:
    """Whether a path, as seen from the folder or archive it is in, is none of a user's files.

    Names that begin with a dot are a system's own (.DS_Store, ._photo.jpg), and so is the folder __MACOSX of
    archives.
    """
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def nfc(text: str) -> str:
    """The text with every accented letter as one character (Unicode's form NFC), for comparing names.

    Some systems write it as a letter and an accent, in the names of files above all: alike for the eye only.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def check_name(what: str, name: str, error: type[UserError] = UserError) -> str:
    """`name`, if it can be that of a data set, split, feature store or run: it becomes part of a path."""
    if not NAME.fullmatch(name):
        raise error(
            f"the {what} name {name!r} may hold letters, digits, '.', '_' and '-' only, and starts with a "
            "letter, a digit or '_'"
        )
    if len(name) > LONGEST_NAME:
        raise error(f"the {what} name {name[:20]}... has {len(name)} characters; {LONGEST_NAME} are allowed")
    return name


def _write(path: Path, content: Content) -> None:
    with path.open("wb") as file:
        for piece in [content] if isinstance(content, bytes | str) else content:
            file.write(piece if isinstance(piece, bytes) else piece.encode())
        file.flush()
        os.fsync(file.fileno())


def _files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flush_tree(folder: Path) -> None:
    """Bring all of a folder to the disk, files readable as the folder itself is."""
    readable = folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder holds before the folder
        if path.is_file():
            with suppress(PermissionError):  # some network disks have no modes
                path.chmod(readable)
        flush(path)
    flush(folder)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")
