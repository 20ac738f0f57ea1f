"""Low-rank copies: the frozen model at 0, the merged one at 1, between them the derivative of the formula.

Oracles: the formula written out for autograd, difference quotients, merged weights, and peft's LoRA.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from tests.helpers.low_rank import Naive, Products, exchanged, merge, move
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer
from transformers.pytorch_utils import Conv1D

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import Copies, low_rank
from adaptive.gates import Gates
from adaptive.low_rank import GatedDropout, GatedSlices, LowRank
from kernels import linear as kernel
from kernels.dropout import Dropout
from kernels.linear import Linear, linears
from tasks.bench.operations import as_on_a_gpu

BATCH, TOKENS, SIZE, SLICES, RANK = 6, 3, 16, 4, 3
BF16 = torch.bfloat16


class Layer(nn.Module):
    """A unit of several Linears, with a residual, a layer norm and dropout; returns a tuple."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)
        self.dropout, self.norm = nn.Dropout(rate), nn.LayerNorm(SIZE)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.norm(x + self.dropout(self.down(torch.tanh(self.up(x))))), None


class Attend(nn.Module):
    """Attention with its slices apart; the three projections are of one input."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.dropout = Dropout(rate)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return linears(x, self.query, self.key, self.value)

    def combine(self, projected: tuple[Tensor, ...], tuned: Tensor | None, x: Tensor) -> Tensor:
        query, key, value = (p.unflatten(-1, (SLICES, -1)).transpose(1, 2) for p in projected)
        weights = (query @ key.mT).softmax(-1)
        weights = self.dropout(weights) if tuned is None else self.only_tuned(weights, tuned)
        return (weights @ value).transpose(1, 2).flatten(2)

    def only_tuned(self, weights: Tensor, tuned: Tensor) -> Tensor:
        return self.dropout.only(weights, tuned[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.project(x), None, x)


class Toy(nn.Module):
    """A layer, heads, a Linear in slices and one as a whole."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.layer, self.heads = Layer(rate), Attend(rate)
        self.wide, self.last = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)[0]
        return self.last(torch.tanh(self.wide(x + self.heads(x))))


UNITS = [(["layer"], 1), (["heads"], SLICES), (["wide"], 2), (["last"], 1)]
GATES = 1 + SLICES + 2 + 1


def toy(
    rate: float = 0.0, dtype: torch.dtype = torch.float32, copies: Copies | None = None
) -> tuple[nn.Module, Gates]:
    """An adapted model whose tuned side has moved."""
    torch.manual_seed(0)
    model = Toy(rate).to(dtype)
    gates = adapt(model, UNITS, copies or low_rank(RANK, alpha=2 * RANK))
    return move(model), gates


def plain(rate: float = 0.0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The pre-trained model of `toy`."""
    torch.manual_seed(0)
    return Toy(rate).to(dtype)


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(shape or (BATCH, TOKENS, SIZE), generator=generator).to(dtype)


def mixed(gates: int = GATES, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.rand(BATCH, gates, generator=torch.Generator().manual_seed(2)) < 0.5).to(dtype)


def results(model: nn.Module, gates: Gates | None, values: Tensor | None, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of input, gates and all parameters that get one."""
    leaf, found = x.clone().requires_grad_(), {}
    if gates is not None:
        values = values.clone().requires_grad_()
        gates.fill(values)
    output = model(leaf)
    weigh(output).backward()
    if gates is not None:
        found["gates"] = values.grad
    of_weights = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "input": leaf.grad, **found, **of_weights}


def weigh(output: Tensor) -> Tensor:
    """A loss that weighs every output differently."""
    generator = torch.Generator().manual_seed(4)
    return (output * torch.randn(output.shape, generator=generator).to(output.dtype)).sum()


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        scale = value.abs().max().clamp(min=1)
        assert (found[name] - value).abs().max() <= tolerance * scale, name


def products(call: Callable[[], Any]) -> int:
    with Products() as counted:
        call()
    return counted.total


# Values and gradients


