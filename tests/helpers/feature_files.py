"""Small feature files in LXMERT's format, and a decoder of them that shares no code with the project."""

from __future__ import annotations

import base64
import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIELDS = [
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
    "features",
]  # fmt: skip
SIX_FIELDS = ["image_id", "image_w", "image_h", "num_boxes", "boxes", "features"]
WIDTH, HEIGHT, SIZE = 64, 48, 8


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def image(number: int, boxes: int = 3, size: int = SIZE) -> dict[str, Any]:
    """One image's values, under the names of the columns; `size` is that of a region's features."""
    rng = np.random.default_rng(number)
    corners = np.sort(rng.random((boxes, 2, 2), dtype=np.float32), axis=1) * np.float32([WIDTH, HEIGHT])
    return {
        "img_id": f"COCO_val2014_{number:012d}",
        "img_h": HEIGHT,
        "img_w": WIDTH,
        "objects_id": rng.integers(0, 1600, boxes),
        "objects_conf": rng.random(boxes, dtype=np.float32),
        "attrs_id": rng.integers(0, 400, boxes),
        "attrs_conf": rng.random(boxes, dtype=np.float32),
        "num_boxes": boxes,
        "boxes": corners.reshape(boxes, 4),
        "features": np.maximum(rng.normal(size=(boxes, size)), 0).astype(np.float32),
    }


def six_columns(values: dict[str, Any], number: int, **other: Any) -> bytes:
    """The row of an image in a file of six columns, which numbers it."""
    renamed = {"image_id": number, "image_w": values["img_w"], "image_h": values["img_h"]}
    return line(values, SIX_FIELDS, **renamed | other)


def line(values: dict[str, Any], fields: list[str] = FIELDS, **other: Any) -> bytes:
    """The row of an image, some columns replaced."""
    columns = [(values | other)[name] for name in fields]
    return "\t".join(encode(c) if isinstance(c, np.ndarray) else str(c) for c in columns).encode() + b"\n"


def write_tsv(path: Path, count: int) -> list[dict[str, Any]]:
    """A file of images with one to four boxes."""
    images = [image(number, 1 + number % 4) for number in range(count)]
    path.write_bytes(b"".join(map(line, images)))
    return images


def write_npz(folder: Path, values: dict[str, Any], **other: Any) -> None:
    """An image as an .npz file of its own, some arrays replaced."""
    arrays = {"x": values["features"], "bbox": values["boxes"], "image_w": WIDTH, "image_h": HEIGHT}
    np.savez(folder / f"{values['img_id']}.npz", **arrays | other)


def read_tsv(path: Path) -> list[dict[str, Any]]:
    """The rows as the csv module, the standard base64 decoder and numpy see them."""
    csv.field_size_limit(sys.maxsize)
    rows = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, FIELDS, delimiter="\t"):
            count = int(row["num_boxes"])
            for name, kind, width in (
                ("objects_id", np.int64, 1),
                ("objects_conf", np.float32, 1),
                ("attrs_id", np.int64, 1),
                ("attrs_conf", np.float32, 1),
                ("boxes", np.float32, 4),
                ("features", np.float32, -1),
            ):
                row[name] = np.frombuffer(base64.b64decode(row[name]), kind).reshape(count, width)
            rows.append(row)
    return rows
