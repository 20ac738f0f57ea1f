"""The claim: `Linear` is `nn.Linear`, in everything but the library that multiplies."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from kernels import linear
from kernels.linear import WORTHWHILE, Linear

SIZE = 512
SHAPES = [(3, SIZE), (2, 5, SIZE), (1, SIZE), (SIZE,), (0, SIZE)]


@pytest.fixture(autouse=True)
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> None:
    if linear._one_dnn is None:
        pytest.skip("this PyTorch has no oneDNN, so Linear is nn.Linear")
    monkeypatch.setattr(linear, "_has_fast_blas", lambda: False)


def pair(bias: bool = True) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(0)
    ours, plain = Linear(SIZE, SIZE, bias), nn.Linear(SIZE, SIZE, bias)
    assert ours.weight.numel() >= WORTHWHILE
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def run(module: nn.Module, input: Tensor) -> list[Tensor | None]:
    """Output and all gradients of a loss that weighs every output differently."""
    module = copy.deepcopy(module)
    input = input.clone().requires_grad_()
    output = module(input)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return [output.detach(), input.grad, *(parameter.grad for parameter in module.parameters())]


def multiplications(module: nn.Module, input: Tensor) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        module(input)
    return {event.name for event in profiler.events() if "linear" in event.name}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_nn_linear(shape: tuple[int, ...], bias: bool) -> None:
    ours, plain = pair(bias)
    input = torch.randn(shape)
    for mine, theirs in zip(run(ours, input), run(plain, input), strict=True):
        assert mine.shape == theirs.shape
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_strided_inputs_and_gradients_are_multiplied_as_they_read() -> None:
    ours, plain = pair()
    input = torch.randn(SIZE, 6).t()
    assert torch.allclose(ours(input).sum(0), plain(input).sum(0), atol=1e-4)
    for module in (ours, plain):
        module(input).mean().backward()  # an expanded gradient
    assert torch.allclose(ours.weight.grad, plain.weight.grad, atol=1e-6)


def test_large_layers_go_through_one_dnn_and_small_ones_and_bf16_do_not() -> None:
    ours, _ = pair()
    input = torch.randn(2, SIZE)
    with torch.no_grad():
        assert multiplications(ours, input) == {"mkldnn::_linear_pointwise"}
        assert multiplications(Linear(8, 8), torch.randn(2, 8)) == {"aten::linear"}
        assert multiplications(ours.bfloat16(), input.bfloat16()) == {"aten::linear"}


def test_under_autocast_the_output_is_in_its_type() -> None:
    ours, plain = pair()
    input = torch.randn(2, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(input).dtype == torch.bfloat16
        assert torch.equal(ours(input), plain(input))


@pytest.mark.parametrize(
    ("input_needs", "weight_needs"), [(True, False), (False, True), (False, False)], ids=str
)
def test_only_what_a_gradient_needs_is_saved(input_needs: bool, weight_needs: bool) -> None:
    ours, _ = pair()
    ours.requires_grad_(weight_needs)
    input = torch.randn(2, SIZE, requires_grad=input_needs)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.shape), lambda _: None):
        ours(input)
    assert (ours.weight.shape in saved) == input_needs
    assert (input.shape in saved) == weight_needs


def test_an_intel_cpu_multiplies_through_its_own_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = pair()
    input = torch.randn(3, SIZE)
    assert any("mkldnn" in name for name in multiplications(ours, input))
    monkeypatch.setattr(linear, "_has_fast_blas", lambda: True)
    assert not any("mkldnn" in name for name in multiplications(ours, input))


@pytest.mark.parametrize("fast_blas", [False, True])
def test_the_gradient_of_the_input_is_added_to_what_is_there(
    fast_blas: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_has_fast_blas", lambda: fast_blas)
    ours, plain = pair()
    grad, total = torch.randn(3, SIZE), torch.ones(3, SIZE)
    expected = grad @ plain.weight
    assert torch.allclose(ours.input_gradient(grad), expected, atol=1e-5)
    result = ours.input_gradient(grad, total)
    assert result is total
    assert torch.allclose(total, 1 + expected, atol=1e-5)
