"""Steps that are not finite are left out, counted and named; the host is told when it waits anyway."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from tests.helpers.waits import Waits
from torch import Tensor, nn

from common.errors import RunError
from training.finite import BadStep, BadSteps, require_finite, shown
from training.optim import JointOptimizer, make_optimizer

IDS = torch.tensor([11, 12, 13])


class Small:
    """A model of one weight matrix, trained on three examples a step."""

    def __init__(self, limit: int) -> None:
        torch.manual_seed(1)
        self.model = nn.Linear(2, 2)
        self.optimizer = JointOptimizer([make_optimizer("adamw", self.model, 0.1, 0.0)])
        self.steps = BadSteps(limit, Accelerator())
        self.number = 0

    def step(self, spoilt: int | None = None, gradient: float = 1.0) -> Tensor:
        """One step; the example with this place is not finite, or all gradients are multiplied."""
        inputs = torch.ones(3, 2)
        if spoilt is not None:
            inputs[spoilt] = math.nan
        logits = self.model(inputs)
        loss = logits.square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.model.parameters():
            parameter.grad *= gradient
        self.number += 1
        self.steps.watch(loss, logits, IDS)
        norms = torch.stack([parameter.grad.norm() for parameter in self.model.parameters()])
        self.steps.guard(self.optimizer, norms, self.number)
        self.optimizer.step()
        return self.model.weight.detach().clone()


def test_a_bad_step_moves_nothing_and_is_named_by_its_bad_example() -> None:
    small = Small(limit=2)
    before = small.step()
    assert torch.equal(small.step(spoilt=1), before)
    after = small.step()
    assert not torch.equal(after, before) and after.isfinite().all()
    assert small.steps.settle() == [BadStep(2, [12])]
    assert small.steps.settle() == []
    small.steps.require_few("")


@pytest.mark.parametrize("gradient", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_a_bad_step_of_all_examples(gradient: float) -> None:
    small = Small(limit=1)
    before = small.model.weight.detach().clone()
    assert torch.equal(small.step(gradient=gradient), before)
    assert small.steps.settle() == [BadStep(1, [11, 12, 13])]


def test_after_one_step_too_many_nothing_moves_until_the_host_knows() -> None:
    small = Small(limit=0)
    small.step()
    before = small.step(spoilt=0)
    assert torch.equal(small.step(), before)
    small.steps.settle()
    with pytest.raises(RunError, match=r"^step 2 .* question 11\. .*--max-bad-steps"):
        small.steps.require_few("more is elsewhere")


def test_what_was_counted_counts_after_a_resume() -> None:
    small = Small(limit=1)
    small.step(spoilt=0)
    small.steps.settle()
    resumed = Small(limit=1)
    resumed.steps.load_state_dict(small.steps.state_dict())
    before = resumed.step(spoilt=1)
    assert torch.equal(resumed.step(), before)
    resumed.steps.settle()
    with pytest.raises(RunError, match="question 12"):
        resumed.steps.require_few("")


def test_no_step_waits_for_the_device_and_the_look_at_all_of_them_waits_once() -> None:
    small = Small(limit=1)
    small.step()
    with Waits() as waits:
        small.step(spoilt=1)
        small.step()
    assert waits.seen == []
    with Waits() as waits:
        assert bool(torch.ones(1))  # so that the collecting is seen to work
    assert len(waits.seen) == 1
    assert small.steps.settle()


def test_nothing_that_is_not_finite_may_be_saved() -> None:
    require_finite([torch.ones(2), torch.tensor([1])], 3)
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(RunError, match="after step 3"):
            require_finite([torch.ones(2), torch.tensor([0.0, value])], 3)


def test_a_sentence_names_the_first_questions_only() -> None:
    assert shown([5]) == "question 5"
    assert shown(list(range(20))) == "questions 0, 1, 2, 3, 4, 5, 6, 7 and 12 more"
