"""Feature files as they are published, row by row: .tsv of three kinds, and a folder with one .npz per image.

A line of a .tsv is an image: columns between tabs, arrays in base64. There are ten of them in LXMERT's files,
thirteen in VOLTA's and six in those of bottom-up attention; the first line tells which. It may be packed in a
.zip, which is read without unpacking it. An .npz is what bottom-up-attention extractors write of an image.
data/FEATURES.md has every field.
"""

import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pybase64

from common.errors import StoreError
from common.files import is_hidden, nfc, visible
from vqadata.feature_layout import DETECTIONS

DETECTED = ("objects_id", "objects_conf", "attrs_id", "attrs_conf")  # in the order of DETECTIONS
COLUMNS = ("img_id", "img_h", "img_w", *DETECTED, "num_boxes", "boxes", "features")  # LXMERT's
SIX_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")  # width before height
KINDS = {
    len(columns): columns for columns in (SIX_COLUMNS, COLUMNS, (*COLUMNS, "cls_prob", "attrs", "classes"))
}
READ_BYTES = 1 << 20  # more would not stay in a core's cache until it is decoded
LONGEST_LINE = 64 << 20  # 150 times the usual one: memory stays bounded in a file without line ends
CUT_SHORT = "; the file ends inside it, so its download or copy was cut short"
NPZ_FEATURES, NPZ_BOXES = ("x", "features"), ("bbox", "boxes")
IMAGE_SUFFIX = re.compile(r"\.(jpe?g|png)$", re.IGNORECASE)  # some extractors write photo.jpg.npz
MMF = (
    "{path} holds MMF's features: its _info.npy files are pickles, which can run code when they are read, so "
    "they are refused; write x, bbox, image_w and image_h of each image to an .npz, where MMF is installed."
)
# What numpy and zipfile raise when the bytes they are given are no whole .npz.
NPZ_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, LookupError, RuntimeError, ValueError)
MOST = 100_000  # boxes of an image, and pixels of its width or height


class RowFault(StoreError):
    """What is wrong with one row of a source, without its place."""


class ImageRow(NamedTuple):
    """One image with n regions, as a source has it."""

    image_id: str
    width: int  # pixels
    height: int
    features: np.ndarray  # (n, D) float32
    boxes: np.ndarray  # (n, 4) float32: x1, y1, x2, y2 in pixels
    detections: dict[str, np.ndarray]  # (n,) each, see feature_layout.DETECTIONS; may be empty


class Item(NamedTuple):
    """One row of a source, not looked into yet."""

    content: bytes
    place: str  # for messages: file and line
    position: Sequence[int]  # where the source goes on after it


class TsvSource:
    """An .tsv file, or the one .tsv inside a .zip. Positions are (bytes read, lines read).

    name_of: the names of images that the file only numbers, as files of six columns do. It gives None for an
    image that nobody asks about: its row is left out, and counted in `left_out`.
    """

    unit = "B"

    def __init__(self, path: Path, name_of: Callable[[int], str | None] | None = None) -> None:
        if path.suffix == ".npy":
            raise StoreError(MMF.format(path=path))
        self.path = path
        self.name = path.name
        self.left_out = 0
        self._name_of = name_of
        with ExitStack() as stack:
            file, self.size = self._open(stack)
            self.columns = _kind(file)
        if not self.size:
            raise StoreError(f"{path} is empty: was its download or copy cut short?")

    @property
    def numbers_images(self) -> bool:
        """Whether its images have numbers in the place of names."""
        return self.columns == SIX_COLUMNS

    def items(self, position: Sequence[int] | None) -> Iterator[Item]:
        """The rows from `position` on, or all. StoreError if the file cannot be read."""
        offset, line = position or (0, 0)
        self.left_out = 0
        with ExitStack() as stack:
            file, _ = self._open(stack)
            try:
                file.seek(offset)
                while content := file.readline(LONGEST_LINE):
                    line += 1
                    offset += len(content)
                    rest = content
                    while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                        rest = file.readline(LONGEST_LINE)
                        offset += len(rest)
                    if content.isspace():  # strip() would copy the line
                        continue
                    if self._name_of and (number := _number(content)) and not self._name_of(number):
                        self.left_out += 1
                        continue
                    yield Item(content, f"{self.path}, line {line}", (offset, line))
            except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                raise StoreError(
                    f"{self.path} is damaged after line {line} ({error}): fetch it again."
                ) from None

    def parse(self, item: Item, *, detections: bool = False) -> ImageRow:
        """One line as arrays; RowFault says what is wrong with it."""
        if detections and self.numbers_images:
            raise StoreError(f"{self.path} has no detections, only six columns: leave out --with-detections.")
        row = parse_row(item.content, detections=detections, columns=self.columns)
        number = _number(item.content) if self._name_of else None
        return row._replace(image_id=self._name_of(number)) if number else row

    def _open(self, stack: ExitStack) -> tuple[IO[bytes], int]:
        """The text and how long it is."""
        try:
            if not zipfile.is_zipfile(self.path):
                file = stack.enter_context(self.path.open("rb", buffering=READ_BYTES))
                return file, self.path.stat().st_size
            archive = stack.enter_context(zipfile.ZipFile(self.path))
        except FileNotFoundError:
            raise StoreError(f"{self.path} does not exist.") from None
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error.strerror}.") from None
        members = [member for member in archive.infolist() if member.filename.endswith(".tsv")]
        members = [member for member in members if not is_hidden(member.filename)]
        if len(members) != 1:
            raise StoreError(f"{self.path} holds {len(members)} .tsv files; one is expected.")
        member = stack.enter_context(archive.open(members[0]))
        return stack.enter_context(io.BufferedReader(member, READ_BYTES)), members[0].file_size


