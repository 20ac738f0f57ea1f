"""Feature files as they are published -> a feature store: one pass, constant memory, as fast as the disk.

Rows are read and decoded in one thread and written in another. More threads made it slower where this was
measured: decoding is a chain of calls of some 20 microseconds outside Python's lock, and threads that share
it lose more in handing that lock to and fro than they gain.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from common.errors import StoreError
from common.words import counted
from vqadata.feature_files import ImageRow, Item, RowFault
from vqadata.feature_layout import MANIFEST, Layout, pack_row
from vqadata.feature_writer import JOURNAL, StoreWriter
from vqadata.features import FeatureStore

SMALLEST = 2  # pixels of an image whose boxes may all lie in one of them
PIXEL = 1.0  # detectors round: boxes outside the image by up to this much are clipped to it
CHUNK = 16  # rows that are handed on at once,
PATIENCE = 1.0  # unless they take longer than this, in seconds: what is done is to be kept


class Source(Protocol):
    """Where rows come from: a .tsv, a .zip, a folder; see `vqadata.feature_files`."""

    name: str
    size: int  # in `unit`s, as positions count them
    unit: str
    left_out: int  # rows that nobody asks for

    def items(self, position: Sequence[int] | None) -> Iterator[Item]: ...

    def parse(self, item: Item, *, detections: bool = False) -> ImageRow: ...


class Options(NamedTuple):
    """How rows are to be stored."""

    regions: int = 36  # the most an image may have
    dtype: str = "float16"
    detections: bool = False  # whether the detector's findings are kept
    feature_size: int | None = None  # of a region; None: as in the first good row
    relative: bool = False  # whether the boxes of the source are divided by width and height already

    def recorded(self) -> dict[str, Any]:
        """Those that a store's manifest says."""
        said = {"regions": self.regions, "dtype": self.dtype, "detections": self.detections}
        return said | ({"feature_size": self.feature_size} if self.feature_size else {})


class Conversion(NamedTuple):
    """What a conversion did."""

    images: int
    resumed_at: int  # rows that were there already
    faults: list[str]


class Packed(NamedTuple):
    """A decoded row: what the store gets, or what is wrong with it."""

    item: Item
    image_id: str
    parts: list[memoryview]
    fault: str | None


def convert(
    source: Source,
    path: Path,
    options: Options,
    *,
    max_faults: int = 0,
    progress: bool = True,
    made_by: Mapping[str, Any] | None = None,
) -> Conversion:
    """Write the store `path` from `source`, going on where an earlier, interrupted call was.

    A faulty row is left out and counted; StoreError at the fault after `max_faults`, and for whatever makes
    going on senseless. Rows up to there are kept for the next call. made_by: what else identifies the rows,
    for the manifest.
    """
    origin = {"source": source.name, "source_size": source.size, **(made_by or {})}
    origin |= {"source_boxes": "relative"} if options.relative else {}
    if (path / MANIFEST).exists():
        return _finished_before(path, origin, options)
    size = options.feature_size or _feature_size(source, max_faults)
    layout = Layout(options.regions, size, options.dtype, image_sizes=True, detections=options.detections)
    with StoreWriter(path, layout, origin) as writer:
        resumed_at = len(writer)
        begun = writer.position[0] if writer.position else 0
        bar_of = {"total": source.size, "initial": begun, "desc": source.name, "unit": source.unit}
        with tqdm(**bar_of, unit_scale=source.unit == "B", ncols=79, disable=not progress) as bar:

            def take(packed: Sequence[Packed]) -> None:
                _take(packed, writer, max_faults)
                bar.update(writer.position[0] - bar.n)

            items = source.items(writer.position)
            rows = (_pack(item, source, layout, options.relative) for item in items)
            write_behind(rows, take)
        if not len(writer):
            _remove_unfinished(path, layout)
            first = f", the first: {writer.faults[0]}" if writer.faults else "."
            raise StoreError(f"{source.name} has no usable row{first}")
        writer.finish()
        return Conversion(len(writer), resumed_at, writer.faults)


def write_behind(rows: Iterable[Packed], take: Callable[[Sequence[Packed]], None]) -> None:
    """Hand all rows to `take`, a chunk at a time and in order, in another thread, one chunk behind.

    The first error of either ends both; whatever happens, no thread is left behind.
    """
    rows = iter(rows)
    with ThreadPoolExecutor(1) as writer:
        taking: Future[None] | None = None
        while chunk := list(_next_rows(rows)):
            if taking:
                taking.result()
            taking = writer.submit(take, chunk)
        if taking:
            taking.result()


def _next_rows(rows: Iterator[Packed]) -> Iterator[Packed]:
    """A chunk of them: as many as come in time."""
    start = time.monotonic()
    for row in islice(rows, CHUNK):
        yield row
        if time.monotonic() - start > PATIENCE:
            return


