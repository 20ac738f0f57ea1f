"""`--tuned lora`: LXMERT with low-rank tuned copies, from what it computes to a run that is loaded again."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import load_file
from tests.helpers.low_rank import Naive, Products, exchanged, merge, move
from tests.helpers.small import ANSWERS
from tests.helpers.stop import stop_after
from torch import Tensor, nn
from transformers import LxmertConfig

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import low_rank, plain_name
from adaptive.low_rank import LowRank
from common.errors import CheckpointError, Interrupted, UserError
from common.files import CHECKSUMS, sha256_of
from kernels import attention
from lxmert.loading import load_pretrained
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import gate_labels, list_units, unused_modules
from tasks import vqa
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.best import read_best
from tasks.finetune.model import VqaModel, build, freeze, vqa_loss
from tasks.finetune.policies import LightPolicy
from tasks.finetune.settle import settle
from tasks.finetune.spec import YOUNGER, ModelSpec
from tasks.finetune.strategies import STRATEGIES

ADAPTIVE = tuple(name for name, strategy in STRATEGIES.items() if strategy.adaptive)
TUNING = ("standard", *ADAPTIVE)
EMBEDDINGS = ("model.lxmert.embeddings.", "model.lxmert.encoder.visn_fc.")
BATCH, RANK = 6, 3

every_adaptive = pytest.mark.parametrize("strategy", ADAPTIVE)
every_tuning = pytest.mark.parametrize("strategy", TUNING)


def make(pretrained: Path, strategy: str, **choices: Any) -> Adaptive:
    """A model of rank 3 as built, so with the function of the pre-trained one."""
    torch.manual_seed(0)
    options = {"tuned": "lora", "rank": RANK, "embeddings": "frozen"} | choices
    spec = ModelSpec.of(VqaArgs(strategy=strategy, pretrained=str(pretrained), **options))
    return build(spec, load_pretrained(spec), ANSWERS)[0]


def original(pretrained: Path) -> VqaModel:
    """The pre-trained model itself."""
    return make(pretrained, "standard", tuned="full", rank=None).model.eval()


def some_gates(model: Adaptive) -> Tensor | None:
    if model.gates is None:
        return None
    return (torch.rand(BATCH, model.gates.total, generator=torch.Generator().manual_seed(1)) < 0.5).float()


def with_gates(model: Adaptive, inputs: dict[str, Tensor], gates: Tensor | None) -> Tensor:
    if gates is not None:
        model.gates.fill(gates)
    return model.model(**inputs)


def doubled(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.double() if t.is_floating_point() else t for name, t in inputs.items()}


def target() -> Tensor:
    return torch.rand(BATCH, len(ANSWERS), generator=torch.Generator().manual_seed(2))


def gradients(model: nn.Module, logits: Tensor, **others: Tensor) -> dict[str, Tensor]:
    """Of every parameter, and of `others`."""
    model.zero_grad()
    for other in others.values():
        other.grad = None
    logits.double().mul(target() - 0.3).sum().backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return named | {name: other.grad for name, other in others.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1)
        assert (found[name] - value).abs().max() <= tolerance * scale, name


# What it computes


@every_tuning
def test_it_starts_as_the_pretrained_model_whatever_the_gates(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model = make(pretrained, strategy).eval()
    assert torch.equal(with_gates(model, inputs, some_gates(model)), original(pretrained)(**inputs))


@every_adaptive
@pytest.mark.parametrize("gradient", [True, False])
def test_all_gates_0_is_the_pretrained_model_bit_for_bit(
    pretrained: Path, inputs: dict, strategy: str, gradient: bool
) -> None:
    model = move(make(pretrained, strategy)).eval()
    gates = torch.zeros(BATCH, model.gates.total, requires_grad=gradient)
    with torch.set_grad_enabled(gradient):
        assert torch.equal(with_gates(model, inputs, gates), original(pretrained)(**inputs))


@every_adaptive
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=str)
def test_all_gates_0_is_so_in_training_too(
    pretrained: Path,
    inputs: dict,
    strategy: str,
    precision: torch.dtype | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropout is only where an example runs tuned. With dropout attention goes step by step, so the
    comparison does, too: PyTorch's fused kernel rounds otherwise."""
    monkeypatch.setattr(attention, "_fused", lambda *_: False)
    model = move(make(pretrained, strategy)).train()
    assert any(part.p for part in model.modules() if isinstance(part, nn.Dropout))
    gates = torch.zeros(BATCH, model.gates.total, requires_grad=True)
    with torch.autocast("cpu", precision, enabled=precision is not None):
        expected = original(pretrained)(**inputs)
        assert torch.equal(with_gates(model, inputs, gates), expected)