@pytest.mark.parametrize("rank", [1, 3, 40])
@pytest.mark.parametrize("gate", ["mixed", "real", "zeros", "ones"])
def test_values_and_all_gradients_equal_the_formula_written_out(rank: int, gate: str) -> None:
    """Per example and per slice, to the precision of float64; also for gates between 0 and 1."""
    real = torch.rand(BATCH, GATES, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    values = {"mixed": mixed(dtype=torch.float64), "real": real}.get(gate)
    if values is None:
        values = torch.full((BATCH, GATES), float(gate == "ones"), dtype=torch.float64)
    (model, gates), (twin, theirs) = (toy(0.0, torch.float64, low_rank(rank, alpha=2.5)) for _ in range(2))
    written_out = exchanged(twin, LowRank, Naive)
    x = batch(dtype=torch.float64)
    assert_close(results(model, gates, values, x), results(written_out, theirs, values, x), 1e-12)


@pytest.mark.parametrize("exporting", [False, True], ids=["", "as a graph is traced"])
@pytest.mark.parametrize("width", [1, 2, 8, SIZE])
def test_slices_of_any_width_follow_the_formula(
    width: int, exporting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    torch.manual_seed(0)
    gates = Gates(width)
    layer = move(LowRank(nn.Linear(5, SIZE).requires_grad_(False), RANK, 0.7, gates, 0, width)).double()
    x, values = batch(BATCH, TOKENS, 5, dtype=torch.float64), mixed(width, torch.float64)
    found = results(layer, gates, values, x)
    layer.zero_grad()
    assert_close(found, results(Naive(layer), gates, values, x), 1e-12)


@pytest.mark.parametrize("start", [0.3, 0.0, 1.0])
def test_a_gates_gradient_is_the_difference_quotient(start: float) -> None:
    """For a unit of several Linears with a nonlinearity between, for heads, slices and a single Linear."""
    model, gates = toy(dtype=torch.float64)
    x, values = batch(dtype=torch.float64), torch.full((BATCH, GATES), start, dtype=torch.float64)
    exact = results(model, gates, values, x)["gates"]
    step = 1e-5
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).double()  # as in `weigh`

    def losses(values: Tensor) -> Tensor:
        gates.fill(values)
        return (model(x) * weight).sum((1, 2)).detach()

    for gate in range(GATES):
        shift = step * F.one_hot(torch.tensor(gate), GATES)
        quotient = (losses(values + shift) - losses(values - shift)) / (2 * step)
        assert quotient.abs().max() > 1e-3
        assert torch.allclose(exact[:, gate], quotient, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("amp", [None, BF16, torch.float16], ids=str)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_all_gates_0_is_the_pretrained_model_bit_for_bit(
    mode: bool, amp: torch.dtype | None, with_gradient: bool
) -> None:
    """In training too: what runs frozen has no dropout."""
    model, gates = toy(rate=0.5)
    gates.fill(torch.zeros(BATCH, GATES, requires_grad=with_gradient))
    with torch.autocast("cpu", amp, enabled=amp is not None), torch.set_grad_enabled(with_gradient):
        output = model.train(mode)(batch())
        assert torch.equal(output, plain().eval()(batch()))


@pytest.mark.parametrize("with_gradient", [True, False])
def test_all_gates_1_are_the_merged_weights(with_gradient: bool) -> None:
    model, gates = toy()
    gates.fill(torch.ones(BATCH, GATES))
    with torch.set_grad_enabled(with_gradient):
        assert torch.allclose(model.eval()(batch()), merge(model)(batch()), atol=2e-5)


def test_all_gates_1_have_the_dropout_of_the_pretrained_model() -> None:
    """The same mask from the same seed."""
    model, gates = toy(rate=0.5)
    gates.fill(torch.ones(BATCH, GATES))
    without_gates = toy(rate=0.5)[0]
    for part in without_gates.modules():
        if isinstance(part, LowRank):
            part.gates = None
    without_gates.layer.dropout = without_gates.layer.dropout.dropout
    without_gates.heads = without_gates.heads.sliced
    outputs = []
    for either in (model, without_gates):
        torch.manual_seed(7)
        outputs.append(either.train()(batch()))
    assert torch.allclose(*outputs, atol=2e-5)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_mixed_batch_equals_its_rows_one_by_one(gradients: bool) -> None:
    model, gates = toy(dtype=torch.float64)
    model.eval()
    x, values = batch(dtype=torch.float64), mixed(dtype=torch.float64)
    with torch.set_grad_enabled(gradients):
        gates.fill(values)
        together = model(x)
        for row in range(BATCH):
            gates.fill(values[row : row + 1])
            assert torch.allclose(model(x[row : row + 1])[0], together[row], atol=1e-12)


def test_the_gradients_of_a_batch_are_the_sums_of_its_rows() -> None:
    model, gates = toy(dtype=torch.float64)
    x, values = batch(dtype=torch.float64), mixed(dtype=torch.float64)
    together = results(model, gates, values, x)
    model.zero_grad()
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(4)).double()
    for row in range(BATCH):
        one = slice(row, row + 1)
        gates.fill(values[one])
        (model(x[one]) * weight[one]).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name in together)
        assert not parameter.requires_grad or torch.allclose(parameter.grad, together[name], atol=1e-10), name


def test_training_starts_from_the_pretrained_function_whatever_the_gates() -> None:
    torch.manual_seed(0)
    model = Toy()
    gates = adapt(model, UNITS, low_rank(RANK))
    for values in (mixed(), torch.ones(BATCH, GATES)):
        gates.fill(values)
        assert torch.equal(model(batch()), plain()(batch()))


def test_down_starts_with_the_variance_of_its_inputs_size() -> None:
    torch.manual_seed(0)
    layer = LowRank(nn.Linear(400, 8), 100, 1.0, None)
    assert layer.down.std().item() == pytest.approx(400**-0.5, rel=0.03)
    assert not layer.up.any()


# Peft's LoRA, where all gates are 1


def sequential() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(SIZE, 24), nn.Tanh(), nn.Linear(24, SIZE, bias=False), nn.LayerNorm(SIZE))
    return nn.Sequential(*layers, nn.Linear(SIZE, 5)).double()


