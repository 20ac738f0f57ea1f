"""What the benchmark measured, as a picture: how many times as fast as its reference each variant is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from report.policy_plot import DPI, save_figure
from tasks.bench.table import Row, reference_of, speed_ratio

# What each row of panels shows, and its variants: a label, and their names without the precision.
PANELS = {
    "Adaptive: times as fast as computing both copies for every example": {
        "SpotTune": "SpotTune, lxmert policy",
        "SpotTune_Res": "SpotTune_Res, lxmert policy",
        "SpotTune_Block": "SpotTune_Block, lxmert policy",
        "SpotTune_Block,\nlight policy": "SpotTune_Block, light policy",
    },
    "Not adaptive: times as fast as standard fine-tuning of Hugging Face's LXMERT": {
        "standard": "standard",
        "Frozen": "Frozen",
    },
    "Low-rank copies, embeddings frozen: times as fast as our standard fine-tuning in the same precision": {
        "standard\n+ LoRA": "standard + LoRA, embeddings frozen",
        "SpotTune\n+ LoRA": "SpotTune + LoRA, embeddings frozen",
        "SpotTune_Block\n+ LoRA": "SpotTune_Block + LoRA, embeddings frozen",
    },
}
FIGURES = {"train": "Training", "evaluation": "Evaluation"}
COLOURS = {"fp32": "#56b4e9", "bf16": "#0072b2"}  # Okabe & Ito: safe for colour-blind readers
BAR, FONT = 0.36, 10  # of the distance between two variants; points


def draw_speed(measured: Mapping[str, Any], path: Path) -> None:
    """Save the picture as a PNG, 1200 pixels wide."""
    save_figure(speed_figure(measured), path)


def speed_figure(measured: Mapping[str, Any]) -> Figure:
    """Draw training and evaluation side by side, a panel per reference below each other."""
    rows = {row["name"]: row for row in measured["rows"]}
    figure = Figure((8, 6.6), DPI)
    grid = {"height_ratios": [len(variants) for variants in PANELS.values()]}
    place = {"left": 0.175, "right": 0.985, "top": 0.87, "bottom": 0.06, "hspace": 0.3, "wspace": 0.07}
    panels = figure.subplots(len(PANELS), len(FIGURES), sharex=True, squeeze=False, gridspec_kw=grid | place)
    for (title, variants), line in zip(PANELS.items(), panels, strict=True):
        for name, axes in zip(FIGURES, line, strict=True):
            _bars(axes, rows, variants, name)
        line[0].set_yticks(range(len(variants)), list(variants))
        figure.text(0.012, line[0].get_position().y1 + 0.016, title, size=FONT)
    longest = max((bar.get_width() for axes in figure.axes for bar in axes.patches), default=1.0)
    panels[0, 0].set_xlim(0, 1.14 * longest)
    for axes, title in zip(panels[0], FIGURES.values(), strict=True):
        figure.text(axes.get_position().x0, 0.95, title, size=FONT + 2, weight="bold")
    note = "Dashed: as fast as the reference, which computes in fp32 above and in the middle."
    figure.text(0.175, 0.018, note, size=FONT - 1, color="0.3")
    handles = [Patch(color=colour, label=precision) for precision, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="upper right", ncols=2, fontsize=FONT, frameon=False)
    return figure


def _bars(axes: Axes, rows: Mapping[str, Row], variants: Mapping[str, str], figure: str) -> None:
    """A pair of bars per variant, first one on top, with its ratio at its end; a line where it is 1."""
    for place, name in enumerate(variants.values()):
        for offset, (precision, colour) in zip((-0.5, 0.5), COLOURS.items(), strict=True):
            row = rows.get(f"{name}, {precision}")
            if row and (reference := reference_of(row, rows)):
                ratio = speed_ratio(row, reference, figure)
                bar = axes.barh(place + offset * BAR, ratio, 0.9 * BAR, color=colour)
                behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # the dashed line ends there
                axes.bar_label(bar, fmt="{:.2f}", padding=4, size=FONT - 1, bbox=behind, zorder=3)
    axes.axvline(1, color="0.2", linewidth=1, linestyle=(0, (4, 3)))
    axes.set(ylim=(len(variants) - 0.5, -0.5), xticks=[], yticks=[])
    axes.tick_params(length=0, labelsize=FONT)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color("0.6")
