"""One line makes a model of transformers adaptive; whatever calls it then need not know."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tests.helpers.architectures import adapted, build, mixed_gates, move, text
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from adaptive import AdaptiveConfig, fold, get_adaptive_model, load_adaptive
from adaptive.adapt import adapt
from adaptive.model import match
from adaptive.pair import GatedPair
from adaptive.policies import ConstantPolicy

BATCH, SIZE = 5, 16


def bert(seed: int = 0, **changes: Any) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = {
        "hidden_size": 32,
        "num_hidden_layers": changes.pop("num_hidden_layers", 2),
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=40, max_position_embeddings=16, initializer_range=0.2, **config, **rates | changes
        )
    ).eval()


def adaptive_bert(seed: int = 0, **settings: Any) -> nn.Module:
    return get_adaptive_model(bert(seed), AdaptiveConfig(**{"target": "encoder.layer.*"} | settings))


def labelled() -> dict[str, Tensor]:
    return text() | {"labels": torch.tensor([0, 1, 0, 1, 1])}


def step(model: nn.Module, inputs: dict[str, Tensor] | None = None) -> Tensor:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    torch.manual_seed(1)
    loss = model.train()(**inputs or labelled()).loss
    loss.backward()
    optimizer.step()
    return loss.detach()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model.eval()(**text()).logits


# ------------------------------------------------------------------------------------ what is matched


def test_a_pattern_matches_parts_of_names_and_what_precedes_it_may_be_left_out() -> None:
    names = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert match(bert(), "encoder.layer.*") == match(bert(), "bert.encoder.layer.*") == names
    assert match(bert(), "encoder.layer.*", exclude="layer.0") == names[1:]
    assert match(bert(), ["layer.*.output", "layer.1.intermediate"]) == [
        "bert.encoder.layer.0.output",
        "bert.encoder.layer.1.intermediate",
        "bert.encoder.layer.1.output",
    ]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"target": "encoder.block.*"}, "no module is called 'encoder.block.*'; there are .*encoder.layer"),
        ({"exclude": "encoder.layer.*"}, "everything that encoder.layer.\\* stands for is excluded"),
        ({"target": ["layer.*", "layer.*.output"]}, "unit bert.encoder.layer.0.output is a part of unit"),
        ({"tuned": "half"}, "tuned is full or lora, not half"),
        ({"policy": "clever"}, "policy is one of pooled, constant, random, or a module, not clever"),
        ({"granularity": 0}, "granularity is module, or a number of slices, not 0"),
        ({"rank": 0, "tuned": "lora"}, "a rank is at least 1"),
    ],
)
def test_mistakes_are_sentences(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adaptive_bert(**settings)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_a_second_call_is_refused_also_by_adapt(tuned: str) -> None:
    model = adaptive_bert(tuned=tuned)
    with pytest.raises(ValueError, match="the model is adaptive already"):
        get_adaptive_model(model, AdaptiveConfig(target="pooler"))
    with pytest.raises(ValueError, match="the model is adaptive already"):
        adapt(model, [(["bert.pooler"], 1)])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_batch_statistics_are_refused_with_what_to_do(norm: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), norm(4)))
    with pytest.raises(ValueError, match=rf"0\.1 is a {norm.__name__}, whose statistics .*GroupNorm"):
        adapt(model, [(["0"], 1)])


def test_a_list_of_modules_would_run_the_policy() -> None:
    with pytest.raises(ValueError, match="a Sequential runs all modules in it"):
        get_adaptive_model(nn.Sequential(nn.Linear(4, 4)), AdaptiveConfig(target="0"))


def test_the_report_counts_what_trains() -> None:
    model = adaptive_bert(freeze=["embeddings", "pooler"], policy="constant")
    report = model.adaptive.report
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = sum(p.numel() for p in bert().bert.encoder.parameters())
    assert (report.gates, report.of_policy, report.of_copies) == (2, 2, layers)
    assert report.of_rest == sum(p.numel() for p in bert().classifier.parameters())
    assert report.of_copies + report.of_policy + report.of_rest == trainable
    assert f"trainable {trainable:,}" in str(report) and "2 gated modules" in str(report)


# --------------------------------------------------------------------- the model is the one it was


def test_the_model_keeps_its_class_signature_and_attributes() -> None:
    model = adaptive_bert()
    assert type(model) is BertForSequenceClassification
    assert inspect.signature(model.forward) == inspect.signature(bert().forward)
    layer = model.bert.encoder.layer[0]
    assert layer.attention is layer.tuned.attention and layer.seq_len_dim == 1
    with pytest.raises(AttributeError, match="nothing"):
        _ = layer.nothing


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("policy", ["pooled", "constant", "random"])
def test_every_policy_trains_and_only_what_may_move_moves(policy: str, tuned: str) -> None:
    model = adaptive_bert(policy=policy, tuned=tuned, freeze="embeddings")
    before = copy.deepcopy(model.state_dict())
    for _ in range(3):
        assert step(model).isfinite()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(".frozen." in name or "embeddings" in name for name in moved)
    assert any(".tuned." in name or name.endswith(".up") for name in moved)
    assert any(name.startswith("adaptive.policy") for name in moved) == (policy != "random")


def test_a_pooled_policy_decides_by_what_is_no_padding() -> None:
    model, inputs = adaptive_bert(), text()
    gates = model.adaptive.policy(**model.adaptive._read(model, inputs))
    longer = {name: nn.functional.pad(value, (0, 3), value=0) for name, value in inputs.items()}
    assert torch.allclose(model.adaptive.policy(**model.adaptive._read(model, longer)), gates, atol=1e-5)


def test_a_pooled_policy_owns_nothing_that_it_reads() -> None:
    model = adaptive_bert()
    own = {id(p) for p in model.adaptive.parameters()}
    assert not own & {id(p) for p in model.bert.parameters()}
    loss = model.train()(**labelled()).logits.sum() * 0 + model.adaptive.policy.head.logits.weight.sum() * 0
    loss.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad is not None


def test_a_share_is_held_at_its_target() -> None:
    model = adaptive_bert(target_share=0.2, policy="constant").train()
    model.adaptive.policy.STEP = 0.2
    for _ in range(40):
        model(**labelled())
    share = torch.sigmoid(model.adaptive.policy.policy.logit + model.adaptive.policy.bias).mean()
    assert share.item() == pytest.approx(0.2, abs=0.05)


def test_a_policy_of_ones_own_gets_the_inputs_and_what_is_pooled() -> None:
    class Own(nn.Module):
        def forward(self, pooled: Tensor, input_ids: Tensor, **inputs: Tensor) -> Tensor:
            assert pooled.shape == (BATCH, 32) and not pooled.requires_grad
            tuned = (input_ids[:, 0] % 2).float()
            return torch.stack([0.5 - tuned, tuned - 0.5], -1)[:, None].expand(-1, 2, -1)

    model = adaptive_bert(policy=Own())
    logits(model)
    expected = (text()["input_ids"][:, 0] % 2).float()[:, None].expand(-1, 2)
    assert torch.equal(model.adaptive.last_gates(), expected)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_an_empty_batch_gives_an_empty_output_and_no_gradients(tuned: str) -> None:
    model = wide(lambda h, bias: h, tuned=tuned, rank=2)
    assert model(**square()).shape == (BATCH, BATCH, SIZE)
    output = model.train()(**{name: value[:0] for name, value in square().items()})
    output.sum().backward()
    assert output.shape == (0, BATCH, SIZE)


# ------------------------------------------------------------------------- where examples are


class Wide(nn.Module):
    """Gets all kinds of things beside the batch, and returns all kinds."""

    def __init__(self, returns: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(SIZE, SIZE)
        self.returns = returns

    def forward(self, x: Tensor, bias: Tensor, more: dict[str, Any]) -> Any:
        hidden = self.linear(x) + bias @ x + more["pair"][0][:, None] + more["pair"][1]
        return self.returns(hidden, bias)


class Net(nn.Module):
    """words x words is batch x batch: what is per example cannot be told by sizes."""

    def __init__(self, returns: Any) -> None:
        super().__init__()
        self.wide = Wide(returns)

    def forward(self, input_ids: Tensor, offset: Tensor) -> Any:
        words = input_ids.shape[1]
        bias = torch.eye(words).roll(1, 0)
        table = torch.arange(words * SIZE).view(words, SIZE) / 100
        return self.wide(
            input_ids.float()[..., None].expand(-1, -1, SIZE) / 9, bias, {"pair": (offset, table)}
        )


RETURNS = {
    "a tensor": lambda h, bias: h,
    "a dict with a flag": lambda h, bias: {"h": h, "flag": True, "count": 3, "none": None},
    "a list": lambda h, bias: [h, h.mean(1)],
    "what it was given": lambda h, bias: (h, bias),
    "one row for all": lambda h, bias: (h, bias[None] * h.detach().mean() * 0),
    "examples and words in one dimension": lambda h, bias: h.flatten(0, 1),
    "words first": lambda h, bias: h.transpose(0, 1).contiguous(),
    "a mask": lambda h, bias: (h, h > 0),
}


def wide(returns: Any, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = AdaptiveConfig(**{"target": "wide", "policy_size": SIZE} | settings)
    return get_adaptive_model(Net(returns).eval(), config)


def square() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, 9, (BATCH, BATCH), generator=draw),
        "offset": torch.randn(BATCH, SIZE, generator=draw),
    }


def first_tensor(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, dict) else output))
    return output


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("name", RETURNS)
def test_what_is_per_example_is_learned_and_sizes_tell_nothing(name: str, tuned: str) -> None:
    """Words and examples are equally many; arguments are in dicts and tuples; outputs are of every kind."""
    model, inputs = wide(RETURNS[name], tuned=tuned, rank=2), square()
    move(model, 0.5)
    gates = mixed_gates(1)
    with torch.no_grad(), model.adaptive.holding(gates):
        whole = model(**inputs)
        for row in range(BATCH):
            with model.adaptive.holding(gates[row : row + 1]):
                alone = model(**{key: value[row : row + 1] for key, value in inputs.items()})
            found, expected = first_tensor(whole), first_tensor(alone)
            if name == "words first":
                found, expected = found[:, row], expected[:, 0]
            elif name.startswith("examples and"):
                found, expected = found.view(BATCH, BATCH, SIZE)[row], expected
            else:
                found, expected = found[row], expected[0]
            assert torch.allclose(found, expected, atol=1e-5)
    assert type(whole) is type(alone)


REFUSED = {
    "a scalar": (lambda h, bias: (h, h.mean()), "output 1 of wide is a tensor of shape \\(\\), in which no"),
    "no examples": (
        lambda h, bias: (h, h.mean(0)),
        "output 1 of wide is a tensor of shape \\(5, 16\\), in which no",
    ),
    "a number of the batch": (lambda h, bias: (h, len(h)), "output 1 of wide depends on how many examples"),
    "an object": (lambda h, bias: (h, iter(())), "which gates cannot choose"),
    "mixed examples": (
        lambda h, bias: h - h.mean(0, keepdim=True),
        "not the same for an example in a larger batch",
    ),
}


@pytest.mark.parametrize("gate", [0.0, 1.0, None], ids=["frozen", "tuned", "mixed"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_chosen_is_refused_at_once_whatever_the_gates(name: str, gate: float | None) -> None:
    returns, words = REFUSED[name]
    model = wide(returns)
    gates = mixed_gates(1) if gate is None else torch.full((1, 1), gate)
    with pytest.raises(ValueError, match=words), model.adaptive.holding(gates):
        model(**square())


class Residual(nn.Module):
    """Layers whose outputs are written into, inside and outside of them, or the same without writing."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU(inplace=in_place), nn.Linear(SIZE, SIZE))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        return hidden.add_(x) if self.in_place else hidden + x


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("granularity", ["module", 2])
@pytest.mark.parametrize("logit", [-60.0, 0.0, 60.0])
def test_outputs_of_gated_modules_may_be_written_into(tuned: str, granularity: Any, logit: float) -> None:
    """Also in training, with the gradients of the same model that does not write."""
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        settings = {"target": "layer", "policy": "constant", "policy_size": SIZE, "rank": 2}
        config = AdaptiveConfig(**settings, tuned=tuned, granularity=granularity)
        model = get_adaptive_model(Residual(in_place), config).train()
        move(model, 0.5)
        nn.init.constant_(model.adaptive.policy.logit, logit)
        torch.manual_seed(1)
        model(x=torch.randn(BATCH, 3, SIZE)).square().sum().backward()
        found.append([value.grad for value in model.parameters() if value.grad is not None])
    assert found[0]  # of the gates at least
    for written, plain in zip(*found, strict=True):
        assert torch.equal(written, plain)