@pytest.mark.parametrize("gated", [False, True], ids=["no gates", "all gates 1"])
@pytest.mark.parametrize(("rank", "alpha"), [(1, 1), (4, 8), (8, 16), (8, 2), (30, 7)])
def test_values_and_gradients_equal_pefts_where_gates_are_1(gated: bool, rank: int, alpha: int) -> None:
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=["0", "2", "4"])
    theirs = inject_adapter_in_model(config, sequential()).double()
    ours, gates = sequential(), None
    if gated:
        gates = adapt(ours, [(["0", "2", "3"], 1), (["4"], 5)], low_rank(rank, alpha))
    else:
        low_rank(rank, alpha)(ours, None, 0, 1)
    move(ours)
    with torch.no_grad():
        for name in ("0", "2", "4"):
            layer = theirs.get_submodule(name)
            layer.lora_A.default.weight.copy_(ours.get_submodule(name).down)
            layer.lora_B.default.weight.copy_(ours.get_submodule(name).up)
    x, ones = batch(BATCH, TOKENS, SIZE, dtype=torch.float64), torch.ones(BATCH, 6, dtype=torch.float64)
    found, expected = results(ours, gates, ones, x), results(theirs, None, None, x)
    found.pop("gates", None)
    spelling = {".lora_A.default.weight": ".down", ".lora_B.default.weight": ".up"}
    for old, new in spelling.items():
        expected = {name.replace(old, new): value for name, value in expected.items()}
    assert len(expected) == 2 + 6
    assert_close(found, expected, 1e-12)


# Modules in several places, and run more than once