class NpzSource:
    """The .npz files of a folder, in the order of their names, the image ids; positions are (files,).

    Each holds features (n, D), or (D, n), as `x` or `features`, boxes (n, 4) in pixels as `bbox` or `boxes`,
    and the numbers `image_w` and `image_h`; with `num_bbox`, what comes after so many regions is padding.
    Whatever else it holds is not read.
    """

    unit = "file"
    left_out = 0  # every file has a name

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._files = visible(folder, "*.npz")
        self.size = len(self._files)
        if not self._files and visible(folder, "*.npy"):
            raise StoreError(MMF.format(path=folder))
        if not self._files:
            raise StoreError(f"There is no .npz file in {folder}.")

    def items(self, position: Sequence[int] | None) -> Iterator[Item]:
        """The files from `position` on, or all."""
        (start,) = position or (0,)
        for number, file in enumerate(self._files[start:], start + 1):
            yield Item(file.read_bytes(), str(file), (number,))

    def parse(self, item: Item, *, detections: bool = False) -> ImageRow:
        """One file as arrays; RowFault says what is wrong with it."""
        if detections:
            raise StoreError(
                "The .npz files have no detections in a known form: leave out --with-detections."
            )
        try:
            with np.load(io.BytesIO(item.content), allow_pickle=False) as arrays:
                features = _matrix(arrays, NPZ_FEATURES)
                boxes = _matrix(arrays, NPZ_BOXES)
                width, height = (_whole_number(arrays, name) for name in ("image_w", "image_h"))
                count = _whole_number(arrays, "num_bbox") if "num_bbox" in arrays else None
        except NPZ_DAMAGE:
            raise RowFault("is not a whole .npz file of plain arrays") from None
        if len(features) != len(boxes) == features.shape[1]:
            features = np.ascontiguousarray(features.T)  # OpenVQA's files have them as (D, n)
        features, boxes = features[:count], boxes[:count]  # all without a count
        if count and len(features) < count:
            raise RowFault(f"num_bbox is {count}, and there are {len(features)} rows of features")
        if boxes.shape != (len(features), 4):
            raise RowFault(f"has {len(features)} rows of features and boxes of shape {boxes.shape}")
        image_id = nfc(IMAGE_SUFFIX.sub("", Path(item.place).stem))
        return ImageRow(image_id, width, height, features, boxes, {})


def parse_row(line: bytes, *, detections: bool = False, columns: Sequence[str] = COLUMNS) -> ImageRow:
    """One line as arrays; RowFault says what is wrong with it. CRLF line ends are fine."""
    fields = _fields(line, columns)
    try:
        return _image_row(fields, detections)
    except RowFault:
        if b"\t" in bytes(fields[columns[-1]]):
            raise RowFault(f"has more than {len(columns)} columns") from None
        raise


