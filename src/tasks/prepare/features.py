"""`features`: region features to a feature store."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from common.errors import StoreError
from vqadata.convert import Conversion, Source, convert
from vqadata.folder import DataFolder
from vqadata.npz import NpzSource
from vqadata.tsv import TsvSource

DTYPES = {"fp16": "float16", "fp32": "float32"}

FEATURES_HELP = """\
Convert region features to a store that training reads at once and in little memory.

  bash run/vqa_prepare.bash features train2014_obj36.tsv val2014_obj36.tsv

writes data/vqav2/features/train2014/ and .../val2014/. A file may be LXMERT's .tsv, the .zip it comes in
(read without unpacking), or a folder with one .npz an image (arrays x or features, bbox or boxes in pixels,
image_w, image_h; the file's name is the image id). VQA-CP v2 uses the features of VQA v2. Rows are converted
in one pass in constant memory; after an interruption the same command goes on where it was."""


def add_command(commands: argparse._SubParsersAction) -> None:
    """Add `features`, whose `run` is a function of the parsed arguments to the exit code."""
    features = commands.add_parser(
        "features",
        help="region features -> a feature store",
        description=FEATURES_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    features.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".tsv, .zip or folder of .npz")
    features.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets (data)")
    features.add_argument("--dataset", default="vqav2", help="folder below it (vqav2)")
    features.add_argument(
        "--image-set", help="name of the store; default: from the file's name, train2014 say"
    )
    features.add_argument(
        "--dtype", choices=DTYPES, default="fp16", help="type of the stored features (fp16)"
    )
    features.add_argument("--max-regions", type=_positive, default=36, help="most boxes of an image (36)")
    features.add_argument(
        "--with-detections",
        action="store_true",
        help="keep the detector's object and attribute ids and scores",
    )
    features.add_argument(
        "--max-faults",
        type=_count,
        default=0,
        help="leave out up to so many faulty rows (0: stop at the first)",
    )
    features.add_argument("--quiet", action="store_true", help="no progress bar")
    features.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert each file to a store of its own. StoreError, with a sentence, for what cannot be converted."""
    if args.image_set and len(args.files) > 1:
        raise StoreError("--image-set names one store: give one file with it.")
    data = DataFolder(args.data, args.dataset)
    for file in args.files:
        folder = data.store(args.image_set or image_set(file))
        try:
            done = _convert(file, folder, args)
        except OSError as error:
            raise StoreError(f"{error.filename or file}: {error.strerror or error}.") from None
        before = f", {done.resumed_at:,} of them by an earlier run" if done.resumed_at else ""
        print(f"{folder}: {done.images:,} images{before}")
        if done.faults:
            rows = "1 faulty row was" if len(done.faults) == 1 else f"{len(done.faults)} faulty rows were"
            print(f"{rows} left out:")
            print("".join(f"  {fault}\n" for fault in done.faults), end="")
    return 0


def _convert(file: Path, folder: Path, args: argparse.Namespace) -> Conversion:
    source: Source = NpzSource(file) if file.is_dir() else TsvSource(file)
    return convert(
        source,
        folder,
        regions=args.max_regions,
        dtype=DTYPES[args.dtype],
        detections=args.with_detections,
        max_faults=args.max_faults,
        progress=not args.quiet,
    )


def image_set(file: Path) -> str:
    """The name of a file's store: train2014_obj36.tsv -> train2014."""
    return re.sub(r"(_obj\d+)?(\.tsv|\.zip)*$", "", file.name) or file.stem


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)
