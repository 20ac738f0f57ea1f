"""The gates of a forward pass: their meaning, and that nothing of the pass is left behind when it is over."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from adaptive.adapt import Adaptive, adapt
from adaptive.gates import FROZEN, TUNED
from adaptive.pair import GatedPair

BATCH, SIZE = 6, 8
UNITS = [(["0"], 1), (["1"], 2), (["2", "3"], 1)]
GATES = 4


class Seen(torch.autograd.Function):
    """The identity; `nodes` are weak references to the places it has in graphs."""

    nodes: list[weakref.ref]

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        Seen.nodes.append(weakref.ref(ctx))
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Linear(SIZE, 2 * GATES)

    def forward(self, input: Tensor) -> Tensor:
        return Seen.apply(self.logits(input)).unflatten(-1, (GATES, 2))


class Stack(nn.Sequential):
    """Linear layers; `around` is called with each and its input."""

    around: Callable[..., Tensor] = staticmethod(lambda layer, x: layer(x))

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = torch.tanh(self.around(layer, input))
        return input


@pytest.fixture(autouse=True)
def no_nodes_yet() -> Iterator[None]:
    Seen.nodes = []
    gc.disable()  # nothing may wait for the collector
    yield
    gc.enable()


def make() -> Adaptive:
    """Adaptive layers whose tuned copies have moved."""
    torch.manual_seed(0)
    model = Stack(*(nn.Sequential(nn.Linear(SIZE, SIZE), nn.Dropout(0.1)) for _ in range(4)))
    model = Adaptive(model, Policy(), adapt(model, UNITS))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".tuned." in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def batch() -> Tensor:
    return torch.randn(BATCH, SIZE, generator=torch.Generator().manual_seed(1))


def step(model: Adaptive) -> None:
    """One step of training."""
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(input=batch()).outputs.square().sum().backward()
    optimizer.step()


def output(model: nn.Module) -> Tensor:
    torch.manual_seed(2)
    return model(input=batch()).outputs


def shared_gates(model: nn.Module) -> set[int]:
    return {id(module.gates) for module in model.modules() if isinstance(module, GatedPair)}


@pytest.mark.parametrize(("copy_name", "index", "value"), [("frozen", FROZEN, 0.0), ("tuned", TUNED, 1.0)])
def test_gate_1_is_tuned_and_gate_0_is_frozen(copy_name: str, index: int, value: float) -> None:
    """From the policy's logits to the copy that runs."""
    assert index == value
    model = make().eval()
    with torch.no_grad():
        model.policy.logits.weight.zero_()
        model.policy.logits.bias.view(GATES, 2)[:, index] = 50.0
    expected = Stack(*(getattr(pair, copy_name) for pair in model.model))(batch())
    result = model(input=batch())
    assert torch.equal(result.gates, torch.full((BATCH, GATES), value))
    assert torch.equal(result.outputs, expected)


def test_policy_logits_are_returned_with_their_graph() -> None:
    model = make()
    logits = model(input=batch()).policy_logits
    assert torch.equal(logits, model.policy(batch()))
    logits.square().sum().backward()
    assert model.policy.logits.weight.grad.any()


def test_without_a_policy_there_are_neither_gates_nor_logits() -> None:
    layer = nn.Linear(SIZE, SIZE)
    result = Adaptive(layer)(input=batch())
    assert torch.equal(result.outputs, layer(batch()))
    assert result.gates is None and result.policy_logits is None


def test_the_policys_graph_ends_with_the_forward_pass_that_made_it() -> None:
    model = make()
    result = model(input=batch())
    (node,) = Seen.nodes
    assert node() is not None
    del result
    assert node() is None


def test_after_a_step_no_graph_is_alive() -> None:
    model = make()
    step(model)
    assert Seen.nodes and not any(node() for node in Seen.nodes)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
def test_a_copy_taken_after_a_step_is_equal_and_independent(mode: bool) -> None:
    model = make()
    step(model)
    model.train(mode)
    twin = copy.deepcopy(model)
    assert shared_gates(twin) == {id(twin.gates)} and twin.gates is not model.gates
    before = copy.deepcopy(model.state_dict())
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(output(twin), output(model))
    step(twin)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not torch.equal(output(twin), output(model))


def test_a_model_can_be_pickled_after_a_step() -> None:
    model = make()
    model.gates.dense = True
    step(model)
    twin = pickle.loads(pickle.dumps(model))
    assert twin.gates.dense and shared_gates(twin) == {id(twin.gates)}
    assert torch.equal(output(twin), output(model))


def test_a_copy_has_no_forward_pass_under_way() -> None:
    """Not even that of a model whose own broke off in the middle, with the graph still there."""

    def fail(module: nn.Module, args: Any) -> None:
        raise MemoryError

    model = make()
    hook = model.model[3].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        model(input=batch())
    hook.remove()
    twin = copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="call Adaptive"):
        twin.model(batch())
    step(twin)


def test_torchs_moving_average_follows_a_model_in_training() -> None:
    model = make()
    step(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)  # the first takes the values over
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    average.update_parameters(model)
    second = model.state_dict()
    for name, tensor in average.module.state_dict().items():
        assert torch.allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6), name
        assert torch.equal(first[name], second[name]) == (".frozen." in name), name
    step(model)
    assert output(average.eval()).isfinite().all()


def gradients(around: Callable[..., Tensor]) -> dict[str, Tensor]:
    model = make()
    model.model.around = around
    torch.manual_seed(0)
    model(input=batch().requires_grad_()).outputs.square().sum().backward()
    assert Seen.nodes and not any(node() for node in Seen.nodes)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_needs_no_graph_of_the_policy() -> None:
    expected = gradients(lambda layer, x: layer(x))
    checkpointed = gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    assert expected["policy.logits.weight"].any()
    assert expected.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], grad) for name, grad in expected.items())


def test_checkpointing_that_would_lose_the_policys_gradients_is_refused() -> None:
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=True))


def test_processes_that_share_a_batch_draw_the_gates_of_one_that_has_it_all() -> None:
    input = batch()
    model = make().train()
    torch.manual_seed(5)
    expected = model(input=input).gates
    whole = torch.random.get_rng_state()
    for rows in (slice(0, 2), slice(2, 5), slice(5, BATCH)):
        generator = torch.Generator().manual_seed(5)
        model.draw_noise(generator, BATCH, rows)
        assert torch.equal(model(input=input[rows]).gates, expected[rows])
    torch.manual_seed(5)
    model(input=input)  # what was drawn served one pass
    assert torch.equal(torch.random.get_rng_state(), whole)


def test_a_model_without_gates_draws_none() -> None:
    generator = torch.Generator().manual_seed(5)
    before = generator.get_state()
    Adaptive(nn.Linear(SIZE, SIZE)).draw_noise(generator, BATCH, slice(0, BATCH))
    assert torch.equal(generator.get_state(), before)
