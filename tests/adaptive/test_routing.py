"""Routed execution against the naive formula, written out by hand: values and every gradient."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from adaptive.adapt import adapt
from adaptive.gates import Gates
from adaptive.routing import merge, mix_tensors, split

BATCH, TOKENS, SIZE, SLICES = 6, 3, 8, 4


class Part(nn.Module):
    """Takes a tensor, a mask and something that is no tensor; returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor, mask: Tensor, scale: float = 1.0) -> tuple[Tensor, None, Tensor]:
        return torch.tanh(self.a(x)) * mask[..., None], None, x + scale * self.b(x)


class SlicedPart(nn.Module):
    """Attention-like: slices of the last dimension are mixed over tokens, each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)
        self.dropout = 0.0

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(x), self.value(x)

    def combine(self, projected: tuple[Tensor, Tensor], tuned: Tensor | None, x: Tensor) -> Tensor:
        key, value = (p.unflatten(-1, (SLICES, -1)).transpose(1, 2) for p in projected)
        weights = (key @ key.transpose(-1, -2)).softmax(-1)
        if self.training and self.dropout:
            thinned = nn.functional.dropout(weights, self.dropout)
            weights = thinned if tuned is None else torch.where(tuned[..., None, None], thinned, weights)
        return (weights @ value).transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.combine(self.project(x), None, x)


class PlainWide(nn.Linear):
    """Wide, but without project and combine."""


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Part()
        self.sliced = SlicedPart()
        self.wide = PlainWide(SIZE, SIZE)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        left, nothing, right = self.part(x, mask, scale=0.5)
        assert nothing is None
        left, _, right = self.part(left + right, mask, scale=0.5)  # called twice: one gate
        return self.wide(self.sliced(left) + right)


UNITS = [(["part"], 1), (["sliced"], SLICES), (["wide"], 2)]
GATES = 1 + SLICES + 2


def naive(g: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
    """The formula, for gates (B, w) and values (B, tokens, w * n)."""
    g = g[:, None, :, None]
    shape = (*tuned.shape[:2], g.shape[2], -1)
    return (g * tuned.reshape(shape) + (1 - g) * frozen.reshape(shape)).reshape(tuned.shape)


def naive_toy(tuned: Toy, frozen: Toy, gates: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    part, sliced, wide = gates.split([1, SLICES, 2], 1)
    for _ in range(2):
        t, f = (toy.part(x, mask, scale=0.5) for toy in (tuned, frozen))
        left, right = naive(part, t[0], f[0]), naive(part, t[2], f[2])
        x = left + right
    x = naive(sliced, tuned.sliced(left), frozen.sliced(left)) + right
    return naive(wide, tuned.wide(x), frozen.wide(x))


def cases() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    yield "all frozen", torch.zeros(BATCH, GATES)
    yield "all tuned", torch.ones(BATCH, GATES)
    yield "one example", (torch.rand(1, GATES, generator=generator) < 0.5).float()
    for share in (0.2, 0.5, 0.8):
        yield f"share {share}", (torch.rand(BATCH, GATES, generator=generator) < share).float()
    one = torch.zeros(BATCH, GATES)
    one[2] = 1
    yield "one example tuned", one


CASES = list(cases())


def toys() -> tuple[Toy, Toy]:
    """A frozen one, and a tuned one that has moved away from it."""
    torch.manual_seed(0)
    frozen = Toy()
    tuned = copy.deepcopy(frozen)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return tuned, frozen


def adapted(dense: bool) -> Toy:
    tuned, frozen = toys()
    frozen.gates = adapt(frozen, UNITS)
    frozen.gates.dense = dense
    for (name,), _ in UNITS:
        frozen.get_submodule(name).tuned.load_state_dict(tuned.get_submodule(name).state_dict())
    return frozen


@pytest.mark.parametrize("dense", [False, True], ids=["routed", "dense"])
@pytest.mark.parametrize(("name", "gates"), CASES, ids=[name for name, _ in CASES])
def test_values_and_all_gradients_equal_the_naive_formula(name: str, gates: Tensor, dense: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(len(gates), TOKENS, SIZE, generator=generator)
    mask = (torch.rand(len(gates), TOKENS, generator=generator) < 0.8).float()
    weight = torch.randn(len(gates), TOKENS, SIZE, generator=generator)

    tuned, frozen = toys()
    frozen.requires_grad_(False)
    expected_x, expected_gates = x.clone().requires_grad_(), gates.clone().requires_grad_()
    expected = naive_toy(tuned, frozen, expected_gates, expected_x, mask)
    (expected * weight).sum().backward()

    model = adapted(dense)
    x.requires_grad_()
    gates = gates.clone().requires_grad_()
    model.gates.fill(gates)
    output = model(x, mask)
    (output * weight).sum().backward()

    assert torch.allclose(output, expected, atol=1e-5)
    assert torch.allclose(x.grad, expected_x.grad, atol=1e-5)
    assert torch.allclose(gates.grad, expected_gates.grad, atol=1e-5)
    for (unit,), _ in UNITS:
        for key, parameter in tuned.get_submodule(unit).named_parameters():
            mine = model.get_submodule(unit).tuned.get_parameter(key).grad
            mine = torch.zeros_like(parameter) if mine is None else mine  # a copy that never ran
            assert torch.allclose(mine, parameter.grad, atol=1e-5), (unit, key)


@pytest.mark.parametrize(("name", "gates"), CASES, ids=[name for name, _ in CASES])
def test_weight_gradients_do_not_depend_on_whether_gates_get_one(name: str, gates: Tensor) -> None:
    x, mask = torch.randn(len(gates), TOKENS, SIZE, requires_grad=True), torch.ones(len(gates), TOKENS)
    gradients = []
    for needed in (False, True):
        model = adapted(dense=False)
        model.gates.fill(gates.clone().requires_grad_(needed))
        model(x, mask).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


class RowCounter:
    """How many rows each copy ran, with and without a graph."""

    def __init__(self, model: nn.Module) -> None:
        self.rows: dict[tuple[str, bool], int] = {}
        for kind in ("tuned", "frozen"):
            model.get_submodule(f"part.{kind}").register_forward_pre_hook(self._count(kind))

    def _count(self, kind: str) -> object:
        def hook(module: nn.Module, args: tuple) -> None:
            key = (kind, torch.is_grad_enabled())
            self.rows[key] = self.rows.get(key, 0) + len(args[0])

        return hook


def ran(gates: Tensor, needed: bool, grad: bool = True) -> dict[tuple[str, bool], int]:
    model = adapted(dense=False)
    counter = RowCounter(model)
    model.gates.fill(gates.clone().requires_grad_(needed))
    with torch.set_grad_enabled(grad):
        model(torch.randn(len(gates), TOKENS, SIZE), torch.ones(len(gates), TOKENS))
    return counter.rows


def test_the_other_copy_runs_without_a_graph_and_only_for_a_gates_gradient() -> None:
    gates = torch.zeros(BATCH, GATES)
    gates[:2] = 1
    twice = 2  # the part is called twice a forward
    chosen = {("tuned", True): 2 * twice, ("frozen", True): 4 * twice}
    others = {("tuned", False): 4 * twice, ("frozen", False): 2 * twice}
    assert ran(gates, needed=True) == chosen | others
    assert ran(gates, needed=False) == chosen


def test_evaluation_runs_each_example_once_and_a_unanimous_batch_in_one_copy() -> None:
    gates = torch.zeros(BATCH, GATES)
    assert ran(gates, needed=False, grad=False) == {("frozen", False): 2 * BATCH}
    assert ran(gates + 1, needed=False, grad=False) == {("tuned", False): 2 * BATCH}
    gates[0] = 1
    assert ran(gates, True, grad=False) == {("tuned", False): 2, ("frozen", False): 2 * (BATCH - 1)}


def saved_bytes(model: Toy, gates: Tensor) -> int:
    """Bytes of distinct activations that a forward pass keeps for backward."""
    kept: dict[int, int] = {}
    parameters = {p.data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters and tensor.is_floating_point():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    model.gates.fill(gates)
    x = torch.randn(len(gates), TOKENS, SIZE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(x, torch.ones(len(gates), TOKENS))  # alive while it is counted
    assert output.requires_grad
    return sum(kept.values())


def test_the_copy_not_chosen_saves_no_activations() -> None:
    torch.manual_seed(0)
    gates = torch.ones(BATCH, GATES)
    mixed = gates.clone()
    mixed[::2] = 0
    routed, dense = adapted(dense=False), adapted(dense=True)
    assert saved_bytes(routed, mixed) < 0.75 * saved_bytes(dense, mixed)


@pytest.mark.parametrize("needed", [False, True], ids=["gates without gradients", "with gradients"])
def test_frozen_slices_have_no_dropout_and_tuned_ones_do(needed: bool) -> None:
    torch.manual_seed(0)
    model = adapted(dense=False).train()
    model.sliced.tuned.dropout = 0.5
    model.sliced.frozen.dropout = 0.5
    x = torch.randn(BATCH, TOKENS, SIZE)
    gates = torch.zeros(BATCH, GATES)
    gates[:, 2] = 1  # the second slice
    model.gates.fill(gates.requires_grad_(needed))
    first, second = model.sliced(x), model.sliced(x)
    width = SIZE // SLICES
    changed = (first != second).any(0).any(0).unflatten(0, (SLICES, width)).any(1)
    assert changed.tolist() == [False, True, False, False]
    expected = model.sliced.frozen.eval()(x)
    assert torch.allclose(first[..., :width], expected[..., :width], atol=1e-6)


def test_bfloat16_agrees_with_the_naive_formula_as_far_as_it_can() -> None:
    torch.manual_seed(0)
    gates = (torch.rand(BATCH, GATES) < 0.5).float()
    x, mask = torch.randn(BATCH, TOKENS, SIZE), torch.ones(BATCH, TOKENS)
    results = []
    for dense in (False, True):
        model = adapted(dense)
        leaf = gates.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            model.gates.fill(leaf)
            output = model(x, mask)
        output.float().square().sum().backward()
        results.append((output.float(), leaf.grad, model.part.tuned.a.weight.grad))
    for routed, dense in zip(*results, strict=True):
        assert (routed - dense).norm() < 0.03 * dense.norm()


def filled(values: Tensor) -> Gates:
    gates = Gates(values.shape[1])
    gates.fill(values)
    return gates


def test_gates_partition_the_rows_of_every_one_of_them() -> None:
    values = (torch.rand(9, 5, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    gates = filled(values)
    for g in range(5):
        frozen, tuned = gates.rows(g).frozen, gates.rows(g).tuned
        assert values[frozen, g].sum() == 0 and values[tuned, g].all()
        assert sorted([*frozen.tolist(), *tuned.tolist()]) == list(range(9))
    assert gates.share_tuned(0, 5) == pytest.approx(values.mean().item())


def test_splitting_and_merging_is_the_identity_with_its_gradient() -> None:
    gates = torch.tensor([[1.0], [0.0], [1.0]])
    rows = filled(gates).rows(0)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    joined = merge(gates, rows, *split(x, rows, 3))
    assert torch.equal(joined, x)
    assert torch.autograd.gradcheck(lambda v: merge(gates, rows, *split(v, rows, 3)), (x,))


def test_arguments_without_a_batch_dimension_go_whole_to_both_copies() -> None:
    rows = filled(torch.tensor([[1.0], [0.0], [1.0]])).rows(0)
    shared = torch.randn(1, 4)
    for value in (shared, 0.5, None, "x", torch.tensor(3.0)):
        assert split(value, rows, 3) == (value, value) or split(value, rows, 3)[0] is value


def test_gradient_checkpointing_runs_the_same_rows_again() -> None:
    gates = (torch.rand(BATCH, GATES, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    x, mask = torch.randn(BATCH, TOKENS, SIZE), torch.ones(BATCH, TOKENS)
    gradients = []
    for checkpointing in (False, True):
        model = adapted(dense=False)
        leaf = gates.clone().requires_grad_()
        model.gates.fill(leaf)
        run = partial(checkpoint, model, use_reentrant=False) if checkpointing else model
        output = run(x, mask)
        output.square().sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


class Seen(TorchDispatchMode):
    """The names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        self.names[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})


