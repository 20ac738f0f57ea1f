"""How start-up, memory and steps grow: with questions, images, gates and more.

    bash run/growth_bench.bash            650,000 questions: about four minutes
    bash run/growth_bench.bash --quick    small sizes: under a minute
    bash run/growth_bench.bash --page run/BENCHMARKS.md

Questions are the real ones, repeated with new ids, if --real has them, else
drawn. Files go to a scratch folder, which is deleted afterwards. Many GPUs and
network disks are computed, with the formula. run/BENCHMARKS.md says how it is
measured; with --page the tables there are replaced.
"""

import argparse
import os
import platform
import socket
import statistics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tqdm import tqdm
from transformers import LxmertConfig

from common.cli import Parser, run_command
from common.files import write_errors_explained, write_json
from common.markdown import aligned, check_block, table, write_block
from lxmert.tokens import load_tokenizer
from lxmert.units import list_units
from tasks.bench.drawn import drawn_questions, real_questions, write_dataset
from tasks.bench.memory import apart, process_peak
from tasks.bench.projection import FORMULAS, example_bytes, gradient_bytes, links_table, rings_table
from tasks.bench.variants import ANSWERS, Variant, build_variant
from tasks.finetune.data import load_splits
from tasks.finetune.model import vqa_loss
from tasks.finetune.setup import read_by
from tasks.finetune.strategies import STRATEGIES
from tasks.vqa_bench import make_batches, measure, trim, usual_device
from training.machine import Machine, hardware_name
from training.optim import make_optimizer
from vqadata.folder import DataFolder
from vqadata.scoring import restrict

VARIANTS = {
    strategy.name: Variant(strategy.name, strategy.name, policy="light") for strategy in STRATEGIES.values()
}
COMPARED = ("standard", "SpotTune_Block")
LAYERS = (3, 2, 2)
SCENES_MODEL = Path("snap/pretrained/lxmert-scenes")
MB = 1e6
BAR = "{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"

Figures = dict[str, float]


class Sizes(NamedTuple):
    """How large everything is that is measured."""

    data: tuple[tuple[int, int], ...]  # questions and images
    hidden: int
    batches: tuple[int, ...]  # the last but one is that of all that is not about batches
    layers: tuple[tuple[int, int, int], ...]
    steps: int
    repeats: int

    @property
    def batch(self) -> int:
        return self.batches[-2]


FULL = Sizes(
    ((5_600, 1_000), (5_600, 120_000), (57_038, 10_000), (650_000, 120_000)),
    *(256, (8, 16, 32, 64), ((1, 1, 1), (3, 2, 2), (6, 4, 4), (9, 5, 5)), 4, 3),
)
QUICK = Sizes(((5_600, 1_000),), 64, (8, 16), ((1, 1, 1), (3, 2, 2)), 1, 1)


class Job(NamedTuple):
    """One measurement. Those of steps are repeated, the others repeat themselves."""

    topic: str
    row: tuple[Any, ...]
    seconds: float  # about how long it takes, for the progress bar
    run: Callable[[], Figures]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    if args.page:
        check_block(args.page, "growth")
    sizes = QUICK if args.quick else FULL
    with ExitStack() as stack:
        stack.enter_context(write_errors_explained(args.scratch or Path(tempfile.gettempdir())))
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="growth-bench-", dir=args.scratch))
        figures = measure_all(sizes, Path(scratch), args.real)
    figures["gradient bytes"] = {name: gradient_bytes(VARIANTS[name]) for name in COMPARED}
    figures["assumed compute s"] = args.compute / 1e3
    print(summary(figures, aligned))
    if args.json:
        write_json(args.json, figures)
    if args.page:
        write_block(args.page, "growth", summary(figures, table))


