from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adaptive.adapt import Adaptive, adapt


class Two(nn.Module):
    """Returns a tuple, one element of which may be None."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, None, Tensor]:
        return self.a(x), None, self.b(x)


class Toy(nn.Module):
    """Three gateable parts: one called twice, one with a tuple output, one wide."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Tanh())
        self.two = Two()
        self.wide = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.shared(x))
        left, nothing, right = self.two(x)
        assert nothing is None
        return torch.cat([self.wide(left), right], -1)


UNITS = [(["shared"], 1), (["two"], 1), (["wide"], 3)]


def adapted(seed: int = 0) -> tuple[Toy, Adaptive]:
    """An adaptive toy whose tuned copies have moved, and an unadapted copy of the tuned weights."""
    torch.manual_seed(seed)
    toy = Toy()
    adaptive = Adaptive(toy, nn.Linear(1, 1), adapt(toy, UNITS))
    with torch.no_grad():
        for name, parameter in toy.named_parameters():
            if ".tuned." in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return toy, adaptive


def plain(toy: Toy, copy: str) -> Toy:
    """A toy without pairs, with the weights of one copy."""
    model = Toy()
    state = {n.replace(f".{copy}.", "."): t for n, t in toy.state_dict().items() if f".{copy}." in n}
    model.load_state_dict(state)
    return model


def run(toy: Toy, adaptive: Adaptive, x: Tensor, gates: Tensor) -> Tensor:
    adaptive.gates.fill(gates)
    return toy(x)


@pytest.mark.parametrize(("gate", "copy"), [(0.0, "frozen"), (1.0, "tuned")])
def test_all_gates_equal_is_that_copy_bit_for_bit(gate: float, copy: str) -> None:
    toy, adaptive = adapted()
    toy.eval()
    x = torch.randn(5, 3, 6)
    assert torch.equal(run(toy, adaptive, x, torch.full((5, 5), gate)), plain(toy, copy).eval()(x))


def test_a_mixed_batch_equals_its_rows_one_by_one() -> None:
    toy, adaptive = adapted()
    toy.eval()
    x, gates = torch.randn(7, 3, 6), (torch.rand(7, 5) < 0.5).float()
    rows = [run(toy, adaptive, x[i : i + 1], gates[i : i + 1]) for i in range(7)]
    assert torch.allclose(run(toy, adaptive, x, gates), torch.cat(rows), atol=1e-6)


def test_a_wide_gate_decides_slice_by_slice() -> None:
    toy, adaptive = adapted()
    toy.eval()
    x = torch.randn(2, 6)
    gates = torch.tensor([[1.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 1.0]])
    tuned, frozen = (run(toy, adaptive, x, torch.tensor([[1.0, 1, v, v, v]] * 2)) for v in (1.0, 0.0))
    mixed = run(toy, adaptive, x, gates)
    for row in (0, 1):
        for part in range(3):
            source = tuned if gates[row, 2 + part] else frozen
            assert torch.equal(mixed[row, 2 * part : 2 * part + 2], source[row, 2 * part : 2 * part + 2])


def test_the_frozen_copy_has_no_gradients_and_no_dropout_in_training() -> None:
    toy, adaptive = adapted()
    adaptive.train()
    x = torch.randn(4, 6)
    first, second = (run(toy, adaptive, x, torch.zeros(4, 5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(*(run(toy, adaptive, x, torch.ones(4, 5)) for _ in range(2)))
    assert not any(p.requires_grad for n, p in toy.named_parameters() if ".frozen." in n)


def test_before_training_any_gates_give_the_same_output() -> None:
    torch.manual_seed(0)
    toy = Toy().eval()
    x = torch.randn(4, 6)
    before = toy(x)
    adaptive = Adaptive(toy, nn.Linear(1, 1), adapt(toy, UNITS)).eval()
    for _ in range(5):
        gates = (torch.rand(4, 5) < 0.5).float()
        assert torch.allclose(run(toy, adaptive, x, gates), before, atol=1e-6)


def test_gates_of_the_wrong_number_are_refused() -> None:
    toy, adaptive = adapted()
    with pytest.raises(ValueError, match="expected \\(batch, 5\\)"):
        run(toy, adaptive, torch.randn(2, 6), torch.zeros(2, 4))


def test_calling_a_pair_without_gates_says_what_to_call() -> None:
    toy = Toy()
    adapt(toy, UNITS)
    with pytest.raises(RuntimeError, match="call Adaptive"):
        toy(torch.randn(2, 6))


def test_an_unknown_submodule_is_an_error() -> None:
    with pytest.raises(AttributeError):
        adapt(Toy(), [(["nowhere"], 1)])


def test_a_shared_module_has_one_gate_and_collects_both_calls_gradients() -> None:
    toy, adaptive = adapted()
    toy.eval()
    x, gates = torch.randn(3, 6), torch.ones(3, 5, requires_grad=True)
    assert adaptive.gates.total == 5
    run(toy, adaptive, x, gates).sum().backward()
    step = 1e-3  # the naive formula is smooth in the gate: compare with a difference quotient
    adaptive.gates.dense = True
    with torch.no_grad():
        moved = [torch.ones(3, 5), torch.ones(3, 5)]
        moved[0][:, 0] += step
        moved[1][:, 0] -= step
        quotient = [run(toy, adaptive, x, g).sum(-1) for g in moved]
    assert torch.allclose(gates.grad[:, 0], (quotient[0] - quotient[1]) / (2 * step), atol=1e-2)
