"""Speed and memory of every strategy, side by side with the naive way and with Hugging Face's LXMERT.

    bash run/vqa_bench.bash                     # base size, all sides: about forty minutes on two cores
    bash run/vqa_bench.bash --quick             # small size, under two minutes

All sides run in this one process, on the same batches: random features, questions as long as those of
VQA v2, half of the gates tuned unless a row says otherwise. Sides take turns, `--repeats` times; a figure is
the median of the turns and its spread is their minimum and maximum.

- ours: questions grouped by length and trimmed, fused attention, routed gates, no unused half of the last
  layer
- dense: what the earlier implementation did: both copies always, padded to 20 word pieces, attention step by
  step, everything computed, PyTorch's own linear layers and dropout, a policy network of 2/1/1 layers with
  embeddings of its own, an optimizer that passes over memory once an operation
- Hugging Face: `LxmertForQuestionAnswering`, padded to 20 word pieces, standard fine-tuning, our optimizer

A training step is forward, backward, clipping and AdamW. Memory is what PyTorch's allocator had handed out at
its highest, from building the model to the end of the second step, measured once; process is what the whole
process grew by in a turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LxmertConfig

from adaptive.adapt import Adaptive
from report.results_table import replace_block
from tasks.bench.memory import process_peak, tensor_peak
from tasks.bench.table import bench_markdown
from tasks.bench.variants import ANSWERS, Side, attention_step_by_step, build_side, sides
from tasks.finetune.args import POLICIES, VqaArgs
from tasks.finetune.model import vqa_loss
from training.optim import JointOptimizer, make_optimizer

Batch = tuple[dict[str, Tensor], Tensor]  # inputs of the model, target
Step = Callable[[int, dict[str, Tensor], Tensor], None]  # number of the step and a batch

# Word pieces a question, [CLS] and [SEP] included, of 57,038 questions of VQA v2 (mean 9.5).
LENGTHS = {
    5: 2, 6: 1480, 7: 6028, 8: 13222, 9: 11092, 10: 10522, 11: 6926, 12: 3460,
    13: 2010, 14: 1032, 15: 565, 16: 300, 17: 160, 18: 80, 19: 53, 20: 106,
}  # fmt: skip
PADDED = 20
REGIONS = 36


class Turn(NamedTuple):
    """One measurement of one side."""

    train: float  # examples a second
    evaluation: float  # examples a second
    process: float  # GB, growth of the resident set


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Measure, print the table, write JSON and, if asked, the README's block."""
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = LxmertConfig(
        hidden_size=args.hidden,
        num_attention_heads=args.heads,
        intermediate_size=4 * args.hidden,
        l_layers=args.layers[0],
        r_layers=args.layers[1],
        x_layers=args.layers[2],
        visual_feat_dim=args.features,
        num_qa_labels=ANSWERS,
    )
    wanted = [side for side in sides(args.policy) if args.only in side.name or is_reference(side, args)]
    turns: dict[str, list[Turn]] = {side.name: [] for side in wanted}
    tensors: dict[str, float] = {}
    with tqdm(total=len(wanted) * (1 + args.repeats), unit="turn") as bar:
        for repeat in range(args.repeats):
            batches = make_batches(args, config, torch.Generator().manual_seed(args.seed + repeat), device)
            for side in wanted:
                bar.set_description(side.name)
                turns[side.name].append(measure(side, config, batches, args.seed, device))
                bar.update()
        for side in wanted:
            bar.set_description(f"memory of {side.name}")
            tensors[side.name] = measure_tensors(side, config, batches, device)
            bar.update()
    report = {
        "hardware": {"device": str(device), "processor": processor(), "threads": torch.get_num_threads()},
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "python": platform.python_version(),
        "arguments": {name: str(value) for name, value in vars(args).items()},
        "rows": [
            {"name": side.name, "against": side.against}
            | {figure: [getattr(turn, figure) for turn in turns[side.name]] for figure in Turn._fields}
            | {"tensors": [tensors[side.name]] * args.repeats}  # the same every turn
            for side in wanted
        ],
    }
    table = bench_markdown(report)
    print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if args.readme:
        text = args.readme.read_text(encoding="utf-8")
        args.readme.write_text(replace_block(text, table, str(args.readme), "performance"), encoding="utf-8")
    return report


def is_reference(side: Side, args: argparse.Namespace) -> bool:
    """Whether a row that was asked for is compared with this one."""
    return any(args.only in row.name and side.name in row.against for row in sides(args.policy))


def measure(side: Side, config: LxmertConfig, batches: list[Batch], seed: int, device: torch.device) -> Turn:
    """Build one side, train and evaluate it for a few steps, and forget it."""
    torch.manual_seed(seed)
    warm_up, *timed = (trim(batch) if trims(side) else batch for batch in batches)
    with process_peak() as process, attention_step_by_step(side.dense):
        model = build_side(side, config).to(device)
        step = training_step(side, model, device)
        step(0, *warm_up)
        train = examples_a_second(step, timed, device, side.policy_every)
        step = evaluation_step(model)
        with torch.no_grad(), arithmetic(side, device):
            examples_a_second(step, timed, device, 1)  # first touches of memory and kernels, not counted
            evaluation = examples_a_second(step, timed, device, 1)
    return Turn(train, evaluation, process())


