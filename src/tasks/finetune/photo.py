"""A photo that is asked about: its regions, from the feature store or found as those there were."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from common.errors import CheckpointError, DataError
from common.files import LONGEST_NAME, nfc
from common.words import counted
from regions.extract import Extractor, load_extractor
from tasks.prepare.regions import find_weights
from vqadata.convert import relative_boxes
from vqadata.feature_files import RowFault
from vqadata.feature_layout import Layout
from vqadata.features import FeatureStores, write_store
from vqadata.folder import DataFolder

EXAMPLES = 3  # of image ids
DETECTOR, DETECTOR_SIZE = "detector", 2048  # numbers of a region
# What found the regions in LXMERT's published files, which do not say so.
PUBLISHED = {"kind": DETECTOR, "recipe": "lxmert"}


class Found(NamedTuple):
    """An image whose regions are at hand."""

    image_id: str
    stores: FeatureStores  # which have it
    where: str  # that it is from, to be said behind its id


class Images:
    """The images that can be asked about: those of a data set's stores, and photos, for a model of this size.

    weights: those of the detector, a file or folder. What takes long to open is kept for the next image.
    """

    def __init__(self, folder: DataFolder, size: int, weights: Path | None = None) -> None:
        self._folder, self._size, self._weights = folder, size, weights
        self._extractor: Extractor | None = None

    @contextmanager
    def find(self, image: str | Path) -> Iterator[Found]:
        """The regions of an image, named by its id or its file; those of a photo are gone after the block.

        If the data set's stores have an image of the photo's name, they are that one's. Else they are found
        by the extractor that made the stores, in the store's type, so that they are what training would have
        read. DataError or CheckpointError says what is missing.
        """
        photo = Path(image)
        is_photo = len(photo.name) <= LONGEST_NAME and photo.is_file()
        names = [nfc(image)] if isinstance(image, str) else []
        names += [nfc(photo.stem)] if is_photo else []
        known = [name for name in names if self._manifests and name in self._stores]
        if known:
            yield Found(known[0], self._stores, f" of {self._folder.name}")
        elif is_photo:
            with self._described(photo) as found:
                yield found
        elif isinstance(image, str):
            ids = list(chain.from_iterable(store.rows for store in self._stores.stores))
            raise DataError(
                f"There is no image {image} below {self._folder.features}, which has "
                f"{counted(len(ids), 'image')}, such as {', '.join(ids[:EXAMPLES])}, nor a file of that name."
            )
        else:
            raise DataError(f"There is no photo {photo}.")

    @contextmanager
    def _described(self, photo: Path) -> Iterator[Found]:
        """A photo that the stores do not have."""
        if self._extractor is None:
            self._extractor = find_extractor(photo, self._folder, self._size, self._weights)
        regions = self._extractor.describe(photo)
        try:
            boxes = relative_boxes(regions.boxes, regions.width, regions.height)
        except RowFault as fault:
            raise DataError(f"{photo}: {fault}.") from None
        dtype = self._manifests[0]["dtype"] if self._manifests else "float16"
        layout, row = Layout(*regions.features.shape, dtype), (regions.features, boxes)
        with TemporaryDirectory() as scratch:
            write_store(Path(scratch) / "photo", [nfc(photo.stem)], [row], layout)
            where = f", {counted(len(boxes), 'region')} found in {photo}"
            yield Found(nfc(photo.stem), FeatureStores(Path(scratch)), where)

    @cached_property
    def _manifests(self) -> list[dict[str, Any]]:
        return self._folder.manifests()

    @cached_property
    def _stores(self) -> FeatureStores:
        return self._folder.open_features()


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