def measure_all(sizes: Sizes, scratch: Path, real: Path) -> dict[str, Any]:
    """The figures of every job, medians over the repeats."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP warns of unused parameters that may come
    jobs = [*start_jobs(sizes, scratch, real), *step_jobs(sizes), *process_jobs(sizes)]
    figures: dict[str, Any] = {"start": [], "step": [], "processes": []}
    with tqdm(total=sum(job.seconds for job in jobs), ncols=79, bar_format=BAR) as bar:
        for job in jobs:
            bar.set_description_str(f"{job.topic} {' '.join(map(str, job.row))}"[:40])
            times = sizes.repeats if job.topic == "step" else 1
            measured = [job.run() for _ in range(times)]
            medians = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
            figures[job.topic].append({"row": job.row, **medians})
            bar.update(job.seconds)
    cores, questions = len(os.sched_getaffinity(0)), "VQA v2's, repeated" if real.is_dir() else "drawn"
    machine = f"{hardware_name(usual_device())}, {cores} cores, {torch.get_num_threads()} threads"
    machine += f", torch {torch.__version__}"
    return figures | {"setting": sizes._asdict() | {"machine": machine, "questions": questions}}


# --------------------------------------------------------------------------------------------- start-up


def start_jobs(sizes: Sizes, scratch: Path, real: Path) -> Iterator[Job]:
    """A data set is written, started on twice, and removed."""
    vocabulary = real.parent / "bert-base-uncased-vocab.txt"
    tokenizer = SCENES_MODEL
    if vocabulary.is_file():
        tokenizer = scratch / "tokenizer"
        tokenizer.mkdir()
        (tokenizer / "vocab.txt").symlink_to(vocabulary.resolve())
    words = [word for word in load_tokenizer(str(tokenizer)).get_vocab() if word.isalpha()]

    def run(count: int, images: int) -> Figures:
        pool = real_questions(real) if real.is_dir() else drawn_questions(sorted(words))
        with tempfile.TemporaryDirectory(dir=scratch) as data:
            write_dataset(DataFolder(Path(data), "drawn"), pool, count, images)
            first = apart(measure_start, Path(data), str(tokenizer))
            later = [apart(measure_start, Path(data), str(tokenizer)) for _ in range(sizes.repeats)]
            kept = sum(file.stat().st_size for file in Path(data).glob("drawn/encoded/*"))
        figures = {f"first {name}": figure for name, figure in first.items()}
        figures |= {f"second {name}": statistics.median(one[name] for one in later) for name in first}
        return figures | {"kept MB": kept / MB}

    for count, images in sizes.data:
        seconds = 12 + count / 12_000
        yield Job("start", (count, images), seconds, lambda count=count, images=images: run(count, images))


def measure_start(data: Path, tokenizer: str) -> Figures:
    """All that a run does with its data before its first step, in a process of its own.

    Seconds of that, and since the process began, imports included; MB that this added at most, and for good.
    """
    process = psutil.Process()
    with process_peak(torch.device("cpu")) as peak:
        begun, before = time.perf_counter(), process.memory_info().rss
        folder, flags = DataFolder(data, "drawn"), {"train": "train", "valid": "minival"}
        datasets = load_splits(folder, flags, load_tokenizer(tokenizer), folder.read_answers(), None)
        read_by(folder, flags, datasets)
        truth = folder.ground_truth(["minival"])
        truth = restrict(truth, datasets[-1].question_ids.tolist()) if truth else None
        datasets[0].__getitems__(range(min(32, len(datasets[0]))))
        seconds, whole = time.perf_counter() - begun, time.time() - process.create_time()
        stays = process.memory_info().rss - before
    return {"s": seconds, "whole s": whole, "peak MB": 1e3 * (peak() or float("nan")), "MB": stays / MB}


# ------------------------------------------------------------------------------------------------ steps


def step_jobs(sizes: Sizes) -> Iterator[Job]:
    """Training steps: over batches, over layers, and over strategies, whose gates differ in number."""
    settings = [(name, batch, LAYERS) for name, batch in product(COMPARED, sizes.batches)]
    settings += [(name, sizes.batch, layers) for name, layers in product(COMPARED, sizes.layers)]
    settings += [(name, sizes.batch, LAYERS) for name in VARIANTS]
    for name, batch, layers in dict.fromkeys(settings):
        config = config_of(sizes.hidden, layers)
        units = list_units(config, STRATEGIES[name].granularity) if VARIANTS[name].adaptive else []
        gates = sum(unit.width for unit in units)

        def run(name: str = name, batch: int = batch, config: LxmertConfig = config) -> Figures:
            device = usual_device()
            batches = make_batches(batch, sizes.steps, config, torch.Generator().manual_seed(0), device)
            figures = measure(VARIANTS[name], config, batches, 0, device)
            return {"examples/s": figures["train"], "ms": 1e3 * batch / figures["train"]}

        seconds = sizes.repeats * sizes.steps * batch * sum(layers) * sizes.hidden / 5e5
        yield Job("step", (name, gates, batch, "/".join(map(str, layers))), 1 + seconds, run)


def config_of(hidden: int, layers: tuple[int, int, int]) -> LxmertConfig:
    counts = dict(zip(("l_layers", "r_layers", "x_layers"), layers, strict=True))
    shape = {"hidden_size": hidden, "num_attention_heads": 4, "intermediate_size": 4 * hidden}
    return LxmertConfig(**shape, **counts, num_qa_labels=ANSWERS)


def process_jobs(sizes: Sizes) -> Iterator[Job]:
    """The same step by one process and by two, each with a batch and a thread of its own."""
    for name, processes in product(COMPARED, (1, 2)):

        def run(name: str = name, processes: int = processes) -> Figures:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            spawn, results = get_context("spawn"), []
            for rank in range(processes):
                result, send = spawn.Pipe(duplex=False)
                given = (send, rank, processes, port, name, sizes)
                spawn.Process(target=measure_rank, args=given, daemon=True).start()
                send.close()  # the process has its own end: once it is gone, so is the pipe
                results.append(result)
            seconds = max(result.recv() for result in results)
            return {"examples/s": processes * sizes.batch / seconds, "ms": 1e3 * seconds}

        yield Job("processes", (name, processes), 10.0, run)


def measure_rank(result: Connection, rank: int, processes: int, port: int, name: str, sizes: Sizes) -> None:
    """Send seconds a step, the median, from one of several processes as the launcher starts them on a CPU."""
    environment: dict[str, Any] = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    environment["OMP_NUM_THREADS"] = 1
    if processes > 1:
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {variable: str(value) for variable, value in environment.items()}
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine, config = Machine("fp32"), config_of(sizes.hidden, LAYERS)
    accelerator = machine.accelerator
    model = build_variant(VARIANTS[name], config)
    model, optimizer = accelerator.prepare(model, make_optimizer("adamw", model, 1e-5, 0.01))
    generator = torch.Generator().manual_seed(rank)
    seconds = []
    steps = sizes.steps * sizes.repeats
    for inputs, target in map(trim, make_batches(sizes.batch, steps, config, generator, machine.device)):
        accelerator.wait_for_everyone()
        begun = time.perf_counter()
        accelerator.backward(vqa_loss(model(**inputs)[0], target))
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - begun)
    accelerator.wait_for_everyone()
    result.send(statistics.median(seconds[1:]))  # the first is a warm-up
    result.close()
    os._exit(0)  # the destructors of a process group may wait for its other end for good


# ----------------------------------------------------------------------------------------------- tables


def summary(figures: dict[str, Any], table: Callable[[list[list[str]]], str]) -> str:
    """All figures: start-up, steps, processes, and what is computed, each with what it was measured with."""
    setting = figures["setting"]
    starts = [["questions", "images", "first s", "peak MB", "second s", "peak MB", "stays", "with imports s"]]
    for job in figures["start"]:
        cells = [f"{count:,}" for count in job["row"]]
        for name in ("first s", "first peak MB", "second s", "second peak MB", "second MB", "second whole s"):
            cells.append(f"{job[name]:,.{0 if 'MB' in name else 1}f}")
        starts.append(cells)
    steps = [["training step", "gates", "batch", "layers", "ms", "examples/s"]]
    for job in figures["step"]:
        steps.append([*map(str, job["row"]), f"{job['ms']:,.0f}", f"{job['examples/s']:,.0f}"])
    ranks = [["processes on the CPU, gloo", "processes", "ms", "examples/s", "of one"]]
    alone = {job["row"][0]: job["examples/s"] for job in figures["processes"] if job["row"][1] == 1}
    for job in figures["processes"]:
        cells = [*map(str, job["row"]), f"{job['ms']:,.0f}", f"{job['examples/s']:,.0f}"]
        ranks.append([*cells, f"{job['examples/s'] / alone[job['row'][0]]:.2f}x"])
    compute, batch = figures["assumed compute s"], 32
    gradients = {name: figures["gradient bytes"][name] for name in COMPARED}
    formulas = FORMULAS.format(compute=1e3 * compute, batch=batch, size=example_bytes())
    note = (
        f"{setting['machine']}, Python {platform.python_version()}. Questions: {setting['questions']}. "
        f"Steps: hidden size {setting['hidden']}, light policy, half of the gates tuned; processes: batch "
        f"{setting['batches'][-2]} and one thread each. Repeats: {setting['repeats']}, medians."
    )
    parts = [table(rows) for rows in (starts, steps, ranks)] + [textwrap.fill(note, 79)]
    parts += [table(rings_table(gradients, compute)), table(links_table(compute, batch, 650_000))]
    return "\n\n".join([*parts, textwrap.fill(formulas, 79)])


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="growth_bench.bash", description=__doc__)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="small sizes, once")
    real = Path("../shared/data/vqa_v2_subset")
    flag("--real", type=Path, default=real, metavar="DIR", help="files of VQA v2 (default: %(default)s)")
    flag("--compute", type=float, default=100, metavar="MS", help="assumed of a GPU's step (%(default)s)")
    flag("--scratch", type=Path, metavar="DIR", help="folder of the files (default: the temporary one)")
    flag("--json", type=Path, metavar="FILE", help="write the figures here too")
    flag("--page", type=Path, metavar="FILE", help="replace the tables of this page, run/BENCHMARKS.md say")
    args = parser.parse_args(argv)
    if not args.compute > 0:
        parser.error("--compute must be above 0 ms")
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; the scratch folder is deleted"))
