"""Speed and memory of converting and loading region features.

    bash run/data_bench.bash            5,000 rows, 4 GB of disk: two minutes
    bash run/data_bench.bash --quick    300 rows: a few seconds
    bash run/data_bench.bash --readme README.md

Files go to a scratch folder, which is deleted afterwards. run/BENCHMARKS.md
says what is measured and how; with --readme its tables are replaced, and the
README gets a sentence.
"""

import argparse
import base64
import csv
import itertools
import os
import resource
import shutil
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from common.cli import Parser, run_command
from common.errors import StoreError
from common.files import write_errors_explained, write_json
from common.hardware import peak_resident
from common.markdown import aligned, check_pages, table, write_pages
from tasks.bench.memory import apart
from vqadata.convert import Options, convert
from vqadata.dataset import VqaDataset
from vqadata.encoded import Questions
from vqadata.feature_files import COLUMNS, TsvSource
from vqadata.features import FeatureStores

BATCH = 32
ANSWERS = 3129
TOKENS = 20
WIDTH, HEIGHT = 640, 480
MB = 1e6

# Columns that hold arrays, in base64.
ARRAYS = dict.fromkeys(("objects_id", "attrs_id"), np.int64)
ARRAYS |= dict.fromkeys(("objects_conf", "attrs_conf", "boxes", "features"), np.float32)

Figures = dict[str, float]


def write_random_tsv(path: Path, rows: int, boxes: int, size: int) -> None:
    """A feature file as LXMERT's, of random images."""
    rng = np.random.default_rng(0)

    def encode(array: np.ndarray) -> bytes:
        return base64.b64encode(array.tobytes())

    with path.open("wb") as file:
        for number in tqdm(range(rows), desc="writing the feature file", unit="row", leave=False):
            corners = np.sort(rng.random((boxes, 2, 2), dtype=np.float32), axis=1)
            columns = [
                b"COCO_val2014_%012d" % number,
                b"%d" % HEIGHT,
                b"%d" % WIDTH,
                encode(rng.integers(0, 1600, boxes)),
                encode(rng.random(boxes, dtype=np.float32)),
                encode(rng.integers(0, 400, boxes)),
                encode(rng.random(boxes, dtype=np.float32)),
                b"%d" % boxes,
                encode((corners * np.float32([WIDTH, HEIGHT])).reshape(boxes, 4)),
                encode(np.maximum(rng.standard_normal((boxes, size), dtype=np.float32), 0)),
            ]
            file.write(b"\t".join(columns) + b"\n")
        file.flush()
        os.fsync(file.fileno())  # or the system would write it during the first measurements


def plain(path: Path) -> int:
    """Read every row into a dictionary of arrays; return how many there are."""
    csv.field_size_limit(sys.maxsize)
    images = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, COLUMNS, delimiter="\t"):
            image: dict[str, Any] = dict(row)
            for name in ("img_h", "img_w", "num_boxes"):
                image[name] = int(row[name])
            for name, dtype in ARRAYS.items():
                array = np.frombuffer(base64.b64decode(row[name]), dtype)
                image[name] = array.reshape(image["num_boxes"], -1)
            images.append(image)
    return len(images)


def ours(path: Path, store: Path, boxes: int) -> int:
    """Convert the file to a finished store on the disk; return how many rows it has."""
    return convert(TsvSource(path), store, Options(regions=boxes), progress=False).images


