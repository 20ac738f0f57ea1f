"""Whatever a gated module returns, gates decide over the tensors in it and leave its shape alone."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adaptive.adapt import adapt
from adaptive.copies import full_copy
from adaptive.routing import map_tensors

BATCH, SIZE = 5, 4


class Named(NamedTuple):
    left: Tensor
    right: Tensor | None


def pooled(a: Tensor, b: Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(last_hidden_state=a, hidden_states=(a, b))


CONTAINERS = {
    "a tensor": lambda a, b: a,
    "a tuple": lambda a, b: (a, None, (b,)),
    "a list": lambda a, b: [a, b],
    "a named tuple": Named,
    "a named tuple with None": lambda a, b: Named(a, None),
    "what torch.max returns": lambda a, b: torch.max(torch.stack([a, b]), 0),
    "a dict": lambda a, b: {"a": a, "b": [b]},
    "an ordered dict": lambda a, b: OrderedDict(b=b, a=a),
    "an output of transformers": pooled,
}
every_container = pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS.keys())


def flat(output: Any) -> list[Tensor]:
    """The tensors of an output, in order."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output or ()
    return [tensor for part in parts for tensor in flat(part)]


@every_container
def test_tensors_are_mapped_and_everything_around_them_stays(container: Any) -> None:
    a, b, c, d = torch.randn(4, BATCH, SIZE)
    first, second = container(a, b), container(c, d)
    before = [tensor.clone() for tensor in flat(first)]
    result = map_tensors(torch.sub, first, second)
    assert type(result) is type(first)
    assert len(flat(result)) == len(before) > 0
    for difference, x, y in zip(flat(result), before, flat(second), strict=True):
        assert torch.equal(difference, x - y)
    assert all(torch.equal(tensor, old) for tensor, old in zip(flat(first), before, strict=True))


def test_an_output_of_transformers_has_the_same_tensors_under_both_its_names() -> None:
    a, b = torch.randn(2, BATCH, SIZE)
    result = map_tensors(torch.neg, pooled(a, b))
    assert result.last_hidden_state is result["last_hidden_state"] is result[0]
    assert torch.equal(result.hidden_states[1], -b)
    assert result.pooler_output is None and list(result) == ["last_hidden_state", "hidden_states"]


class Part(nn.Module):
    def __init__(self, container: Any) -> None:
        super().__init__()
        self.a, self.b, self.container = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE), container

    def forward(self, x: Tensor) -> Any:
        return self.container(self.a(x), self.b(x))


MIXED = [[1.0], [0.0], [1.0], [1.0], [0.0]]


@pytest.mark.parametrize("gate", [MIXED, [[1.0]] * BATCH, [[0.0]] * BATCH], ids=["mixed", "tuned", "frozen"])
@pytest.mark.parametrize("frozen_dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", [name for name in CONTAINERS if "torch.max" not in name])
def test_routed_equals_dense_in_every_container(
    name: str, frozen_dtype: torch.dtype | None, gate: list[list[float]]
) -> None:
    results = []
    for dense in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(Part(CONTAINERS[name]))
        gates = adapt(model, [(["0"], 1)], full_copy(frozen_dtype))
        gates.dense = dense
        nn.init.normal_(model[0].tuned.a.weight)
        leaf = torch.tensor(gate, requires_grad=True)
        gates.fill(leaf)
        output = model(torch.randn(BATCH, SIZE))
        sum(tensor.square().sum() for tensor in flat(output)).backward()
        assert all(tensor.dtype == torch.float32 for tensor in flat(output))
        results.append([*flat(output), leaf.grad, model[0].tuned.a.weight.grad])
    for routed, dense in zip(*results, strict=True):
        routed = torch.zeros_like(dense) if routed is None else routed  # a copy that never ran
        assert torch.allclose(routed, dense, atol=1e-4)


@pytest.mark.parametrize("other", [DynamicCache(), "words", 3], ids=["a cache", "words", "a number"])
def test_what_gates_cannot_choose_between_is_named(other: Any) -> None:
    with pytest.raises(TypeError, match=type(other).__name__):
        map_tensors(torch.sub, (torch.ones(1), other), (torch.ones(1), other))


@pytest.mark.parametrize("pair", [(None, ()), ([], ()), ({"a": None}, None)])
def test_copies_that_return_different_types_are_an_error(pair: tuple[Any, Any]) -> None:
    with pytest.raises(TypeError, match="not: "):
        map_tensors(torch.sub, *pair)
