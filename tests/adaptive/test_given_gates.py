"""Gates from outside, instead of the policy's, and weights with which both copies are averaged."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.helpers.low_rank import Products, exchanged, move
from torch import Tensor, nn

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import Copies, full_copy, low_rank
from adaptive.low_rank import LowRank
from adaptive.pair import GatedPair

BATCH, SIZE = 6, 8
UNITS = [(["0"], 1), (["1"], 2), (["2", "3"], 1)]
WEIGHTS = torch.tensor([0.3, 0.0, 0.75, 1.0])


class Silent(nn.Module):
    """A policy that must not be asked."""

    def forward(self, **inputs: Tensor) -> Tensor:
        raise AssertionError("the policy was asked")


class Stack(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = torch.tanh(layer(x))
        return x


def make(copies: Copies) -> Adaptive:
    torch.manual_seed(0)
    model = Stack(*(nn.Sequential(nn.Linear(SIZE, SIZE), nn.Dropout(0.1)) for _ in range(4)))
    model = move(Adaptive(model, Silent(), adapt(model, UNITS, copies)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".tuned." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def batch() -> Tensor:
    return torch.randn(BATCH, 3, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["full", "low rank"])
def model(request: pytest.FixtureRequest) -> Adaptive:
    return make(full_copy() if request.param == "full" else low_rank(2))


def test_given_gates_decide_and_the_policy_is_not_asked(model: Adaptive) -> None:
    gates = torch.rand(BATCH, 4) < 0.5
    output = model(x=batch(), gates=gates)
    assert torch.equal(output.gates, gates.float()) and output.policy_logits is None
    model.gates.fill(gates.float())
    assert torch.equal(output.outputs, model.model(batch()))


def test_one_gate_an_example_stands_for_all(model: Adaptive) -> None:
    gates = torch.rand(BATCH, 1) < 0.5
    one, all_of_them = model(x=batch(), gates=gates), model(x=batch(), gates=gates.expand(-1, 4))
    assert torch.equal(one.outputs, all_of_them.outputs) and torch.equal(one.gates, all_of_them.gates)


@torch.no_grad()
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_weights_of_0_and_1_are_the_copies_bit_for_bit(model: Adaptive, value: float) -> None:
    weights = torch.full((4,), value)
    expected = model(x=batch(), gates=weights.expand(BATCH, -1)).outputs
    assert torch.equal(model(x=batch(), gates=weights).outputs, expected)


@torch.no_grad()
def test_weights_average_the_outputs_of_full_copies() -> None:
    model, x = make(full_copy()), batch()
    expected = x
    starts = (0, 1, 3, 3)
    for pair, start, width in zip(model.model, starts, (1, 2, 1, 1), strict=True):
        assert isinstance(pair, GatedPair)
        weight = WEIGHTS[start : start + width].repeat_interleave(SIZE // width)
        expected = torch.tanh(weight * pair.tuned(expected) + (1 - weight) * pair.frozen(expected))
    output = model(x=x, gates=WEIGHTS)
    assert torch.allclose(output.outputs, expected, atol=1e-6)
    assert torch.equal(output.gates_of(x), WEIGHTS.expand(BATCH, -1))
    model.gates.dense = True
    assert torch.allclose(model(x=x, gates=WEIGHTS).outputs, expected, atol=1e-6)


@torch.no_grad()
def test_weights_of_low_rank_copies_are_one_merged_model_at_its_price() -> None:
    model = make(low_rank(2))

    def merged(layer: LowRank) -> nn.Linear:
        linear = copy.deepcopy(layer.frozen)
        weight = WEIGHTS[layer.start : layer.start + layer.width].repeat_interleave(SIZE // layer.width)
        linear.weight += weight[:, None] * (layer.scale * layer.up @ layer.down)
        return linear

    plain = exchanged(copy.deepcopy(model), LowRank, merged).model
    assert torch.allclose(model(x=batch(), gates=WEIGHTS).outputs, plain(batch()), atol=1e-6)
    with Products() as ours:  # what was merged is kept
        model(x=batch(), gates=WEIGHTS)
    with Products() as theirs:
        plain(batch())
    assert ours.counts == theirs.counts


@torch.no_grad()
def test_gates_after_weights_choose_again(model: Adaptive) -> None:
    gates = torch.rand(BATCH, 4) < 0.5
    before = model(x=batch(), gates=gates).outputs
    averaged = model(x=batch(), gates=WEIGHTS).outputs
    assert not torch.allclose(averaged, before)
    assert torch.equal(model(x=batch(), gates=gates).outputs, before)
    assert torch.equal(model(x=batch(), gates=WEIGHTS).outputs, averaged)
