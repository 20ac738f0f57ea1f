"""What a feature store holds: its arrays, a row as bytes, and its checksums (see vqadata.features)."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import StoreError

FORMAT = 1
DTYPES = ("float16", "float32")
MANIFEST = "manifest.json"
IMAGE_IDS = "image_ids.json"
CAST_BLOCK = 32_000
CHECKSUMS = "row_crc32"
DETECTIONS = {
    "object_ids": "int32",
    "object_scores": "float32",
    "attribute_ids": "int32",
    "attribute_scores": "float32",
}


@dataclass(frozen=True)
class Layout:
    """What the rows of a store hold: R = regions, the most of one image, and D = feature_size."""

    regions: int
    feature_size: int
    dtype: str = "float16"
    image_sizes: bool = False
    detections: bool = False

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Layout:
        """That of a finished store; KeyError if its manifest does not say all of it."""
        return cls(**{field.name: manifest[field.name] for field in fields(cls)})

    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """All arrays: their type and the shape of one row. The last holds a checksum of the others' rows."""
        columns = {
            "features": (self.dtype, (self.regions, self.feature_size)),
            "boxes": ("float32", (self.regions, 4)),
        }
        if self.detections:
            columns |= {name: (kind, (self.regions,)) for name, kind in DETECTIONS.items()}
        columns["num_regions"] = ("int32", ())
        if self.image_sizes:
            columns["image_sizes"] = ("int32", (2,))
        columns[CHECKSUMS] = ("uint32", ())
        return {name: (np.dtype(kind), shape) for name, (kind, shape) in columns.items()}


def pack_row(
    layout: Layout,
    features: np.ndarray,
    boxes: np.ndarray,
    image_size: tuple[int, int] | None = None,
    detections: Mapping[str, np.ndarray] | None = None,
) -> list[memoryview]:
    """One image as the bytes of each column, padded with zeros, in the order of `layout.columns()`.

    features (n, D) and boxes (n, 4) in [0, 1], 1 <= n <= R; image_size: (width, height) in pixels;
    detections: an array (n,) for each name of DETECTIONS.
    """
    count = len(features)
    of_regions = {"features": features, "boxes": boxes, **(detections or {})}
    of_image = {"num_regions": count, "image_sizes": image_size}
    parts: list[memoryview] = []
    for name, (dtype, shape) in layout.columns().items():
        column = np.empty(shape, dtype)
        if name in of_regions:
            cast(np.require(of_regions[name], requirements=["C", "W"]), column[:count])
            column[count:] = 0
        else:
            column[...] = crc32(parts) if name == CHECKSUMS else of_image[name]
        parts.append(column.reshape(-1).view(np.uint8).data)
    return parts


def cast(source: np.ndarray, target: np.ndarray) -> None:
    """Copy between contiguous arrays of one shape and different types.

    torch converts to and from float16 seventy times as fast as numpy, and rounds alike. The blocks are below
    the size from which torch uses threads: with busy cores, waiting for those costs more than such a copy.
    """
    if source.dtype == target.dtype:
        target[...] = source
        return
    flat, copies = torch.from_numpy(source.reshape(-1)), torch.from_numpy(target.reshape(-1))
    for part, copy in zip(flat.split(CAST_BLOCK), copies.split(CAST_BLOCK), strict=True):
        copy.copy_(part)


def store_checksum(path: Path) -> str:
    """sha256 over the image ids and the checksum of each row: what identifies a store's content."""
    digest = hashlib.sha256((path / IMAGE_IDS).read_bytes())
    checksums = (path / f"{CHECKSUMS}.npy").read_bytes()
    digest.update(checksums[10 + int.from_bytes(checksums[8:10], "little") :])  # all after the header
    return digest.hexdigest()


def open_arrays(path: Path, manifest: Mapping[str, Any]) -> dict[str, np.memmap]:
    """The arrays of a finished store, mapped, in the order of `Layout.columns`.

    Their headers are for other programs: what they say is known, and numpy raises anything for a damaged one.
    ValueError for a file that is too short.
    """
    arrays = {}
    for name, (dtype, shape) in Layout.of(manifest).columns().items():
        file, shape = path / f"{name}.npy", (manifest["images"], *shape)
        header = file.stat().st_size - dtype.itemsize * math.prod(shape)
        if header < 0:
            raise ValueError(f"{file.name} is too short")
        arrays[name] = np.memmap(file, dtype, "r", header, shape)
    return arrays


def check_sizes(path: Path, manifest: Mapping[str, Any]) -> None:
    """StoreError if a file of a finished store is not as long as its manifest says."""
    for name, size in manifest["bytes"].items():
        actual = (path / name).stat().st_size
        if actual != size:
            raise StoreError(
                f"{path / name} has {actual} bytes and should have {size}: was it cut short? "
                "Write the store again."
            )


def intact_rows(path: Path, manifest: Mapping[str, Any]) -> Iterator[bool]:
    """For each row of a finished store whether its bytes agree with its checksum; reads all of the store."""
    arrays = open_arrays(path, manifest)
    checksums = arrays.pop(CHECKSUMS)
    for row, checksum in enumerate(checksums):
        yield bool(crc32(array[row].tobytes() for array in arrays.values()) == checksum)


def crc32(parts: Iterable[bytes | memoryview]) -> np.ndarray:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return np.array(checksum, np.uint32)
