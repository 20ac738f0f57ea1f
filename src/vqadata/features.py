"""Region features on disk: a folder of arrays, one row an image.

    <store>/
      manifest.json     format version, images, regions, feature size, dtype, source, sizes and checksum
      image_ids.json    the row order
      features.npy      (images, regions, feature size)  float16 or float32
      boxes.npy         (images, regions, 4)             float32: x1, y1, x2, y2 divided by width / height
      num_regions.npy   (images,)                        int32: regions beyond it are padding, all zero
      row_crc32.npy     (images,)                        uint32: of the image's bytes in all other arrays
      image_sizes.npy   (images, 2)                      int32: width and height in pixels, if known
      object_ids.npy, object_scores.npy, attribute_ids.npy, attribute_scores.npy
                        (images, regions)                the detector's findings, if kept

Opening reads ids, counts and checksums only, so a 30 GB store opens at once. A batch is read with plain reads
into its own memory: all processes share the pages of the one file in the operating system's cache, and unlike
pages of a memory map they do not count as the memory of a process, which stays small however much has been
read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import StoreError
from common.files import nfc, visible
from vqadata.feature_layout import (
    CHECKSUMS,
    FORMAT,
    IMAGE_IDS,
    MANIFEST,
    Layout,
    cast,
    check_sizes,
    crc32,
    open_arrays,
    pack_row,
    store_checksum,
)
from vqadata.feature_writer import JOURNAL, StoreWriter

DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError)


class Regions(NamedTuple):
    """The regions of a batch of images (B images, R regions, D features)."""

    features: np.ndarray  # (B, R, D) float32
    boxes: np.ndarray  # (B, R, 4) float32, in [0, 1]
    mask: np.ndarray  # (B, R) bool, true where there is a region


def write_store(
    path: Path,
    image_ids: Sequence[str],
    rows: Iterable[tuple[np.ndarray, np.ndarray]],
    layout: Layout,
    source: str = "",
) -> None:
    """Write one store, row by row, in constant memory, over whatever store is there.

    `rows` yields, in the order of `image_ids`, features (n, feature_size) and boxes (n, 4) in [0, 1] with
    1 <= n <= regions.
    """
    for name in (MANIFEST, JOURNAL):
        (path / name).unlink(missing_ok=True)
    with StoreWriter(path, layout, {"source": source}) as writer:
        for index, (features, boxes) in enumerate(rows):
            if index == len(image_ids):
                raise StoreError(f"{len(image_ids)} images were announced and more came.")
            if not 1 <= len(features) <= layout.regions:
                raise StoreError(
                    f"Image {image_ids[index]} has {len(features)} regions; this store holds 1 to "
                    f"{layout.regions}."
                )
            writer.extend([(image_ids[index], pack_row(layout, features, boxes), None)])
        if len(writer) != len(image_ids):
            raise StoreError(f"{len(image_ids)} different images were announced and {len(writer)} came.")
        writer.finish()


def read_manifest(path: Path) -> dict[str, Any]:
    """What a store says of itself; StoreError if it is not finished, damaged or of another format."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version, _ = manifest["format"], manifest["feature_size"]
    except DAMAGE as error:
        raise _damaged(path, error) from None
    if version != FORMAT:
        raise StoreError(f"{path / MANIFEST} is of format {version}; this code reads {FORMAT}.")
    return manifest


def _damaged(path: Path, error: Exception) -> StoreError:
    if isinstance(error, FileNotFoundError):
        return StoreError(
            f"{path} is not a finished feature store: {Path(error.filename).name} is missing. "
            "Delete the folder and write it again."
        )
    if isinstance(error, OSError) and error.strerror:
        return StoreError(f"{error.filename or path} cannot be read: {error.strerror}.")
    return StoreError(f"The feature store {path} is damaged ({error}). Write it again.")


