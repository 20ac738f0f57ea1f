"""Speed and memory of the detector that turns photos into regions.

    bash run/regions_bench.bash                one photo to warm up, and three
    bash run/regions_bench.bash --photos 1

Weights and photo are random: the time depends on neither, but on the shape of
the photo, 900 x 600 here. Prints seconds a photo, the share of them in the last
layers (res5, which see each of the 300 proposals), and the peak memory of a
process that does nothing else.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common.cli import Parser, run_command
from common.files import write_json
from common.hardware import peak_resident
from common.markdown import aligned, check_block, table, write_block
from regions.extract import look_for_objects
from regions.network import Detector
from regions.selection import RECIPES
from regions.weights import SIZES
from tasks.bench.memory import apart

WIDTH, HEIGHT = 900, 600

Figures = dict[str, float]


class Stopwatch:
    """How long a module has taken, and how many examples it got, since `reset`."""

    def __init__(self, module: nn.Module) -> None:
        self.reset()
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def reset(self) -> None:
        self.seconds, self.examples = 0.0, 0

    def _start(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._begun = time.perf_counter()

    def _stop(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.seconds += time.perf_counter() - self._begun
        self.examples += len(inputs[0])


def random_detector() -> Detector:
    """One whose proposals are spread over the image: objectness differs from cell to cell."""
    torch.manual_seed(0)
    detector = Detector(SIZES)
    head = detector.proposal_generator["rpn_head"]
    nn.init.normal_(head.conv.weight, std=0.1)
    nn.init.normal_(head.objectness_logits.weight, std=1.0)
    nn.init.normal_(head.anchor_deltas.weight, std=1e-3)
    return detector.eval().requires_grad_(False)


def measure(photos: int) -> Figures:
    """Describe a random photo, once more than counts. The peak is of the whole process."""
    detector = random_detector()
    watch = Stopwatch(detector.roi_heads["res5"])
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    seconds, shares = [], []
    for _ in tqdm(range(photos + 1), desc="photos", leave=False):
        watch.reset()
        start = time.perf_counter()
        look_for_objects(pixels, detector, RECIPES["lxmert"])
        seconds.append(time.perf_counter() - start)
        shares.append(watch.seconds / seconds[-1])
    return {
        "seconds a photo": statistics.median(seconds[1:]),
        "share of res5": statistics.median(shares[1:]),
        "proposals": watch.examples,
        "peak memory GB": peak_resident() / 1e9,
        "threads": torch.get_num_threads(),
    }


def rows(figures: dict[str, Any]) -> list[list[str]]:
    """The figures as a table's rows."""
    return [
        ["detector, random weights", f"{WIDTH} x {HEIGHT}, {figures['threads']:.0f} threads"],
        ["seconds a photo", f"{figures['seconds a photo']:.1f}"],
        [f"of which in res5, on {figures['proposals']:.0f} proposals", f"{figures['share of res5']:.0%}"],
        ["peak memory GB", f"{figures['peak memory GB']:.2f}"],
    ]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="regions_bench.bash", description=__doc__)
    flag = parser.add_argument
    flag("--photos", type=int, default=3, help="how many are timed; the median counts (%(default)s)")
    flag("--json", type=Path, metavar="FILE", help="write the figures here too")
    flag("--readme", type=Path, metavar="FILE", help="write the table into this file, such as data/README.md")
    args = parser.parse_args(argv)
    if args.photos < 1:
        parser.error("--photos must be at least 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.readme:
        check_block(args.readme, "regions")
    figures = {"photos": args.photos, **apart(measure, args.photos)}
    print(aligned(rows(figures)))
    if args.json:
        write_json(args.json, figures)
    if args.readme:
        write_block(args.readme, "regions", table(rows(figures)))


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted"))
