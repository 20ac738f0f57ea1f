"""Frozen examples run the pre-trained function, without the dropout that parts do by themselves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.helpers.architectures import ARCHITECTURES
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from adaptive import AdaptiveConfig, fold, get_adaptive_model

SIZE = 8


class Layer(nn.Module):
    """It drops at a rate of its own, and at one of its configuration."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.activation_dropout = 0.5
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.first(x), self.activation_dropout, self.training)
        return F.dropout(self.second(x), self.config.hidden_dropout, self.training)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_dropout=0.5, other=1)
        self.layers = nn.ModuleList(Layer(self.config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def adaptive(tuned: str) -> Model:
    torch.manual_seed(0)
    return get_adaptive_model(Model(), AdaptiveConfig("layers.*", tuned=tuned, rank=2, policy="constant"))


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_frozen_examples_are_those_of_evaluation_and_tuned_ones_of_full_copies_are_not(tuned: str) -> None:
    model, x = adaptive(tuned), torch.randn(4, SIZE)
    gates = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    frozen = gates[:, 0] == 0
    with model.adaptive.holding(gates):
        expected, found = model.eval()(x), model.train()(x)
    assert torch.equal(found[frozen], expected[frozen])
    assert torch.equal(found[~frozen], expected[~frozen]) == (tuned == "lora")


def test_what_is_switched_off_is_reported_and_on_again_when_the_model_is_plain() -> None:
    assert "dropout" not in str(adaptive("full").adaptive.report)
    model = adaptive("lora")
    assert str(model.adaptive.report).splitlines()[-1] == (
        "no dropout, as it would reach frozen examples too, within Layer"
    )
    assert model.config.hidden_dropout == 0.5 and model.layers[0].config.other == 1
    fold(model)
    assert model.layers[0].activation_dropout == 0.5 and model.layers[0].config is model.config
    assert not torch.equal(model.train()(torch.ones(1, SIZE)), model.eval()(torch.ones(1, SIZE)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "bart", "opt", "llama", "falcon", "gpt2", "t5", "whisper", "vit"])
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_in_transformers_frozen_layers_drop_nothing(name: str, tuned: str) -> None:
    """All rates of the configuration are 0.5, and those outside the layers are off again."""
    architecture = ARCHITECTURES[name]
    if name == "gpt2" and tuned == "lora":
        pytest.skip("has no Linear")
    config = AutoConfig.for_model(name, **architecture.config)
    for key, value in vars(config).items():
        if ("drop" in key or key.endswith("_pdrop")) and isinstance(value, float) and "layerdrop" not in key:
            setattr(config, key, 0.5)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    inputs = architecture.inputs()
    expected = model(**inputs)[0]
    model = get_adaptive_model(model, AdaptiveConfig(architecture.target, tuned=tuned, policy="constant"))
    model.train()
    units = [model.get_submodule(unit) for unit in model.adaptive.units]
    within = {part for unit in units for part in unit.modules()}
    for part in set(model.modules()) - within:
        part.training = False
    with model.adaptive.holding(torch.zeros(1, model.adaptive.gates.total)):
        model.adaptive._held = model.adaptive._held.expand(len(expected), -1)
        assert all(unit.training for unit in units)
        assert torch.allclose(model(**inputs)[0], expected, atol=1e-5)