class FeatureStore:
    """One store opened for reading. `rows` maps an image id (NFC) to its row; StoreError if it is not whole.

    Image ids and row checksums are held against the manifest at once, each row against its checksum when it
    is read: a flipped bit is named and never becomes another number.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        try:
            check_sizes(path, self.manifest)
            if store_checksum(path) != self.manifest["checksum"]:
                raise ValueError(f"{IMAGE_IDS} and {CHECKSUMS}.npy do not match its {MANIFEST}")
            image_ids = json.loads((path / IMAGE_IDS).read_text(encoding="utf-8"))
            layout, images = Layout.of(self.manifest), self.manifest["images"]
            arrays = open_arrays(path, self.manifest)
            if len(image_ids) != images or not all(isinstance(image_id, str) for image_id in image_ids):
                raise ValueError(f"{IMAGE_IDS} is not a list of {images} image ids")
            self.features = arrays.pop("features")
            self.boxes = arrays["boxes"]
            self.checksums = np.array(arrays.pop(CHECKSUMS))
            self.num_regions = arrays["num_regions"] = np.array(arrays["num_regions"])
            if not ((self.num_regions >= 1) & (self.num_regions <= layout.regions)).all():
                raise ValueError(f"num_regions.npy is not within 1 and {layout.regions}")
            self._file = (path / "features.npy").open("rb", buffering=0)
        except DAMAGE as error:
            raise _damaged(path, error) from None
        self._others = list(arrays.values())  # what a checksum covers beside the features, in its order
        self._padding = memoryview(bytes(self.features[0].nbytes if images else 0))
        self.rows: dict[str, int] = {nfc(image_id): row for row, image_id in enumerate(image_ids)}

    def __reduce__(self) -> tuple[type[FeatureStore], tuple[Path]]:
        """Another process opens the store itself: a memory map would be copied to it as a whole."""
        return FeatureStore, (self.path,)

    def read_features(self, row: int, out: np.ndarray) -> None:
        """Fill `out` (n, D), of the store's type and contiguous, with a row's n regions.

        StoreError if the row, with its boxes and all else that is stored, does not match its checksum.
        """
        offset = self.features.offset + row * self.features.strides[0]
        try:
            count = os.preadv(self._file.fileno(), [out], offset)
        except OSError as error:
            raise _damaged(self.path, error) from None
        if count != out.nbytes:
            raise StoreError(
                f"{self._file.name} cannot be read at row {row}: was it cut short? Write it again."
            )
        padding = self._padding[out.nbytes :]
        others = (array[row].tobytes() for array in self._others)
        if crc32([out.data, padding, *others]) != self.checksums[row]:
            raise StoreError(
                f"The feature store {self.path} is damaged: the features, boxes or number of regions of "
                f"image {list(self.rows)[row]} do not match their checksum. Write the store again."
            )


class FeatureStores:
    """All stores below one folder, read as one (train2014 and val2014, say)."""

    def __init__(self, folder: Path) -> None:
        self.stores = [FeatureStore(manifest.parent) for manifest in visible(folder, f"*/{MANIFEST}")]
        if not self.stores:
            raise StoreError(f"There is no feature store below {folder}.")
        sizes = {store.manifest["feature_size"] for store in self.stores}
        if len(sizes) != 1:
            raise StoreError(f"The stores below {folder} differ in feature size: {sorted(sizes)}.")
        self.feature_size: int = sizes.pop()
        self.max_regions: int = max(store.manifest["regions"] for store in self.stores)
        self._where: dict[str, tuple[int, int]] = {}
        for number, store in enumerate(self.stores):
            if repeated := self._where.keys() & store.rows.keys():
                first = min(repeated)
                raise StoreError(
                    f"Image {first} is in {self.stores[self._where[first][0]].path} and in {store.path}: "
                    "which features are meant? Move one of the two stores elsewhere."
                )
            self._where.update((image_id, (number, row)) for image_id, row in store.rows.items())

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._where

    def locate(self, image_ids: Iterable[str]) -> np.ndarray:
        """(store, row) of each image, shape (images, 2); KeyError for an unknown image."""
        return np.array([self._where[image_id] for image_id in image_ids], np.int64).reshape(-1, 2)

    def digest(self, image_ids: Iterable[str]) -> str:
        """A sha256 that identifies the features of these images, wherever and among whatever they are stored.

        It is made of their checksums, which are held against the features only when a row is read. KeyError
        for an unknown image.
        """
        digest = hashlib.sha256()
        for image_id in sorted(set(image_ids)):
            number, row = self._where[image_id]
            digest.update(f"{image_id!r} {self.stores[number].checksums[row]}\n".encode())
        return digest.hexdigest()

    def read(self, places: np.ndarray, whole: bool = False) -> Regions:
        """The regions of the images at `places` (B, 2, from `locate`), padded to the most in the batch.

        whole: padded to `max_regions`, so that all batches have one shape.
        StoreError, with store and image, if a row is damaged.
        """
        counts = np.array([self.stores[store].num_regions[row] for store, row in places])
        size = self.max_regions if whole else int(counts.max())
        features = np.empty((len(places), size, self.feature_size), np.float32)
        boxes = np.zeros((len(places), size, 4), np.float32)
        stored: dict[np.dtype, np.ndarray] = {}  # one image as it is in the file: small enough for the cache
        for index, ((number, row), count) in enumerate(zip(places.tolist(), counts.tolist(), strict=True)):
            store = self.stores[number]
            dtype = store.features.dtype
            if dtype not in stored:
                stored[dtype] = np.empty((size, self.feature_size), dtype)
            image = stored[dtype][:count]
            store.read_features(row, image)
            cast(image, features[index, :count])
            features[index, count:] = 0
            boxes[index, :count] = store.boxes[row, :count]
        return Regions(features, boxes, np.arange(size) < counts[:, None])
