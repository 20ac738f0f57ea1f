"""`regions`: a folder of photos to a feature store, by the detector of LXMERT's features or on a grid."""

import argparse
import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from common.errors import CheckpointError
from common.words import counted
from lxmert.sources import local_folder
from regions.extract import KINDS, LARGEST_GRID, Extractor, load_extractor
from regions.images import PhotoFault, list_photos
from regions.selection import RECIPES
from regions.weights import FILE, HUB, MISSING, NAMES
from tasks.prepare.command import Command, flag, path_flag, say, whole_number
from tasks.prepare.features import DTYPES
from vqadata.convert import Options, convert
from vqadata.feature_files import ImageRow, Item, RowFault
from vqadata.feature_layout import DETECTIONS, MANIFEST
from vqadata.folder import DataFolder

LOCAL = Path("snap/pretrained/frcnn-vg-finetuned")  # looked at before the hub
SECONDS = {"cpu": 24.0, "cuda": 0.1}  # for a photo, on one core and on a GPU: a rule of thumb
GRID = 6


class PhotoSource:
    """The photos of a folder as rows of features; positions are (photos,), in the order of their ids."""

    unit = "photo"
    left_out = 0  # whether a question is about a photo is not asked

    def __init__(self, folder: Path, photos: Mapping[str, Path], extractor: Extractor) -> None:
        self.name, self.size = folder.resolve().name, len(photos)
        self._photos, self._extractor = list(photos.items()), extractor

    def items(self, position: Sequence[int] | None) -> Iterator[Item]:
        """The photos from `position` on, or all."""
        (start,) = position or (0,)
        for number, (_, file) in enumerate(self._photos[start:], start + 1):
            yield Item(b"", str(file), (number,))

    def parse(self, item: Item, *, detections: bool = False) -> ImageRow:
        """What the extractor sees in a photo; RowFault says why nothing."""
        image_id, file = self._photos[item.position[0] - 1]
        if not image_id.strip() or not image_id.isprintable():
            raise RowFault("its name is empty or has unprintable characters in it")
        try:
            seen = self._extractor.describe(file)
        except PhotoFault as fault:
            raise RowFault(fault.reason) from None
        columns = (seen.classes, seen.scores, seen.attributes, seen.attribute_scores)
        found = dict(zip(DETECTIONS, columns, strict=True)) if detections else {}
        return ImageRow(image_id, seen.width, seen.height, seen.features, seen.boxes, found)


def run(args: argparse.Namespace) -> int:
    """Describe each photo. DataError or CheckpointError, with a sentence, for what cannot be done."""
    photos = list_photos(args.photos)
    folder = DataFolder(args.data, args.dataset).store(args.image_set or image_set(args.photos))
    detects = args.extractor == "detector"
    weights = find_weights(args.weights) if detects else None
    extractor = load_extractor(args.extractor, weights, args.recipe, args.grid)
    source = PhotoSource(args.photos, photos, extractor)
    if detects and not (folder / MANIFEST).exists():
        say(cost(len(photos), extractor.device))
    names = hashlib.sha256("\n".join(photos).encode("utf-8", "surrogateescape")).hexdigest()
    started = time.perf_counter()
    done = convert(
        source,
        folder,
        Options(extractor.regions, DTYPES[args.dtype], detects, extractor.feature_size),
        max_faults=len(photos),
        progress=not args.quiet,
        made_by={"photos": names, "extractor": extractor.record, **extractor.names},
    )
    seconds, new = time.perf_counter() - started, done.images - done.resumed_at
    before = f", {done.resumed_at:,} of them by an earlier run" if done.resumed_at else ""
    print(
        f"{folder}: {counted(done.images, 'photo')}{before}"
        + (f", {seconds / new:.2g} s each" if new else "")
    )
    if done.faults:
        left_out = counted(len(done.faults), "photo", "was")
        print(f"{left_out} left out:")
        for fault in done.faults:
            say(str(fault), indent=2)
        say("Mended, they can follow in a folder of their own: a data set may have several stores.")
    return 0


def find_weights(given: Path | None) -> Path:
    """Where the detector's weights are: as given, else in LOCAL, else downloaded from the hub.

    CheckpointError says what is needed if they are in neither.
    """
    if given and given.as_posix() != HUB:
        return given
    if LOCAL.is_dir():
        return LOCAL
    try:
        return local_folder(HUB, list(NAMES.values()), one_of=[FILE])
    except CheckpointError as error:
        raise CheckpointError(f"{error} {MISSING}") from None


def image_set(folder: Path) -> str:
    """The name of a folder's store: 'My photos' -> My_photos."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", folder.resolve().name).lstrip(".-") or "photos"


def cost(count: int, device: str) -> str:
    """What is said before hours may pass."""
    cores = len(os.sched_getaffinity(0))
    seconds = SECONDS[device] / (cores if device == "cpu" else 1)
    total = seconds * count
    units = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))
    unit, length = next((unit for unit in units if total >= 2 * unit[1]), units[-1])
    where = "a GPU" if device == "cuda" else "1 core" if cores == 1 else f"{cores} cores"
    return (
        f"{counted(count, 'photo', 'takes')} about {total / length:.0f} {unit}, at some {seconds:.2g} s each "
        f"on {where}; the bar shows what it really takes. It may be stopped: the same command goes on where "
        "it was."
    )


COMMAND = Command(
    run,
    "a folder of photos -> a feature store",
    f"""\
Describe photos by the regions that LXMERT reads, in a store beside those that
`features` makes.

  bash run/vqa_prepare.bash regions photos --dataset mine

writes data/mine/features/photos/; a photo's name without its ending is its
image id. The detector is the one of LXMERT's own features, a Faster R-CNN
trained on Visual Genome: released LXMERTs read what it sees, and nothing else.
Its weights ({FILE} of {HUB})
are taken from --weights, else from {LOCAL}/, else
from the Hugging Face hub. `--extractor grid` needs none: a model of your own
can be trained on pixels of a grid and of the whole photo. Photos that cannot be
read are named and left out. What is done is kept: after an interruption the
same command goes on where it was, and comes to the same bytes.""",
    {
        "photos": path_flag("folder of .jpg, .png, ...; folders in it are not looked into"),
        "--dataset": flag("folder below --data", required=True),
        "--weights": path_flag("the detector's weights, or the folder they are in", "FILE_OR_FOLDER"),
        "--recipe": flag("whose way to choose regions (lxmert)", choices=RECIPES, default="lxmert"),
        "--extractor": flag("what describes the photos (detector)", choices=KINDS, default="detector"),
        "--grid": flag(
            f"cells each way of --extractor grid, up to {LARGEST_GRID} ({GRID})",
            type=partial(whole_number, least=1),
            default=GRID,
            metavar="K",
        ),
        "--image-set": flag("name of the store; default: that of the folder"),
        "--dtype": flag("type of the stored features (fp16)", choices=DTYPES, default="fp16"),
        "--quiet": flag("no progress bar", action="store_true"),
    },
)
