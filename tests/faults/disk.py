"""A disk below a run that can lose its power, watched by Python's own audit events.

What it holds after a cut is the worst that ext4, xfs and their like allow: a file whose bytes were not synced
since they were written is empty; a rename whose folder was not synced since may not have happened.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

APPENDED = {"train.log", ".lock"}  # may lose their ends


class Disk:
    """Watches what a process does below `root`, and kills it at the n-th change, if told to.

    complaints: what was done in an order in which a cut could lose something.
    """

    def __init__(self, root: Path, stop_at: int = 0, *, undo_renames: bool = False) -> None:
        self.root = root.resolve()
        self.changes = 0
        self.complaints: list[str] = []
        self._stop_at = stop_at
        self._undo = undo_renames
        # Of each inode: size and time of change when synced. What was there before had the time for it.
        self._synced = {path.stat().st_ino: _state(path) for path in self.root.rglob("*") if path.is_file()}
        self._pending: list[tuple[Path, Path, bytes | None]] = []  # renames; what they replaced
        self._busy = False

    def watch(self) -> None:
        """From now on, for good: an audit hook cannot be taken back."""
        self._fsync = os.fsync
        os.fsync = self._on_fsync
        sys.addaudithook(self._on_event)

    def _on_fsync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not self._ours(path):
            self._fsync(descriptor)
            return
        self._change()  # the real one would only take time
        if path.is_dir():
            self._pending = [entry for entry in self._pending if entry[1].parent != path]
        else:
            self._synced[path.stat().st_ino] = _state(path)

    def _on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        handler: Callable[..., None] | None = {
            "os.rename": self._on_rename,
            "os.remove": self._on_remove,
            "os.rmdir": self._on_remove,
            "os.truncate": self._on_truncate,
            "open": self._on_open,
        }.get(event)
        if handler is None or self._busy:
            return
        self._busy = True
        try:
            handler(*arguments)
        finally:
            self._busy = False

    def _on_rename(self, source: Any, target: Any, source_dir: int = -1, target_dir: int = -1) -> None:
        old, new = _path(source, source_dir), _path(target, target_dir)
        if not self._ours(new):
            return
        self._change()
        files = [old] if old.is_file() else [path for path in old.rglob("*") if path.is_file()]
        for file in files:
            if not self._is_synced(file) and file.name not in APPENDED:
                self.complaints.append(f"{self._name(old)} renamed before {file.name} was synced")
        self._pending.append((old, new, new.read_bytes() if new.is_file() else None))

    def _on_remove(self, path: Any, folder: int = -1) -> None:
        removed = _path(path, folder)
        if not self._ours(removed):
            return
        self._change()
        for _, new, _ in self._pending:
            # A predecessor is what had been moved away, or lies in it.
            moved = any(target in (removed, *removed.parents) for _, target, _ in self._pending)
            if moved and new not in (removed, *removed.parents):
                self.complaints.append(f"{self._name(removed)} removed before {new.name} was synced")

    def _on_truncate(self, path: Any, length: int) -> None:
        file = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else _path(path, -1)
        if self._ours(file):
            self._change()
            if file.name not in APPENDED and not file.name.startswith("."):
                self.complaints.append(f"{self._name(file)} cut in place")

    def _on_open(self, path: Any, mode: str | None, flags: int) -> None:
        if not flags & os.O_TRUNC or isinstance(path, int):
            return
        file = _path(path, -1)
        if self._ours(file) and file.is_file() and file.stat().st_size:
            self._change()
            if file.name not in APPENDED and not file.name.startswith("."):
                self.complaints.append(f"{self._name(file)} written over in place")

    def _ours(self, path: Path) -> bool:
        return self.root in (path, *path.parents)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _is_synced(self, path: Path) -> bool:
        return not path.stat().st_size or self._synced.get(path.stat().st_ino) == _state(path)

    def _change(self) -> None:
        self.changes += 1
        if self.changes == self._stop_at:
            self._busy = True
            self._lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        for path in self.root.rglob("*"):
            if path.is_file() and not self._is_synced(path):
                os.truncate(path, 0)
        for source, target, replaced in reversed(self._pending) if self._undo else ():
            if target.exists() and not source.exists():
                target.rename(source)
                if replaced is not None:
                    target.write_bytes(replaced)


def _path(path: Any, folder: int) -> Path:
    """Absolute, without following a link at its end."""
    path = Path(os.fsdecode(path))
    base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path.cwd()
    joined = base / path
    return joined.parent.resolve() / joined.name


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
