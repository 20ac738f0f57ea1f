from __future__ import annotations

import random

import pytest
from transformers import LxmertConfig

from common.errors import UserError
from lxmert.modeling import LxmertModel
from lxmert.units import (
    GRANULARITIES,
    gate_labels,
    lies_in,
    list_names,
    list_units,
    select_modules,
    unit_name,
    unused_modules,
)

BASE = LxmertConfig()


@pytest.mark.parametrize(
    ("strategy", "gates", "live"),
    [("component", 425, 410), ("sublayer", 53, 51), ("layer", 19, 19)],
)
def test_the_published_model_has_the_published_number_of_gates(strategy: str, gates: int, live: int) -> None:
    labels = gate_labels(list_units(BASE, strategy))
    assert len(labels["live"]) == gates
    assert labels["live"].sum() == live


@pytest.mark.parametrize("strategy", GRANULARITIES)
def test_units_are_disjoint_submodules_that_cover_every_layer(strategy: str) -> None:
    config = LxmertConfig(hidden_size=16, num_attention_heads=2, l_layers=2, r_layers=1, x_layers=2)
    model = LxmertModel(config)
    modules = [name for unit in list_units(config, strategy) for name in unit.modules]
    covered = [f"{name}.{n}" for name in modules for n, _ in model.get_submodule(name).named_parameters()]
    layers = ("encoder.layer.", "encoder.r_layers.", "encoder.x_layers.")
    assert sorted(covered) == sorted(n for n, _ in model.named_parameters() if n.startswith(layers))


def test_a_head_gate_is_as_wide_as_the_model_has_heads() -> None:
    heads = [unit for unit in list_units(BASE, "component") if unit.component.endswith("head")]
    assert {unit.width for unit in heads} == {12}
    assert len(heads) == 9 + 5 + 3 * 5


def test_dead_gates_are_the_vision_half_of_the_last_cross_layer() -> None:
    for strategy in ("component", "sublayer"):
        dead = {name for unit in list_units(BASE, strategy) if not unit.live for name in unit.modules}
        assert all(name.startswith("encoder.x_layers.4.visn_") for name in dead)
        assert {name.split(".")[3] for name in dead} == {name.split(".")[3] for name in unused_modules(BASE)}


def test_labels_name_heads_from_one() -> None:
    labels = gate_labels(list_units(BASE, "component"))
    first = list(zip(labels["stream"], labels["layer"], labels["component"], strict=True))[:15]
    assert first[0] == ("language", 1, "head 1")
    assert first[11] == ("language", 1, "head 12")
    assert [component for _, _, component in first[12:]] == ["attention output", "FFN in", "FFN out"]


NAMES = {  # what a list of names stands for, of a model with 9, 5 and 5 layers
    "language.1": ["layer.0"],
    "Language.1, vision.5": ["layer.0", "r_layers.4"],
    "language.2-4": ["layer.1", "layer.2", "layer.3"],
    "language.first2,cross.last1": ["layer.0", "layer.1", "x_layers.4"],
    "vision.last2": ["r_layers.3", "r_layers.4"],
    "*.1": ["layer.0", "r_layers.0", "x_layers.0"],
    "language.1.ffn": ["layer.0.intermediate", "layer.0.output"],
    "language.1.ffn_in": ["layer.0.intermediate"],
    "vision.first2.attention": ["r_layers.0.attention", "r_layers.1.attention"],
    "cross.3.vision_attention": ["x_layers.2.visn_self_att"],
}


@pytest.mark.parametrize("names", NAMES)
def test_names_stand_for_layers_and_their_parts(names: str) -> None:
    assert select_modules(BASE, names) == {f"encoder.{module}" for module in NAMES[names]}


def test_a_pattern_over_all_of_a_stream_covers_it_and_nothing_else() -> None:
    chosen = select_modules(BASE, "cross.*")
    for unit in list_units(BASE, "component"):
        assert all(lies_in(name, chosen) for name in unit.modules) == (unit.stream == "cross")


def test_every_unit_has_a_name_that_stands_for_its_modules() -> None:
    for granularity in GRANULARITIES:
        for unit in list_units(BASE, granularity):
            assert select_modules(BASE, unit_name(unit.stream, unit.layer, unit.component)) == {*unit.modules}


@pytest.mark.parametrize(
    "names",
    ["", "language", "language.0", "language.10", "language.8-10", "language.3-2", "language.first0"]
    + ["language.last10", "vision.1.cross_attention", "language.1.head_3", "audio.last1", "language.1,,"],
)
def test_names_of_nothing_are_a_sentence_that_lists_what_there_is(names: str) -> None:
    listed = r"language\.1 to language\.9, each with .*attention_output.*cross\.5"
    with pytest.raises(UserError, match=listed):
        select_modules(BASE, names)


def test_lies_in_goes_by_whole_parts_of_names() -> None:
    assert lies_in("encoder.layer.1.output", ["encoder.layer.1"]) and lies_in("a.b", ["a.b"])
    assert not lies_in("encoder.layer.10", ["encoder.layer.1"])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_listed_names_stand_for_what_was_chosen(granularity: str) -> None:
    units = list_units(BASE, granularity)
    parts = {(unit.stream, unit.layer, unit.component): unit.modules for unit in units}
    for seed in range(20):
        drawn = random.Random(seed)
        chosen = [part for part in parts if drawn.random() < drawn.choice([0.2, 0.9])]
        names = list_names(parts, chosen)
        modules = {module for part in chosen for module in parts[part]}
        tuned = select_modules(BASE, names) if names else set()
        assert {m for unit in units for m in unit.modules if lies_in(m, tuned)} == modules


def test_layers_that_follow_each_other_are_listed_as_a_range() -> None:
    layers = [(unit.stream, unit.layer, unit.component) for unit in list_units(BASE, "layer")]
    assert list_names(layers, layers) == "language.1-9,vision.1-5,cross.1-5"
    assert list_names(layers, [*layers[:2], layers[5], layers[9]]) == "language.1-2,language.6,vision.1"
    assert list_names(layers, []) == ""