class Masked(nn.Linear):
    """Adds what it is given twice, where a mask is true."""

    def forward(self, x: Tensor, again: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x + again) * mask[..., None]


def masked_stack(layers: int = 3) -> tuple[nn.Sequential, Gates]:
    torch.manual_seed(0)
    model = nn.Sequential(*(Masked(SIZE, SIZE) for _ in range(layers)))
    gates = adapt(model, [([str(layer)], 1) for layer in range(layers)])
    gates.fill((torch.rand(BATCH, layers) < 0.5).float().requires_grad_())
    assert all(0 < gates.share_tuned(layer, 1) < 1 for layer in range(layers))
    return model, gates


def test_all_layers_sort_a_mask_together_and_a_value_that_is_passed_twice_once() -> None:
    model, _ = masked_stack()
    x = torch.randn(BATCH, TOKENS, SIZE, requires_grad=True)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    with Seen() as seen:
        for layer in model:
            x = layer(x, x, mask)
    assert seen.names["index_select"] == 1 + 3 * 2  # the mask; of x both halves for each layer


def test_a_mask_that_was_written_to_is_sorted_again() -> None:
    model, gates = masked_stack(2)
    mask = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    x = torch.randn(BATCH, TOKENS, SIZE)
    assert model[0](x, x, mask).ne(0).all()
    mask[:, 1] = False
    output = model[1](x, x, mask)
    assert output[:, 0].ne(0).all() and output[:, 1].eq(0).all()
    with torch.inference_mode():
        gates.fill(gates.of(0, 2).clone())
        assert torch.equal(model[1](x, x, mask.clone()), output)


