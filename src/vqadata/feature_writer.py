"""Writing a feature store: any number of rows, in constant memory, able to go on after an interruption.

Rows are written with plain writes rather than through a memory map: a full disk is then an error that can be
reported instead of a signal that kills the process, and what was written does not count as the process's
memory. While a store is being written its folder holds `journal.jsonl`, one line for each row that is in the
arrays. When all are there the arrays get their headers, and last of all the folder its manifest.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.errors import StoreError
from common.files import lock_file, replace_file, write_errors_explained, write_json
from vqadata.feature_layout import FORMAT, IMAGE_IDS, MANIFEST, Layout, crc32, store_checksum

JOURNAL = "journal.jsonl"
ROWS_A_FLUSH = 256


class StoreWriter:
    """An unfinished store, opened for appending, by one process at a time. Use it in a `with`.

    origin: what identifies the source (name, size, ...), kept in the manifest. What an interrupted writer
    left is gone on with if origin and layout are the same, as far as the checksums of its rows hold;
    `position` is then that of the last good row. StoreError if the folder holds another store, finished or
    not.
    """

    def __init__(self, path: Path, layout: Layout, origin: Mapping[str, Any]) -> None:
        self.path, self.layout = path, layout
        self.origin = dict(origin)
        self.image_ids: dict[str, None] = {}
        self.faults: list[str] = []
        self.position: Any = None
        self._closing = ExitStack()

    def __enter__(self) -> StoreWriter:
        with self._closing as stack:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / MANIFEST).exists():
                raise StoreError(f"{self.path} holds a finished store: delete the folder to write another.")
            self._journal = stack.enter_context((self.path / JOURNAL).open("a+b"))
            if lock_file(self._journal) is False:
                raise StoreError(f"Another process is writing {self.path}.")
            self._files = {
                name: stack.enter_context(
                    os.fdopen(os.open(self.path / f"{name}.npy", os.O_RDWR | os.O_CREAT, 0o644), "r+b", 0)
                )
                for name in self.layout.columns()
            }
            self._flusher = stack.enter_context(ThreadPoolExecutor(1))
            self._flush: Future[None] | None = None
            self._flushed = 0  # rows that were there when it began
            self._header_bytes = {name: len(self._header(name, 0)) for name in self._files}
            self._row_bytes = {
                name: dtype.itemsize * int(np.prod(shape))
                for name, (dtype, shape) in self.layout.columns().items()
            }
            self._go_on()
            self._closing = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._closing.close()

    def __len__(self) -> int:
        return len(self.image_ids)

    def extend(self, rows: Sequence[tuple[str, Sequence[memoryview], Any]]) -> None:
        """Add rows: image id, the bytes that `pack_row` made, and where the source goes on after it."""
        if not rows:
            return
        image_ids, parts, positions = zip(*rows, strict=True)
        with self._errors_explained():
            for (name, file), column in zip(self._files.items(), zip(*parts, strict=True), strict=True):
                start = self._header_bytes[name] + len(self) * self._row_bytes[name]
                _write_at(file.fileno(), column, start)
            self._note(
                {"image_id": image_id, "position": position}
                for image_id, position in zip(image_ids, positions, strict=True)
            )
            self.image_ids.update(dict.fromkeys(image_ids))
            self.position = positions[-1]
            self._start_flush()

    def skip(self, fault: str, position: Any) -> None:
        """Note a row of the source that is left out."""
        with self._errors_explained():
            self._note([{"fault": fault, "position": position}])
        self.faults.append(fault)
        self.position = position

    def finish(self) -> None:
        """Turn the rows into a store. On return everything is on the disk."""
        with self._errors_explained():
            count, sizes = len(self), {}
            for name, file in self._files.items():
                file.truncate(self._header_bytes[name] + count * self._row_bytes[name])
                _write_at(file.fileno(), [self._header(name, count)], 0)
                os.fsync(file.fileno())
                sizes[f"{name}.npy"] = file.seek(0, os.SEEK_END)
            ids = json.dumps(list(self.image_ids))
            replace_file(self.path / IMAGE_IDS, ids)
            manifest = {
                "format": FORMAT,
                "images": count,
                **asdict(self.layout),
                **self.origin,
                "faults": self.faults,
                "bytes": sizes | {IMAGE_IDS: len(ids.encode())},
                "checksum": store_checksum(self.path),
            }
            write_json(self.path / MANIFEST, manifest)
        (self.path / JOURNAL).unlink()

    def _start_flush(self) -> None:
        """Bring what was written to the disk while going on, rather than all of it at the end."""
        if len(self) >= self._flushed + ROWS_A_FLUSH and (self._flush is None or self._flush.done()):
            if self._flush:
                self._flush.result()
            self._flushed = len(self)
            self._flush = self._flusher.submit(os.fsync, self._files["features"].fileno())

    def _header(self, name: str, count: int) -> bytes:
        """An .npy header, of one length for any count: numpy leaves room for the first axis to grow."""
        dtype, shape = self.layout.columns()[name]
        text = io.BytesIO()
        header = {"descr": dtype.str, "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(text, header)
        return text.getvalue()

    def _note(self, entries: Iterable[Mapping[str, Any]]) -> None:
        self._journal.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        self._journal.flush()

    def _go_on(self) -> None:
        """Take up what the journal tells, as far as it is whole and the arrays' checksums hold."""
        self._journal.seek(0)
        head = {"format": FORMAT, **asdict(self.layout), **self.origin}
        lines = _whole_lines(self._journal.read())
        if len(lines) < 2:  # nothing that could be lost, whatever it was the beginning of
            self._journal.truncate(0)
            self._note([head])
            return
        (first, end), *entries = lines
        if first != head:
            differing = ", ".join(sorted(key for key in {*head, *first} if head.get(key) != first.get(key)))
            raise StoreError(
                f"{self.path} holds the beginning of another conversion (it differs in {differing}). Delete "
                "the folder to begin anew, or repeat the first command to finish that one."
            )
        bar = {"desc": "checking what is there", "unit": "row", "leave": False}
        for entry, line_end in tqdm(entries, disable=len(entries) < 1000, **bar):
            if "fault" in entry:
                self.faults.append(entry["fault"])
            elif self._row_is_whole(len(self.image_ids)):
                self.image_ids[entry["image_id"]] = None
            else:  # after a loss of power the journal may know more than the arrays
                break
            self.position, end = entry["position"], line_end
        self._journal.truncate(end)

    def _row_is_whole(self, row: int) -> bool:
        parts = [
            os.pread(file.fileno(), size, self._header_bytes[name] + row * size)
            for (name, file), size in zip(self._files.items(), self._row_bytes.values(), strict=True)
        ]
        return crc32(parts[:-1]).tobytes() == parts[-1]

    def _errors_explained(self) -> AbstractContextManager[None]:
        where = f"{self.path} (whose {len(self)} images the same command goes on from)"
        return write_errors_explained(where, StoreError)


def _write_at(file: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """All of `parts`, end to end: a single write may stop short, on a full disk for one."""
    rest = [memoryview(part) for part in parts]
    while rest:
        written = os.pwritev(file, rest, offset)
        offset += written
        while rest and written >= len(rest[0]):
            written -= len(rest.pop(0))
        if written:
            rest[0] = rest[0][written:]


def _whole_lines(text: bytes) -> list[tuple[dict[str, Any], int]]:
    """The entries of a journal and where each ends, up to the first that is incomplete."""
    entries, end = [], 0
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(entry, dict):
            break
        end += len(line)
        entries.append((entry, end))
    return entries