def _image_row(fields: dict[str, memoryview], detections: bool) -> ImageRow:
    prefix = "img" if "img_id" in fields else "image"
    id_field, width, height = (f"{prefix}_{name}" for name in ("id", "w", "h"))
    try:
        image_id = nfc(bytes(fields[id_field]).decode("utf-8"))
    except UnicodeDecodeError:
        raise RowFault(f"{id_field} is not UTF-8 text") from None
    if not image_id.strip() or not image_id.isprintable():
        raise RowFault(f"{id_field} is empty or has unprintable characters in it")
    count = _integer(fields, "num_boxes")
    boxes = _array(fields, "boxes", np.float32, count, 4)
    features = _array(fields, "features", np.float32, count)
    found = {}
    for name, column in zip(DETECTIONS, DETECTED, strict=True) if detections else ():
        dtype = np.int64 if column.endswith("_id") else np.float32
        found[name] = _array(fields, column, dtype, count, 1)[:, 0]
    return ImageRow(image_id, _integer(fields, width), _integer(fields, height), features, boxes, found)


def _kind(file: IO[bytes]) -> Sequence[str]:
    """The columns that a .tsv has, by the number of those in its first line; LXMERT's if that fits none."""
    try:
        line = b"\n"
        while line.isspace():
            line = file.readline(LONGEST_LINE)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        line = b""  # `items` says so
    return KINDS.get(line.count(b"\t") + 1, COLUMNS)


def _number(line: bytes) -> int | None:
    """The first column, if it is a whole number above 0."""
    text = line[:20].split(b"\t")[0]
    return int(text) or None if text.isdigit() else None


def _fields(line: bytes, columns: Sequence[str]) -> dict[str, memoryview]:
    """The columns of a line, without copying them."""
    length = len(line)
    while length and line[length - 1] in b"\r\n":
        length -= 1
    view = memoryview(line)[:length]
    ends, end = [], line.find(b"\t")
    while end >= 0:
        ends.append(end)
        # Not through the last column, which is nearly all of the line: a tab in it is no base64 anyway.
        end = line.find(b"\t", end + 1) if len(ends) < len(columns) - 1 else -1
    if len(ends) != len(columns) - 1:
        cut = "" if line.endswith(b"\n") else CUT_SHORT
        raise RowFault(f"has {len(ends) + 1} columns where {len(columns)} are expected{cut}")
    starts = [0, *(end + 1 for end in ends)]
    return {name: view[start:end] for name, start, end in zip(columns, starts, [*ends, length], strict=True)}


def _integer(fields: dict[str, memoryview], name: str) -> int:
    text = bytes(fields[name][:20])
    if not text.isdigit() or not 1 <= int(text) <= MOST:
        raise RowFault(f"{name} is {text.decode(errors='replace')!r}, not a number from 1 to {MOST}")
    return int(text)


def _array(
    fields: dict[str, memoryview], name: str, dtype: type[np.generic], count: int, width: int | None = None
) -> np.ndarray:
    """A base64 column as an array (count, width); width is found by dividing if it is not given."""
    try:
        data = pybase64.b64decode_as_bytearray(fields[name], validate=True)
    except ValueError:
        raise RowFault(f"{name} is not valid base64 (cut short, or damaged)") from None
    row_bytes = np.dtype(dtype).itemsize * count * (width or 1)
    if not data or (len(data) != row_bytes if width else len(data) % row_bytes):
        raise RowFault(f"{name} has {len(data)} bytes, which does not fit num_boxes = {count}")
    return np.frombuffer(data, dtype).reshape(count, -1)


def _matrix(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The array under the first of `names` there is, as float32."""
    for name in names:
        if name in arrays:
            array = arrays[name]
            if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
                raise RowFault(f"{name} is not a matrix of numbers")
            return array.astype(np.float32)
    raise RowFault(f"lacks {' or '.join(names)}")


def _whole_number(arrays: Mapping[str, np.ndarray], name: str) -> int:
    if name not in arrays:
        raise RowFault(f"lacks {name}")
    array = arrays[name]
    if array.size != 1 or array.dtype.kind not in "fiu" or not 1 <= array.item() <= MOST:
        raise RowFault(f"{name} is not a number from 1 to {MOST}")
    return int(array.item())
