"""Speed and memory of every strategy, of the naive way and of Hugging Face.

    bash run/vqa_bench.bash            base size, about an hour
    bash run/vqa_bench.bash --quick    small size, under two minutes
    bash run/vqa_bench.bash --steps 2 --repeats 3 --readme README.md
    bash run/vqa_bench.bash --batch 32,128,256 --steps 20    a table per size
    bash run/vqa_bench.bash --compile            rows with torch.compile, too
    bash run/vqa_bench.bash --from-json snap/bench.json --readme README.md

All variants run in this one process, on the same batches. run/BENCHMARKS.md
says what they are and how they are measured; with --readme its table is
replaced, and the README gets a picture and eight of the rows.
"""

import argparse
import gc
import platform
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LxmertConfig

from common.cli import Parser, run_command
from common.errors import UserError
from common.files import read_json, write_json
from common.markdown import aligned, check_pages, write_pages
from tasks.bench.memory import process_peak, tensor_peak
from tasks.bench.operations import as_on_a_gpu, count_operations, narrow
from tasks.bench.picture import draw_speed
from tasks.bench.table import FIGURES, HIGHLIGHTS, all_tables, highlights, medians
from tasks.bench.variants import ANSWERS, Variant, build_variant, earlier_arithmetic, list_variants
from tasks.finetune.model import vqa_loss
from tasks.finetune.policies import NETWORKS
from tasks.finetune.spec import ModelSpec
from training.machine import hardware_name
from training.optim import JointOptimizer, make_optimizer

Batch = tuple[dict[str, Tensor], Tensor]  # inputs of the model, target
Step = Callable[[int, dict[str, Tensor], Tensor], None]  # number of the step and a batch

