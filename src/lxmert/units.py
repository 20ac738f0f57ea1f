"""Which submodules of LXMERT can be gated, and how finely: one table per granularity.

A row is (submodules of a layer, gates, label). `HEADS` stands for one gate per attention head; several
submodules in a row share their gate.
"""

import itertools
from typing import NamedTuple

import numpy as np
from transformers import LxmertConfig

HEADS = -1
LAYER_LISTS = {  # of each stream: how many layers, in LxmertConfig, and where they are, in Encoder
    "language": ("l_layers", "layer"),
    "vision": ("r_layers", "r_layers"),
    "cross": ("x_layers", "x_layers"),
}
Row = tuple[tuple[str, ...], int, str]

_STREAM_COMPONENTS: list[Row] = [
    (("attention.self",), HEADS, "head"),
    (("attention.output",), 1, "attention output"),
    (("intermediate",), 1, "FFN in"),
    (("output",), 1, "FFN out"),
]

_STREAM_SUBLAYERS: list[Row] = [
    (("attention",), 1, "attention"),
    (("intermediate", "output"), 1, "FFN"),
]

_WHOLE_LAYER: list[Row] = [(("",), 1, "layer")]

# what a gate decides over -> the rows of a layer of each kind
GRANULARITIES: dict[str, dict[str, list[Row]]] = {
    "component": {
        "language": _STREAM_COMPONENTS,
        "vision": _STREAM_COMPONENTS,
        "cross": [
            (("visual_attention.att",), HEADS, "cross head"),
            (("visual_attention.output",), 1, "cross output"),
            (("lang_self_att.self",), HEADS, "language head"),
            (("lang_self_att.output",), 1, "language output"),
            (("visn_self_att.self",), HEADS, "vision head"),
            (("visn_self_att.output",), 1, "vision output"),
            (("lang_inter",), 1, "language FFN in"),
            (("visn_inter",), 1, "vision FFN in"),
            (("lang_output",), 1, "language FFN out"),
            (("visn_output",), 1, "vision FFN out"),
        ],
    },
    "sublayer": {
        "language": _STREAM_SUBLAYERS,
        "vision": _STREAM_SUBLAYERS,
        "cross": [
            (("visual_attention",), 1, "cross attention"),
            (("lang_self_att",), 1, "language attention"),
            (("visn_self_att",), 1, "vision attention"),
            (("lang_inter", "lang_output"), 1, "language FFN"),
            (("visn_inter", "visn_output"), 1, "vision FFN"),
        ],
    },
    "layer": {"language": _WHOLE_LAYER, "vision": _WHOLE_LAYER, "cross": _WHOLE_LAYER},
}

# The vision half of the last cross layer: nothing computed there reaches the pooled output.
_VISION_HALF = ("visn_self_att", "visn_inter", "visn_output")


class Unit(NamedTuple):
    """What one decision is about: a submodule of `LxmertModel`, or several that go together."""

    modules: tuple[str, ...]  # their names
    width: int  # the number of gates
    stream: str  # "language", "vision" or "cross"
    layer: int  # from 1, within the stream
    component: str
    live: bool  # whether its output reaches the pooled output


def unused_modules(config: LxmertConfig) -> list[str]:
    """The submodules of `LxmertModel` that its pooled output does not depend on."""
    return (
        [f"encoder.x_layers.{config.x_layers - 1}.{part}" for part in _VISION_HALF] if config.x_layers else []
    )


def list_units(config: LxmertConfig, granularity: str) -> list[Unit]:
    """All units of a granularity, in the order of computation: language, vision, cross."""
    rows = GRANULARITIES[granularity]
    unused = tuple(f"{name}." for name in unused_modules(config))
    units = []
    for stream, (count, name) in LAYER_LISTS.items():
        for layer, (parts, gates, label) in itertools.product(range(getattr(config, count)), rows[stream]):
            modules = tuple(f"encoder.{name}.{layer}.{part}".removesuffix(".") for part in parts)
            width = config.num_attention_heads if gates == HEADS else gates
            live = not f"{modules[0]}.".startswith(unused)
            units.append(Unit(modules, width, stream, layer + 1, label, live))
    return units


def gate_labels(units: list[Unit]) -> dict[str, np.ndarray]:
    """What each of the G gates stands for: arrays (G,) stream, layer, component and live."""
    gates = [(unit, number) for unit in units for number in range(1, unit.width + 1)]
    names = [f"{unit.component} {number}" if unit.width > 1 else unit.component for unit, number in gates]
    return {
        "stream": np.array([unit.stream for unit, _ in gates], str),
        "layer": np.array([unit.layer for unit, _ in gates], int),
        "component": np.array(names, str),
        "live": np.array([unit.live for unit, _ in gates], bool),
    }
