"""Weights that several modules have in common, and parts that only training calls."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.architectures import move
from torch import Tensor, nn

from adaptive import AdaptiveConfig, get_adaptive_model
from adaptive.low_rank import LowRank

SIZE = 6


class Tied(nn.Module):
    """Two layers with one weight, and a head, with the same one on request."""

    def __init__(self, head: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(2))
        self.head = nn.Linear(SIZE, SIZE)
        self.layers[1].weight = self.layers[0].weight
        if head:
            self.head.weight = self.layers[0].weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def adaptive(model: nn.Module, tuned: str, target: str = "layers.*") -> nn.Module:
    return get_adaptive_model(model, AdaptiveConfig(target, tuned=tuned, rank=2, policy="constant"))


def gates() -> Tensor:
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def test_low_rank_copies_of_a_shared_weight_each_have_an_update_of_their_own() -> None:
    model, x = adaptive(Tied(), "lora"), torch.randn(3, SIZE)
    layers = list(model.layers)
    assert all(isinstance(layer, LowRank) for layer in layers)
    assert layers[0].frozen.weight is layers[1].frozen.weight and layers[0].up is not layers[1].up
    move(model)
    expected = x
    for number, layer in enumerate(layers):
        update = expected @ (layer.scale * layer.up @ layer.down).T
        expected = layer.frozen(expected) + gates()[:, number : number + 1] * update
    with model.adaptive.holding(gates()):
        torch.testing.assert_close(model.train()(x), model.head(expected))


@pytest.mark.parametrize("head", [False, True])
def test_full_copies_of_a_shared_weight_train_as_one(head: bool) -> None:
    model, plain, x = adaptive(Tied(head), "full"), Tied(head), torch.randn(3, SIZE)
    assert model.layers[0].tuned.weight is model.layers[1].tuned.weight
    with model.adaptive.holding(torch.ones(3, 2)):
        model.train()(x).square().sum().backward()
    plain(x).square().sum().backward()
    torch.testing.assert_close(model.layers[0].tuned.weight.grad, plain.layers[0].weight.grad)
    assert model.layers[0].frozen.weight.grad is None


def test_low_rank_copies_of_what_trains_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.weight is head\.weight too, which is in no gated"):
        adaptive(Tied(head=True), "lora")
    adaptive(Tied(head=True), "full")


class OnlyInTraining(nn.Module):
    """It drops in training only, with the words first."""

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.dropout = nn.Linear(SIZE, SIZE), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dense(x)
        return self.dropout(x.transpose(0, 1)).transpose(0, 1) if self.training else x


class WithIt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = OnlyInTraining()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_where_it_was_not_learned_the_size_of_the_first_dimension_decides_nothing() -> None:
    model = adaptive(WithIt(), "lora", "layer")
    with pytest.raises(RuntimeError, match=r"layer\.dropout is called now, and was not in evaluation"):
        model.train()(torch.randn(3, 3, SIZE))
