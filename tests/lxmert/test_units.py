from __future__ import annotations

import pytest
from transformers import LxmertConfig

from lxmert.modeling import LxmertModel
from lxmert.units import GRANULARITIES, gate_labels, list_units, unused_modules

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
