"""Which submodules of LXMERT can be gated, and how finely: one table per granularity.

A row is (submodules of a layer, gates, label). `HEADS` stands for one gate per attention head; several
submodules in a row share their gate.

A whole layer has a name such as language.1, and each of its units one such as language.1.ffn_in.
"""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
from transformers import LxmertConfig

from common.errors import UserError

HEADS = -1
WHOLE = "layer"  # the label of what is a layer and not a part of one
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


def unit_name(stream: str, layer: int, component: str) -> str:
    """language.1 for a layer, language.1.ffn_in for a part of it."""
    return f"{stream}.{layer}" + ("" if component == WHOLE else f".{_part_name(component)}")


def select_modules(config: LxmertConfig, names: str) -> set[str]:
    """The submodules of `LxmertModel` that a comma-separated list of names stands for.

    language.1 is a layer, language.1-3 are three of them, language.first2 and language.last2 the two at
    either end; language.1.ffn_in is a part, of whichever granularity has it. In a name * and ? stand for
    what they do in names of files. UserError for one that stands for nothing.
    """
    units = [unit for granularity in GRANULARITIES for unit in list_units(config, granularity)]
    known = {unit_name(unit.stream, unit.layer, unit.component): unit.modules for unit in units}
    chosen: set[str] = set()
    for text in names.split(","):
        patterns = list(_spelled_out(config, text.strip().lower()))
        matches = [[name for name in known if fnmatchcase(name, pattern)] for pattern in patterns]
        if not matches or not all(matches):
            there_are = _overview(config, units)
            raise UserError(f"there is no {text.strip()!r} in this model; there are {there_are}")
        chosen |= {module for name in itertools.chain(*matches) for module in known[name]}
    return chosen


def lies_in(module: str, others: Collection[str]) -> bool:
    """Whether a module, by its name, is one of the others or a part of one."""
    return any(module == other or module.startswith(f"{other}.") for other in others)


def list_names(parts: Iterable[tuple[str, int, str]], chosen: Collection[tuple[str, int, str]]) -> str:
    """The names of the chosen ones of all parts (stream, layer, component), as `select_modules` reads them.

    Where all parts of a layer are chosen the layer is named, and of layers that follow each other a range.
    """
    layers: dict[tuple[str, int], list[str]] = {}
    for stream, layer, component in parts:
        layers.setdefault((stream, layer), []).append(component)
    whole = [place for place, inside in layers.items() if all((*place, part) in chosen for part in inside)]
    names = []
    # Of neighbours the difference of layer and place in the list is the same.
    runs = itertools.groupby(enumerate(whole), lambda entry: (entry[1][0], entry[1][1] - entry[0]))
    for (stream, _), group in runs:
        numbers = [layer for _, (_, layer) in group]
        last = f"-{numbers[-1]}" if len(numbers) > 1 else ""
        names.append(f"{stream}.{numbers[0]}{last}")
    return ",".join(names + [unit_name(*part) for part in chosen if part[:2] not in whole])


def _part_name(component: str) -> str:
    return component.lower().replace(" ", "_")


def _spelled_out(config: LxmertConfig, text: str) -> Iterator[str]:
    """ "language.1-3.ffn" -> "language.1.ffn", "language.2.ffn", "language.3.ffn"."""
    found = re.fullmatch(r"(\w+)\.(?:(\d+)-(\d+)|(first|last)(\d+))(\..+)?", text)
    if not found:
        yield text
        return
    stream, start, stop, end, count, part = found.groups()
    if end:
        most = getattr(config, LAYER_LISTS[stream][0]) if stream in LAYER_LISTS else 0
        start, stop = (1, count) if end == "first" else (most - int(count) + 1, most)
    for layer in range(int(start), int(stop) + 1):
        yield f"{stream}.{layer}{part or ''}"


def _overview(config: LxmertConfig, units: Iterable[Unit]) -> str:
    """All names, in short."""
    parts: dict[str, dict[str, None]] = {}
    for unit in units:
        if unit.component != WHOLE:
            parts.setdefault(unit.stream, {})[_part_name(unit.component)] = None
    return "; ".join(
        f"{stream}.1 to {stream}.{getattr(config, count)}, each with {', '.join(parts[stream])}"
        for stream, (count, _) in LAYER_LISTS.items()
        if getattr(config, count)
    )