# Word pieces per question, [CLS] and [SEP] included, of 57,038 questions of VQA v2 (mean 9.5).
LENGTHS = {
    5: 2, 6: 1480, 7: 6028, 8: 13222, 9: 11092, 10: 10522, 11: 6926, 12: 3460,
    13: 2010, 14: 1032, 15: 565, 16: 300, 17: 160, 18: 80, 19: 53, 20: 106,
}  # fmt: skip
PADDED = 20
REGIONS = 36
PICTURE = Path("visualizations/readme/performance.png")  # beside the README


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or read what was measured before, and show it."""
    args = parse_args(argv)
    if args.readme:
        check_pages(args.readme, "performance")
    if args.from_json:
        tables = read_measured(args.from_json)
    else:
        variants = select_variants(list_variants(args.policy, args.compile), args.only)
        if args.readme:
            require_highlights([variant.name for variant in variants])
        tables = [measure_all(variants, args, batch) for batch in args.batch]
    for measured in tables:
        print(f"batch {measured['arguments']['batch']}")
        print(aligned([line[:-1] for line in medians(measured)]))
    if not args.from_json:
        write_json(args.json, tables)
    if args.readme:
        first = tables[0]
        require_highlights([row["name"] for row in first["rows"]])
        draw_speed(first, args.readme.parent / PICTURE)
        block = f"![Speed in training and evaluation, relative to the references]({PICTURE})\n\n"
        write_pages(args.readme, "performance", block + highlights(first), all_tables(tables))


def read_measured(path: Path) -> list[dict[str, Any]]:
    """What an earlier benchmark wrote: a table per batch size, or one alone as it was written before."""
    content = read_json(path)
    tables = content if isinstance(content, list) else [content]
    fields, figures = {"hardware", "versions", "arguments", "rows"}, {"name", "against", *FIGURES}
    if not tables or not all(isinstance(table, dict) and table.keys() >= fields for table in tables):
        raise UserError(f"{path} was not written by this benchmark: it needs {', '.join(sorted(fields))}.")
    if not all(row.keys() >= figures for table in tables for row in table["rows"]):
        raise UserError(f"a row of {path} lacks one of {', '.join(sorted(figures))}: measure again.")
    return tables


def select_variants(variants: list[Variant], only: str) -> list[Variant]:
    """The variants whose name contains `only`, and those they are compared with."""
    selected = [variant for variant in variants if only in variant.name]
    if not selected:
        raise UserError(f"no variant's name contains {only!r}; one is {variants[-1].name!r}.")
    names = {name for variant in selected for name in (variant.name, *variant.against)}
    return [variant for variant in variants if variant.name in names]


def require_highlights(names: Sequence[str]) -> None:
    if missing := [name for name in HIGHLIGHTS if name not in names]:
        raise UserError(f"the README shows {', '.join(missing)} too: measure all variants, without --only.")


def measure_all(variants: Sequence[Variant], args: argparse.Namespace, batch: int) -> dict[str, Any]:
    """All figures of all variants at one batch size, and what they were measured with."""
    torch.manual_seed(args.seed)
    device = usual_device()
    config = LxmertConfig(
        hidden_size=args.hidden,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
        **dict(zip(("l_layers", "r_layers", "x_layers"), args.layers, strict=True)),
        visual_feat_dim=args.features,
        num_qa_labels=ANSWERS,
    )
    gc.freeze()  # what the libraries hold: a search for garbage need not look through it once a figure
    rows: list[dict[str, Any]] = [{"name": v.name, "against": v.against} for v in variants]
    title = f"batch {batch}"
    with tqdm(desc=title, total=len(variants) * (1 + args.repeats), unit="run", ncols=79) as bar:
        for repeat in range(args.repeats):
            generator = torch.Generator().manual_seed(args.seed + repeat)
            batches = make_batches(batch, args.steps, config, generator, device)
            for variant, row in zip(variants, rows, strict=True):
                bar.set_postfix_str(variant.name)
                for figure, value in measure(variant, config, batches, args.seed, device).items():
                    row.setdefault(figure, []).append(value)
                bar.update()
        for variant, row in zip(variants, rows, strict=True):
            bar.set_postfix_str(f"memory of {variant.name}")
            once = {"tensors": measure_memory(variant, config, batches, device)}
            once |= measure_operations(variant, config, batch, device)
            row |= {figure: [value] * args.repeats for figure, value in once.items()}  # always the same
            bar.update()
    return {
        "hardware": {
            "device": str(device),
            "processor": hardware_name(device),
            "threads": torch.get_num_threads(),
        },
        "versions": {"torch": str(torch.__version__), "transformers": version("transformers")},
        "python": platform.python_version(),
        "arguments": {name: str(value) for name, value in (vars(args) | {"batch": batch}).items()},
        "rows": rows,
    }


def measure(
    variant: Variant, config: LxmertConfig, batches: list[Batch], seed: int, device: torch.device
) -> dict[str, float | None]:
    """Build one variant, train and evaluate it for a few steps, and forget it.

    Returns examples per second in training and evaluation, and GB that the process grew by.
    """
    torch.manual_seed(seed)
    warm_up, *timed = (trim(batch, variant.length_step) for batch in batches)
    # Each length asks a GPU's driver for memory the first time; there a step costs too little to save on it.
    # A compiled model is compiled for each.
    before = [warm_up, *timed] if device.type == "cuda" or variant.compiled else [warm_up]
    with process_peak(device) as process, earlier_arithmetic(variant.dense):
        model = build_variant(variant, config).to(device)
        step = training_step(variant, model, device)
        for batch in before:
            step(0, *batch)
        train = examples_per_second(step, timed, device, variant.policy_every)
        model.eval()
        with torch.no_grad(), autocast(variant, device), torch.compiler.set_stance("force_eager"):
            for _ in range(2):  # the first touches of memory and kernels are not counted
                evaluation = examples_per_second(lambda _, inputs, __: model(**inputs), timed, device, 1)
    return {"train": train, "evaluation": evaluation, "process": process()}


def measure_memory(
    variant: Variant, config: LxmertConfig, batches: list[Batch], device: torch.device
) -> float | None:
    """Peak memory in GB of building one variant and of two steps of it, the second with the longest batch."""
    first, last = (trim(batch, variant.length_step) for batch in (batches[0], batches[-1]))
    gc.collect()
    with earlier_arithmetic(variant.dense), tensor_peak(device) as peak:
        step = training_step(variant, build_variant(variant, config).to(device), device)
        step(0, *first)  # makes the optimizer's state
        step(0, *last)
    return peak()


def measure_operations(
    variant: Variant, config: LxmertConfig, batch: int, device: torch.device
) -> dict[str, int | None]:
    """Operations of a training step, less its optimizer, and of an evaluation of one batch.

    Not known of a compiled model: the compiler fuses them as it likes.
    """
    if variant.compiled:
        return {"train_operations": None, "evaluation_operations": None}
    torch.manual_seed(0)
    config = narrow(config)
    generator = torch.Generator().manual_seed(0)
    inputs, target = trim(make_batches(batch, 1, config, generator, device)[0], 1)
    model = build_variant(variant, config).to(device).train()
    with earlier_arithmetic(variant.dense):
        with autocast(variant, device), as_on_a_gpu(device):
            train = count_operations(lambda: vqa_loss(model(**inputs)[0], target).backward())
        model.eval()
        with torch.no_grad(), autocast(variant, device), as_on_a_gpu(device):
            model(**inputs)  # low-rank copies without gates are merged at the first batch
            evaluation = count_operations(lambda: model(**inputs))
    return {"train_operations": train, "evaluation_operations": evaluation}


def training_step(variant: Variant, model: nn.Module, device: torch.device) -> Step:
    """A step of training, with its optimizer."""
    model.train()
    parts = [model.model] + ([model.policy] if variant.adaptive else [])
    optimizer = JointOptimizer([make_optimizer("adamw", part, 1e-5, 0.01) for part in parts])
    for group in optimizer.param_groups:
        group["fused"] = not variant.dense

    def step(number: int, inputs: dict[str, Tensor], target: Tensor) -> None:
        if variant.adaptive:
            model.train_policy = number % variant.policy_every == 0
        with autocast(variant, device):
            loss = vqa_loss(model(**inputs)[0], target)
        loss.backward()
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def examples_per_second(step: Step, batches: list[Batch], device: torch.device, period: int) -> float:
    """Run all batches on the clock, and if need be again, up to at least one whole period of steps."""
    synchronise(device)
    timed = batches * (-(-period // len(batches)))
    start = time.perf_counter()
    for number, batch in enumerate(timed, 1):
        step(number, *batch)
    synchronise(device)
    return sum(len(target) for _, target in timed) / (time.perf_counter() - start)


def make_batches(
    batch: int, steps: int, config: LxmertConfig, generator: torch.Generator, device: torch.device
) -> list[Batch]:
    """One to warm up and one per step, questions grouped by length as in training and padded to 20."""
    lengths = torch.tensor(list(LENGTHS))
    shares = torch.tensor([float(count) for count in LENGTHS.values()])
    pool = lengths[shares.multinomial(50 * batch, replacement=True, generator=generator)]
    grouped = pool.sort().values.view(50, batch)
    # On the clock, evenly from the short ones to the long ones; before it, a middling one to warm up.
    places = torch.cat([torch.tensor([0.5]), (torch.arange(steps) + 0.5) / steps])
    chosen = grouped[(places * 50).long()]
    batches = []
    for row in chosen:
        size = (batch, PADDED)
        inputs = {
            "input_ids": torch.randint(1000, config.vocab_size, size, generator=generator),
            "attention_mask": torch.arange(PADDED) < row[:, None],
            "visual_feats": torch.randn(batch, REGIONS, config.visual_feat_dim, generator=generator),
            "visual_pos": torch.rand(batch, REGIONS, 4, generator=generator),
            "visual_attention_mask": torch.ones(batch, REGIONS, dtype=torch.bool),
        }
        target = (torch.rand(batch, ANSWERS, generator=generator) < 0.001).float()
        batches.append(({name: t.to(device) for name, t in inputs.items()}, target.to(device)))
    return batches


def trim(batch: Batch, step: int | None = 1) -> Batch:
    """The batch cut to its longest question, and up to a multiple of `step`; as it is if that is None."""
    if step is None:
        return batch
    inputs, target = batch
    longest = int(inputs["attention_mask"].sum(1).max())
    cut = {name: inputs[name][:, : -(-longest // step) * step] for name in ("input_ids", "attention_mask")}
    return inputs | cut, target


def autocast(variant: Variant, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=variant.precision == "bf16")


def usual_device() -> torch.device:
    """What is measured: the first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def layer_counts(text: str) -> tuple[int, ...]:
    """ "9/5/5" -> (9, 5, 5)."""
    counts = tuple(int(part) for part in text.split("/") if part.isdecimal())
    if len(counts) != 3 or min(counts) < 1:
        raise argparse.ArgumentTypeError(f"three counts of layers look like 9/5/5, not {text!r}")
    return counts


