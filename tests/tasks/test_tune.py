"""--tune: only some layers train, others are the pre-trained ones; --tune-from: those that a run chose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.small import ANSWERS, small_config
from torch import Tensor, nn
from transformers import LxmertForQuestionAnswering

from common.errors import RunError, UserError
from lxmert.loading import load_pretrained
from lxmert.units import gate_labels, list_units
from tasks import vqa
from tasks.export import export
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import load_base_weights, load_best, read_best
from tasks.finetune.choice import backward_cost, cost_message, read_choice, usual_layers
from tasks.finetune.model import build, vqa_loss
from tasks.finetune.spec import ModelSpec

RUN, OUT = Path("snap/vqa/run"), Path("out")
OUTSIDE = ("embeddings.", "encoder.visn_fc.", "pooler.")  # of the layers: they train in any case
TUNED = ("encoder.layer.0.", "encoder.x_layers.1.visual_attention.")  # what this stands for:
TUNE = "language.first1,cross.2.cross_attention"
ALL = "language.*,vision.*,cross.*"


def spec_of(pretrained: Path, **choices: object) -> ModelSpec:
    return ModelSpec.of(VqaArgs(pretrained=str(pretrained), **choices))


def make(pretrained: Path, **choices: object) -> nn.Module:
    torch.manual_seed(0)
    spec = spec_of(pretrained, **choices)
    return build(spec, load_pretrained(spec), ANSWERS)[0]


def layer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    named = ((n.removeprefix("model.lxmert."), p) for n, p in model.named_parameters() if "lxmert" in n)
    return {name: p for name, p in named if not name.startswith(OUTSIDE)}


def test_only_the_named_layers_train_and_embeddings_pooler_and_head(pretrained: Path, inputs: dict) -> None:
    model = make(pretrained, strategy="standard", tune=TUNE).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    vqa_loss(model(**inputs).outputs, torch.rand(6, len(ANSWERS))).backward()
    torch.optim.SGD([p for p in model.parameters() if p.grad is not None], lr=0.1).step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    layers = layer_parameters(model)
    assert {n for n in layers if f"model.lxmert.{n}" in moved} <= {n for n in layers if n.startswith(TUNED)}
    for part in (*TUNED, *OUTSIDE):
        assert [name for name in moved if name.startswith(f"model.lxmert.{part}")], part
    assert [name for name in moved if name.startswith("model.answer_head.")]


def test_the_gradients_are_those_of_standard_without_dropout(pretrained: Path, inputs: dict) -> None:
    gradients = []
    for tune in (None, TUNE):
        model = make(pretrained, strategy="standard", tune=tune, dropout=0.0).train()
        vqa_loss(model(**inputs).outputs, torch.full((6, len(ANSWERS)), 0.5)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert 0 < len(gradients[1]) < len(gradients[0])
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, gradients[0][name])


def test_all_other_layers_run_without_dropout(pretrained: Path) -> None:
    model = make(pretrained, strategy="standard", tune="language.1").model.lxmert
    rates = {n: part.p for n, part in model.named_modules() if isinstance(part, nn.Dropout)}
    for name, rate in rates.items():
        assert (rate > 0) == name.startswith(("encoder.layer.0.", *OUTSIDE)), name


def test_frozen_embeddings_spare_what_lies_below_the_first_tuned_layer(
    pretrained: Path, inputs: dict
) -> None:
    """No gradient reaches it, so autograd keeps nothing of it either."""
    model = make(pretrained, strategy="standard", tune="language.2", embeddings="frozen").train()
    seen: dict[str, Tensor] = {}
    for name, layer in model.model.lxmert.encoder.named_modules():
        if name in ("layer.0", "layer.1", "r_layers.0"):
            layer.register_forward_hook(lambda m, i, out, name=name: seen.__setitem__(name, out))
    model(**inputs)
    assert {name: out.requires_grad for name, out in seen.items()} == {
        "layer.0": False,
        "layer.1": True,
        "r_layers.0": False,
    }


def test_all_layers_are_standard_and_low_rank_updates_are_in_the_named_ones_only(pretrained: Path) -> None:
    whole, named = (make(pretrained, strategy="standard", tune=tune).model for tune in (None, ALL))
    trains = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (whole, named)]
    assert trains[0] == trains[1]
    low = make(pretrained, strategy="standard", tuned="lora", tune=TUNE)
    updated = {n for n in layer_parameters(low) if n.endswith((".up", ".down"))}
    assert updated and all(name.startswith(TUNED) for name in updated)
    assert {n for n, p in layer_parameters(low).items() if p.requires_grad} == updated


@pytest.mark.parametrize("strategy", ["SpotTune", "SpotTune_Res", "SpotTune_Block"])
def test_gates_of_a_strategy_are_in_the_named_layers_only(
    pretrained: Path, inputs: dict, strategy: str
) -> None:
    spec = spec_of(pretrained, strategy=strategy, tune="language.2,vision.1", policy="light")
    model, units, _ = build(spec, load_pretrained(spec), ANSWERS)
    assert {(unit.stream, unit.layer) for unit in units} == {("language", 2), ("vision", 1)}
    assert model.gates.total == sum(unit.width for unit in units)
    reference = make(pretrained, strategy="standard").eval()(**inputs).outputs
    torch.testing.assert_close(model.eval()(**inputs).outputs, reference)
    trains = {n for n, p in layer_parameters(model).items() if p.requires_grad}
    assert trains == {n for n in layer_parameters(model) if ".tuned." in f".{n}"}


def test_mistakes_are_one_sentence(pretrained: Path) -> None:
    with pytest.raises(UserError, match=r"there is no 'language\.3' in this model; there are language\.1 to"):
        make(pretrained, strategy="standard", tune="language.3")
    with pytest.raises(UserError, match="--strategy Frozen tunes none"):
        make(pretrained, strategy="Frozen", tune="language.1")
    with pytest.raises(UserError, match="parts of what a gate of --strategy SpotTune_Block decides over"):
        make(pretrained, strategy="SpotTune_Block", tune="language.1,vision.1.ffn")


def test_the_cost_counts_products_as_one_does_by_hand(pretrained: Path, inputs: dict) -> None:
    """A tuned layer more costs the gradients of its weights, whose inputs have them anyway."""
    config, (batch, words) = small_config(), inputs["input_ids"].shape
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}

    def spec(tune: str) -> ModelSpec:
        return spec_of(pretrained, strategy="standard", tune=tune)

    lists = ("language.1", "language.1-2")
    costs = [backward_cost(spec(tune), config, len(ANSWERS), arrays) for tune in lists]
    size, inner = config.hidden_size, config.intermediate_size
    weights = 4 * size * size + 2 * size * inner
    assert costs[1][1] - costs[0][1] == 2 * batch * words * weights
    assert costs[1][0] - costs[0][0] == weights + 4 * size + inner + size + 4 * size  # biases, layer norms
    model = make(pretrained, strategy="standard", tune="language.1")
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == costs[0][0]
    assert f"{trainable:,} parameters train" in cost_message(spec("language.1"), config, len(ANSWERS), arrays)
    whole = cost_message(spec(ALL), config, len(ANSWERS), arrays)
    assert "a backward pass has 100% of its arithmetic" in whole


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_a_run_is_evaluated_again_and_exported_as_a_plain_lxmert(
    args: VqaArgs, inputs: dict, tuned: str
) -> None:
    outcome = vqa.main(replace(args, strategy=None, tune=TUNE, tuned=tuned, epochs=1))
    assert (outcome["strategy"], outcome["gates"]["total"]) == ("standard", 0)
    assert TUNE in outcome["label"]
    tensors = load_file(RUN / "BEST/model.safetensors")
    assert not [n for n in tensors if ".layer.1." in n or ".r_layers." in n]
    test = VqaArgs(load=f"{RUN}/BEST", data=args.data, test="minival", tqdm=False)
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    export(RUN, OUT)
    best = read_best(RUN / "BEST")
    weights = load_base_weights(best)
    model, _, _ = build(best.spec, weights, best.answers)
    load_best(best, model, weights)
    plain = LxmertForQuestionAnswering.from_pretrained("out").eval()(**inputs).question_answering_score
    torch.testing.assert_close(plain, model.eval()(**inputs).outputs, rtol=1e-5, atol=1e-5)


def test_a_policy_that_nothing_asks_does_not_stand_in_the_way(args: VqaArgs) -> None:
    """A run that follows one with an oracle has the name of its policy, but no gates."""
    changes = {"strategy": "standard", "tune": TUNE, "policy": "oracle:question_type", "epochs": 1}
    assert vqa.main(replace(args, **changes))["gates"]["total"] == 0


def set_shares(change: Callable[[dict[str, np.ndarray]], np.ndarray]) -> None:
    """What ran tuned in validation, in all epochs of the run, set as if it had been so."""
    with np.load(RUN / "usage.npz") as archive:
        usage = dict(archive)
    usage["val"][:] = change(usage)
    np.savez(RUN / "usage.npz", **usage)


def test_the_usual_choice_of_a_run_becomes_the_list_which_stands_without_the_run(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(replace(args, epochs=1))
    set_shares(lambda usage: np.where((usage["stream"] == "language"), 0.75, 0.25))
    follow = replace(args, version="next", strategy=None, tune_from="run", epochs=1)
    outcome = vqa.main(follow)
    printed = " ".join(capsys.readouterr().out.split())
    assert "tuned: language.1-2." in printed and "of its arithmetic" in printed
    assert json.loads(Path("snap/vqa/next/args.json").read_text())["tune"] == "language.1-2"
    named = vqa.main(replace(follow, version="named", tune_from=None, tune="language.1-2"))
    assert named["val_accuracy"] == outcome["val_accuracy"]
    assert named["train_loss"] == outcome["train_loss"]
    shutil.rmtree(RUN)
    assert vqa.main(follow) == outcome  # it is complete
    assert vqa.main(replace(follow, tune_from=None, tune="language.1-2")) == outcome


def test_runs_that_chose_nothing_are_refused(args: VqaArgs) -> None:
    follow = replace(args, version="next", strategy=None, tune_from="run")
    with pytest.raises(RunError, match="not the folder of a finished run"):
        vqa.main(follow)
    vqa.main(replace(args, strategy="standard", epochs=1))
    with pytest.raises(RunError, match="only an adaptive run"):
        vqa.main(follow)
    shutil.rmtree(RUN)
    vqa.main(replace(args, epochs=1))
    set_shares(lambda usage: np.zeros(len(usage["live"])))
    with pytest.raises(RunError, match="all layers mostly ran frozen"):
        vqa.main(follow)
    assert not Path("snap/vqa/next").exists()


def test_heads_are_tuned_together_if_they_are_in_most_decisions() -> None:
    labels = gate_labels(list_units(small_config(), "component"))
    share = np.zeros(len(labels["live"]))
    heads = (labels["stream"] == "vision") & np.char.startswith(labels["component"], "head")
    assert heads.sum() == 2
    share[np.flatnonzero(heads)] = 0.8, 0.4
    assert usual_layers(labels, share) == "vision.1.head"
    share[np.flatnonzero(heads)] = 0.8, 0.1
    assert usual_layers(labels, share) == ""
    share[~labels["live"]] = 1.0  # what cannot reach the answer has no say
    assert usual_layers(labels, share) == ""
    share[labels["layer"] == 2] = 1.0
    assert usual_layers(labels, share) == "language.2,cross.2"


@pytest.mark.parametrize(
    ("departing", "worth_low", "fixed"),
    [(0.04, 0.5, True), (0.06, 0.5, False), (0.06, 0.0, True), (0.06, None, False)],
)
def test_a_choice_is_a_mask_if_nearly_all_gates_are_nearly_constant_or_it_is_worth_nothing(
    args: VqaArgs, departing: float, worth_low: float | None, fixed: bool
) -> None:
    outcome = vqa.main(replace(args, epochs=1))
    (RUN / "result.json").write_text(json.dumps(outcome | {"worth_low": worth_low}))
    set_shares(lambda usage: np.array([1 - departing, *[0.0] * (len(usage["live"]) - 1)]))
    choice = read_choice("run")
    assert (choice.layers, choice.fixed) == ("language.1", fixed)
