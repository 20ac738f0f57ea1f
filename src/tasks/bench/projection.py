"""What cannot be measured here, computed: many GPUs, and features that lie on a network disk."""

import math
from collections.abc import Mapping

from transformers import LxmertConfig

from tasks.bench.variants import ANSWERS, Variant, build_variant
from tasks.finetune.model import count_parameters
from vqadata.feature_layout import Layout

GIGABIT = 1e9 / 8  # bytes a second
# The slowest link of the ring, in bytes a second.
RINGS = {
    "8 GPUs, NVLink 300 GB/s": (8, 300e9),
    "64 GPUs, 400 Gbit/s": (64, 400 * GIGABIT),
    "64 GPUs, 100 Gbit/s": (64, 100 * GIGABIT),
    "64 GPUs, 10 Gbit/s": (64, 10 * GIGABIT),
}
LINKS = {f"{gigabits} Gbit/s": gigabits * GIGABIT for gigabits in (1, 10, 100)}
FORMULAS = (
    "Computed, not measured. step = compute + gradient bytes x 2 (n - 1) / n / bandwidth, for n GPUs in a "
    "ring whose slowest link has the bandwidth; gradients in fp32, and nothing hidden behind the backward "
    "pass, as DDP does with most of it: an upper bound. The share is compute / step. Compute is an "
    "assumption: {compute:.0f} ms for {batch} examples a GPU. Examples/s from a disk = bandwidth / "
    "{size:,} B, what one takes (36 x 2048 features of 2 B, 36 boxes of 16 B, a count and a checksum of 4 B "
    "each), with nothing cached; GPUs fed = examples/s x compute / {batch}."
)


def gradient_bytes(variant: Variant) -> int:
    """What the processes exchange in a step at base size: 4 bytes a parameter that is trained."""
    model = build_variant(variant, LxmertConfig(num_qa_labels=ANSWERS))
    return 4 * count_parameters(model)["trainable"]


def step_seconds(compute: float, gradients: float, processes: int, bandwidth: float) -> float:
    """See FORMULAS. compute: seconds; gradients: bytes; bandwidth: bytes/s."""
    return compute + gradients * 2 * (processes - 1) / processes / bandwidth


def example_bytes() -> int:
    """What is read of a feature store for an example."""
    return sum(dtype.itemsize * math.prod(shape) for dtype, shape in Layout(36, 2048).columns().values())


def rings_table(gradients: Mapping[str, int], compute: float) -> list[list[str]]:
    """Milliseconds a step, and the share of it that computes, for each ring and each variant."""
    rows = [["computed: step ms (share computing)", *gradients]]
    rows.append(["gradients MB", *(f"{size / 1e6:,.0f}" for size in gradients.values())])
    for name, ring in RINGS.items():
        steps = [step_seconds(compute, size, *ring) for size in gradients.values()]
        rows.append([name, *(f"{1e3 * step:,.0f} ({compute / step:.0%})" for step in steps)])
    return rows


def links_table(compute: float, batch: int, questions: int) -> list[list[str]]:
    """How fast examples come over each link, how many GPUs that feeds, and how long an epoch takes."""
    rows = [["computed: features on a network disk", "examples/s", "GPUs fed", f"{questions:,} questions"]]
    for name, bandwidth in LINKS.items():
        rate = bandwidth / example_bytes()
        fed, minutes = rate * compute / batch, questions / rate / 60
        rows.append([name, f"{rate:,.0f}", f"{fed:,.1f}", f"{minutes:,.1f} min"])
    return rows