def test_the_gradients_of_all_gates_meet_in_one_operation() -> None:
    model, _ = masked_stack()
    x, mask = torch.randn(BATCH, TOKENS, SIZE), torch.ones(BATCH, TOKENS, dtype=torch.bool)
    for layer in model:
        x = layer(x, x, mask)
    with Seen() as seen:
        x.sum().backward()
    assert seen.names["slice_backward"] == 0 and seen.names["cat"] == 1


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("shape", [(BATCH, SIZE), (BATCH, TOKENS, SIZE)])
def test_gates_that_are_not_hard_mix_the_copies(shape: tuple[int, ...], width: int) -> None:
    torch.manual_seed(0)
    gate = torch.rand(BATCH, width, dtype=torch.float64, requires_grad=True)
    tuned, frozen = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = gate.repeat_interleave(SIZE // width, 1).view(BATCH, *[1] * (len(shape) - 2), SIZE)
    assert torch.allclose(mix_tensors(gate, tuned, frozen), weight * tuned + (1 - weight) * frozen)
    assert torch.autograd.gradcheck(mix_tensors, (gate, tuned, frozen))


def test_a_hard_gate_is_one_copy_to_the_bit() -> None:
    tuned, frozen = torch.randn(2, BATCH, TOKENS, SIZE)
    for value, copy_ in ((0.0, frozen), (1.0, tuned)):
        assert torch.equal(mix_tensors(torch.full((BATCH, 2), value), tuned, frozen), copy_)


def test_whole_numbers_are_chosen_and_not_mixed() -> None:
    gate = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    tuned, frozen = torch.full((3, 4), 7), torch.full((3, 4), 3)
    assert mix_tensors(gate, tuned, frozen).tolist() == [[7, 7, 3, 3], [3, 3, 7, 7], [7, 7, 3, 3]]
