"""A photo that is asked about: its regions, from the feature store or found as those there were."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from common.errors import CheckpointError, DataError
from common.files import nfc
from common.words import counted
from regions.extract import Extractor, load_extractor
from tasks.prepare.regions import find_weights
from vqadata.convert import relative_boxes
from vqadata.feature_files import RowFault
from vqadata.feature_layout import Layout
from vqadata.features import FeatureStores, write_store
from vqadata.folder import DataFolder

DETECTOR, DETECTOR_SIZE = "detector", 2048  # numbers of a region
# What found the regions in LXMERT's published files, which do not say so.
PUBLISHED = {"kind": DETECTOR, "recipe": "lxmert"}


class Found(NamedTuple):
    """An image whose regions are at hand."""

    image_id: str
    stores: FeatureStores  # which have it
    where: str  # that it is from, to be said behind its id


@contextmanager
def find_regions(photo: Path, folder: DataFolder, size: int, weights: Path | None) -> Iterator[Found]:
    """The regions of a photo, for a model that reads features of this size; they are gone after the block.

    If the data set's stores have an image of the photo's name, they are that one's. Else they are found by
    the extractor that made the stores, in the store's type, so that they are what training would have read.
    weights: those of the detector, a file or folder. DataError or CheckpointError says what is missing.
    """
    if not photo.is_file():
        raise DataError(f"There is no photo {photo}.")
    image_id, manifests = nfc(photo.stem), folder.manifests()
    if manifests and image_id in (stores := folder.open_features()):
        yield Found(image_id, stores, f" of {folder.name}")
        return
    extractor = find_extractor(photo, folder, size, weights)
    regions = extractor.describe(photo)
    try:
        boxes = relative_boxes(regions.boxes, regions.width, regions.height)
    except RowFault as fault:
        raise DataError(f"{photo}: {fault}.") from None
    dtype = manifests[0]["dtype"] if manifests else "float16"
    layout = Layout(*regions.features.shape, dtype)
    with TemporaryDirectory() as scratch:
        write_store(Path(scratch) / "photo", [image_id], [(regions.features, boxes)], layout)
        yield Found(
            image_id, FeatureStores(Path(scratch)), f", {counted(len(boxes), 'region')} found in {photo}"
        )


def find_extractor(photo: Path, folder: DataFolder, size: int, weights: Path | None) -> Extractor:
    """What found the regions of a data set's stores, to do the same with a photo."""
    record = recorded_extractor(photo, folder, size)
    kind, recipe, grid = record["kind"], record.get("recipe", ""), record.get("grid", 0)
    try:
        extractor = load_extractor(kind, find_weights(weights) if kind == DETECTOR else None, recipe, grid)
    except CheckpointError as error:
        raise CheckpointError(
            f"{photo} is not in {folder.features}: its regions are to be found as those there were. {error}"
        ) from None
    if record is not PUBLISHED and extractor.record != record:
        raise DataError(
            f"The regions in {folder.features} were found with other weights of the detector, so those of "
            f"{photo} would not be like them: name the same file with --weights."
        )
    return extractor


def recorded_extractor(photo: Path, folder: DataFolder, size: int) -> dict[str, Any]:
    """Which extractor the manifests of a data set's stores name; DataError if nobody can say."""
    records = [manifest.get("extractor") for manifest in folder.manifests()]
    named = {json.dumps(record, sort_keys=True) for record in records if record}
    if len(named) > 1:
        raise DataError(
            f"The stores below {folder.features} are of different extractors: none can be chosen for {photo}."
        )
    if named:
        return json.loads(named.pop())
    if size == DETECTOR_SIZE:
        return PUBLISHED
    raise DataError(
        f"{photo} is not in {folder.features}, whose features of size {size} were not found here: find its "
        "own with what found those, add them with `vqa_prepare features`, and name it with --image-id."
    )