class Writes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(SIZE, SIZE), how

    def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:
        if self.how == "into a tensor":
            x.mul_(2)
        else:
            seen.append(x)
        return self.linear(x)


class Writing(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.part = Writes(how)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.part(input_ids.float() * 1.0, [])


@pytest.mark.parametrize(
    ("how", "words"),
    [("into a tensor", "part writes into argument 0"), ("to a list", "part adds to a list or dict")],
)
def test_a_module_that_writes_to_its_arguments_is_refused(how: str, words: str) -> None:
    model = get_adaptive_model(Writing(how), AdaptiveConfig(target="part", policy="constant"))
    with pytest.raises(ValueError, match=words):
        model(input_ids=torch.ones(3, SIZE))


# -------------------------------------------------------------------------------- hooks and recorders


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_hooks_on_layer_classes_see_the_whole_batch_in_order(mode: str) -> None:
    """Added after the model was adapted, to every module of a class: those of both copies."""
    model = adaptive_bert()
    kind = type(model.bert.encoder.layer[0].tuned)
    seen: list[tuple[int, int]] = []
    for number, pair in enumerate(m for m in model.modules() if isinstance(m, GatedPair)):
        for part in pair.modules():
            if isinstance(part, kind):
                part.register_forward_hook(lambda _, args, out, n=number: seen.append((n, len(args[0]))))
    move(model)
    model.train(mode == "train")
    with model.adaptive.holding(mixed_gates(2)):
        model(**text())
    assert seen[-2:] == [(0, BATCH), (1, BATCH)]
    count = len(seen)
    with model.adaptive.holding(mixed_gates(2)):
        model(**text())
    assert len(seen) == count + 2


def test_attentions_inside_a_layer_come_whole() -> None:
    inputs = text()
    plain = build("bert")
    plain.set_attn_implementation("eager")
    expected = plain(**inputs, output_attentions=True)
    model = adapted(copy.deepcopy(plain), "bert")
    with torch.no_grad(), model.adaptive.holding(mixed_gates(2)):
        found = model(**inputs, output_attentions=True, output_hidden_states=True)
    assert len(found.attentions) == 2 and len(found.hidden_states) == 3
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_a_hook_inside_that_changes_outputs_is_refused_and_one_on_the_module_is_not() -> None:
    model = adaptive_bert()
    handles = [
        part.register_forward_hook(lambda *_: torch.zeros(()))
        for part in model.bert.encoder.layer[0].modules()
        if isinstance(part, nn.LayerNorm)
    ]
    logits_of = lambda: model(**text())  # noqa: E731
    with model.adaptive.holding(mixed_gates(2)), pytest.raises((RuntimeError, ValueError)):
        logits_of()
    for handle in handles:
        handle.remove()
    model = adaptive_bert()
    model.bert.encoder.layer[0].register_forward_hook(
        lambda _, __, out: (
            (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)
        )
    )
    with model.adaptive.holding(mixed_gates(2)):
        assert logits_of().logits.isfinite().all()


# ----------------------------------------------------------------------------------- copies of models


@pytest.mark.parametrize("policy", ["pooled", "constant"])
@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_a_copy_after_a_step_is_equal_and_independent(policy: str, tuned: str) -> None:
    model = adaptive_bert(policy=policy, tuned=tuned)
    step(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(twin), logits(model))
        before = logits(model)
        step(twin)
        assert torch.equal(logits(model), before) and not torch.equal(logits(twin), before)
        assert twin.save_adaptive.args[0] is twin


def test_an_average_of_weights_runs() -> None:
    model = adaptive_bert()
    average = AveragedModel(model)
    step(model)
    average.update_parameters(model)
    assert torch.equal(average.module.eval()(**text()).logits, logits(average.module))


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    found = []
    for on in (False, True):
        model = adaptive_bert()
        move(model)
        if on:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model.train()(**labelled()).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[1][name], grad, atol=1e-6) for name, grad in found[0].items())