def measure_conversion(function: Callable[..., int], path: Path, *arguments: Any) -> Figures:
    """Time one of the two. The peak is of the whole process, what it imported included."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):  # into the operating system's cache, which may have dropped it
            pass
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    rows = function(path, *arguments)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # in all threads
    return {"rows/s": rows / seconds, "CPU ms/row": 1e3 * used / rows, "peak MB": peak_resident() / MB}


def disk(path: Path, size: int) -> Figures:
    """Writing `size` bytes and waiting until they are on the disk."""
    block = os.urandom(1 << 24)
    start = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(-(-size // len(block))):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = file.tell()
    seconds = time.perf_counter() - start
    path.unlink()
    return {"MB/s": written / MB / seconds}


def measure_loading(folder: Path, seconds: float) -> Figures:
    """Opening the store, the first batch, then random batches, of features alone and of whole examples."""
    process = psutil.Process()
    before, start = process.memory_info().rss, time.perf_counter()
    stores = FeatureStores(folder)
    image_ids = list(stores.stores[0].rows)
    places = stores.locate(image_ids)
    batch = stores.read(places[:BATCH])
    opened = time.perf_counter() - start
    growth = process.memory_info().rss - before - sum(array.nbytes for array in batch)
    for first in range(0, len(places), BATCH):  # into the operating system's cache
        stores.read(places[first : first + BATCH])
    rng = np.random.default_rng(0)
    features = _rate(lambda chosen: stores.read(places[chosen]), len(places), rng, seconds)
    dataset = _examples(image_ids, stores, rng)
    examples = _rate(dataset.__getitems__, len(dataset), rng, seconds)
    later = process.memory_info().rss - before
    many = [image_ids[index] for index in rng.integers(0, len(image_ids), 650_000)]
    start = time.perf_counter()
    stores.locate(many)
    located = time.perf_counter() - start
    return {
        "open and first batch s": opened,
        "growth beyond the batch MB": growth / MB,
        "growth after all batches MB": later / MB,
        "features of random batches, examples/s": features,
        "whole random batches, examples/s": examples,
        "locating 650,000 images s": located,
    }


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All figures: medians over the repeats."""
    small, large = scratch / "small_obj36.tsv", scratch / "large_obj36.tsv"
    write_random_tsv(large, args.rows, args.boxes, args.size)
    with large.open("rb") as text, small.open("wb") as head:
        head.writelines(itertools.islice(text, args.few))
    store = scratch / "features" / "store"
    repeats: dict[str, list[Figures]] = {"plain": [], "ours": [], "ours, few rows": [], "disk": []}
    for _ in tqdm(range(args.repeats), desc="converting", unit="repeat", leave=False):
        repeats["plain"].append(apart(measure_conversion, plain, small))
        for name, file in (("ours, few rows", small), ("ours", large)):
            shutil.rmtree(store, ignore_errors=True)
            repeats[name].append(apart(measure_conversion, ours, file, store, args.boxes))
        size = sum(file.stat().st_size for file in store.iterdir())
        repeats["disk"].append(apart(disk, scratch / "disk", size))
    figures: dict[str, Any] = {
        name: {key: statistics.median(repeat[key] for repeat in measured) for key in measured[0]}
        for name, measured in repeats.items()
    }
    figures["ratio"] = figures["ours"]["rows/s"] / figures["plain"]["rows/s"]
    figures["ratio, same rows"] = figures["ours, few rows"]["rows/s"] / figures["plain"]["rows/s"]
    figures["disk"]["rows/s"] = figures["disk"]["MB/s"] * MB / (size / args.rows)
    figures["loading"] = apart(measure_loading, store.parent, args.seconds)
    setting = {key: getattr(args, key) for key in ("rows", "few", "boxes", "size", "repeats")}
    return {"setting": setting | {"cores": len(os.sched_getaffinity(0))}, **figures}


def summary(figures: dict[str, Any], table: Callable[[list[list[str]]], str]) -> str:
    """The figures as two tables, of converting and of loading, and what they were measured with."""
    setting, disk = figures["setting"], figures["disk"]
    converting = [["conversion", "rows", "rows/s", "CPU ms per row", "peak MB"]]
    for name, rows in (("plain", "few"), ("ours, few rows", "few"), ("ours", "rows")):
        rate, cpu, peak = figures[name].values()
        cells = [f"{setting[rows]:,}", f"{rate:,.0f}", f"{cpu:.2f}", f"{peak:,.0f}"]
        converting.append([name.partition(",")[0], *cells])
    loading = [[f"loading, batches of {BATCH}", ""]]
    loading += [[name, f"{value:,.{3 if value < 10 else 0}f}"] for name, value in figures["loading"].items()]
    note = (
        f"Ours is {figures['ratio']:.1f} times as fast as the plain way, {figures['ratio, same rows']:.1f} "
        f"times for the same rows. {setting['boxes']} x {setting['size']} features per image, "
        f"{setting['cores']} cores, repeats: {setting['repeats']}, medians; the "
        f"disk took {disk['rows/s']:,.0f} rows/s ({disk['MB/s']:,.0f} MB/s)."
    )
    return "\n\n".join([table(converting), table(loading), textwrap.fill(note, 79)])