class Twice(nn.Module):
    """One layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """One Linear under two names, and a block under two names, in the order a, b, c, d."""

    def __init__(self, within: bool) -> None:
        super().__init__()
        linear = nn.Linear(SIZE, SIZE)
        first, last = (nn.ModuleDict({"x": nn.Linear(SIZE, SIZE)}) for _ in range(2))
        first["y"] = linear
        (first if within else last)["z"] = linear
        self.first, self.last = first, last

    def forward(self, x: Tensor) -> Tensor:
        for part in (*self.first.values(), *self.last.values()):
            x = torch.tanh(part(x))
        return x


def assert_follows_the_formula(model: nn.Module, gates: Gates) -> None:
    """Compared with a twin whose layers stay one where they were."""
    move(model.double())
    twin = copy.deepcopy(model)
    memo: dict[int, Naive] = {}
    for parent in list(twin.modules()):
        for name, part in parent._modules.items():
            if isinstance(part, LowRank):
                parent._modules[name] = memo.setdefault(id(part), Naive(part))
    theirs = next(naive.layer[0].gates for naive in memo.values())
    x, values = batch(dtype=torch.float64), mixed(gates.total, torch.float64)
    assert_close(results(model, gates, values, x), results(twin, theirs, values, x), 1e-12)


def test_a_module_called_twice_collects_both_calls_gradients() -> None:
    torch.manual_seed(0)
    model = Twice()
    assert_follows_the_formula(model, adapt(model, [(["layer"], 1)], low_rank(RANK)))


@pytest.mark.parametrize("within", [True, False], ids=["within a unit", "across units"])
@pytest.mark.parametrize("gated", [True, False], ids=["gates", "no gates"])
def test_a_linear_in_two_places_stays_one_with_the_gates_of_the_first(within: bool, gated: bool) -> None:
    torch.manual_seed(0)
    model, copies = Tied(within), low_rank(RANK)
    gates = None
    if gated:
        gates = adapt(model, [(["first"], 1), (["last"], 1)], copies)
    else:
        copies(model.first, None, 0, 1), copies(model.last, None, 0, 1)
    one, other = model.first["y"], (model.first if within else model.last)["z"]
    assert one is other and isinstance(one, LowRank)
    assert sum(isinstance(part, LowRank) for part in model.modules()) == 3
    if gated:
        assert one.start == 0
        assert_follows_the_formula(model, gates)


def test_a_linear_under_two_names_of_one_unit_stays_one() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(SIZE, SIZE)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    gates = adapt(model, [(["0", "2"], 1)], low_rank(RANK))
    assert model[0] is model[2] and isinstance(model[0], LowRank)
    assert_follows_the_formula(model, gates)


def test_a_unit_within_a_unit_is_refused() -> None:
    """Its gate would decide nothing."""
    model = nn.Sequential(nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh()), nn.Linear(SIZE, SIZE))
    with pytest.raises(ValueError, match=r"unit 0\.0 is a part of unit 0"):
        adapt(model, [(["0"], 1), (["0.0"], 1), (["1"], 1)], low_rank(RANK))


def test_projections_of_other_gates_or_without_an_update_share_nothing() -> None:
    """q, k and v may be in different units, and one of them may be frozen from the start."""
    torch.manual_seed(0)
    model = Attend(0.0)
    model.value.requires_grad_(False)
    gates = adapt(model, [(["query"], 1), (["key"], 2), (["value"], 1)], low_rank(RANK))
    move(model)
    assert type(model.value) is nn.Linear
    gates.fill(mixed(4))
    x = batch()
    separate = [layer(x) for layer in (model.query, model.key, model.value)]
    for order in ((0, 1, 2), (2, 0, 1)):
        layers = [(model.query, model.key, model.value)[index] for index in order]
        for index, output in zip(order, linears(x, *layers), strict=True):
            assert torch.allclose(output, separate[index], atol=1e-6)


# One product with A for several layers


def three_layers(width: int) -> tuple[list[LowRank], Gates]:
    torch.manual_seed(0)
    gates = Gates(width)
    layers = [
        LowRank(nn.Linear(SIZE, n * SIZE).requires_grad_(False), RANK, 1.0, gates, 0, width)
        for n in (1, 2, 1)
    ]
    return [move(layer.double()) for layer in layers], gates


@pytest.mark.parametrize("width", [1, SLICES])
def test_layers_of_one_input_share_one_product_with_down(width: int) -> None:
    """Forward W x, B A x for each and A x once; the numbers are those of separate calls."""
    layers, gates = three_layers(width)
    x, values = batch(dtype=torch.float64), mixed(width, torch.float64)
    found = []
    for call in (lambda x: linears(x, *layers), lambda x: tuple(layer(x) for layer in layers)):
        leaf, gate = x.clone().requires_grad_(), values.clone().requires_grad_()
        gates.fill(gate)
        with Products() as forward:
            outputs = call(leaf)
        torch.cat(outputs, -1).sin().sum().backward()
        factors = [p for layer in layers for p in (layer.down, layer.up)]
        found.append((forward.total, [*outputs, leaf.grad, gate.grad, *(p.grad for p in factors)]))
        for factor in factors:
            factor.grad = None
    (shared, ours), (separate, theirs) = found
    assert (shared, separate) == (3 + 1 + 3, 3 * 3)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_what_of_several_layers_nothing_reads_gets_a_gradient_of_zero() -> None:
    layers, gates = three_layers(1)
    gates.fill(mixed(1, torch.float64))
    linears(batch(dtype=torch.float64), *layers)[1].sum().backward()
    assert layers[1].up.grad.any()
    assert not layers[0].up.grad.any() and not layers[2].down.grad.any()


def test_no_gradient_of_the_input_is_computed_where_none_is_needed() -> None:
    """As for the first layer behind frozen embeddings."""
    layers, gates = three_layers(1)
    counts, found = [], []
    for needs in (True, False):
        gates.fill(mixed(1, torch.float64))
        x = batch(dtype=torch.float64).requires_grad_(needs)
        loss = torch.cat(linears(x, *layers), -1).sum()
        counts.append(products(loss.backward))
        found.append([p.grad for layer in layers for p in (layer.down, layer.up)])
        for layer in layers:
            layer.zero_grad()
    assert counts[0] - counts[1] == len(layers) + 1
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# Checkpointing, precision, storage


class Stack(nn.Sequential):
    """`around` is called with each layer and its input."""

    around: Callable[..., Tensor] = staticmethod(lambda layer, x: layer(x))

    def forward(self, input: Tensor) -> Tensor:
        for layer in self:
            input = self.around(layer, input)
        return input


class Policy(nn.Module):
    def __init__(self, gates: int) -> None:
        super().__init__()
        self.logits = nn.Linear(SIZE, 2 * gates)

    def forward(self, input: Tensor) -> Tensor:
        return self.logits(input.mean(1)).unflatten(-1, (-1, 2))


def stack() -> Adaptive:
    """A policy and two units, one in slices, with dropout."""
    torch.manual_seed(0)
    first = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Dropout(0.1), nn.Tanh(), nn.Linear(SIZE, SIZE))
    model = Stack(first, Attend(0.1))
    gates = adapt(model, [(["0"], 1), (["1"], SLICES)], low_rank(RANK))
    return Adaptive(move(model), Policy(1 + SLICES), gates)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    """Of the policy, too."""

    def gradients(around: Callable[..., Tensor]) -> dict[str, Tensor]:
        model = stack()
        model.model.around = around
        torch.manual_seed(0)
        weigh(model(input=batch()).outputs).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients(lambda layer, x: layer(x))
    checkpointed = gradients(lambda layer, x: checkpoint(layer, x, use_reentrant=False))
    assert expected["policy.logits.weight"].any() and "model.0.0.down" in expected
    assert expected.keys() == checkpointed.keys()
    assert all(torch.equal(checkpointed[name], grad) for name, grad in expected.items())


@pytest.mark.parametrize("amp", [BF16, torch.float16], ids=str)
@pytest.mark.parametrize("frozen_dtype", [None, BF16], ids=str)
def test_under_autocast_all_is_close_to_fp32_and_gradients_are_in_fp32(
    amp: torch.dtype, frozen_dtype: torch.dtype | None
) -> None:
    usual, gates = toy()
    expected = results(usual, gates, mixed(), batch())
    model, gates = toy(copies=low_rank(RANK, 2 * RANK, frozen_dtype))
    leaf, values = batch().requires_grad_(), mixed().requires_grad_()
    gates.fill(values)
    with torch.autocast("cpu", amp):
        output = model(leaf)
    assert output.dtype == amp
    weigh(output.float()).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {"output": output.detach().float(), "input": leaf.grad, "gates": values.grad}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        assert (found[name] - value).norm() <= 0.05 * value.norm(), name


def test_frozen_weights_in_bf16_change_no_number_under_autocast_to_it() -> None:
    found = []
    for frozen_dtype in (None, BF16):
        model, gates = toy(copies=low_rank(RANK, None, frozen_dtype))
        assert model.last.frozen.weight.dtype == (frozen_dtype or torch.float32)
        assert model.last.frozen.bias.dtype == model.last.down.dtype == torch.float32
        with torch.autocast("cpu", BF16):
            found.append(results(model, gates, mixed(), batch()))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in found[0].items())


def test_without_autocast_frozen_weights_in_bf16_multiply_as_autocast_would() -> None:
    """All gates 0 is the rounded Linear under autocast, in values and in the input's gradient."""
    torch.manual_seed(0)
    linear = nn.Linear(SIZE, 8)
    layer = low_rank(RANK, None, BF16)(copy.deepcopy(linear), gates := Gates(1), 0, 1)
    gradients = []
    for run in (layer, linear):
        leaf = batch().requires_grad_()
        gates.fill(torch.zeros(BATCH, 1))
        with torch.autocast("cpu", BF16, enabled=run is linear):
            output = run(leaf).float()
        weigh(output).backward()
        gradients.append((output, leaf.grad))
    assert all(torch.equal(*both) for both in zip(*gradients, strict=True))


