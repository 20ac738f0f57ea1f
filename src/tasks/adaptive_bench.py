"""What get_adaptive_model adds to a plain model: time in evaluation, and files.

    bash run/adaptive_bench.bash            BERT of base size, random weights
    bash run/adaptive_bench.bash --quick    a small one: well under a minute

Both models answer the same batch in turns, in one process; the gates of all
examples are equal, so that the adaptive one has to do nothing but look at
them. Prints the medians, the ratio of each turn's two times with its spread,
and the size of what save_adaptive writes against that of the whole model.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification

from adaptive import AdaptiveConfig, get_adaptive_model
from common.cli import Parser, run_command
from common.files import write_json
from common.markdown import aligned

SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 512}
COPIES = ("full", "lora")
GATES = {"frozen": 0.0, "tuned": 1.0, "policy": None}  # tuned too, as it decides by what it reads
FIGURES = ("plain", "adaptive", "ratio", "least", "most")  # seconds, seconds, and parts of the first
Row = dict[str, float]


def build(config: BertConfig, tuned: str | None) -> nn.Module:
    """BERT with the same random weights every time, plain or with copies."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    if tuned:
        # With this share to start from, no gate is for frozen.
        model = get_adaptive_model(model, AdaptiveConfig("encoder.layer.*", tuned=tuned, share=1 - 1e-6))
    return model.eval()


def seconds(model: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Of one forward pass in evaluation."""
    start = time.perf_counter()
    with torch.no_grad():
        model(**inputs)
    return time.perf_counter() - start


def compare(plain: nn.Module, model: nn.Module, gates: str, inputs: dict[str, Tensor], repeats: int) -> Row:
    """Seconds of both models, in turns, and what the adaptive one takes of the plain one's time."""
    value, held = GATES[gates], nullcontext
    if value is not None:
        held = partial(model.adaptive.holding, torch.full((1, model.adaptive.gates.total), value))
    times: dict[nn.Module, list[float]] = {plain: [], model: []}
    for turn in tqdm(range(repeats + 1), desc=f"gates: {gates}", leave=False):
        for which in (plain, model) if turn % 2 else (model, plain):
            with held():
                times[which].append(seconds(which, inputs))
    theirs, ours = (found[1:] for found in times.values())  # the first learns where the examples are
    ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
    medians = map(statistics.median, (theirs, ours, ratios))
    return dict(zip(FIGURES, (*medians, min(ratios), max(ratios)), strict=True))


def written(model: nn.Module) -> float:
    """MB that save_adaptive writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_adaptive(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times for each kind of copies and gates, and MB."""
    config = BertConfig(**SMALL if args.quick else {})
    plain = build(config, None)
    ids = torch.randint(1000, 2000, (args.batch, args.tokens))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    size = sum(parameter.numel() * parameter.element_size() for parameter in plain.parameters()) / 1e6
    figures: dict[str, Any] = {"whole model, MB": size, "threads": torch.get_num_threads()}
    for tuned in COPIES:
        model = build(config, tuned)
        figures[tuned] = {gates: compare(plain, model, gates, inputs, args.repeats) for gates in GATES}
        figures[f"{tuned}, MB"] = written(model)
    return figures


def rows(figures: dict[str, Any]) -> list[list[str]]:
    """The figures as a table's rows."""
    lines = [["copies", "all gates", "plain ms", "adaptive ms", "ratio (least to most)"]]
    for tuned in COPIES:
        for gates, row in figures[tuned].items():
            times = [f"{1000 * row[name]:.1f}" for name in ("plain", "adaptive")]
            spread = f"{row['ratio']:.3f} ({row['least']:.3f} to {row['most']:.3f})"
            lines.append([tuned, gates, *times, spread])
    return lines


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="adaptive_bench.bash", description=__doc__)
    flag = parser.add_argument
    flag("--quick", action="store_true", help="2 layers of size 128, 3 repeats")
    flag("--batch", type=int, default=8, help="examples (default: %(default)s)")
    flag("--tokens", type=int, default=64, help="word pieces an example (default: %(default)s)")
    flag("--repeats", type=int, default=9, help="turns that are timed; medians count (%(default)s)")
    flag("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)
    if min(args.batch, args.tokens, args.repeats) < 1 or args.tokens > BertConfig().max_position_embeddings:
        parser.error("--batch, --tokens and --repeats must be at least 1, and --tokens at most 512")
    args.repeats = 3 if args.quick else args.repeats
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    figures = {"batch": args.batch, "tokens": args.tokens, "repeats": args.repeats, **measure(args)}
    print(aligned(rows(figures)))
    sizes = ", ".join(f"{tuned} {figures[f'{tuned}, MB']:.1f}" for tuned in COPIES)
    print(f"\nMB that save_adaptive writes: {sizes}; the whole model: {figures['whole model, MB']:.1f}")
    if args.json:
        write_json(args.json, figures)


if __name__ == "__main__":
    sys.exit(run_command(main, "interrupted"))