def measure_tensors(side: Side, config: LxmertConfig, batches: list[Batch], device: torch.device) -> float:
    """Peak memory in GB of building one side and of two steps of it, the second with the longest batch."""
    first, last = (trim(batch) if trims(side) else batch for batch in (batches[0], batches[-1]))
    gc.collect()
    with attention_step_by_step(side.dense), tensor_peak(device) as peak:
        step = training_step(side, build_side(side, config).to(device), device)
        step(0, *first)  # makes the optimizer's state
        step(0, *last)
    return peak()


def trims(side: Side) -> bool:
    """Whether a side cuts its batches to their longest question."""
    return not side.dense and side.strategy != "huggingface"


def training_step(side: Side, model: nn.Module, device: torch.device) -> Step:
    """A step of training, with its optimizer."""
    model.train()
    parts = [model.model] + ([model.policy] if model.policy is not None else [])
    optimizer = JointOptimizer([make_optimizer("adamw", part, 1e-5, 0.01) for part in parts])
    for group in optimizer.param_groups:
        group["fused"] = not side.dense

    def step(number: int, inputs: dict[str, Tensor], target: Tensor) -> None:
        if isinstance(model, Adaptive):
            model.train_policy = number % side.policy_every == 0
        with arithmetic(side, device):
            loss = vqa_loss(model(**inputs)[0], target)
        loss.backward()
        for part in parts:
            nn.utils.clip_grad_norm_(part.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def evaluation_step(model: nn.Module) -> Step:
    model.eval()

    def step(number: int, inputs: dict[str, Tensor], target: Tensor) -> None:
        model(**inputs)

    return step


def examples_a_second(step: Step, batches: list[Batch], device: torch.device, period: int) -> float:
    """Run all batches on the clock, and if need be again, up to at least one whole period of steps."""
    synchronise(device)
    timed = batches * (-(-period // len(batches)))
    start = time.perf_counter()
    for number, batch in enumerate(timed, 1):
        step(number, *batch)
    synchronise(device)
    return sum(len(target) for _, target in timed) / (time.perf_counter() - start)


def make_batches(
    args: argparse.Namespace, config: LxmertConfig, generator: torch.Generator, device: torch.device
) -> list[Batch]:
    """Batches of questions alike in length, as length-grouped sampling gives them, padded to 20."""
    lengths = torch.tensor(list(LENGTHS))
    shares = torch.tensor([float(count) for count in LENGTHS.values()])
    pool = lengths[shares.multinomial(50 * args.batch, replacement=True, generator=generator)]
    grouped = pool.sort().values.view(50, args.batch)
    # On the clock, evenly from the short ones to the long ones; before it, a middling one to warm up.
    places = torch.cat([torch.tensor([0.5]), (torch.arange(args.steps) + 0.5) / args.steps])
    chosen = grouped[(places * 50).long()]
    batches = []
    for row in chosen:
        size = (args.batch, PADDED)
        inputs = {
            "input_ids": torch.randint(1000, config.vocab_size, size, generator=generator),
            "attention_mask": torch.arange(PADDED) < row[:, None],
            "visual_feats": torch.randn(args.batch, REGIONS, config.visual_feat_dim, generator=generator),
            "visual_pos": torch.rand(args.batch, REGIONS, 4, generator=generator),
            "visual_attention_mask": torch.ones(args.batch, REGIONS, dtype=torch.bool),
        }
        target = (torch.rand(args.batch, ANSWERS, generator=generator) < 0.001).float()
        batches.append(({name: t.to(device) for name, t in inputs.items()}, target.to(device)))
    return batches


def trim(batch: Batch) -> Batch:
    """The batch cut to its longest question."""
    inputs, target = batch
    longest = int(inputs["attention_mask"].sum(1).max())
    cut = {name: inputs[name][:, :longest] for name in ("input_ids", "attention_mask")}
    return inputs | cut, target


def arithmetic(side: Side, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=side.precision == "bf16")


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor() -> str:
    """The processor's name, or the GPU's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="hidden size 256, 3/2/2 layers, one turn of two steps"
    )
    parser.add_argument("--batch", type=int, default=32, help="examples a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each side (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=768, help="hidden size (default: %(default)s)")
    parser.add_argument("--heads", type=int, default=12, help="attention heads (default: %(default)s)")
    parser.add_argument("--features", type=int, default=2048, help="features a region (default: %(default)s)")
    parser.add_argument("--layers", default="9/5/5", help="language/vision/cross (default: %(default)s)")
    parser.add_argument("--policy", choices=POLICIES, default=VqaArgs.policy, help="the policy listed first")
    parser.add_argument("--only", default="", help="only rows whose name contains this, and their references")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("snap/bench.json"), help="default: %(default)s")
    parser.add_argument("--readme", type=Path, help="file whose performance table to replace")
    args = parser.parse_args(argv)
    if args.quick:
        args.hidden, args.heads, args.layers, args.repeats = 256, 4, "3/2/2", 1
        args.steps = 2
    try:
        args.layers = tuple(int(count) for count in args.layers.split("/"))
        language, vision, cross = args.layers
    except ValueError:
        parser.error(f"--layers looks like 9/5/5, not {args.layers}")
    if min(language, vision, cross, args.batch, args.steps, args.repeats) < 1:
        parser.error("layers, batch, steps and repeats must be at least 1")
    return args


if __name__ == "__main__":
    main(parse_args())