def test_without_autocast_frozen_weights_in_bf16_are_close_to_fp32() -> None:
    expected, found = (
        results(*toy(copies=low_rank(RANK, None, kind)), mixed(), batch()) for kind in (None, BF16)
    )
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == torch.float32, name
        assert 0 < (found[name] - value).norm() <= 0.03 * value.norm(), name


@pytest.mark.parametrize("dtype", [torch.float64, BF16], ids=str)
def test_a_model_in_another_type_as_a_whole_stays_in_it(dtype: torch.dtype) -> None:
    model, gates = toy(dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    found = results(model, gates, mixed(), batch(dtype=dtype))  # the policy's gates stay in fp32
    assert {value.dtype for name, value in found.items() if name != "gates"} == {dtype}
    assert found["gates"].dtype == torch.float32 and found["gates"].any()


@pytest.fixture(params=["its BLAS", "oneDNN"])
def products_of_a_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which `kernels.linear.Linear` multiplies on a CPU, for layers of any size."""
    if kernel._one_dnn is None:
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(kernel, "WORTHWHILE", 1)
    monkeypatch.setattr(kernel, "_has_fast_blas", lambda: request.param == "its BLAS")


@pytest.mark.usefixtures("products_of_a_cpu")
@pytest.mark.parametrize("shape", [(1, 64), (1, 1, 64), (7, 64), (5, 9, 64), (0, 3, 64)], ids=str)
@pytest.mark.parametrize("width", [1, SLICES])
def test_products_of_its_own_leave_a_frozen_output_as_it_is_too(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    linear, gates = Linear(64, 96).requires_grad_(False), Gates(width)
    layer = move(LowRank(linear, RANK, 1.0, gates, 0, width))
    gates.fill(torch.zeros(shape[0], width))
    x = batch(*shape)
    assert torch.equal(layer(x), linear(x))


@pytest.mark.usefixtures("products_of_a_cpu")
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_its_own_give_the_same_values_and_gradients(bias: bool) -> None:
    found = []
    for kind in (Linear, nn.Linear):
        torch.manual_seed(0)
        model = nn.Sequential(kind(SIZE, 24, bias), nn.Tanh(), kind(24, SIZE, bias))
        gates = adapt(model, [(["0"], 1), (["2"], SLICES)], low_rank(RANK))
        found.append(results(move(model), gates, mixed(1 + SLICES), batch()))
    assert_close(found[0], found[1], 1e-5)


# Modules as modules


def test_state_dict_names_are_those_of_the_model_with_frozen_down_and_up() -> None:
    model, _ = toy()
    inside = {"layer.": ("up", "down"), "heads.sliced.": ("query", "key", "value"), "": ("wide", "last")}
    names = {
        f"{prefix}{part}.{name}"
        for prefix, parts in inside.items()
        for part in parts
        for name in ("frozen.weight", "frozen.bias", "down", "up")
    }
    assert model.state_dict().keys() == names | {"layer.norm.weight", "layer.norm.bias"}


def test_factors_train_and_everything_else_in_a_unit_is_frozen() -> None:
    model, _ = toy()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.split(".")[-1] in ("down", "up") and "norm" not in name), name


def test_what_was_frozen_before_gets_no_update() -> None:
    model = nn.Sequential(nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4))
    low_rank(RANK)(model, None, 0, 1)
    assert type(model[0]) is nn.Linear and isinstance(model[1], LowRank)


def step(model: Adaptive) -> None:
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05, fused=True)
    weigh(model(input=batch()).outputs).backward()
    optimizer.step()
    optimizer.zero_grad()


def logits(model: nn.Module) -> Tensor:
    torch.manual_seed(2)
    with torch.no_grad():
        return model(input=batch()).outputs


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_copy_taken_after_a_step_is_equal_and_independent(
    mode: bool, copied: Callable[[nn.Module], nn.Module]
) -> None:
    model = stack()
    step(model)
    model.train(mode)
    logits(model)  # in evaluation there may be merged weights now
    twin = copied(model)
    shared = {id(part.gates) for part in twin.modules() if hasattr(part, "gates")}
    assert shared == {id(twin.gates)} and twin.gates is not model.gates
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(logits(twin), logits(model))
    step(twin)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not torch.equal(logits(twin), logits(model))


def test_copies_and_files_do_not_carry_merged_weights() -> None:
    big = nn.Linear(256, 256).requires_grad_(False)
    layer = LowRank(big, 2, 1.0, None).eval()
    size = len(pickle.dumps(layer))
    with torch.no_grad():
        layer(torch.randn(1, 256))
    assert layer._merged is not None
    assert len(pickle.dumps(layer)) == size
    assert copy.deepcopy(layer)._merged is None


@pytest.mark.parametrize("call", ["eval", "train"])
@pytest.mark.parametrize("part", ["layer", "heads", "wide"])
def test_a_call_without_gates_says_what_to_call(call: str, part: str) -> None:
    torch.manual_seed(0)
    model = Toy(0.5)
    adapt(model, UNITS, low_rank(RANK))
    getattr(model, call)()
    with torch.no_grad(), pytest.raises(RuntimeError, match="call Adaptive"):
        getattr(model, part)(batch())


# Inputs of any shape


SHAPES = {
    "no positions": (BATCH, SIZE),
    "one position": (BATCH, 1, SIZE),
    "two dimensions of positions": (BATCH, 2, 5, SIZE),
    "three of them": (BATCH, 2, 1, 3, SIZE),
    "no rows": (0, TOKENS, SIZE),
    "no rows and no positions": (0, SIZE),
    "rows of nothing": (BATCH, 0, SIZE),
}


@pytest.mark.parametrize("width", [None, 1, SLICES])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_inputs_may_have_any_number_of_dimensions(width: int | None, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    gates = None if width is None else Gates(width)
    layer = move(LowRank(nn.Linear(SIZE, 8).requires_grad_(False), RANK, 1.0, gates, 0, width or 1)).double()
    values = None if width is None else mixed(width, torch.float64)[: shape[0]]
    x = batch(*shape, dtype=torch.float64)
    found = results(layer, gates, values, x)
    layer.zero_grad()
    expected = results(Naive(layer), gates, values, x)
    assert found["output"].shape == (*shape[:-1], 8)
    assert_close(
        {n: t for n, t in found.items() if t.numel()}, {n: t for n, t in expected.items() if t.numel()}, 1e-12
    )
    with torch.no_grad():
        assert torch.allclose(layer.eval()(x), found["output"], atol=1e-12)


@pytest.mark.parametrize("width", [1, SLICES])
def test_strided_inputs_and_expanded_gradients_are_read_as_they_are(width: int) -> None:
    torch.manual_seed(0)
    gates = Gates(width)
    layer = move(LowRank(nn.Linear(SIZE, 8).requires_grad_(False), RANK, 1.0, gates, 0, width)).double()
    values = mixed(width, torch.float64)
    strided = batch(SIZE, TOKENS, BATCH, dtype=torch.float64).permute(2, 1, 0)
    assert not strided.is_contiguous()
    found = []
    for module in (layer, Naive(layer)):
        leaf, gate = strided.detach().requires_grad_(), values.clone().requires_grad_()
        gates.fill(gate)
        layer.zero_grad()
        module(leaf).sum().backward()
        found.append([leaf.grad, gate.grad, layer.down.grad, layer.up.grad])
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(*found, strict=True))


# Evaluation without waste


@pytest.mark.parametrize("gate", ["none", "zeros", "ones", "by gate"])
def test_where_gates_are_constant_evaluation_is_one_product_a_linear(gate: str) -> None:
    torch.manual_seed(0)
    model, gates = Toy(0.5), None
    if gate == "none":
        low_rank(RANK)(model, None, 0, 1)
    else:
        gates = adapt(model, UNITS, low_rank(RANK))
    move(model).eval()
    one = {"ones": torch.ones(GATES), "zeros": torch.zeros(GATES)}.get(gate, mixed()[0])
    outputs = []
    for with_gradient in (True, False):  # with autograd on nothing is merged
        if gates is not None:
            gates.fill(one.expand(BATCH, GATES).clone())
        with torch.set_grad_enabled(with_gradient):
            outputs.append(model(batch()).detach())
    assert torch.allclose(*outputs, atol=2e-5)
    unadapted = plain(0.5).eval()
    with torch.no_grad():
        assert products(lambda: model(batch())) == products(lambda: unadapted(batch()))


@pytest.mark.parametrize("device", ["dense", "gpu"])
def test_mixed_gates_are_evaluated_in_one_pass_on_a_gpu_or_if_dense(device: str) -> None:
    """W x, A x, once for the three projections, and B A x: nothing is run for each copy apart."""
    model, gates = toy()
    gates.dense = device == "dense"
    gates.fill(mixed())
    with torch.no_grad(), as_on_a_gpu(torch.device("cuda" if gates.dense else "cpu")):
        assert products(lambda: model.eval()(batch())) == products(lambda: plain()(batch())) + 5 + 7


def test_on_a_cpu_mixed_gates_of_a_unit_are_evaluated_with_two_weights_and_no_thin_products() -> None:
    """Two products for each of the layer's two Linears; the others are gated as Linears and slices."""
    model, gates = toy()
    gates.fill(mixed())
    with torch.no_grad():
        model.eval()(batch())  # weights are merged at the first batch
        assert products(lambda: model(batch())) == products(lambda: plain()(batch())) + 2 + 3 + 5


@pytest.mark.parametrize("frozen_dtype", [None, BF16], ids=str)
@pytest.mark.parametrize("amp", [None, BF16], ids=str)
def test_it_makes_no_difference_but_rounding(amp: torch.dtype | None, frozen_dtype: torch.dtype) -> None:
    model, gates = toy(copies=low_rank(RANK, frozen_dtype=frozen_dtype))
    model.eval()
    outputs = []
    for gates.dense in (True, False):
        gates.fill(mixed())
        with torch.no_grad(), torch.autocast("cpu", amp, enabled=amp is not None):
            outputs.append(model(batch()))
    coarse = BF16 in (amp, frozen_dtype)
    assert outputs[0].dtype == outputs[1].dtype
    assert torch.allclose(*outputs, atol=0.1 if coarse else 1e-5)
    assert not torch.equal(*outputs) or coarse


def test_examples_that_run_apart_are_those_of_the_frozen_and_of_the_merged_model() -> None:
    model, gates = toy()
    twin, frozen = merge(copy.deepcopy(model)), plain()
    values = mixed()
    gates.fill(values)
    with torch.no_grad():
        found, _ = model.eval().layer(batch())
        for row, value in enumerate(values[:, 0]):
            expected, _ = (twin if value else frozen).eval().layer(batch()[row : row + 1])
            assert torch.allclose(found[row], expected[0], atol=1e-6)


def test_a_unit_keeps_its_type_names_attributes_and_hooks() -> None:
    model, gates = toy()
    assert type(model.layer) is Layer and model.layer.up.frozen.in_features == SIZE
    seen: list[Tensor] = []
    model.layer.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    gates.fill(mixed())
    with torch.no_grad():
        model.eval()(batch())
    assert [len(output) for output in seen] == [BATCH]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_unit_runs_its_own_weights(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    twin = duplicate(toy()[0]).eval()
    twin.layer.up.gates.fill(torch.ones(BATCH, GATES))
    with torch.no_grad():
        before, _ = twin.layer(batch())
        twin.layer.norm.bias.add_(1)
        assert torch.allclose(twin.layer(batch())[0], before + 1, atol=1e-6)


@pytest.fixture
def merged() -> Iterator[tuple[LowRank, Tensor]]:
    """A layer without gates that has been evaluated once, and its input."""
    torch.manual_seed(0)
    layer, x = move(LowRank(nn.Linear(SIZE, SIZE).requires_grad_(False), RANK, 1.0, None)).eval(), batch()
    with torch.no_grad():
        layer(x)
    assert layer._merged is not None
    return layer, x


def assert_fresh(layer: LowRank, x: Tensor) -> None:
    with torch.no_grad():
        found = layer(x)
    expected = x @ (layer.frozen.weight + layer.scale * layer.up @ layer.down).t() + layer.frozen.bias
    assert found.dtype == expected.dtype
    assert torch.allclose(found, expected, atol=2e-5)


def test_merged_weights_are_kept_from_batch_to_batch(merged: tuple[LowRank, Tensor]) -> None:
    layer, x = merged
    with torch.no_grad():
        assert products(lambda: layer(x)) == 1


@pytest.mark.parametrize("mode", [True, False])
def test_merged_weights_are_dropped_when_training_goes_on(merged: tuple[LowRank, Tensor], mode: bool) -> None:
    layer, _ = merged
    assert layer.train(mode)._merged is None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW], ids=str)
