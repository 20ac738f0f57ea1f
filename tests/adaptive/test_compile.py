"""`torch.compile` of a model that gates decide over: the same numbers, and no graph a batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.adaptive.test_model import bert, labelled
from tests.helpers.architectures import move
from torch import Tensor, nn

from adaptive import AdaptiveConfig, get_adaptive_model

PER_LAYER = 6  # Linears in a layer of BERT


class Compiler:
    """A backend that runs graphs as they are, and how many it got."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs.append(graph)
        return graph.forward

    def products(self) -> list[int]:
        """How many low-rank products are in each graph that has any."""
        counts = [
            sum("autograd_function_apply" in str(node.target) for node in g.graph.nodes) for g in self.graphs
        ]
        return [count for count in counts if count]


def run(model: nn.Module, training: bool, seed: int) -> dict[str, Tensor]:
    """Logits, gates, and in training all gradients, of a batch."""
    torch.manual_seed(seed)
    model.train(training).zero_grad()
    with torch.set_grad_enabled(training):
        output = model(**labelled())
    if training:
        output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {"logits": output.logits.detach(), "gates": model.adaptive.last_gates()}


@pytest.mark.slow
@pytest.mark.parametrize(("tuned", "layers"), [("lora", 2), ("full", 1)])
def test_numbers_are_those_without_and_other_gates_need_no_other_graph(tuned: str, layers: int) -> None:
    torch.compiler.reset()
    config = AdaptiveConfig("encoder.layer.*", tuned=tuned, rank=2)
    model = get_adaptive_model(bert(num_hidden_layers=layers), config)
    move(model)
    plain, compiler = copy.deepcopy(model), Compiler()
    model.compile(backend=compiler)
    for training in (True, False):
        several = set()
        for seed in range(3):
            if seed == 1:
                first = len(compiler.graphs)
            found, expected = run(model, training, seed), run(plain, training, seed)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
            several.add(tuple(expected["gates"].flatten().tolist()))
        assert len(compiler.graphs) == first
        assert len(several) > 1 or not training
    # With low-rank copies all of the model is one graph in training, and one in evaluation, where a product
    # is written out; pairs run between graphs.
    assert compiler.products() == ([PER_LAYER * layers] if tuned == "lora" else [])
    assert len(compiler.graphs) == 2 if tuned == "lora" else compiler.graphs


def test_what_is_compiled_already_is_refused() -> None:
    with pytest.raises(ValueError, match="first get_adaptive_model, then"):
        get_adaptive_model(torch.compile(bert(), backend="eager"), AdaptiveConfig("encoder.layer.*"))