def batch_sizes(text: str) -> list[int]:
    """ "32,128" -> [32, 128]."""
    return [positive(part) for part in text.split(",")]


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="vqa_bench.bash", description=__doc__)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="hidden size 256, 3/2/2 layers, once, two steps")
    flag("--batch", type=batch_sizes, default="32", metavar="N[,N...]", help="examples per step; default: 32")
    flag("--steps", type=positive, default=3, help="timed steps of a repeat (default: %(default)s)")
    flag("--repeats", type=positive, default=3, help="how often all is measured (default: %(default)s)")
    flag("--hidden", type=positive, default=768, help="hidden size (default: %(default)s)")
    flag("--heads", type=positive, default=12, help="attention heads (default: %(default)s)")
    flag("--features", type=positive, default=2048, help="features per region (default: %(default)s)")
    flag("--layers", type=layer_counts, default="9/5/5", help="language/vision/cross (default: %(default)s)")
    flag("--policy", choices=NETWORKS, default=ModelSpec.policy, help="the policy listed first")
    flag("--only", default="", metavar="TEXT", help="variants whose name contains this, and their references")
    flag("--compile", action="store_true", help="also what can be compiled, so (minutes a row)")
    flag("--seed", type=int, default=0, help="of batches and weights (default: %(default)s)")
    flag("--json", type=Path, default=Path("snap/bench.json"), metavar="FILE", help="default: %(default)s")
    flag("--from-json", type=Path, metavar="FILE", help="measure nothing, show what this file holds")
    flag("--readme", type=Path, metavar="FILE", help="write into this file and run/BENCHMARKS.md beside it")
    args = parser.parse_args(argv)
    if args.quick:
        args.hidden, args.heads, args.layers, args.repeats, args.steps = 256, 4, (3, 2, 2), 1, 2
    return args


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted; nothing was written"))
