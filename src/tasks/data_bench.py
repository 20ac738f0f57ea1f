"""Speed and memory of converting and loading region features, side by side with the plain way.

    bash run/data_bench.bash               # 5,000 rows of 36 x 2048, needs 3 GB of disk: about two minutes
    bash run/data_bench.bash --quick       # 300 rows: a few seconds
    bash run/data_bench.bash --readme README.md

A feature file of random rows in LXMERT's format is written to a scratch folder, which is deleted afterwards.

- plain: csv module, standard base64, a dictionary of numpy arrays a row, everything kept in memory: what the
  earlier implementation did at every start
- ours: the conversion to a store, which happens once, and loading from it

Each measurement has a process of its own, so that peak memory is its own; sides take turns, `--repeats`
times, and a figure is the median of the turns. The file is in the operating system's cache for both. The
conversion ends with everything on the disk; `disk` is how fast the same bytes could have been written at all.
"""

from __future__ import annotations

import argparse
import base64
import csv
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm import tqdm

from common.errors import RunError, StoreError
from report.results_table import replace_block
from vqadata.convert import Options, convert
from vqadata.dataset import VqaDataset
from vqadata.features import FeatureStores
from vqadata.tsv import COLUMNS, TsvSource

BATCH = 32
ANSWERS = 3129
TOKENS = 20
WIDTH, HEIGHT = 640, 480
MB = 1e6

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
        os.fsync(file.fileno())  # or the system would write it during the first turns


def plain(path: Path) -> Figures:
    """Every row as a dictionary of arrays."""
    csv.field_size_limit(sys.maxsize)
    _read_through(path)
    start, used = time.perf_counter(), _cpu()
    images = []
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, COLUMNS, delimiter="\t"):
            image: dict[str, Any] = dict(row)
            for name in ("img_h", "img_w", "num_boxes"):
                image[name] = int(row[name])
            count = image["num_boxes"]
            for name, shape, dtype in (
                ("objects_id", (count,), np.int64),
                ("objects_conf", (count,), np.float32),
                ("attrs_id", (count,), np.int64),
                ("attrs_conf", (count,), np.float32),
                ("boxes", (count, 4), np.float32),
                ("features", (count, -1), np.float32),
            ):
                image[name] = np.frombuffer(base64.b64decode(row[name]), dtype).reshape(shape)
            images.append(image)
    return _conversion(len(images), start, used)


def ours(path: Path, store: Path, boxes: int) -> Figures:
    """The conversion, from the file to a finished store on the disk."""
    _read_through(path)
    start, used = time.perf_counter(), _cpu()
    done = convert(TsvSource(path), store, Options(regions=boxes), progress=False)
    return _conversion(done.images, start, used)


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


def loading(folder: Path, seconds: float) -> Figures:
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
    """All figures: medians over the turns."""
    small, large = scratch / "small_obj36.tsv", scratch / "large_obj36.tsv"
    write_random_tsv(large, args.rows, args.boxes, args.size)
    _copy_head(large, small, args.few)
    store = scratch / "features" / "store"
    turns: dict[str, list[Figures]] = {"plain": [], "ours": [], "ours, few rows": [], "disk": []}
    for _ in tqdm(range(args.repeats), desc="taking turns", unit="turn", leave=False):
        turns["plain"].append(_apart(plain, small))
        for name, file in (("ours, few rows", small), ("ours", large)):
            shutil.rmtree(store, ignore_errors=True)
            turns[name].append(_apart(ours, file, store, args.boxes))
        size = sum(file.stat().st_size for file in store.iterdir())
        turns["disk"].append(_apart(disk, scratch / "disk", size))
    figures: dict[str, Any] = {
        name: {key: statistics.median(turn[key] for turn in taken) for key in taken[0]}
        for name, taken in turns.items()
    }
    figures["ratio"] = figures["ours"]["rows/s"] / figures["plain"]["rows/s"]
    figures["ratio, same rows"] = figures["ours, few rows"]["rows/s"] / figures["plain"]["rows/s"]
    figures["disk"]["rows/s"] = figures["disk"]["MB/s"] * MB / (size / args.rows)
    figures["loading"] = _apart(loading, store.parent, args.seconds)
    setting = {key: getattr(args, key) for key in ("rows", "few", "boxes", "size", "repeats")}
    return {"setting": setting | {"cores": len(os.sched_getaffinity(0))}, **figures}


