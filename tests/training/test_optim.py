from __future__ import annotations

import copy

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from training.optim import (
    OPTIMIZERS,
    JointOptimizer,
    clip_gradients,
    in_two_acts,
    make_optimizer,
    make_schedule,
    pull_to_start,
    set_rate,
    warm_up_then,
)

STEPS = 10


def two_parts() -> nn.ModuleDict:
    """A model and a policy of different shapes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return nn.ModuleDict({"model": model, "policy": nn.Linear(3, 2)})


def loss_of(parts: nn.ModuleDict, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(5, 3, generator=generator).to(next(parts.parameters()).device)
    return (parts["model"](x) * parts["policy"](x)).square().mean()


def optimizers(parts: nn.ModuleDict) -> list[torch.optim.Optimizer]:
    return [
        make_optimizer("adamw", parts["model"], lr=1e-2, weight_decay=0.1),
        make_optimizer("adam", parts["policy"], lr=1e-3, weight_decay=0.0),
    ]


def factor(step: int) -> float:
    return 1 / (1 + step)


def separately(parts: nn.ModuleDict) -> None:
    """Ten steps of two optimizers, the first with a schedule."""
    model, policy = optimizers(parts)
    schedule = LambdaLR(model, factor)
    for step in range(STEPS):
        loss_of(parts, step).backward()
        for optimizer in (model, policy):
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_matrices_decay_and_biases_and_layer_norms_do_not(name: str) -> None:
    model = two_parts()["model"]
    optimizer = make_optimizer(name, model, lr=0.1, weight_decay=0.5)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    before = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that decay alone can move anything
    optimizer.step()
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if name in ("0.weight", "2.weight"):
            assert not torch.equal(new, old)
            assert ((new - old) * old <= 0).all()  # towards zero
        else:
            assert torch.equal(new, old)


def test_an_optimizer_is_over_the_trainable_parameters_each_once() -> None:
    model = two_parts()["model"]
    model[0].requires_grad_(False)
    optimizer = make_optimizer("sgd", model, lr=0.1, weight_decay=0.0)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_joint_optimizers_equal_separate_ones_bit_for_bit() -> None:
    expected, actual = two_parts(), two_parts()
    separately(expected)
    joint = JointOptimizer(optimizers(actual))
    schedule = make_schedule(joint, factor)
    for step in range(STEPS):
        loss_of(actual, step).backward()
        joint.step()
        joint.zero_grad()
        schedule.step()
    assert same(actual, expected)
    assert not same(actual, two_parts())


def prepared(parts: nn.ModuleDict) -> tuple[Accelerator, nn.Module, JointOptimizer, LambdaLR]:
    """As the trainer does it: the schedule is of the joint optimizer, the steps of the prepared one."""
    accelerator = Accelerator()
    joint = JointOptimizer(optimizers(parts))
    parts, optimizer = accelerator.prepare(parts, joint)
    return accelerator, parts, optimizer, make_schedule(joint, factor)


def go_on(run: tuple, start: int, end: int) -> None:
    accelerator, parts, optimizer, schedule = run
    for step in range(start, end):
        accelerator.backward(loss_of(parts, step))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def test_prepared_by_accelerate_they_still_do() -> None:
    expected = two_parts().to(Accelerator().device)
    separately(expected)
    run = prepared(two_parts())
    go_on(run, 0, STEPS)
    assert same(run[1], expected)


def test_saved_and_loaded_they_go_on_to_the_same_bits() -> None:
    expected = prepared(two_parts())
    go_on(expected, 0, STEPS)

    first = prepared(two_parts())
    go_on(first, 0, 4)
    states = copy.deepcopy([part.state_dict() for part in first[1:]])
    second = prepared(two_parts())
    for part, state in zip(second[1:], states, strict=True):
        part.load_state_dict(state)
    go_on(second, 4, STEPS)
    assert same(second[1], expected[1])


def test_a_saved_state_holds_every_part() -> None:
    parts = two_parts()
    joint = JointOptimizer(optimizers(parts))
    loss_of(parts, 0).backward()
    joint.step()
    fresh = JointOptimizer(optimizers(parts))
    assert not fresh.state
    fresh.load_state_dict(copy.deepcopy(joint.state_dict()))
    assert fresh.state.keys() == set(parts.parameters())
    for parameter, state in joint.state.items():
        assert all(torch.equal(fresh.state[parameter][key], value) for key, value in state.items())


def test_zeroing_clears_the_gradients_of_every_part() -> None:
    parts = two_parts()
    joint = JointOptimizer(optimizers(parts))
    loss_of(parts, 0).backward()
    joint.zero_grad(set_to_none=False)
    assert all(not p.grad.any() for p in parts.parameters())
    joint.zero_grad()
    assert all(p.grad is None for p in parts.parameters())


@pytest.mark.parametrize("part", ["model", "policy"])
def test_an_overflow_in_one_part_skips_the_step_of_all(part: str) -> None:
    parts = two_parts()
    before = copy.deepcopy(parts)
    joint = JointOptimizer(optimizers(parts))
    scaler = torch.amp.GradScaler("cpu")
    for spoil in (True, False):
        scaler.scale(loss_of(parts, 0)).backward()
        if spoil:
            next(parts[part].parameters()).grad[0] = torch.inf
        scaler.step(joint)
        scaler.update()
        joint.zero_grad()
        assert same(parts, before) == spoil


def test_the_schedule_is_of_the_first_optimizer_only() -> None:
    joint = JointOptimizer(optimizers(two_parts()))
    schedule = make_schedule(joint, lambda step: 0.5**step)
    joint.step()
    schedule.step()
    assert [group["lr"] for group in joint.param_groups] == [0.005, 0.005, 0.001, 0.001]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.35, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_the_rate_rises_and_falls_like_the_linear_schedule_of_transformers(steps: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = get_linear_schedule_with_warmup(optimizer, int(steps * warmup), steps).lr_lambdas[0]
    factor = warm_up_then("linear", steps, warmup)
    assert [factor(step) for step in range(steps + 3)] == [reference(step) for step in range(steps + 3)]
    reference = get_constant_schedule_with_warmup(optimizer, int(steps * warmup)).lr_lambdas[0]
    factor = warm_up_then("constant", steps, warmup)
    assert [factor(step) for step in range(steps + 3)] == [reference(step) for step in range(steps + 3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_skipped_is_as_if_it_had_not_been(name: str) -> None:
    """The next one is that of an optimizer which never saw it: momentum and counts of steps included."""
    torch.manual_seed(1)
    module = nn.Linear(3, 3)
    other = copy.deepcopy(module)
    joint, plain = (JointOptimizer([make_optimizer(name, part, 0.1, 0.01)]) for part in (module, other))
    for number in range(4):
        gradients = [torch.randn_like(parameter) for parameter in module.parameters()]
        bad = number == 2
        for part, optimizer in ((module, joint), (other, plain)):
            for parameter, gradient in zip(part.parameters(), gradients, strict=True):
                parameter.grad = gradient * (float("nan") if bad else 1.0)
            if part is other and bad:
                continue
            joint.skip = torch.tensor(bad)
            optimizer.step()
        assert all(map(torch.equal, module.parameters(), other.parameters()))


def test_each_module_is_clipped_by_itself() -> None:
    large, small = nn.Linear(4, 4), nn.Linear(4, 4)
    for module, size in ((large, 100.0), (small, 0.01)):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, size)
    directions = [parameter.grad / parameter.grad.norm() for parameter in large.parameters()]
    clip_gradients(Accelerator(), [large, small], max_norm=1.0)
    norm = torch.cat([parameter.grad.flatten() for parameter in large.parameters()]).norm()
    assert norm == pytest.approx(1.0, abs=1e-4)
    for parameter, direction in zip(large.parameters(), directions, strict=True):
        assert torch.allclose(parameter.grad / parameter.grad.norm(), direction)
    assert all(torch.equal(p.grad, torch.full_like(p, 0.01)) for p in small.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_pull_to_the_start_is_a_step_towards_it_before_each_step(name: str) -> None:
    """Also after a change of the rate, a step that is left out and a state that is loaded."""
    torch.manual_seed(1)
    module = nn.Linear(3, 3)
    other, start = copy.deepcopy(module), module.weight.detach().clone()
    joint = JointOptimizer([make_optimizer(name, module, 0.1, 0.2)])
    plain = make_optimizer(name, other, 0.1, 0.0)
    pull_to_start(joint.optimizers[0], [module.weight], 0.5)
    for number in range(5):
        rate, bad = 0.1 / (1 + number), number == 2
        gradients = [torch.randn_like(parameter) for parameter in module.parameters()]
        for part, optimizer in ((module, joint), (other, plain)):
            for parameter, gradient in zip(part.parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            for group in optimizer.param_groups:
                group["lr"] = rate
        joint.skip = torch.tensor(bad)
        joint.step()
        if not bad:
            with torch.no_grad():
                other.weight.copy_(other.weight - rate * 0.5 * (other.weight - start))
            plain.step()
        for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        if number == 3:
            joint.load_state_dict(copy.deepcopy(joint.state_dict()))


@pytest.mark.parametrize("pulled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_with_a_rate_of_their_own_step_as_in_an_optimizer_of_their_own(
    name: str, pulled: bool
) -> None:
    """Under one schedule, decayed or pulled to their start as before, also after a state that is loaded."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    parts = copy.deepcopy(module)
    optimizer = make_optimizer(name, module, 0.1, 0.2)
    set_rate(optimizer, module[1].parameters(), 0.02)
    joint, apart = JointOptimizer([optimizer]), []
    for part, rate in zip(parts, (0.1, 0.02), strict=True):
        apart.append(make_optimizer(name, part, rate, 0.2))
    if pulled:
        pull_to_start(optimizer, module.parameters(), 0.5)
        for part, other in zip(parts, apart, strict=True):
            pull_to_start(other, part.parameters(), 0.5)
    stepped = [joint, *(JointOptimizer([other]) for other in apart)]
    schedules = [make_schedule(other, lambda step: 1 / (1 + step)) for other in stepped]
    for number in range(4):
        for ours, theirs in zip(module.parameters(), parts.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            theirs.grad = ours.grad.clone()
        for other in stepped:
            other.step()
        for schedule in schedules:
            schedule.step()
        for ours, theirs in zip(module.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)
        if number == 1:
            joint.load_state_dict(copy.deepcopy(joint.state_dict()))


def test_what_gets_no_gradient_is_not_pulled() -> None:
    module = nn.Linear(3, 3)
    optimizer = make_optimizer("adamw", module, 0.1, 0.0)
    pull_to_start(optimizer, module.parameters(), 0.5)
    with torch.no_grad():
        module.weight.add_(1.0)
    before = module.weight.detach().clone()
    optimizer.step()
    assert torch.equal(module.weight, before)


def test_two_acts_have_a_warm_up_and_an_end_each() -> None:
    factor = in_two_acts("linear", 10, 0.5, 4)
    acts = warm_up_then("linear", 4, 0.5), warm_up_then("linear", 6, 0.5)
    assert [factor(step) for step in range(11)] == [*map(acts[0], range(4)), *map(acts[1], range(7))]
    whole = warm_up_then("constant", 10, 0.2)
    assert [in_two_acts("constant", 10, 0.2, 0)(step) for step in range(12)] == [*map(whole, range(12))]
