"""Region features on disk: a folder of memory-mapped arrays, one row an image.

    <store>/
      manifest.json     format version, rows, regions, feature size, dtype, source
      image_ids.json    the row order
      features.npy      (images, regions, feature size)  float16 or float32
      boxes.npy         (images, regions, 4)             float32: x1, y1, x2, y2 divided by width / height
      num_regions.npy   (images,)                        int32: rows beyond it are padding, all zero

Nothing is read until it is asked for, so a 30 GB store opens at once and every worker process shares the
pages of the one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

FORMAT = 1


class StoreError(ValueError):
    """A feature store that is missing, unfinished or damaged; the message says which and what to do."""


class Regions(NamedTuple):
    """The regions of a batch of images (B images, R regions, D features)."""

    features: np.ndarray  # (B, R, D) float32
    boxes: np.ndarray  # (B, R, 4) float32, in [0, 1]
    mask: np.ndarray  # (B, R) bool, true where there is a region


def write_store(
    path: Path,
    image_ids: Sequence[str],
    rows: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    regions: int,
    feature_size: int,
    dtype: str = "float16",
    source: str = "",
) -> None:
    """Write one store, row by row, in constant memory.

    `rows` yields, in the order of `image_ids`, features (n, feature_size) and boxes (n, 4) in [0, 1] with
    1 <= n <= regions. The manifest is written last: a folder without one is unfinished and is refused by
    `FeatureStore`.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").unlink(missing_ok=True)
    count = len(image_ids)
    shapes = {"features": ((count, regions, feature_size), dtype), "boxes": ((count, regions, 4), "float32")}
    arrays = {
        name: np.lib.format.open_memmap(path / f"{name}.npy", mode="w+", dtype=kind, shape=shape)
        for name, (shape, kind) in shapes.items()
    }
    num_regions = np.zeros(count, np.int32)
    written = 0
    for index, (features, boxes) in enumerate(rows):
        n = len(features)
        if not 1 <= n <= regions:
            raise StoreError(f"Image {image_ids[index]} has {n} regions; this store holds 1 to {regions}.")
        arrays["features"][index, :n] = features
        arrays["boxes"][index, :n] = boxes
        num_regions[index] = n
        written += 1
    if written != count:
        raise StoreError(f"{count} images were announced and {written} came.")
    for array in arrays.values():
        array.flush()
    np.save(path / "num_regions.npy", num_regions)
    (path / "image_ids.json").write_text(json.dumps(list(image_ids)), encoding="utf-8")
    manifest = {
        "format": FORMAT,
        "images": count,
        "regions": regions,
        "feature_size": feature_size,
        "dtype": dtype,
        "source": source,
    }
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


class FeatureStore:
    """One store opened for reading. `rows` maps an image id to its row."""

    def __init__(self, path: Path) -> None:
        manifest_file = path / "manifest.json"
        try:
            self.manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
            if self.manifest["format"] != FORMAT:
                raise StoreError(
                    f"{manifest_file} is of format {self.manifest['format']}; this code reads {FORMAT}."
                )
            image_ids = json.loads((path / "image_ids.json").read_text(encoding="utf-8"))
            self.features = np.load(path / "features.npy", mmap_mode="r")
            self.boxes = np.load(path / "boxes.npy", mmap_mode="r")
            self.num_regions = np.load(path / "num_regions.npy")
        except FileNotFoundError as error:
            raise StoreError(
                f"{path} is not a finished feature store: {Path(error.filename).name} is missing. "
                "Delete the folder and write it again."
            ) from None
        except StoreError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"The feature store {path} is damaged ({error}). Write it again.") from None
        rows = {len(self.features), len(self.boxes), len(self.num_regions), len(image_ids)}
        if len(rows) != 1:
            raise StoreError(
                f"The feature store {path} is damaged: its arrays differ in length. Write it again."
            )
        self.path = path
        self.rows: dict[str, int] = {image_id: row for row, image_id in enumerate(image_ids)}


class FeatureStores:
    """All stores below one folder, read as one (train2014 and val2014, say)."""

    def __init__(self, folder: Path) -> None:
        self.stores = [FeatureStore(manifest.parent) for manifest in sorted(folder.glob("*/manifest.json"))]
        if not self.stores:
            raise StoreError(f"There is no feature store below {folder}.")
        sizes = {store.manifest["feature_size"] for store in self.stores}
        if len(sizes) != 1:
            raise StoreError(f"The stores below {folder} differ in feature size: {sorted(sizes)}.")
        self.feature_size: int = sizes.pop()
        self.max_regions: int = max(store.manifest["regions"] for store in self.stores)
        self._where = {
            image_id: (number, row)
            for number, store in enumerate(self.stores)
            for image_id, row in store.rows.items()
        }

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._where

    def locate(self, image_ids: Iterable[str]) -> np.ndarray:
        """(store, row) of each image, shape (images, 2); KeyError for an unknown image."""
        return np.array([self._where[image_id] for image_id in image_ids], np.int64).reshape(-1, 2)

    def read(self, places: np.ndarray) -> Regions:
        """The regions of the images at `places` (B, 2, from `locate`), padded to the most in the batch."""
        counts = np.array([self.stores[s].num_regions[r] for s, r in places])
        size = int(counts.max())
        features = np.zeros((len(places), size, self.feature_size), np.float32)
        boxes = np.zeros((len(places), size, 4), np.float32)
        for number in np.unique(places[:, 0]):
            here = places[:, 0] == number
            rows = places[here, 1]
            store = self.stores[number]
            width = min(size, store.features.shape[1])
            features[here, :width] = store.features[rows, :width]
            boxes[here, :width] = store.boxes[rows, :width]
        return Regions(features, boxes, np.arange(size) < counts[:, None])