def relative_boxes(boxes: np.ndarray, width: int, height: int, relative: bool = False) -> np.ndarray:
    """Boxes (n, 4) in pixels -> divided by width and height, in [0, 1]; RowFault if they cannot be.

    relative: they are divided already.
    """
    size = np.array([width, height, width, height], np.float32)
    unit = size if relative else np.ones_like(size)  # of a box's numbers, in pixels
    if not np.isfinite(boxes).all():
        raise RowFault("boxes holds NaN or infinity")
    if (boxes * unit < -PIXEL).any() or (boxes * unit > size + PIXEL).any():
        raise RowFault(f"a box reaches outside the image of {width} x {height} pixels")
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise RowFault("a box ends before it starts (x1, y1, x2, y2 are expected)")
    if not relative and boxes.max() <= 1 and max(width, height) > SMALLEST:
        raise RowFault(
            f"its boxes lie between 0 and 1 in an image of {width} x {height} pixels, so they are divided by "
            "width and height already: --boxes relative takes them as they are"
        )
    return np.clip(boxes if relative else boxes / size, 0, 1)


def check_row(row: ImageRow, layout: Layout) -> None:
    """RowFault unless features and detections are as the store's layout has them and finite in its types."""
    count, size = row.features.shape
    if count > layout.regions:
        raise RowFault(f"has {count} boxes, and the store has room for {layout.regions} (--max-regions)")
    if size != layout.feature_size:
        raise RowFault(f"has {size} features a box where the first row has {layout.feature_size}")
    low, high = float(row.features.min()), float(row.features.max())  # NaN, if there is one
    if not (np.isfinite(low) and np.isfinite(high)):
        raise RowFault("features holds NaN or infinity")
    if max(-low, high) > float(np.finfo(layout.dtype).max):
        raise RowFault(
            f"a feature of {max(-low, high):.6g} is beyond {layout.dtype}; convert with --dtype fp32"
        )
    for name, values in row.detections.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise RowFault(f"{name} holds NaN or infinity")
        if values.dtype.kind == "i" and (np.abs(values) > np.iinfo(np.int32).max).any():
            raise RowFault(f"{name} holds a number beyond 32 bits")


def _pack(item: Item, source: Source, layout: Layout, relative: bool) -> Packed:
    seen = item._replace(content=b"")  # so that the text is not kept
    try:
        row = source.parse(item, detections=layout.detections)
        check_row(row, layout)
        boxes = relative_boxes(row.boxes, row.width, row.height, relative)
    except RowFault as fault:
        return Packed(seen, "", [], str(fault))
    parts = pack_row(layout, row.features, boxes, (row.width, row.height), row.detections)
    return Packed(seen, row.image_id, parts, None)


def _take(chunk: Sequence[Packed], writer: StoreWriter, max_faults: int) -> None:
    """Append the rows, or leave them out with a note of why."""
    good: dict[str, Packed] = {}

    def append() -> None:
        writer.extend([(name, row.parts, row.item.position) for name, row in good.items()])
        good.clear()

    for packed in chunk:
        fault = packed.fault
        if fault is None and (packed.image_id in writer.image_ids or packed.image_id in good):
            fault = f"image {packed.image_id} was there before"
        if fault is None:
            good[packed.image_id] = packed
            continue
        append()  # what comes before the fault
        fault = f"{packed.item.place}: {fault}."
        if len(writer.faults) >= max_faults:
            before = f" {counted(len(writer.faults), 'row', 'was')} left out before." if writer.faults else ""
            raise StoreError(
                f"{fault}{before} Mend the file, or allow rows to be left out with --max-faults."
            )
        writer.skip(fault, packed.item.position)
    append()


def _feature_size(source: Source, max_faults: int) -> int:
    """Of the first good row. The rows before it are reported when they are converted."""
    faults = []
    for item in source.items(None):
        try:
            return source.parse(item).features.shape[1]
        except RowFault as fault:
            faults.append(f"{item.place}: {fault}.")
        if len(faults) > max_faults:
            break
    if source.left_out and not faults:
        raise StoreError(
            f"{source.name} has {source.left_out:,} images, and no question is about any of them."
        )
    raise StoreError(f"{faults[0] if faults else source.name + ' has no rows.'} Is this a feature file?")


def _remove_unfinished(path: Path, layout: Layout) -> None:
    """Leave nothing of a store that came to nothing: there is nothing to go on from."""
    for name in (JOURNAL, *(f"{column}.npy" for column in layout.columns())):
        (path / name).unlink(missing_ok=True)
    with suppress(OSError):  # if anything else lies there
        path.rmdir()


def _finished_before(path: Path, origin: Mapping[str, Any], options: Options) -> Conversion:
    manifest = FeatureStore(path).manifest
    (path / JOURNAL).unlink(missing_ok=True)  # if it was interrupted between the last two steps
    same_boxes = manifest.get("source_boxes") == origin.get("source_boxes")
    if same_boxes and {**origin, **options.recorded()}.items() <= manifest.items():
        return Conversion(manifest["images"], manifest["images"], manifest["faults"])
    raise StoreError(
        f"{path} holds a finished store, made from {manifest['source'] or 'something else'} or with other "
        "options: delete the folder to write it again."
    )