@pytest.mark.parametrize("fused", [True, False])
def test_merged_weights_are_made_anew_after_an_optimizer_step(
    merged: tuple[LowRank, Tensor], kind: type[torch.optim.Optimizer], fused: bool
) -> None:
    layer, x = merged
    optimizer = kind([layer.down, layer.up], lr=0.1, fused=fused)
    layer(x).square().sum().backward()
    optimizer.step()
    assert_fresh(layer, x)


@pytest.mark.parametrize("assign", [True, False])
def test_merged_weights_are_made_anew_after_loading(merged: tuple[LowRank, Tensor], assign: bool) -> None:
    layer, x = merged
    layer.load_state_dict({name: t + 0.5 for name, t in layer.state_dict().items()}, assign=assign)
    assert_fresh(layer, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merged_weights_are_made_anew_after_a_change_of_type(
    merged: tuple[LowRank, Tensor], dtype: torch.dtype
) -> None:
    layer, x = merged
    assert_fresh(layer.to(dtype), x.to(dtype))


def test_merged_weights_follow_the_gates_of_the_batch() -> None:
    torch.manual_seed(0)
    gates = Gates(2)
    layer = move(LowRank(nn.Linear(SIZE, SIZE).requires_grad_(False), RANK, 1.0, gates, 0, 2)).eval()
    for choice in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]):
        values = torch.tensor(choice).expand(BATCH, 2)
        gates.fill(values)
        with torch.no_grad():
            found = layer(batch())
        assert torch.allclose(found, Naive(layer)(batch()), atol=2e-5)


