"""Frozen copies held in bfloat16: half the memory, the arithmetic of autocast, and nothing else changed."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from adaptive.adapt import adapt
from adaptive.copies import full_copy
from adaptive.gates import Gates
from adaptive.pair import GatedPair
from adaptive.storage import cast_matrices

BATCH, TOKENS, SIZE, SLICES = 6, 3, 32, 4
BF16 = torch.bfloat16


class Attend(nn.Module):
    """Attention-like, with its slices apart: `project`, then `combine`."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(x), self.value(x)

    def combine(self, projected: tuple[Tensor, Tensor], tuned: Tensor | None, x: Tensor) -> Tensor:
        key, value = (p.unflatten(-1, (SLICES, -1)).transpose(1, 2) for p in projected)
        return ((key @ key.transpose(-1, -2)).softmax(-1) @ value).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.project(x), None, x)


class Layer(nn.Module):
    """Ends with a layer norm, so its output is in fp32 under autocast; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)
        self.norm = nn.LayerNorm(SIZE)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.norm(x + self.down(torch.tanh(self.up(x)))), None


class Toy(nn.Module):
    """A layer, slices with and without `project`, and a part whose output is in bf16 under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.sliced = Layer(), Attend()
        self.wide, self.last = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)[0]
        return self.last(torch.tanh(self.wide(self.sliced(x)))).float()


UNITS = [(["layer"], 1), (["sliced"], SLICES), (["wide"], 2), (["last"], 1)]
GATES = 1 + SLICES + 2 + 1


