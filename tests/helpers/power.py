"""A disk that can lose its power: what was not brought to it by fsync is gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class PowerCut(BaseException):
    """The machine stops: nothing handles this."""


class Disk:
    """Watches what is done below a folder, and stops the machine before the n-th change of it.

    After the cut, `lose` leaves what such a disk holds in the worst case: files whose bytes were not synced
    since they were written are empty. A rename whose folder was not synced since may be undone.
    """

    def __init__(self, root: Path, stop_at: int) -> None:
        self.root = root
        self.left = stop_at
        self.synced: dict[int, tuple[int, int]] = {}  # of each inode: size and time of change when synced
        self.renames: list[tuple[Path, Path, bytes | None]] = []  # not on the disk yet; what was replaced

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rename, replace = Path.rename, Path.replace
        rmtree, unlink, mkdir = shutil.rmtree, Path.unlink, Path.mkdir

        def watched_fsync(descriptor: int) -> None:
            self._step()  # the real one would only take time
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_dir():
                self.renames = [entry for entry in self.renames if entry[1].parent != path]
            else:
                self.synced[path.stat().st_ino] = _state(path)

        def watched_rename(move: Callable[..., Any]) -> Callable[..., Any]:
            def call(path: Path, target: Path) -> Any:
                self._step()
                replaced = Path(target).read_bytes() if Path(target).is_file() else None
                result = move(path, target)
                self.renames.append((path, Path(target), replaced))
                return result

            return call

        def watched_rmtree(path: Path, ignore_errors: bool = False) -> None:
            self._step(lambda: [unlink(file) for file in sorted(Path(path).rglob("*.safetensors"))[:1]])
            rmtree(path, ignore_errors=ignore_errors)

        def watched(act: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                self._step()
                return act(*arguments, **options)

            return call

        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(Path, "rename", watched_rename(rename))
        monkeypatch.setattr(Path, "replace", watched_rename(replace))
        monkeypatch.setattr(shutil, "rmtree", watched_rmtree)
        monkeypatch.setattr(Path, "unlink", watched(unlink))
        monkeypatch.setattr(Path, "mkdir", watched(mkdir))

    def lose(self, *, undo_renames: bool) -> None:
        """What the cut leaves behind."""
        for path in self.root.rglob("*"):
            if path.is_file() and self.synced.get(path.stat().st_ino) != _state(path):
                os.truncate(path, 0)
        for source, target, replaced in reversed(self.renames) if undo_renames else ():
            if target.exists() and not source.exists():
                target.rename(source)
                if replaced is not None:
                    target.write_bytes(replaced)

    def _step(self, half: Callable[[], Any] = lambda: None) -> None:
        self.left -= 1
        if self.left == 0:
            half()
            raise PowerCut


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
