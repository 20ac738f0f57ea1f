"""The claim: `Dropout` is dropout, with the rate asked for and the mean kept."""

from __future__ import annotations

import pytest
import torch

from kernels.dropout import STEPS, Dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_share_dropped_is_the_rate_and_the_rest_is_scaled_to_the_same_mean(
    rate: float, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    output = Dropout(rate)(torch.ones(1000, 1001, dtype=dtype))
    assert output.dtype == dtype
    dropped = (output == 0).float().mean().item()
    assert dropped == pytest.approx(rate, abs=4 * (rate * (1 - rate) / 1001000) ** 0.5)  # four deviations
    kept = output[output != 0]
    assert (kept == kept[0]).all()
    assert kept[0].item() == pytest.approx(1 / (1 - rate), rel=1e-4 if dtype == torch.float32 else 1e-2)


def test_neighbours_are_dropped_independently() -> None:
    """Four elements share one drawn number; none of its parts may tell of another."""
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(250_000, 4)) == 0).double()
    correlation = torch.corrcoef(dropped.t())
    assert (correlation - torch.eye(4)).abs().max() < 4 / 500
    along = torch.corrcoef(torch.stack([dropped.flatten()[:-4], dropped.flatten()[4:]]))
    assert abs(along[0, 1]) < 4 / 1000


def test_the_gradient_is_the_mask_that_was_drawn() -> None:
    input = torch.randn(33, 7).requires_grad_()
    output = Dropout(0.3)(input)
    output.sum().backward()
    assert torch.allclose(input.grad * input, output)
    assert 0 < (input.grad == 0).sum() < input.numel()


def test_one_byte_an_element_is_kept_for_backward() -> None:
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.dtype), lambda _: None)
    with hooks:
        Dropout(0.1)(torch.randn(5, 5, requires_grad=True))
    assert saved == [torch.bool]


def test_the_same_seed_draws_the_same_mask_with_any_number_of_threads() -> None:
    threads = torch.get_num_threads()
    masks = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(3)
            masks.append(Dropout(0.1)(torch.ones(512, 768)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*masks)


@pytest.mark.parametrize("rate", [0.0, 0.1 / STEPS])
def test_a_rate_of_nothing_drops_nothing(rate: float) -> None:
    input = torch.randn(4, 4)
    assert torch.equal(Dropout(rate)(input), input)


def test_evaluation_drops_nothing_and_a_rate_of_one_everything() -> None:
    input = torch.randn(4, 4)
    assert Dropout(0.5).eval()(input) is input
    assert not Dropout(1.0)(input).any()