# ------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    "settings",
    [{}, {"tuned": "lora", "rank": 2}, {"policy": "constant", "freeze": "embeddings"}, {"target_share": 0.3}],
    ids=str,
)
def test_saved_and_loaded_is_the_same_to_the_bit(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = adaptive_bert(**settings)
    for _ in range(2):
        step(model)
    model.save_adaptive(tmp_path)
    base = bert(0)
    nn.init.zeros_(base.classifier.weight)  # a head that is not pre-trained is in the files
    again = load_adaptive(base, tmp_path)
    assert torch.equal(logits(again), logits(model))
    for name, parameter in model.named_parameters():
        assert again.get_parameter(name).requires_grad == parameter.requires_grad, name


def test_what_is_saved_is_what_trains(tmp_path: Path) -> None:
    model = adaptive_bert(tuned="lora", rank=2, freeze=["embeddings", "pooler", "classifier"])
    model.save_adaptive(tmp_path)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * trained + 4000
    about = json.loads((tmp_path / "adaptive.json").read_text())
    assert about["base"]["class"] == "BertForSequenceClassification" and about["config"]["rank"] == 2


def test_loading_into_another_base_is_an_error(tmp_path: Path) -> None:
    adaptive_bert().save_adaptive(tmp_path)
    with pytest.raises(ValueError, match="belongs to other pre-trained weights"):
        load_adaptive(bert(1), tmp_path)
    with pytest.raises(ValueError, match=r"lacks .*layer\.2"):
        load_adaptive(bert(0, num_hidden_layers=3), tmp_path)
    with pytest.raises(ValueError, match="has another shape"):
        load_adaptive(bert(0, num_labels=3), tmp_path)
    with pytest.raises(ValueError, match=r"no saved adaptive model: it has no adaptive\.json"):
        load_adaptive(bert(0), tmp_path / "nowhere")


def test_save_pretrained_writes_nothing_that_loads_with_random_layers(tmp_path: Path) -> None:
    model = adaptive_bert()
    step(model)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="load_adaptive"):
        BertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(load_adaptive(bert(0), tmp_path)), logits(model))