@every_adaptive
def test_and_equals_the_fused_attention_of_evaluation_up_to_rounding(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model = move(make(pretrained, strategy)).train()
    found = with_gates(model, inputs, torch.zeros(BATCH, model.gates.total))
    assert torch.allclose(found, original(pretrained)(**inputs), atol=2e-5)


def merged(model: Adaptive, pretrained: Path) -> VqaModel:
    """The plain model with W + B A in the place of each W."""
    plain = original(pretrained)
    state = merge(model.model).state_dict()
    renamed = {plain_name(name): tensor for name, tensor in state.items()}
    plain.load_state_dict(renamed)
    return plain


@every_tuning
@pytest.mark.parametrize("gradient", [True, False])
def test_all_gates_1_are_the_merged_weights(
    pretrained: Path, inputs: dict, strategy: str, gradient: bool
) -> None:
    model = move(make(pretrained, strategy)).eval()
    gates = None if model.gates is None else torch.ones(BATCH, model.gates.total)
    with torch.set_grad_enabled(gradient):
        found = with_gates(model, inputs, gates)
    assert not torch.allclose(found, original(pretrained)(**inputs), atol=1e-2)
    assert torch.allclose(found, merged(model, pretrained)(**inputs), atol=2e-5)


@every_adaptive
@pytest.mark.parametrize("gradient", [True, False])
def test_a_mixed_batch_equals_its_rows_one_by_one(
    pretrained: Path, inputs: dict, strategy: str, gradient: bool
) -> None:
    model, inputs = move(make(pretrained, strategy)).eval().double(), doubled(inputs)
    gates = some_gates(model)
    with torch.set_grad_enabled(gradient):
        together = with_gates(model, inputs, gates)
        for row in range(BATCH):
            alone = {name: t[row : row + 1] for name, t in inputs.items()}
            one = with_gates(model, alone, gates[row : row + 1])[0]
            assert torch.allclose(one, together[row], atol=1e-12)


@every_tuning
@pytest.mark.parametrize("checkpointing", [True, False])
def test_values_and_all_gradients_equal_the_formula_written_out(
    pretrained: Path, inputs: dict, strategy: str, checkpointing: bool
) -> None:
    """In float64, with gates between 0 and 1; cross-attention runs twice in each layer."""
    model, inputs = move(make(pretrained, strategy, embeddings="train")).eval().double(), doubled(inputs)
    model.model.lxmert.encoder.gradient_checkpointing = checkpointing
    twin = exchanged(copy.deepcopy(model), LowRank, Naive)
    if model.gates is None:
        others = {}
    else:
        total, seed = model.gates.total, torch.Generator().manual_seed(3)
        others = {"gates": torch.rand(BATCH, total, generator=seed, dtype=torch.float64).requires_grad_()}
    inputs["visual_feats"].requires_grad_()
    others["input"] = inputs["visual_feats"]
    found, expected = [], []
    for either, numbers in ((model, found), (twin, expected)):
        logits = with_gates(either, inputs, others.get("gates"))
        numbers += [logits.detach(), gradients(either.model, logits, **others)]
    assert torch.allclose(found[0], expected[0], atol=1e-12)
    assert any(name.endswith("attention.att.frozen.key.up") or "att" in name for name in found[1])
    assert_close(found[1], expected[1], 1e-11)


@every_adaptive
def test_a_gates_gradient_is_the_difference_quotient(pretrained: Path, inputs: dict, strategy: str) -> None:
    model, inputs = move(make(pretrained, strategy)).eval().double(), doubled(inputs)
    gates = torch.full((BATCH, model.gates.total), 0.3, dtype=torch.float64, requires_grad=True)
    exact = gradients(model.model, with_gates(model, inputs, gates), gates=gates)["gates"]
    step = 1e-5
    for gate in range(0, model.gates.total, max(1, model.gates.total // 8)):
        losses = []
        for sign in (1, -1):
            moved = gates.detach().clone()
            moved[:, gate] += sign * step
            logits = with_gates(model, inputs, moved).detach()
            losses.append((logits * (target() - 0.3)).sum(1))
        quotient = (losses[0] - losses[1]) / (2 * step)
        assert torch.allclose(exact[:, gate], quotient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rank", "alpha"), [(1, 1.0), (4, 8.0), (8, 2.0)])
@pytest.mark.parametrize("strategy", ["standard", "SpotTune", "SpotTune_Block"])
def test_values_and_gradients_equal_pefts_where_gates_are_1(
    pretrained: Path, inputs: dict, strategy: str, rank: int, alpha: float
) -> None:
    model = move(make(pretrained, strategy, rank=rank, alpha=alpha)).eval().double()
    ours, inputs = model.model.lxmert, doubled(inputs)
    plain = {plain_name(name): part for name, part in ours.named_modules() if isinstance(part, LowRank)}
    theirs = original(pretrained).lxmert.double()
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=list(plain))
    theirs = inject_adapter_in_model(config, theirs).double()
    with torch.no_grad():
        for name, part in plain.items():
            layer = theirs.get_submodule(name)
            layer.lora_A.default.weight.copy_(part.down)
            layer.lora_B.default.weight.copy_(part.up)
    if model.gates is not None:
        model.gates.fill(torch.ones(BATCH, model.gates.total, dtype=torch.float64))
    feats = inputs["visual_feats"].requires_grad_()
    found = []
    for either in (ours, theirs):
        feats.grad = None
        pooled = either(**inputs, pooled_only=True).pooled
        (pooled * torch.linspace(-1, 1, pooled.numel(), dtype=torch.float64).view_as(pooled)).sum().backward()
        found.append((pooled.detach(), feats.grad))
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, atol=1e-11)
    for name, part in plain.items():
        layer = theirs.get_submodule(name)
        for mine, other in ((part.down, layer.lora_A), (part.up, layer.lora_B)):
            assert other.default.weight.grad.any(), name
            assert torch.allclose(mine.grad, other.default.weight.grad, atol=1e-10), name


@every_adaptive
def test_every_live_gate_gets_a_gradient_and_exactly_the_dead_ones_do_not(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model = move(make(pretrained, strategy)).eval()
    gates = some_gates(model).requires_grad_()
    vqa_loss(with_gates(model, inputs, gates), target()).backward()
    config = LxmertConfig.from_pretrained(pretrained)
    live = gate_labels(list_units(config, STRATEGIES[strategy].granularity))["live"]
    assert ((gates.grad != 0).any(0).numpy() == live).all()
    assert model.gates.total == len(live)


@every_tuning
def test_evaluation_without_gates_or_with_constant_ones_costs_what_the_pretrained_model_does(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    model, plain = move(make(pretrained, strategy)).eval(), original(pretrained)
    one = None if model.gates is None else some_gates(model)[:1].expand(BATCH, -1)
    with torch.no_grad():
        with_gates(model, inputs, one)
        totals = []
        for call in (lambda: with_gates(model, inputs, one), lambda: plain(**inputs)):
            with Products() as counted:
                call()
            totals.append(counted.total)
    assert totals[0] == totals[1] > 0


@every_tuning
@pytest.mark.parametrize("policy", ["lxmert", "light"])
def test_bf16_loses_no_gradient(pretrained: Path, inputs: dict, strategy: str, policy: str) -> None:
    """Policies read the frozen embeddings without gradients; autocast must not give the model that cast."""
    reached = []
    for amp in (False, True):
        model = move(make(pretrained, strategy, policy=policy, embeddings="train")).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            loss = vqa_loss(model(**inputs).outputs, target())
        loss.backward()
        reached.append({name for name, p in model.named_parameters() if p.grad is not None})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert reached[0] == reached[1] == trainable


# What trains


def moved_in_steps(model: Adaptive, inputs: dict[str, Tensor], steps: int) -> set[str]:
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        vqa_loss(model(**inputs).outputs, target()).backward()
        optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@every_tuning
@pytest.mark.parametrize("embeddings", ["frozen", "train"])
@pytest.mark.parametrize("policy", ["lxmert", "light"])
def test_a_step_moves_factors_pooler_head_policy_and_what_the_flag_says(
    pretrained: Path, inputs: dict, strategy: str, embeddings: str, policy: str
) -> None:
    model = make(pretrained, strategy, embeddings=embeddings, policy=policy, policy_start=0.9).train()
    moved = moved_in_steps(model, inputs, 3)
    expected = ("model.lxmert.pooler.", "model.answer_head.", "policy.")
    expected += EMBEDDINGS if embeddings == "train" else ()
    for name, parameter in model.named_parameters():
        may = name.startswith(expected) or name.endswith((".down", ".up"))
        unused = name.startswith("policy.lxmert") and not parameter.requires_grad
        unused |= name.endswith("token_type_embeddings.weight")  # there is one segment, and 0 is padding
        assert (name in moved) == (may and not unused), name
    assert len(moved) > 10


def test_dropout_of_frozen_embeddings_is_off_and_of_training_ones_on(pretrained: Path) -> None:
    for embeddings in ("frozen", "train"):
        lxmert = make(pretrained, "SpotTune", embeddings=embeddings).model.lxmert
        rates = {lxmert.embeddings.dropout.p, lxmert.encoder.visn_fc.dropout.p}
        assert rates == ({0.0} if embeddings == "frozen" else {0.1})


@every_tuning
def test_embeddings_may_be_frozen_with_full_copies_too(pretrained: Path, inputs: dict, strategy: str) -> None:
    model = make(pretrained, strategy, tuned="full", rank=None, embeddings="frozen").train()
    moved = moved_in_steps(model, inputs, 2)
    assert not [name for name in moved if name.startswith(EMBEDDINGS)]
    assert "model.lxmert.pooler.dense.weight" in moved


def test_the_unused_half_of_the_last_cross_layer_gets_no_factors(pretrained: Path) -> None:
    config = LxmertConfig.from_pretrained(pretrained)
    for strategy in TUNING:
        factors = [n for n, _ in make(pretrained, strategy).named_parameters() if n.endswith(".up")]
        assert factors and not [n for n in factors if any(part in n for part in unused_modules(config))]


@every_tuning
def test_at_base_size_and_rank_8_what_is_saved_is_below_60_megabytes(strategy: str) -> None:
    config, granularity = LxmertConfig(), STRATEGIES[strategy].granularity or "layer"
    with torch.device("meta"):
        model = VqaModel(LxmertModel(config), AnswerHead(config, 3129))
        for part in ("embeddings", "encoder.visn_fc", *unused_modules(config)):
            freeze(model.lxmert.get_submodule(part))
        units = [(unit.modules, unit.width) for unit in list_units(config, granularity)]
        gates = adapt(model.lxmert, units, low_rank(8))
        parts = [model]
        if STRATEGIES[strategy].adaptive:
            spec = ModelSpec(
                *[None] * 4, False, *[None] * 3, strategy=strategy, policy="light", tuned="lora", rank=8
            )
            parts.append(LightPolicy(spec, model.lxmert, gates.total))
    saved = sum(p.numel() * 4 for part in parts for p in part.parameters() if p.requires_grad)
    assert 20e6 < saved < 60e6


# Runs


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """One epoch of four steps, of rank 3 with the light policy."""
    return replace(args, tuned="lora", rank=RANK, embeddings="frozen", policy="light", epochs=1)


def evaluating(args: VqaArgs, **choices: Any) -> VqaArgs:
    """The evaluation of what `args` trained."""
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, wandb="off")
    return replace(test, **choices)


@pytest.fixture(scope="module")
def trained(data: Path, pretrained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """BEST folders of one step, with low-rank and with full copies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("trained"))
        base = VqaArgs(
            strategy="SpotTune_Block",
            policy="light",
            dataset="vqav2",
            data=str(data),
            pretrained=str(pretrained),
            max_steps=1,
            tqdm=False,
            wandb="off",
        )
        vqa.main(replace(base, version="lora", tuned="lora", rank=RANK, embeddings="frozen"))
        vqa.main(replace(base, version="full"))
    return {tuned: folder / f"snap/vqa/{tuned}/BEST" for tuned in ("lora", "full")}


@pytest.fixture
def best(trained: dict[str, Path], args: VqaArgs) -> Path:
    """A low-rank BEST folder of its own for the test."""
    shutil.copytree(trained["lora"], "BEST")
    return Path("BEST")


def losses(version: str) -> list[float]:
    lines = map(json.loads, Path(f"snap/vqa/{version}/metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("strategy", ["standard", "SpotTune", "SpotTune_Block"])
def test_a_run_is_resumed_bit_for_bit_and_best_holds_what_trained(
    args: VqaArgs, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = replace(args, strategy=strategy)
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(2, patch)
        vqa.main(args)
    assert vqa.main(args)["best"] == whole["best"]
    assert len(losses("whole")) == 4 and losses("run") == losses("whole")
    for part in ("LAST/state", "BEST/model"):
        one, two = (load_file(f"snap/vqa/{name}/{part}.safetensors") for name in ("whole", "run"))
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    model = make(Path(args.pretrained), strategy, policy="light")
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert load_file("snap/vqa/run/BEST/model.safetensors").keys() == trainable
    assert any(name.endswith(".down") for name in trainable)
    assert not any(".frozen.weight" in name or name.startswith(EMBEDDINGS) for name in trainable)


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
@pytest.mark.parametrize("embeddings", ["frozen", "train"])
def test_best_holds_the_embeddings_exactly_where_they_train(
    args: VqaArgs, strategy: str, embeddings: str
) -> None:
    vqa.main(replace(args, strategy=strategy, embeddings=embeddings, max_steps=1))
    saved = load_file("snap/vqa/run/BEST/model.safetensors").keys()
    found = {name for name in saved if name.startswith(EMBEDDINGS)}
    model = make(Path(args.pretrained), strategy)
    every = {name for name, _ in model.named_parameters() if name.startswith(EMBEDDINGS)}
    assert found == (every if embeddings == "train" else set())
    assert read_best(Path("snap/vqa/run/BEST")).spec.embeddings == embeddings


@pytest.mark.parametrize("strategy", ["standard", "SpotTune", "SpotTune_Block"])
def test_best_evaluates_to_the_same_accuracy_and_answers_questions(args: VqaArgs, strategy: str) -> None:
    outcome = vqa.main(replace(args, strategy=strategy))
    for batch_size in (7, 28):
        tested = vqa.main(evaluating(args, batch_size=batch_size))
        assert tested["accuracy"] == outcome["best"]["val_accuracy"]
    predicted = json.loads(Path("snap/vqa/run/predictions/minival.json").read_text())
    asked = json.loads((Path(args.data) / "vqav2" / "minival.json").read_text())
    for record, prediction in list(zip(asked, predicted, strict=True))[:3]:
        about = {"test": None, "question": (record["sent"],), "image_id": record["img_id"]}
        (answer,) = vqa.main(evaluating(args, **about))["asked"]
        assert next(iter(answer.answers)) == prediction["answer"]


def test_from_scratch_best_holds_the_frozen_weights_too(args: VqaArgs) -> None:
    """For nothing else gives them."""
    outcome = vqa.main(replace(args, from_scratch=True))
    saved = load_file("snap/vqa/run/BEST/model.safetensors")
    assert any(".frozen.weight" in name for name in saved)
    assert vqa.main(evaluating(args))["accuracy"] == outcome["best"]["val_accuracy"]


def test_training_goes_on_from_a_low_rank_best(
    args: VqaArgs, best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = {"strategy": None, "tuned": None, "rank": None, "policy": None}
    vqa.main(replace(args, version="next", load=str(best), max_steps=1, **choices))
    assert "fine-tuned weights of BEST" in capsys.readouterr().out
    spec = read_best(Path("snap/vqa/next/BEST")).spec
    assert (spec.tuned, spec.rank, spec.alpha, spec.embeddings) == ("lora", RANK, float(RANK), "frozen")


@pytest.mark.parametrize("flag", ["rank", "alpha", "tuned", "embeddings"])
def test_a_run_is_not_resumed_with_another_tuned_side(args: VqaArgs, flag: str) -> None:
    vqa.main(replace(args, max_steps=1))
    others = {"rank": {"rank": 4}, "alpha": {"alpha": 1.0}, "embeddings": {"embeddings": "train"}}
    others["tuned"] = {"tuned": None, "rank": None}
    with pytest.raises(UserError, match=f"{flag} was "):
        vqa.main(replace(args, max_steps=1, **others[flag]))


def test_gradient_checkpointing_changes_no_number(args: VqaArgs) -> None:
    for version, checkpointing in (("usual", False), ("saving", True)):
        vqa.main(replace(args, version=version, gradient_checkpointing=checkpointing))
    assert losses("usual") == losses("saving")


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_frozen_weights_may_be_held_in_bf16(args: VqaArgs, strategy: str) -> None:
    """Also those of plain LoRA, which has no other copies."""
    outcome = vqa.main(replace(args, strategy=strategy, frozen_dtype="bf16"))
    state = load_file("snap/vqa/run/LAST/state.safetensors")
    assert {t.dtype for name, t in state.items() if name.endswith(".frozen.weight")} == {torch.bfloat16}
    assert vqa.main(evaluating(args))["accuracy"] == outcome["best"]["val_accuracy"]


# Runs of before there were these flags


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    if (checksums := file.parent / CHECKSUMS).exists():
        sums = json.loads(checksums.read_text())
        sums["sha256"][file.name] = sha256_of(file)
        checksums.write_text(json.dumps(sums))


def without_new_fields(arguments: dict[str, Any]) -> None:
    for name in YOUNGER.keys() - {"frozen_dtype"}:
        del arguments[name]


def test_a_run_folder_from_before_the_flags_is_resumed_and_its_best_loaded(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = replace(args, tuned=None, rank=None, embeddings=None)
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(2, patch)
        vqa.main(args)
    folder = Path("snap/vqa/run")
    edit(folder / "LAST/record.json", lambda record: without_new_fields(record["arguments"]))
    edit(folder / "args.json", without_new_fields)
    assert vqa.main(args)["best"] == whole["best"]
    edit(folder / "BEST/model.json", lambda description: without_new_fields(description["spec"]))
    assert vqa.main(evaluating(args))["accuracy"] == whole["best"]["val_accuracy"]
    spec = read_best(folder / "BEST").spec
    assert (spec.tuned, spec.rank, spec.embeddings) == ("full", None, "train")


# Mistakes


MISTAKES = {
    "rank of nothing": (["--tuned=lora", "--rank=0"], "--rank must be greater than 0, not 0"),
    "alpha of nothing": (["--tuned=lora", "--alpha=-1"], "--alpha must be greater than 0, not -1.0"),
    "rank alone": (["--rank=8"], "--rank and --alpha are those of low-rank copies: add --tuned lora"),
    "alpha alone": (["--alpha=8"], "add --tuned lora"),
    "rank of full copies": (["--tuned=full", "--rank=8"], "add --tuned lora"),
    "no layers to tune": (["--tuned=lora", "--strategy=Frozen"], "--strategy Frozen tunes none"),
    "no such side": (["--tuned=loRA"], "choose from"),
    "no such embeddings": (["--embeddings=half"], "choose from"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_sentence_and_leaves_nothing(
    args: VqaArgs, mistake: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, sentence = MISTAKES[mistake]
    try:
        code = vqa.cli([f"--data={args.data}", f"--pretrained={args.pretrained}", "--wandb=off", *flags])
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and sentence in error
    assert error.count("\n") == 1 and not Path("snap").exists()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"rank": 4}, f"--rank 4 contradicts .*BEST, which was trained with {RANK}: leave it out"),
        ({"alpha": 1.0}, f"--alpha 1.0 contradicts .*BEST, which was trained with {float(RANK)}"),
        ({"tuned": "full"}, "--tuned full contradicts .*BEST, which was trained with lora"),
        ({"embeddings": "train"}, "--embeddings train contradicts .*BEST, which was trained with frozen"),
    ],
)
def test_what_contradicts_a_low_rank_best_is_refused(
    args: VqaArgs, trained: dict[str, Path], choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        vqa.main(evaluating(args, load=str(trained["lora"]), **choices))


def test_what_a_low_rank_best_says_may_be_repeated(args: VqaArgs, best: Path) -> None:
    same = {"tuned": "lora", "rank": RANK, "alpha": float(RANK), "embeddings": "frozen"}
    assert settle(evaluating(args, load=str(best), **same), print)[1].spec == read_best(best).spec


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"tuned": "lora"}, "--tuned lora contradicts .*BEST, which was trained with full"),
        ({"rank": 8}, "--rank 8 contradicts .*BEST, which was trained without it: leave it out"),
    ],
)
def test_what_contradicts_a_full_best_is_refused(
    args: VqaArgs, trained: dict[str, Path], choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        vqa.main(evaluating(args, load=str(trained["full"]), **choices))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": None}, "--tuned lora needs a rank"),
        ({"rank": 0}, "--rank must be greater than 0, not 0"),
        ({"rank": "8"}, "says rank is '8', which cannot be"),
        ({"tuned": "full"}, "add --tuned lora"),
        ({"tuned": "half"}, "there is no tuned 'half'"),
        ({"embeddings": None}, "says embeddings is None, which cannot be"),
        ({"strategy": "Frozen"}, "--strategy Frozen tunes none"),
    ],
)
def test_a_description_that_cannot_be_is_one_sentence(
    best: Path, values: dict[str, Any], message: str
) -> None:
    edit(best / "model.json", lambda description: description["spec"].update(values))
    with pytest.raises(CheckpointError, match=message) as error:
        read_best(best)
    assert "\n" not in str(error.value)


def test_factors_of_another_rank_are_refused(args: VqaArgs, best: Path) -> None:
    edit(best / "model.json", lambda description: description["spec"].update(rank=4))
    with pytest.raises(CheckpointError, match=r"is \(3, 16\) there and"):
        vqa.main(evaluating(args, load=str(best)))


def test_defaults_are_rank_8_alpha_the_rank_and_embeddings_that_train() -> None:
    def chosen(*flags: str) -> tuple[Any, ...]:
        spec = ModelSpec.of(parse_args(["--strategy=standard", *flags]))
        return spec.tuned, spec.rank, spec.alpha, spec.embeddings

    assert chosen() == ("full", None, None, "train")
    assert chosen("--embeddings=frozen") == ("full", None, None, "frozen")
    assert chosen("--tuned=lora") == ("lora", 8, 8.0, "train")
    assert chosen("--tuned=lora", "--rank=4") == ("lora", 4, 4.0, "train")
    assert chosen("--tuned=lora", "--rank=4", "--alpha=8", "--embeddings=frozen") == (
        "lora",
        4,
        8.0,
        "frozen",
    )
