"""A folder with one .npz per image, as bottom-up-attention extractors write them."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from common.errors import StoreError
from vqadata.tsv import MOST, ImageRow, Item, RowFault

FEATURE_NAMES = ("x", "features")
BOX_NAMES = ("bbox", "boxes")
# What numpy and zipfile raise when the bytes they are given are no whole .npz.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError, NotImplementedError, ValueError)


class NpzSource:
    """The .npz files of a folder, in the order of their names, the image ids; positions are (files,).

    Each holds features (n, D) as `x` or `features`, boxes (n, 4) in pixels as `bbox` or `boxes`, and the
    numbers `image_w` and `image_h`.
    """

    unit = "file"

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._files = sorted(folder.glob("*.npz"))
        self.size = len(self._files)
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
                features = _matrix(arrays, FEATURE_NAMES)
                boxes = _matrix(arrays, BOX_NAMES)
                width, height = (_pixels(arrays, name) for name in ("image_w", "image_h"))
        except DAMAGE:
            raise RowFault("is not a whole .npz file of plain arrays") from None
        if boxes.shape != (len(features), 4):
            raise RowFault(f"has {len(features)} rows of features and boxes of shape {boxes.shape}")
        return ImageRow(Path(item.place).stem, width, height, features, boxes, {})


def _matrix(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The array under the first of `names` there is, as float32."""
    for name in names:
        if name in arrays:
            array = arrays[name]
            if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
                raise RowFault(f"{name} is not a matrix of numbers")
            return array.astype(np.float32)
    raise RowFault(f"lacks {' or '.join(names)}")


def _pixels(arrays: Mapping[str, np.ndarray], name: str) -> int:
    if name not in arrays:
        raise RowFault(f"lacks {name}")
    array = arrays[name]
    if array.size != 1 or array.dtype.kind not in "fiu" or not 1 <= array.item() <= MOST:
        raise RowFault(f"{name} is not a number from 1 to {MOST}")
    return int(array.item())
