"""A feature store whose checksums fit again after a fault was put into it: the fault came with its source."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from vqadata.feature_layout import CHECKSUMS, MANIFEST, Layout, crc32, store_checksum


def reseal(store: Path) -> None:
    """Write the checksums of a store anew, of its rows and of the whole."""
    manifest = json.loads((store / MANIFEST).read_text())
    layout = Layout(**{field.name: manifest[field.name] for field in fields(Layout)})
    arrays = [np.load(store / f"{name}.npy") for name in layout.columns() if name != CHECKSUMS]
    rows = [crc32(array[row].tobytes() for array in arrays) for row in range(manifest["images"])]
    np.save(store / f"{CHECKSUMS}.npy", np.array(rows, np.uint32))
    manifest["checksum"] = store_checksum(store)
    (store / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