# ------------------------------------------------------------------------------------------ folding


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_constant_gates_fold_into_a_plain_model(tuned: str) -> None:
    model = adaptive_bert(policy="constant", tuned=tuned, rank=2)
    move(model)
    with torch.no_grad():
        model.adaptive.policy.logit.copy_(torch.tensor([1.0, -1.0]))
    expected = logits(model)
    names = set(bert().state_dict())
    assert torch.allclose(logits(fold(model)), expected, atol=1e-5)
    assert set(model.state_dict()) == names and not hasattr(model, "adaptive")
    BertForSequenceClassification(model.config).load_state_dict(model.state_dict())


def test_tied_gates_fold_too() -> None:
    """A policy with one pair of logits an example decides over all gates."""
    model = adaptive_bert(policy=ConstantPolicy(1, share=0.9))
    expected = logits(model)
    fold(model, [text()])
    assert not hasattr(model, "adaptive")
    assert torch.equal(logits(model), expected)


def test_only_what_is_constant_over_the_data_folds() -> None:
    class First(nn.Module):
        """The first gate always says tuned, the second looks at the first word."""

        def forward(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
            tuned = torch.stack([torch.ones(len(input_ids)), (input_ids[:, 0] % 2).float()], 1)
            return torch.stack([0.5 - tuned, tuned - 0.5], -1)

    model = adaptive_bert(policy=First())
    move(model)
    expected = logits(model)
    with pytest.raises(ValueError, match="depends on the data"):
        fold(model)
    fold(model, [text()])
    assert torch.allclose(logits(model), expected, atol=1e-5)
    assert model.adaptive.folded == {"bert.encoder.layer.0": 1}
    assert isinstance(model.bert.encoder.layer[1], GatedPair)
    with pytest.raises(ValueError, match="a part of the model was folded"):
        model.save_adaptive("nowhere")


# ---------------------------------------------------------------------- caches and generation


def causal(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.2,
        )
        return LlamaForCausalLM(config).eval()
    config = GPT2Config(
        vocab_size=40,
        n_positions=64,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.2,
        bos_token_id=2,
        eos_token_id=3,
    )
    return GPT2LMHeadModel(config).eval()


TARGETS = {"llama": "layers.*", "gpt2": "h.*"}
SETTINGS = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}