@pytest.mark.parametrize("frozen_dtype", [None, BF16], ids=str)
@pytest.mark.parametrize("amp", [False, True])
def test_merged_weights_are_in_the_type_of_the_frozen_ones(
    frozen_dtype: torch.dtype | None, amp: bool
) -> None:
    model, gates = toy(copies=low_rank(RANK, None, frozen_dtype))
    model.eval()
    outputs = []
    for with_gradient in (True, False):
        gates.fill(torch.ones(BATCH, GATES))
        with torch.set_grad_enabled(with_gradient), torch.autocast("cpu", BF16, enabled=amp):
            outputs.append(model(batch()))
    assert outputs[0].dtype == outputs[1].dtype == (BF16 if amp else torch.float32)
    rounded = amp or frozen_dtype is not None
    assert torch.allclose(*(output.float() for output in outputs), atol=0.03 if rounded else 2e-5)
    assert model.last._merged[1].weight.dtype == (frozen_dtype or torch.float32)


# Dropout where an example runs tuned


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout])
@pytest.mark.parametrize("width", [1, 2])
def test_dropout_has_its_rate_and_mean_where_tuned_and_touches_nothing_elsewhere(
    kind: type[nn.Dropout], width: int
) -> None:
    torch.manual_seed(0)
    dropout = GatedDropout(kind(0.25), gates := Gates(width), 0, width)
    x = torch.rand(BATCH, 400, 100) + 1
    values = torch.arange(BATCH * width).view(BATCH, width) % 3 < 1
    gates.fill(values.float())
    output = dropout(x)
    where = values.repeat_interleave(100 // width, 1)[:, None].expand_as(x)
    assert torch.equal(output[~where], x[~where])
    dropped = (output[where] == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=5 * (0.25 * 0.75 / where.sum().item()) ** 0.5)
    kept = where & (output != 0)
    assert torch.allclose(output[kept] / x[kept], torch.tensor(1 / 0.75), rtol=1e-3)


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout])
def test_the_gradient_of_dropout_is_the_mask_that_was_drawn(kind: type[nn.Dropout]) -> None:
    torch.manual_seed(0)
    dropout = GatedDropout(kind(0.5), gates := Gates(1), 0, 1)
    x, values = batch().requires_grad_(), mixed(1)
    gates.fill(values)
    output = dropout(x)
    output.sum().backward()
    assert torch.allclose(x.grad * x, output)
    frozen = values[:, 0] == 0
    assert (x.grad[frozen] == 1).all() and (x.grad[~frozen] == 0).any()