def sentence(figures: dict[str, Any]) -> str:
    """What the README says."""
    ours, plain = (figures[name]["rows/s"] for name in ("ours", "plain"))
    loading = figures["loading"]["whole random batches, examples/s"]
    return (
        f"{figures['setting']['cores']} cores convert {ours:,.0f} images per second, the plain way "
        f"{plain:,.0f}; random batches load at {loading:,.0f} examples per second "
        "([run/BENCHMARKS.md](run/BENCHMARKS.md))."
    )


def _rate(read: Callable[[np.ndarray], Any], count: int, rng: np.random.Generator, seconds: float) -> float:
    """Examples a second in random batches."""
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        read(rng.integers(0, count, BATCH))
        done += BATCH
    return done / (time.perf_counter() - start)


def _examples(image_ids: Sequence[str], stores: FeatureStores, rng: np.random.Generator) -> VqaDataset:
    """A question about each image, with three answers."""
    answers = [str(number) for number in range(ANSWERS)]
    labels = rng.choice(answers, (len(image_ids), 3)).tolist()
    records = [
        {"question_id": number, "img_id": image_id, "sent": "", "label": dict.fromkeys(chosen, 0.3)}
        for number, (image_id, chosen) in enumerate(zip(image_ids, labels, strict=True))
    ]
    token_ids = rng.integers(1, 30_000, (len(records), TOKENS))
    questions = Questions.of(records, token_ids, rng.integers(6, TOKENS + 1, len(records)))
    return VqaDataset(questions, stores, answers)


def _check_free(scratch: Path, args: argparse.Namespace) -> None:
    """StoreError if the files will not fit: base64 of fp32, a store in fp16, and as much for the disk."""
    numbers = args.boxes * args.size
    needed = args.rows * numbers * (4 * 4 / 3 + 2 + 2) + args.few * numbers * 4 * 4 / 3
    free = shutil.disk_usage(scratch).free
    if free < 1.05 * needed:
        raise StoreError(
            f"{args.rows} rows need {needed / 1e9:.1f} GB in {scratch}, and {free / 1e9:.1f} GB are free: "
            "choose fewer --rows or another --scratch."
        )


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="data_bench.bash", description=__doc__)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="300 rows, once")
    flag("--rows", type=int, default=5000, help="rows of the large file (default: %(default)s)")
    flag("--few", type=int, default=500, help="rows of the small one, read the plain way too (%(default)s)")
    flag("--boxes", type=int, default=36, help="boxes per image (default: %(default)s)")
    flag("--size", type=int, default=2048, help="features per box (default: %(default)s)")
    flag("--repeats", type=int, default=3, help="how often all is measured (default: %(default)s)")
    flag("--seconds", type=float, default=3, help="time for each loading rate (default: %(default)s)")
    flag("--scratch", type=Path, metavar="DIR", help="folder of the files (default: the temporary one)")
    flag("--json", type=Path, metavar="FILE", help="write the figures here too")
    flag("--readme", type=Path, metavar="FILE", help="write into this file and run/BENCHMARKS.md beside it")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.few, args.repeats, args.seconds = 300, 100, 1, 0.5
    if min(args.rows, args.few, args.boxes, args.size, args.repeats) < 1 or args.few > args.rows:
        parser.error("sizes must be at least 1, and --few at most --rows")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.readme:
        check_pages(args.readme, "data")
    with write_errors_explained(args.scratch or Path(tempfile.gettempdir())):
        if args.scratch:
            args.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="data-bench-", dir=args.scratch) as folder:
            _check_free(Path(folder), args)
            figures = measure(args, Path(folder))
    print(summary(figures, aligned))
    if args.json:
        write_json(args.json, figures)
    if args.readme:
        write_pages(args.readme, "data", sentence(figures), summary(figures, table))


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; the scratch folder is deleted"))
