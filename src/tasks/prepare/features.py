"""`features`: region features to a feature store."""

import argparse
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common.errors import StoreError
from common.words import counted
from tasks.prepare.command import Command, flag, path_flag, whole_number
from vqadata.convert import Options, convert
from vqadata.feature_files import NpzSource, TsvSource
from vqadata.folder import DataFolder
from vqadata.official import COCO_SETS

DTYPES = {"fp16": "float16", "fp32": "float32"}
BOXES = ("pixels", "relative")
COCO_DATA = ("vqav2", "vqacpv2")
COCO_NAME = re.compile(r"COCO_\w+_(\d{12})")


def run(args: argparse.Namespace) -> int:
    """Convert each file to a store of its own. StoreError, with a sentence, for what cannot be converted."""
    if args.image_set and len(args.files) > 1:
        raise StoreError("--image-set names one store: give one file with it.")
    data = DataFolder(args.data, args.dataset)
    for file in args.files:
        folder = data.store(args.image_set or image_set(file))
        options = Options(
            args.max_regions, DTYPES[args.dtype], args.with_detections, relative=args.boxes == "relative"
        )
        try:
            source = NpzSource(file) if file.is_dir() else TsvSource(file)
            if isinstance(source, TsvSource) and source.numbers_images:
                source = TsvSource(file, names_of(data, folder.name))
            done = convert(source, folder, options, max_faults=args.max_faults, progress=not args.quiet)
        except OSError as error:
            raise StoreError(f"{error.filename or file}: {error.strerror or error}.") from None
        before = f", {done.resumed_at:,} of them by an earlier run" if done.resumed_at else ""
        print(f"{folder}: {counted(done.images, 'image')}{before}")
        if source.left_out:
            print(f"{source.left_out:,} images that no question of {data.path} is about were left out")
        if done.faults:
            rows = "1 faulty row was" if len(done.faults) == 1 else f"{len(done.faults)} faulty rows were"
            print(f"{rows} left out:")
            print("".join(f"  {fault}\n" for fault in done.faults), end="")
    return 0


def names_of(data: DataFolder, store: str) -> Callable[[int], str | None] | None:
    """How a data set calls the images of a file that gives them COCO's numbers, or None: as the file does.

    By the name of the store, if that is one of COCO's sets of images; else as the questions call them: one
    file may hold images of training and of validation. StoreError if the questions are to be prepared before.
    """
    if store in COCO_SETS:
        return lambda number: f"COCO_{store}_{number:012d}"
    asked = {
        record["img_id"]
        for split in (data.splits() if data.exists() else ())
        for record in data.read_splits([split])[split]
    }
    names = {int(match[1]): match[0] for image in asked if (match := COCO_NAME.fullmatch(image))}
    if not names and data.name in COCO_DATA:
        raise StoreError(
            f"A file of six columns only numbers its images, and the questions of --dataset {data.name} say "
            "which set of COCO's each is in: prepare them first (`questions`)."
        )
    return names.get if names else None


def image_set(file: Path) -> str:
    """The name of a file's store: train2014_obj36.tsv -> train2014."""
    endings = r"(_obj\d+(-\d+)?|_resnet101_faster_rcnn_genome(_36)?)?(\.tsv|\.zip)*$"
    return re.sub(endings, "", file.name) or file.stem


COMMAND = Command(
    run,
    "region features -> a feature store",
    """\
Convert region features to a store that training reads at once and in little
memory.

  bash run/vqa_prepare.bash features train2014_obj36.tsv val2014_obj36.tsv

writes data/vqav2/features/train2014/ and .../val2014/. A file may be a .tsv of
LXMERT (10 columns), of VOLTA (13) or of bottom-up attention (6), the .zip it
comes in (read without unpacking), or a folder with one .npz per image (arrays x
or features, bbox or boxes in pixels, image_w, image_h; the file's name is the
image id). data/FEATURES.md has every field. VQA-CP v2 uses the features of
VQA v2. Rows are converted in one pass in constant memory; after an interruption
the same command goes on where it was.""",
    {
        "files": path_flag(".tsv, .zip or folder of .npz", "FILE", nargs="+"),
        "--dataset": flag("folder below --data (vqav2)", default="vqav2"),
        "--image-set": flag("name of the store; default: from the file's name, train2014 say"),
        "--boxes": flag(
            "whether boxes are in pixels, or relative: divided by width and height already (pixels)",
            choices=BOXES,
            default="pixels",
        ),
        "--dtype": flag("type of the stored features (fp16)", choices=DTYPES, default="fp16"),
        "--max-regions": flag("most boxes of an image (36)", type=partial(whole_number, least=1), default=36),
        "--with-detections": flag(
            "keep the detector's object and attribute ids and scores", action="store_true"
        ),
        "--max-faults": flag(
            "leave out up to so many faulty rows (0: stop at the first)", type=whole_number, default=0
        ),
        "--quiet": flag("no progress bar", action="store_true"),
    },
)
