"""`features`: region features to a feature store."""

import argparse
import re
from functools import partial
from pathlib import Path

from common.errors import StoreError
from tasks.prepare.command import Command, flag, path_flag, whole_number
from vqadata.convert import Options, convert
from vqadata.feature_files import NpzSource, TsvSource
from vqadata.folder import DataFolder

DTYPES = {"fp16": "float16", "fp32": "float32"}


def run(args: argparse.Namespace) -> int:
    """Convert each file to a store of its own. StoreError, with a sentence, for what cannot be converted."""
    if args.image_set and len(args.files) > 1:
        raise StoreError("--image-set names one store: give one file with it.")
    data = DataFolder(args.data, args.dataset)
    for file in args.files:
        folder = data.store(args.image_set or image_set(file))
        try:
            done = convert(
                NpzSource(file) if file.is_dir() else TsvSource(file),
                folder,
                Options(args.max_regions, DTYPES[args.dtype], args.with_detections),
                max_faults=args.max_faults,
                progress=not args.quiet,
            )
        except OSError as error:
            raise StoreError(f"{error.filename or file}: {error.strerror or error}.") from None
        before = f", {done.resumed_at:,} of them by an earlier run" if done.resumed_at else ""
        print(f"{folder}: {done.images:,} images{before}")
        if done.faults:
            rows = "1 faulty row was" if len(done.faults) == 1 else f"{len(done.faults)} faulty rows were"
            print(f"{rows} left out:")
            print("".join(f"  {fault}\n" for fault in done.faults), end="")
    return 0


def image_set(file: Path) -> str:
    """The name of a file's store: train2014_obj36.tsv -> train2014."""
    return re.sub(r"(_obj\d+)?(\.tsv|\.zip)*$", "", file.name) or file.stem


COMMAND = Command(
    run,
    "region features -> a feature store",
    """\
Convert region features to a store that training reads at once and in little
memory.

  bash run/vqa_prepare.bash features train2014_obj36.tsv val2014_obj36.tsv

writes data/vqav2/features/train2014/ and .../val2014/. A file may be LXMERT's
.tsv, the .zip it comes in (read without unpacking), or a folder with one .npz
per image (arrays x or features, bbox or boxes in pixels, image_w, image_h; the
file's name is the image id). VQA-CP v2 uses the features of VQA v2. Rows are
converted in one pass in constant memory; after an interruption the same command
goes on where it was.""",
    {
        "files": path_flag(".tsv, .zip or folder of .npz", "FILE", nargs="+"),
        "--dataset": flag("folder below --data (vqav2)", default="vqav2"),
        "--image-set": flag("name of the store; default: from the file's name, train2014 say"),
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
