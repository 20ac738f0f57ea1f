"""Disks of one's own, as far as this user may mount any."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.cases import Skip


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A disk in memory at `path`, of a size such as "3m"; Skip if that may not be."""
    with _mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield


@contextmanager
def image_disk(path: Path, image: Path) -> Iterator[None]:
    """The disk in the file `image` at `path`; Skip if that may not be."""
    with _mounted(path, "-o", "loop", str(image)):
        yield


def make_image(image: Path, megabytes: int = 32) -> None:
    """An empty ext4 disk in a file; Skip if there is no tool for it."""
    if not shutil.which("mkfs.ext4"):
        raise Skip("there is no mkfs.ext4 here")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, capture_output=True)


def fill(path: Path, leave: int) -> Path:
    """Fill a disk up, but for so many bytes, by a file that can be removed again."""
    free = os.statvfs(path)
    size = free.f_bavail * free.f_frsize - leave
    filling = path / "filling"
    with filling.open("wb") as file:
        while size > 0:
            size -= file.write(b"\0" * min(size, 1 << 16))
    return filling


def unmount_below(root: Path) -> None:
    """What cases left mounted that were ended from outside."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if Path(line.split()[1]).is_relative_to(root):
            _unmount(Path(line.split()[1]))


@contextmanager
def _mounted(path: Path, *options: str) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, check=False)
    if done.returncode:
        raise Skip("this user may not mount a disk")
    try:
        yield
    finally:
        _unmount(path)


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)