@pytest.mark.parametrize("kind", [Dropout, nn.Dropout])
def test_in_evaluation_there_is_none(kind: type[nn.Dropout]) -> None:
    dropout = GatedDropout(kind(0.5), gates := Gates(1), 0, 1).eval()
    gates.fill(torch.ones(BATCH, 1))
    assert torch.equal(dropout(batch()), batch())


@pytest.mark.parametrize("parts", ["heads", "layer"])
def test_in_a_unit_only_the_examples_that_run_tuned_get_dropout(parts: str) -> None:
    model, gates = toy(rate=0.5)
    width = SLICES if parts == "heads" else 1
    values = torch.zeros(BATCH, GATES)
    values[::2, 1 : 1 + SLICES] = 1.0
    values[::2, 0] = 1.0
    gates.fill(values)
    torch.manual_seed(0)
    unit = getattr(model.train(), parts)
    outputs = [unit(batch()) for _ in range(4)]
    outputs = torch.stack([output[0] if isinstance(output, tuple) else output for output in outputs])
    moved = (outputs - outputs[0]).abs().amax((0, 2)).view(BATCH, width, -1).amax(-1) > 0
    assert moved[::2].all() and not moved[1::2].any()


def test_only_heads_that_run_tuned_get_dropout() -> None:
    torch.manual_seed(0)
    unit = low_rank(RANK)(Attend(0.5), gates := Gates(SLICES), 0, SLICES).train()
    assert isinstance(unit, GatedSlices)
    gates.fill(values := mixed(SLICES))
    outputs = torch.stack([unit(batch()) for _ in range(8)])
    moved = (outputs - outputs[0]).abs().amax((0, 2)).view(BATCH, SLICES, -1).amax(-1) > 0
    assert torch.equal(moved, values > 0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_module_that_reads_the_rate_to_drop_by_itself_gets_no_dropout(attention: str) -> None:
    """As attention in transformers: it could not leave out the examples that run frozen."""
    torch.manual_seed(0)
    rates = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5}
    sizes = {"hidden_size": SIZE, "num_attention_heads": SLICES, "intermediate_size": 2 * SIZE}
    bert = BertLayer(BertConfig(attn_implementation=attention, **sizes, **rates)).eval()
    expected = bert(batch())
    model = nn.ModuleDict({"layer": bert})
    gates = adapt(model, [(["layer"], 1)], low_rank(RANK))
    gates.fill(torch.zeros(BATCH, 1))
    assert torch.equal(move(model).train()["layer"](batch()), expected)


# Mistakes


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_that_is_not_positive_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"a rank is at least 1, not {rank}"):
        low_rank(rank)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.TransformerEncoderLayer(SIZE, SLICES), "its nn.MultiheadAttention does not call its Linears"),
        (Conv1D(SIZE, SIZE), "none of its layers is an nn.Linear"),
        (nn.Embedding(SIZE, SIZE), "none of its layers is an nn.Linear"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_unit_whose_update_would_never_be_taken_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{type(module).__name__} cannot have low-rank copies: {reason}"):
        adapt(nn.ModuleDict({"unit": module}), [(["unit"], 1)], low_rank(RANK))


def test_an_output_that_does_not_fall_into_slices_is_refused() -> None:
    with pytest.raises(ValueError, match="size 16 does not fall into 3 equal slices"):
        adapt(Toy(), [(["wide"], 3)], low_rank(RANK))
