"""What adaptive fine-tuning promises, on a whole LXMERT with its answer head (design invariants)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from tests.helpers.small import ANSWERS, random_inputs
from torch import Tensor, nn

from adaptive.adapt import Adaptive
from lxmert.loading import load_pretrained
from lxmert.units import gate_labels
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import VqaModel, build, vqa_loss
from tasks.finetune.policies import NETWORKS, Borrowed
from tasks.finetune.spec import ModelSpec
from tasks.finetune.strategies import STRATEGIES

ADAPTIVE = tuple(name for name, strategy in STRATEGIES.items() if strategy.adaptive)


def make(pretrained: Path, strategy: str, seed: int = 0) -> Adaptive:
    torch.manual_seed(seed)
    spec = ModelSpec.of(VqaArgs(strategy=strategy, pretrained=str(pretrained)))
    return build(spec, load_pretrained(spec), ANSWERS)[0]


def move_tuned(model: Adaptive) -> None:
    """As if training had gone on for a while."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".tuned." in name:
                parameter.add_(0.2 * torch.randn_like(parameter))


def with_gates(model: Adaptive, inputs: dict[str, Tensor], gates: Tensor) -> Tensor:
    model.gates.fill(gates)
    return model.model(**inputs)


def plain(model: Adaptive, pretrained: Path, copy: str) -> VqaModel:
    """The model without pairs, holding one of the two copies everywhere."""
    other = make(pretrained, "standard").model
    state = {n.replace(f".{copy}.", "."): t for n, t in model.model.state_dict().items()}
    other.load_state_dict({name: tensor for name, tensor in state.items() if name in other.state_dict()})
    return other.eval()


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize(("gate", "copy"), [(0.0, "frozen"), (1.0, "tuned")])
def test_equal_gates_are_the_pretrained_or_the_tuned_model_bit_for_bit(
    pretrained: Path, inputs: dict, strategy: str, gate: float, copy: str
) -> None:
    model = make(pretrained, strategy).eval()
    move_tuned(model)
    logits = with_gates(model, inputs, torch.full((6, model.gates.total), gate))
    assert torch.equal(logits, plain(model, pretrained, copy)(**inputs))


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_all_gates_frozen_is_the_model_of_the_strategy_frozen(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model, frozen = make(pretrained, strategy), make(pretrained, "Frozen")
    for either in (model, frozen):
        either.train()
        either.model.lxmert.embeddings.dropout.p = either.model.lxmert.encoder.visn_fc.dropout.p = 0.0
    logits = with_gates(model, inputs, torch.zeros(6, model.gates.total))
    assert torch.equal(logits, frozen(**inputs).outputs)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_mixed_batch_equals_its_rows_one_by_one(pretrained: Path, inputs: dict, strategy: str) -> None:
    model = make(pretrained, strategy).eval()
    move_tuned(model)
    gates = (torch.rand(6, model.gates.total) < 0.5).float()
    rows = [
        with_gates(model, {name: t[i : i + 1] for name, t in inputs.items()}, gates[i : i + 1])
        for i in range(6)
    ]
    assert torch.allclose(with_gates(model, inputs, gates), torch.cat(rows), atol=1e-5)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_at_step_zero_every_policy_gives_the_pretrained_logits(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    reference = make(pretrained, "standard").eval()(**inputs).outputs
    for seed in range(3):
        logits = make(pretrained, strategy, seed).eval()(**inputs).outputs
        assert torch.allclose(logits, reference, atol=1e-6)


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_one_step_moves_tuned_policy_and_head_and_nothing_frozen(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model = make(pretrained, strategy).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    target = torch.rand(6, len(ANSWERS))
    for _ in range(2):  # tuned equals frozen at first, and then no gate matters yet
        optimizer.zero_grad()
        vqa_loss(model(**inputs).outputs, target).backward()
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert not [name for name in moved if ".frozen." in name]
    for part in (
        ".tuned.",
        "policy.lxmert.",
        "policy.head.",
        "model.answer_head.",
        "model.lxmert.embeddings.",
    ):
        assert [name for name in moved if part in name], part


@pytest.mark.parametrize("policy", NETWORKS)
def test_a_copy_taken_after_a_step_is_equal_and_independent(
    pretrained: Path, inputs: dict, policy: str
) -> None:
    """The copy's policy reads the copy's embeddings, so that an average of weights can be kept."""
    spec = ModelSpec.of(VqaArgs(strategy="SpotTune", pretrained=str(pretrained), policy=policy))
    torch.manual_seed(0)
    model = build(spec, load_pretrained(spec), ANSWERS)[0].train()
    vqa_loss(model(**inputs).outputs, torch.rand(6, len(ANSWERS))).backward()
    twin = copy.deepcopy(model).eval()
    model.eval()
    expected = model(**inputs)
    for part, other in zip(expected, twin(**inputs), strict=True):
        assert torch.equal(part, other)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
        twin.policy.head.logits.bias.sub_(torch.tensor([0.0, 50.0]).repeat(model.gates.total))
    assert not twin(**inputs).gates.any()
    for part, other in zip(expected, model(**inputs), strict=True):
        assert torch.equal(part, other)
    embeddings = twin.model.lxmert.embeddings
    assert any(module is embeddings for module in borrowed(twin)) and embeddings not in borrowed(model)


def borrowed(model: Adaptive) -> list[nn.Module]:
    """The modules that a policy reads without owning them."""
    return [part._module[0] for part in model.policy.modules() if isinstance(part, Borrowed)]


@pytest.mark.parametrize("policy", NETWORKS)
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_bf16_loses_no_gradient_of_what_no_gate_decides_over(
    pretrained: Path, inputs: dict, strategy: str, policy: str
) -> None:
    """Policies read the model's embeddings without gradients; autocast must not give the model that cast.

    Tuned copies are left out: rounded logits can turn a gate, and a copy that nothing chose has no gradient.
    """
    spec = ModelSpec.of(VqaArgs(strategy=strategy, pretrained=str(pretrained), policy=policy))
    reached = []
    for amp in (False, True):
        torch.manual_seed(0)
        model = build(spec, load_pretrained(spec), ANSWERS, "bf16" if amp else "no")[0].train()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = vqa_loss(model(**inputs).outputs, torch.rand(6, len(ANSWERS)))
        loss.backward()
        with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
        reached.append({name for name in with_gradient if ".tuned." not in name})
    assert "model.lxmert.encoder.visn_fc.visn_fc.weight" in reached[0]
    assert reached[0] == reached[1]


@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_every_live_gate_gets_a_gradient_and_exactly_the_dead_ones_do_not(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    spec = ModelSpec.of(VqaArgs(strategy=strategy, pretrained=str(pretrained)))
    torch.manual_seed(0)
    model, units, _ = build(spec, load_pretrained(spec), ANSWERS)
    model.eval()
    move_tuned(model)
    gates = (torch.rand(6, model.gates.total) < 0.5).float().requires_grad_()
    vqa_loss(with_gates(model, inputs, gates), torch.rand(6, len(ANSWERS))).backward()
    assert ((gates.grad != 0).any(0).numpy() == gate_labels(units)["live"]).all()


@pytest.mark.parametrize("strategy", ["standard", "Frozen", *ADAPTIVE])
def test_evaluation_is_deterministic_and_ignores_padding(pretrained: Path, strategy: str) -> None:
    model = make(pretrained, strategy).eval()
    if strategy in ADAPTIVE:
        move_tuned(model)
    inputs = random_inputs(4)
    wider = dict(inputs)
    for name in ("input_ids", "attention_mask"):
        wider[name] = torch.nn.functional.pad(inputs[name], (0, 3))
    for name in ("visual_feats", "visual_pos"):
        wider[name] = torch.nn.functional.pad(inputs[name], (0, 0, 0, 2))
    wider["visual_attention_mask"] = torch.nn.functional.pad(inputs["visual_attention_mask"], (0, 2))
    first = model(**inputs)
    assert torch.equal(first.outputs, model(**inputs).outputs)
    assert torch.allclose(first.outputs, model(**wider).outputs, atol=1e-5)
    if strategy in ADAPTIVE:
        assert torch.equal(first.gates, model(**wider).gates)


def test_the_policy_starts_from_the_pretrained_layers(pretrained: Path) -> None:
    model = make(pretrained, "SpotTune_Block")
    weights = model.policy.lxmert.state_dict()
    frozen = {n.replace(".frozen.", "."): t for n, t in model.model.lxmert.state_dict().items()}
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in weights.items())


def test_strategies_without_gates_have_no_pairs(pretrained: Path) -> None:
    for strategy in ("standard", "Frozen"):
        model = make(pretrained, strategy)
        assert model.policy is None
        assert not [name for name, _ in model.named_parameters() if ".tuned." in name or ".frozen." in name]


def test_frozen_trains_everything_but_the_layers(pretrained: Path) -> None:
    model = make(pretrained, "Frozen")
    layers = (
        "model.lxmert.encoder.layer.",
        "model.lxmert.encoder.r_layers.",
        "model.lxmert.encoder.x_layers.",
    )
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (not name.startswith(layers)), name


def test_the_loss_is_bce_summed_over_answers() -> None:
    logits, target = torch.randn(3, 5), torch.rand(3, 5)
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()
    assert torch.allclose(vqa_loss(logits, target), expected, atol=1e-5)
