"""Ways to keep standard fine-tuning near the pre-trained model, each against a naive one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.low_rank import merge
from torch import Tensor, nn
from transformers import LxmertForQuestionAnswering

from common.errors import UserError
from lxmert.loading import load_pretrained
from tasks import vqa
from tasks.export import export, main
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.best import load_base_weights, load_best, pretrained_names, read_best
from tasks.finetune.model import build, vqa_loss
from tasks.finetune.run import Run
from tasks.finetune.spec import ModelSpec
from tasks.finetune.strategies import STRATEGIES
from training.optim import make_optimizer

RUN, OUT = Path("snap/vqa/run"), Path("out")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, strategy="standard", epochs=2)


def load(share: float | None = None) -> nn.Module:
    best = read_best(RUN / "BEST")
    weights = load_base_weights(best)
    model, _, _ = build(best.spec, weights, best.answers)
    load_best(best, model, weights, share)
    return model.model.eval()


def start_of(args: VqaArgs) -> nn.Module:
    """The model before its first step."""
    spec = ModelSpec.of(args)
    return build(spec, load_pretrained(spec), read_best(RUN / "BEST").answers)[0].model.eval()


# Interpolation


@pytest.mark.parametrize("changes", [{}, {"tune": "language.2"}, {"tuned": "lora", "rank": 2}])
def test_interpolated_weights_are_so_much_of_each_here_and_in_an_export(
    args: VqaArgs, inputs: dict, changes: dict[str, Any]
) -> None:
    args = replace(args, epochs=1, lr=0.02, **changes)
    vqa.main(args)
    ends = [{n: p.detach() for n, p in merge(model).named_parameters()} for model in (load(), start_of(args))]
    naive = merge(start_of(args))
    with torch.no_grad():
        for name, parameter in naive.named_parameters():
            parameter.copy_(0.3 * ends[0][name] + 0.7 * ends[1][name])
    expected = naive(**inputs)
    assert not torch.allclose(expected, load()(**inputs), atol=1e-3)
    torch.testing.assert_close(load(0.3)(**inputs), expected, rtol=1e-4, atol=1e-5)
    main(["run", "--to", "out", "--interpolate", "0.3"])
    plain = LxmertForQuestionAnswering.from_pretrained("out").eval()(**inputs).question_answering_score
    torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-5)
    assert "0.3 times these and the rest pre-trained" in (OUT / "README.md").read_text()


def test_the_ends_are_the_two_models_and_predictions_lie_beside_those_of_the_run(args: VqaArgs) -> None:
    outcome = vqa.main(args)
    test = replace(args, load=f"{RUN}/BEST", test="minival", strategy=None)
    found = [vqa.main(replace(test, interpolate=share))["accuracy"] for share in (None, 1.0, 0.0)]
    assert found[0] == found[1] == outcome["best"]["val_accuracy"] != found[2]
    files = {path.name for path in (RUN / "predictions").iterdir()}
    assert files == {"minival.json", "minival-interpolated-0.json", "minival-interpolated-1.json"}


def test_what_cannot_be_interpolated_is_one_sentence(args: VqaArgs) -> None:
    for version, changes, words in (
        ("two", {"strategy": "SpotTune_Block"}, "holds two copies"),
        ("random", {"from_scratch": True}, "began with random weights"),
    ):
        vqa.main(replace(args, version=version, epochs=1, **changes))
        with pytest.raises(UserError, match=words):
            load = f"snap/vqa/{version}/BEST"
            vqa.main(VqaArgs(load=load, data=args.data, test="minival", interpolate=0.5))
        with pytest.raises(UserError, match=words):
            export(Path("snap/vqa", version), OUT, share=0.5)
    assert not OUT.exists()


# L2-SP


def test_l2sp_pulls_all_that_is_pretrained_to_where_it_started(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain gradient descent with a penalty: the gradient of strength / 2 * |w - start|^2 is the pull."""
    args = replace(args, optim="sgd", lr=0.05, dropout=0.0, clip=1e9, weight_decay=0.3, epochs=1, warmup=0.5)
    steps, runs, prepare = [], [], vqa.prepare

    def prepared(*arguments: Any) -> Run:
        runs.append(prepare(*arguments))
        return runs[-1]

    def kept(logits: Tensor, target: Tensor) -> Tensor:
        groups = runs[0].optimizer.param_groups
        assert len({group["lr"] for group in groups}) == 1
        steps.append(groups[0]["lr"])
        return vqa_loss(logits, target)

    monkeypatch.setattr(vqa, "prepare", prepared)
    monkeypatch.setattr(vqa, "vqa_loss", kept)
    batches: list[dict[str, Any]] = []
    batches_of = vqa.Machine.batches

    def watched(self: Any, loader: Any) -> Any:
        for batch in batches_of(self, loader):
            if runs[0].model.training:
                batches.append(batch)
            yield batch

    monkeypatch.setattr(vqa.Machine, "batches", watched)
    vqa.main(replace(args, l2sp=2.0))
    naive, start = start_of(args).train(), dict(start_of(args).named_parameters())
    for batch, rate in zip(batches, steps, strict=True):
        loss = vqa_loss(naive(**batch["inputs"]), batch["target"])
        parameters = [p for p in naive.parameters() if p.requires_grad]
        loss = loss + sum((p - start[n]).square().sum() for n, p in naive.named_parameters())  # 2 / 2 of it
        with torch.no_grad():
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.sub_(rate * gradient)
    for name, parameter in runs[0].model.model.named_parameters():
        torch.testing.assert_close(parameter, dict(naive.named_parameters())[name], rtol=1e-4, atol=1e-5)
    assert len(steps) == 4 and steps[0] == 0 and max(steps) == 0.05