class ByWord(nn.Module):
    """Gates by the first word of the prompt."""

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> Tensor:
        tuned = torch.stack([input_ids[:, 0] % 2, input_ids[:, 0] // 2 % 2], 1).float()
        return torch.stack([0.5 - tuned, tuned - 0.5], -1)


def prompts() -> dict[str, Tensor]:
    ids = text()["input_ids"].clamp(min=4)
    ids[:, 0] = torch.tensor([4, 5, 6, 7, 9])  # all four choices
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("kind", TARGETS)
def test_generation_is_that_of_each_row_with_and_without_a_cache(kind: str, tuned: str) -> None:
    model = get_adaptive_model(
        causal(kind),
        AdaptiveConfig(target=TARGETS[kind], policy=ByWord(), tuned=tuned, rank=2)
        if kind == "llama" or tuned == "full"
        else AdaptiveConfig(target="h.*", policy=ByWord()),
    )
    move(model, 0.3)
    inputs = prompts()
    cached = model.generate(**inputs, **SETTINGS, use_cache=True)
    assert torch.equal(cached, model.generate(**inputs, **SETTINGS, use_cache=False))
    for row in range(BATCH):
        alone = model.generate(**{name: value[row : row + 1] for name, value in inputs.items()}, **SETTINGS)
        assert torch.equal(alone[0], cached[row])
    assert len({tuple(row) for row in cached[:, -6:].tolist()}) > 1


def test_generation_by_beams_with_a_cache_is_that_without() -> None:
    model = get_adaptive_model(causal("llama"), AdaptiveConfig(target="layers.*", policy=ByWord()))
    move(model, 0.3)
    found = [model.generate(**prompts(), **SETTINGS, num_beams=3, use_cache=cache) for cache in (True, False)]
    assert torch.equal(*found)


def test_generation_with_a_cache_of_a_fixed_size_is_that_with_a_growing_one() -> None:
    """Such a cache holds the number of its rows, in which the views of both copies differ."""
    model = get_adaptive_model(causal("llama"), AdaptiveConfig(target="layers.*"))
    move(model, 0.5)
    growing = model.generate(**prompts(), **SETTINGS)
    assert 0 < model.adaptive.last_gates().mean() < 1
    assert torch.equal(model.generate(**prompts(), **SETTINGS, cache_implementation="static"), growing)


def test_an_encoder_decoder_generates_row_by_row() -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=40,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=2,
        pad_token_id=1,
    )
    model = get_adaptive_model(T5ForConditionalGeneration(config).eval(), AdaptiveConfig(target="block.*"))
    move(model, 0.5)
    inputs = text()
    together = model.generate(**inputs, **SETTINGS)
    assert torch.equal(together, model.generate(**inputs, **SETTINGS, use_cache=False))
    for row in range(BATCH):
        alone = model.generate(**{name: value[row : row + 1] for name, value in inputs.items()}, **SETTINGS)
        assert torch.equal(alone[0], together[row])


def test_a_cache_is_filled_as_each_copy_would() -> None:
    model = get_adaptive_model(causal("llama"), AdaptiveConfig(target="layers.*"))
    move(model, 0.3)
    inputs, gates = prompts(), mixed_gates(2)
    with torch.no_grad(), model.adaptive.holding(gates):
        whole = model(**inputs, use_cache=True).past_key_values
    for row in range(BATCH):
        with torch.no_grad(), model.adaptive.holding(gates[row : row + 1]):
            alone = model(**{k: v[row : row + 1] for k, v in inputs.items()}, use_cache=True).past_key_values
        for mine, theirs in zip(whole.layers, alone.layers, strict=True):
            assert torch.allclose(mine.keys[row], theirs.keys[0], atol=1e-5)
            assert torch.allclose(mine.values[row], theirs.values[0], atol=1e-5)


def test_slices_of_what_writes_to_a_cache_are_refused() -> None:
    config = AdaptiveConfig(target="self_attn", granularity=4, policy="constant")
    model = get_adaptive_model(causal("llama"), config)
    with pytest.raises(ValueError, match=r"DynamicCache, can be written to: .*use_cache=False"):
        model(**prompts())
    assert model(**prompts(), use_cache=False).logits.isfinite().all()


def test_a_causal_model_trains_with_its_default_cache_as_without_one() -> None:
    found = []
    for cache in (True, False):
        model = get_adaptive_model(causal("llama"), AdaptiveConfig(target="layers.*"))
        move(model)
        torch.manual_seed(0)
        model.train()(**prompts(), labels=prompts()["input_ids"], use_cache=cache).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.allclose(found[1][name], grad, atol=1e-6) for name, grad in found[0].items())