def report(figures: dict[str, Any]) -> str:
    """The figures as text."""
    setting, loading, disk = figures["setting"], figures["loading"], figures["disk"]
    sides = [("plain", setting["few"]), ("ours, few rows", setting["few"]), ("ours", setting["rows"])]
    lines = [
        f"conversion, {setting['boxes']} x {setting['size']}: {setting['cores']} cores",
        *(
            f"  {name.split(',')[0]:8}{count:6,} rows{figures[name]['rows/s']:10,.0f} rows/s"
            f"{figures[name]['CPU ms/row']:8.2f} ms of CPU a row{figures[name]['peak MB']:8,.0f} MB at most"
            for name, count in sides
        ),
        f"  ratio {figures['ratio']:.1f}, for the same rows {figures['ratio, same rows']:.1f}; "
        f"this disk takes {disk['MB/s']:,.0f} MB/s, {disk['rows/s']:,.0f} rows/s",
        f"loading {setting['rows']:,} images, batches of {BATCH}",
        *(f"  {name:40}{value:10,.{3 if value < 10 else 0}f}" for name, value in loading.items()),
    ]
    return "\n".join(lines)


def markdown(figures: dict[str, Any]) -> str:
    """The figures as a table, and below it what they were measured with."""
    setting, loading = figures["setting"], figures["loading"]
    lines = ["| conversion | rows | rows/s | CPU ms a row | peak MB |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, side, count in (
        ("plain", "plain", setting["few"]),
        ("ours", "ours, few rows", setting["few"]),
        ("ours", "ours", setting["rows"]),
    ):
        rate, cpu, peak = (figures[side][key] for key in ("rows/s", "CPU ms/row", "peak MB"))
        lines.append(f"| {name} | {count:,} | {rate:,.0f} | {cpu:.2f} | {peak:,.0f} |")
    lines += ["", f"| loading, batches of {BATCH} | |", "| --- | ---: |"]
    lines += [f"| {name} | {value:,.{3 if value < 10 else 0}f} |" for name, value in loading.items()]
    note = (
        f"Ours is {figures['ratio']:.1f} times as fast as the plain way, {figures['ratio, same rows']:.1f} "
        f"times for the same rows. {setting['boxes']} x {setting['size']} features an image, "
        f"{setting['cores']} cores, median of {setting['repeats']} turns; the "
        f"disk took {figures['disk']['rows/s']:,.0f} rows/s ({figures['disk']['MB/s']:,.0f} MB/s)."
    )
    return "\n".join([*lines, "", note])


def _apart(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _read_through(path: Path) -> None:
    """Bring a file into the operating system's cache, which may have dropped it meanwhile."""
    block = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def _conversion(rows: int, start: float, used: float) -> Figures:
    """What was converted since `start`, when the process had used `used` seconds of CPU."""
    seconds, used = time.perf_counter() - start, _cpu() - used
    return {"rows/s": rows / seconds, "CPU ms/row": 1e3 * used / rows, "peak MB": _peak()}


def _cpu() -> float:
    """Seconds of CPU time this process has used, in all its threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _peak() -> float:
    """The most memory this process ever held, in MB, what it imported included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MB


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
    records = [
        {
            "question_id": number,
            "img_id": image_id,
            "sent": "",
            "label": dict.fromkeys(rng.choice(answers, 3).tolist(), 0.3),
        }
        for number, image_id in enumerate(image_ids)
    ]
    token_ids = rng.integers(1, 30_000, (len(records), TOKENS))
    return VqaDataset(records, token_ids, rng.integers(6, TOKENS + 1, len(records)), stores, answers)


def _copy_head(source: Path, target: Path, lines: int) -> None:
    with source.open("rb") as text, target.open("wb") as file:
        for _ in range(lines):
            file.write(text.readline())


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
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="300 rows, one turn")
    parser.add_argument("--rows", type=int, default=5000, help="rows of the large file (5000)")
    parser.add_argument(
        "--few", type=int, default=500, help="rows of the small file, also read the plain way (500)"
    )
    parser.add_argument("--boxes", type=int, default=36, help="boxes an image (36)")
    parser.add_argument("--size", type=int, default=2048, help="features a box (2048)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (3)")
    parser.add_argument("--seconds", type=float, default=3, help="time for each loading rate (3)")
    parser.add_argument(
        "--scratch", type=Path, help="folder for the files, default: the system's temporary one"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--readme", type=Path, help="file whose table between the data markers to replace")
    args = parser.parse_args(argv)
    if args.quick:
        args.rows, args.few, args.repeats, args.seconds = 300, 100, 1, 0.5
    if min(args.rows, args.few, args.boxes, args.size, args.repeats) < 1 or args.few > args.rows:
        parser.error("sizes must be at least 1, and --few at most --rows")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        if args.scratch:
            args.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="data-bench-", dir=args.scratch) as folder:
            _check_free(Path(folder), args)
            figures = measure(args, Path(folder))
        print(report(figures))
        if args.json:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        if args.readme:
            text = args.readme.read_text(encoding="utf-8")
            text = replace_block(text, markdown(figures), str(args.readme), "data")
            args.readme.write_text(text, encoding="utf-8")
    except (StoreError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