def test_what_is_not_pretrained_decays_towards_zero_as_before(args: VqaArgs) -> None:
    spec = ModelSpec.of(replace(args, from_scratch=True))
    weights = load_pretrained(spec)
    model = build(spec, weights, ["yes", "no"])[0]
    assert not pretrained_names(model, weights)


def test_l2sp_is_refused_for_low_rank_updates(args: VqaArgs) -> None:
    with pytest.raises(UserError, match="start from 0: that is --weight_decay"):
        vqa.main(replace(args, tuned="lora", l2sp=0.1))


# Dropout


def test_the_rate_of_dropout_is_that_of_every_dropout(args: VqaArgs) -> None:
    spec = ModelSpec.of(replace(args, dropout=0.35))
    model = build(spec, load_pretrained(spec), ["yes", "no"])[0]
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.35}


# A rate for the layers


@pytest.mark.parametrize(
    "changes", [{}, {"strategy": "SpotTune"}, {"tuned": "lora", "rank": 2}, {"tune": "cross.last1"}]
)
def test_the_rate_of_the_layers_is_that_of_all_that_frozen_keeps(
    args: VqaArgs, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, prepare = [], vqa.prepare

    def prepared(*arguments: Any) -> Run:
        runs.append(prepare(*arguments))
        return runs[-1]

    monkeypatch.setattr(vqa, "prepare", prepared)
    vqa.main(replace(args, **changes, lr=0.1, layers_lr=0.02, schedule="constant", epochs=1))
    model = runs[0].model.model
    lists = tuple(f"lxmert.{name}." for name in STRATEGIES["Frozen"].keeps)
    rates = {p: group["lr"] for group in runs[0].optimizer.param_groups for p in group["params"]}
    trained = {name: rates[p] for name, p in model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in trained.items() if name.startswith(lists)} == {0.02}
    assert {rate for name, rate in trained.items() if not name.startswith(lists)} == {0.1}


def test_the_rate_of_layers_where_none_is_tuned_is_one_sentence(args: VqaArgs) -> None:
    with pytest.raises(UserError, match="--strategy Frozen tunes none: leave it out"):
        vqa.main(replace(args, strategy="Frozen", layers_lr=0.1))


# The head first


def test_in_its_first_epochs_the_head_alone_learns_from_fixed_features(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a head of its own does, with a warm-up and a schedule of its own."""
    args = replace(args, head_first=1, warmup=0.5, clip=1e9)
    seen: list[tuple[Tensor, Tensor, float]] = []
    runs, states, prepare, evaluate = [], [], vqa.prepare, vqa.evaluate

    def prepared(*arguments: Any) -> Run:
        run = prepare(*arguments)
        runs.append(run)
        head = run.model.model.answer_head
        head.register_forward_pre_hook(lambda module, given: seen.append([given[0].detach()]))
        return run

    def kept(logits: Tensor, target: Tensor) -> Tensor:
        seen[-1] += [target, runs[0].optimizer.param_groups[0]["lr"]]
        return vqa_loss(logits, target)

    def evaluated(*arguments: Any) -> Any:
        states.append({name: t.clone() for name, t in runs[0].model.model.state_dict().items()})
        return evaluate(*arguments)

    for name, function in (("prepare", prepared), ("vqa_loss", kept), ("evaluate", evaluated)):
        monkeypatch.setattr(vqa, name, function)
    vqa.main(args)
    steps = [step for step in seen if len(step) == 3]  # the others are of evaluation
    rates = [rate / args.lr for *_, rate in steps]
    assert rates == pytest.approx([0, 0.5, 1, 0.5] * 2)
    start = start_of(args)
    moved = {name for name, t in states[0].items() if not torch.equal(t, start.state_dict()[name])}
    assert moved == {name for name in states[0] if name.startswith("answer_head.")}
    naive = start.answer_head.train()
    optimizer = make_optimizer("adamw", naive, 1.0, args.weight_decay)
    for features, target, rate in steps[:4]:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        vqa_loss(naive(features), target).backward()
        optimizer.step()
    for name, tensor in naive.state_dict().items():
        torch.testing.assert_close(tensor, states[0][f"answer_head.{name}"], rtol=1e-5, atol=1e-6)
    later = {name for name, t in states[1].items() if not torch.equal(t, states[0][name])}
    assert any(name.startswith("lxmert.encoder.layer.0.") for name in later)


def test_the_features_of_the_first_epochs_are_without_dropout(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    pooled: list[Tensor] = []
    score = vqa.score

    def kept(logits: Tensor, target: Tensor) -> Tensor:
        pooled.append(logits)
        return score(logits, target)

    monkeypatch.setattr(vqa, "score", kept)
    vqa.main(replace(args, version="one", epochs=2, head_first=1, max_steps=1))
    vqa.main(replace(args, version="other", epochs=2, head_first=1, max_steps=1, dropout=0.0))
    assert torch.equal(*pooled)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "SpotTune_Block", "head_first": 1}, "--head_first is for strategies without gates"),
        ({"head_first": 2}, "--head_first 2 leaves no epoch"),
    ],
)
def test_a_head_that_may_not_go_first_is_one_sentence(args: VqaArgs, changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        vqa.main(replace(args, **changes))


MISTAKES = {
    "--interpolate=0.5": "--interpolate is for evaluation: add --test or --question",
    "--interpolate=2 --load=x --test=y": "--interpolate is between 0 and 1, not 2.0",
    "--l2sp=-1": "--l2sp must be at least 0, not -1.0",
    "--layers-lr=0": "--layers_lr must be greater than 0, not 0.0",
    "--head-first=-1": "--head_first must be at least 0, not -1",
    "--policy-holdout=1": "--policy_holdout is a share, at least 0 and below 1, not 1.0",
    "--tune=language.1 --tune-from=run": "--tune and --tune_from exclude each other",
    "--refit=run --policy-holdout=0.2": "--refit and --policy_holdout exclude each other",
    "--refit=run --load=x": "--refit and --load exclude each other",
}


@pytest.mark.parametrize("flags", MISTAKES)
def test_mistakes_are_one_sentence(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(flags.split())
    error = capsys.readouterr().err
    assert MISTAKES[flags] in error and error.count("\n") == 1


def test_what_best_holds_of_a_run_of_some_layers_is_what_trained(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1, tune="language.2", embeddings="frozen"))
    names = load_file(RUN / "BEST" / "model.safetensors")
    parts = ("model.lxmert.encoder.layer.1.", "model.lxmert.pooler.", "model.answer_head.")
    assert names and all(name.startswith(parts) for name in names)