# ------------------------------------------------------------------------------ Trainer and accelerate


class Data(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = torch.Generator().manual_seed(index)
        ids = torch.randint(4, 40, (6,), generator=draw)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": int(ids[0]) % 2,
            "unused": 3,
        }


def trainer(folder: Path, steps: int) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_steps=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        logging_strategy="no",
        seed=0,
        lr_scheduler_type="constant",
    )
    torch.manual_seed(0)
    return Trainer(adaptive_bert(), arguments, train_dataset=Data(), eval_dataset=Data())


@pytest.mark.slow
def test_the_trainer_trains_evaluates_saves_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 4)
    whole.train()
    assert whole.evaluate()["eval_loss"] > 0
    trainer(tmp_path / "parts", 2).train()
    resumed = trainer(tmp_path / "parts", 4)
    resumed.train(resume_from_checkpoint=True)
    for name, value in whole.model.state_dict().items():
        assert torch.allclose(value, resumed.model.state_dict()[name], atol=1e-6), name
    again = load_adaptive(bert(0), tmp_path / "whole" / "checkpoint-4")
    assert torch.allclose(logits(again), logits(whole.model), atol=1e-6)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_prepares_it(precision: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    model = adaptive_bert()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    model, optimizer = accelerator.prepare(model, optimizer)
    before = model.adaptive.policy.head.logits.weight.detach().clone()
    model.train()
    for _ in range(2):
        accelerator.backward(model(**labelled()).loss)
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(model.adaptive.policy.head.logits.weight, before)


# ----------------------------------------------------------------------------------------- the price


def test_with_all_gates_equal_evaluation_costs_no_more_operations_than_the_plain_model() -> None:
    from tasks.bench.operations import count_operations

    plain, model, inputs = bert(), adaptive_bert(), text()
    gates = torch.ones(1, 2)
    with torch.no_grad(), model.adaptive.holding(gates):
        model(**inputs)
        ours = count_operations(lambda: model(**inputs))
        theirs = count_operations(lambda: plain(**inputs))
    assert ours <= theirs + 12  # filling the gates, and counting them