def moved(model: nn.Module) -> nn.Module:
    """As if training had gone on for a while."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".frozen." not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def toy(frozen_dtype: torch.dtype | None, dense: bool = False) -> tuple[nn.Module, Gates]:
    torch.manual_seed(0)
    model = Toy()
    gates = adapt(model, UNITS, full_copy(frozen_dtype))
    gates.dense = dense
    return moved(model), gates


def autocast(on: bool) -> torch.autocast | nullcontext:
    return torch.autocast("cpu", BF16) if on else nullcontext()


def mixed_gates() -> Tensor:
    return (torch.rand(BATCH, GATES, generator=torch.Generator().manual_seed(2)) < 0.5).float()


GATE_CASES = {
    "all frozen": torch.zeros(BATCH, GATES),
    "all tuned": torch.ones(BATCH, GATES),
    "mixed": mixed_gates(),
}
every_gates = pytest.mark.parametrize("gates", GATE_CASES.values(), ids=GATE_CASES.keys())
with_and_without_autocast = pytest.mark.parametrize("amp", [False, True], ids=["fp32", "autocast"])


def results(
    frozen_dtype: torch.dtype | None, gates: Tensor, amp: bool, dense: bool = False
) -> dict[str, Tensor]:
    """The output and the gradients of input, gates and tuned copies."""
    model, shared = toy(frozen_dtype, dense)
    x = torch.randn(BATCH, TOKENS, SIZE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    gates = gates.clone().requires_grad_()
    with autocast(amp):
        shared.fill(gates)
        output = model(x)
    output.square().sum().backward()
    tuned = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert not any(".frozen." in name for name in tuned)
    return {"output": output.detach(), "input": x.grad, "gates": gates.grad, **tuned}


def test_a_full_copy_tunes_the_module_itself_and_freezes_a_duplicate() -> None:
    layer = Layer()
    pair = full_copy()(layer, Gates(1), 0, 1)
    assert pair.tuned is layer
    storages = {p.data_ptr() for p in layer.parameters()} & {p.data_ptr() for p in pair.frozen.parameters()}
    assert not storages
    assert all(torch.equal(pair.frozen.state_dict()[name], t) for name, t in layer.state_dict().items())


def test_adapt_puts_in_place_what_the_function_it_is_given_makes() -> None:
    """And hands it the gates of the unit."""
    requested = []

    def constant(module: nn.Module, gates: Gates, start: int, width: int) -> nn.Module:
        requested.append((module, gates, start, width))
        return GatedPair(module, nn.Sequential(module, nn.Threshold(torch.inf, -1.0)), gates, start, width)

    model = nn.Sequential(nn.Linear(SIZE, SIZE), layer := nn.Linear(SIZE, SIZE))
    gates = adapt(model, [(["0"], 2), (["1"], 1)], constant)
    assert requested[1] == (layer, gates, 2, 1)
    x = torch.randn(2, SIZE)
    gates.fill(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    frozen = model[0].frozen(x[:1])
    assert torch.allclose(model(x), torch.cat([layer(frozen), -torch.ones(1, SIZE)]), atol=1e-6)


def bytes_of(model: nn.Module, copy: str) -> int:
    named = model.named_parameters()
    return sum(p.numel() * p.element_size() for name, p in named if f".{copy}." in name)


def test_the_frozen_copies_take_half_the_bytes_and_the_tuned_ones_stay() -> None:
    big = nn.Sequential(*(nn.TransformerEncoderLayer(256, 4, 1024) for _ in range(2)))
    adapt(big, [(["0"], 1), (["1"], 1)], full_copy(BF16))
    assert bytes_of(big, "frozen") == pytest.approx(bytes_of(big, "tuned") / 2, rel=0.01)
    for name, parameter in big.named_parameters():
        held = ".frozen." in name and parameter.dim() > 1
        assert parameter.dtype == (BF16 if held else torch.float32), name
    assert all(p.dtype == torch.float32 for p in toy(None)[0].parameters())


@with_and_without_autocast
@pytest.mark.parametrize("dense", [False, True], ids=["routed", "dense"])
def test_all_gates_tuned_is_the_tuned_model_bit_for_bit(amp: bool, dense: bool) -> None:
    model, gates = toy(BF16, dense)
    plain = Toy()
    plain.load_state_dict(
        {n.replace(".tuned.", "."): t for n, t in model.state_dict().items() if ".tuned." in n}
    )
    x = torch.randn(BATCH, TOKENS, SIZE)
    with autocast(amp):
        gates.fill(torch.ones(BATCH, GATES, requires_grad=True))
        assert torch.equal(model(x), plain(x))


@every_gates
def test_under_autocast_to_that_type_no_number_changes(gates: Tensor) -> None:
    """Not one bit of output or gradient: autocast would have rounded the same matrices."""
    held, usual = results(BF16, gates, amp=True), results(None, gates, amp=True)
    assert held.keys() == usual.keys()
    for name, value in usual.items():
        assert torch.equal(held[name], value), name


@every_gates
@pytest.mark.parametrize("dense", [False, True], ids=["routed", "dense"])
def test_without_autocast_all_numbers_are_close_to_those_of_fp32(gates: Tensor, dense: bool) -> None:
    held, usual = results(BF16, gates, amp=False, dense=dense), results(None, gates, amp=False, dense=dense)
    assert held.keys() == usual.keys()
    for name, value in usual.items():
        assert held[name].dtype == value.dtype == torch.float32, name
        assert (held[name] - value).norm() <= 0.02 * value.norm(), name
    # And where a frozen copy was run, it was run in bf16.
    assert torch.equal(held["output"], usual["output"]) == bool(gates.all())


def test_a_frozen_copys_input_gets_the_gradient_of_the_rounded_function() -> None:
    """Exactly that of the same layer with rounded weights, run by itself under autocast."""
    torch.manual_seed(0)
    layer = Layer()
    alone = copy.deepcopy(layer).requires_grad_(False)
    cast_matrices(alone, BF16)
    pair = full_copy(BF16)(layer, gates := Gates(1), 0, 1)
    x = torch.randn(BATCH, TOKENS, SIZE)
    gradients = []
    for run in (pair, alone):
        leaf = x.clone().requires_grad_()
        gates.fill(torch.zeros(BATCH, 1))
        with autocast(run is alone):
            output = run(leaf)[0]
        output.square().sum().backward()
        gradients.append(leaf.grad)
    assert gradients[0].dtype == torch.float32 and gradients[0].any()
    assert torch.equal(*gradients)


@with_and_without_autocast
@pytest.mark.parametrize("gate", [0.0, 1.0])
@pytest.mark.parametrize("width", [1, 2])
def test_outputs_have_the_type_of_the_tuned_copys(amp: bool, gate: float, width: int) -> None:
    """A part of a layer hands bf16 on under autocast, and fp32 without it."""
    pair = full_copy(BF16)(nn.Linear(SIZE, SIZE), gates := Gates(width), 0, width)
    gates.fill(torch.full((BATCH, width), gate))
    with autocast(amp):
        assert pair(torch.randn(BATCH, SIZE)).dtype == (BF16 if amp else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, BF16], ids=["fp64", "bf16"])
def test_a_model_in_another_type_as_a_whole_stays_in_it(dtype: torch.dtype) -> None:
    """All gates 0 is then the layer itself, bit for bit and without autocast."""
    torch.manual_seed(0)
    layer = Layer().to(dtype)
    pair = full_copy()(layer, gates := Gates(1), 0, 1)
    gates.fill(torch.zeros(BATCH, 1))
    x = torch.randn(BATCH, TOKENS, SIZE, dtype=dtype)
    assert torch.equal(pair(x)[0], layer(x)[0]) and pair(x)[0].dtype == dtype
