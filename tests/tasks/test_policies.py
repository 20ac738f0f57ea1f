"""Policies without a learned choice per input, and the ways in which gates come about in evaluation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.small import ANSWERS

from adaptive.adapt import Adaptive
from common.errors import UserError
from lxmert.loading import load_pretrained
from tasks import vqa
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.best import read_best
from tasks.finetune.gating import drawn
from tasks.finetune.model import build
from tasks.finetune.spec import ModelSpec

KINDS = "question_type"  # of the small data: "colour" and "yes or no"


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, epochs=1)


def make(args: VqaArgs, **choices: Any) -> Adaptive:
    torch.manual_seed(0)
    spec = ModelSpec.of(replace(args, **choices))
    return build(spec, load_pretrained(spec), ANSWERS)[0]


def evaluating(args: VqaArgs, **choices: Any) -> VqaArgs:
    """The evaluation of what `args` trained."""
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, wandb="off")
    return replace(test, **choices)


def usage() -> dict[str, np.ndarray]:
    with np.load("snap/vqa/run/usage.npz") as archive:
        return dict(archive)


def test_random_gates_have_their_share_and_no_gradient(args: VqaArgs, inputs: dict) -> None:
    model = make(args, policy="random", policy_start=0.7).train()
    many = {name: tensor.repeat(200, *[1] * (tensor.dim() - 1)) for name, tensor in inputs.items()}
    output = model(**many)
    assert output.gates.mean().item() == pytest.approx(0.7, abs=0.02)
    assert output.gates[0].ne(output.gates[1]).any() and not output.gates.requires_grad
    assert not [*model.policy.parameters()]


def test_random_gates_run_the_chosen_copies_only(args: VqaArgs, inputs: dict) -> None:
    model = make(args, policy="random").train()
    rows = []
    for pair in (model.model.lxmert.encoder.layer[0].tuned, model.model.lxmert.encoder.layer[0].frozen):
        pair.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    gates = model(**inputs).gates
    assert 0 < gates[:, 0].sum() < len(gates)
    assert sum(rows) == len(gates)


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_a_run_with_random_gates_evaluates_alike_in_batches_of_any_size(args: VqaArgs, tuned: str) -> None:
    outcome = vqa.main(replace(args, policy="random", policy_start=0.5, tuned=tuned))
    assert outcome["label"].endswith(" + random gates")
    assert 0.3 < outcome["share_tuned"] < 0.7 and outcome["gate_variation"] > 0.2
    for batch_size in (7, 28):
        assert vqa.main(evaluating(args, batch_size=batch_size))["accuracy"] == outcome["val_accuracy"]
    saved = load_file("snap/vqa/run/BEST/model.safetensors")
    assert not [name for name in saved if name.startswith("policy.")]


def test_the_noise_of_a_question_is_its_own(args: VqaArgs, inputs: dict) -> None:
    model, ids = make(args, policy="random", policy_start=0.5).eval(), torch.tensor([5, 2**62, -3, 8, 9, 10])
    gates = drawn(model, inputs, ids)["gates"]
    assert gates[0].ne(gates[4]).any()
    torch.manual_seed(1)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = {name: tensor[order] for name, tensor in inputs.items()}
    assert torch.equal(drawn(model, moved, ids[order])["gates"], gates[order])


def test_drawn_gates_follow_the_policys_probabilities(args: VqaArgs, inputs: dict) -> None:
    model = make(args, policy="constant", policy_start=0.2).eval()
    one = {name: tensor[:1].expand(3000, *tensor.shape[1:]) for name, tensor in inputs.items()}
    share = drawn(model, one, torch.arange(3000))["gates"].mean(0)
    assert torch.allclose(share, torch.full_like(share, 0.2), atol=0.03)


def test_a_constant_policy_learns_a_mask_that_no_input_changes(args: VqaArgs) -> None:
    outcome = vqa.main(replace(args, policy="constant", policy_start=0.5, policy_lr=0.1))
    logit = load_file("snap/vqa/run/BEST/model.safetensors")["policy.logit"]
    assert logit.any() and outcome["gate_variation"] == 0.0
    assert usage()["val"][-1].tolist() == (logit > 0).float().tolist()
    assert outcome["label"] == "SpotTune_Block + constant gates"
    assert (outcome["worth"], outcome["worth_low"], outcome["worth_high"]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("policy", "saved", "share"),
    [
        (f"oracle:{KINDS}", f"oracle:{KINDS}=yes or no", [0.0, 1.0]),
        (f"oracle:{KINDS}=colour", f"oracle:{KINDS}=colour", [1.0, 0.0]),
    ],
)
def test_an_oracle_gives_each_value_of_its_field_a_copy(
    args: VqaArgs, policy: str, saved: str, share: list[float]
) -> None:
    outcome = vqa.main(replace(args, policy=policy))
    assert usage()["val_by_type"].mean(1).tolist() == share
    assert set(usage()["train"].mean(0).tolist()) == {usage()["train"][0, 0]}
    assert read_best(Path("snap/vqa/run/BEST")).spec.policy == saved
    assert outcome["information"][KINDS] == pytest.approx(1.0, abs=0.05)
    assert vqa.main(evaluating(args, batch_size=7))["accuracy"] == outcome["val_accuracy"]
    assert vqa.main(replace(args, policy=policy)) == outcome  # it is complete, and not another run
    with pytest.raises(UserError, match="a question alone has none"):
        vqa.main(evaluating(args, test=None, question=("is it red?",), image_id="minival_0"))


def test_all_of_a_value_tuned_is_the_gates_of_a_policy_that_says_so(args: VqaArgs, inputs: dict) -> None:
    model = make(args, policy=f"oracle:{KINDS}").eval()
    tuned = torch.tensor([[True], [False]] * 3)
    expected = model(**inputs, gates=tuned.expand(-1, model.gates.total))
    assert torch.equal(model(**inputs, gates=tuned).outputs, expected.outputs)
    decided = drawn(model, {**inputs, "gates": tuned}, torch.arange(6))["gates"]
    assert torch.equal(decided, expected.gates)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("oracle:weather", "the questions have no weather"),
        (f"oracle:{KINDS}=number", r"have 2 values of question_type \(colour, yes or no\); name those"),
    ],
)
def test_a_field_or_value_that_questions_do_not_have_is_named(
    args: VqaArgs, policy: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        vqa.main(replace(args, policy=policy))
    assert not Path("snap").exists()


def test_of_more_than_two_values_those_that_run_tuned_must_be_named(args: VqaArgs, tmp_path: Path) -> None:
    source = Path(args.data) / "vqav2"
    mine = tmp_path / "data" / "vqav2"
    mine.mkdir(parents=True)
    for path in source.iterdir():
        (mine / path.name).symlink_to(path)
    records = json.loads((source / "train.json").read_text())
    records[0] |= {KINDS: "number"}
    (mine / "train.json").unlink()
    (mine / "train.json").write_text(json.dumps(records))
    args = replace(args, data="data")
    with pytest.raises(UserError, match=r"have 3 values of question_type \(colour, number, yes or no\)"):
        vqa.main(replace(args, policy=f"oracle:{KINDS}"))
    vqa.main(replace(args, policy=f"oracle:{KINDS}=number,colour"))
    assert usage()["val_by_type"][:, 0].tolist()[0] == 1.0


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_averaging_is_a_way_to_train_and_to_evaluate(
    args: VqaArgs, tuned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = replace(args, policy="random", tuned=tuned)
    outcome = vqa.main(replace(args, evaluate_gates="average", average=0.25))
    assert outcome["share_tuned"] == pytest.approx(0.25)
    assert "worth" not in outcome and outcome["label"].endswith("random gates + averaged")
    assert vqa.main(evaluating(args))["accuracy"] == outcome["val_accuracy"]
    vqa.main(evaluating(args, test=None, question=("is it red?",), image_id="minival_0"))
    assert "both copies ran, and were averaged, with 0.25" in capsys.readouterr().out
    for way, weight in (("argmax", None), ("sample", None), ("average", 1.0)):
        vqa.main(evaluating(args, evaluate_gates=way, average=weight))


def test_half_and_half_is_the_average_unless_another_is_asked_for(args: VqaArgs) -> None:
    spec = ModelSpec.of(replace(args, evaluate_gates="average"))
    assert spec.average == 0.5
    assert ModelSpec.of(replace(args, policy="random")).evaluate_gates == "sample"
    assert ModelSpec.of(replace(args, policy="random", evaluate_gates="argmax")).evaluate_gates == "argmax"
    assert ModelSpec.of(args).evaluate_gates == "argmax"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--policy=oracle"], "there is no policy 'oracle'"),
        (["--policy=oracle:"], "there is no policy 'oracle:'"),
        (["--policy=light:group"], "there is no policy 'light:group'"),
        (["--estimator=score"], "invalid choice: 'score'"),
        (["--average=0.5"], "needs --evaluate-gates average"),
        (["--evaluate-gates=average", "--average=1.5"], "a weight between 0 and 1"),
        (["--controls"], "--controls needs --test"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(flags)
    assert words in capsys.readouterr().err


def test_the_estimator_of_a_run_changes_its_policy_and_stands_in_its_checkpoint(args: VqaArgs) -> None:
    weights = {}
    for estimator in (None, "gumbel", "reinmax"):
        vqa.main(replace(args, version=str(estimator), estimator=estimator))
        folder = Path(f"snap/vqa/{estimator}/BEST")
        assert read_best(folder).spec.estimator == (estimator or "gumbel")
        weights[estimator] = load_file(folder / "model.safetensors")["policy.head.logits.weight"]
    assert torch.equal(weights[None], weights["gumbel"])
    assert not torch.equal(weights["gumbel"], weights["reinmax"])


@pytest.mark.parametrize("target", [0.2, 0.8])
def test_a_share_is_held_by_a_bias_without_a_loss(args: VqaArgs, inputs: dict, target: float) -> None:
    model = make(args, policy="light", target_share=target, policy_start=0.5).train()
    with torch.no_grad():
        before = model(**inputs).policy_logits
    for _ in range(400):
        logits = model.policy(**inputs)
    share = logits.softmax(-1)[..., 1].mean().item()
    assert share == pytest.approx(target, abs=0.01)
    shift = (logits - before)[..., 1]
    assert torch.allclose(shift, shift[0, 0].expand_as(shift), atol=1e-5)  # the same of all gates
    bias = model.policy.bias.clone()
    model.eval()
    model.policy(**inputs)
    with torch.no_grad():
        model.train().policy(**inputs)
    assert torch.equal(model.policy.bias, bias)


def test_the_bias_stands_in_the_checkpoint(args: VqaArgs) -> None:
    outcome = vqa.main(replace(args, target_share=0.9))
    bias = load_file("snap/vqa/run/BEST/model.safetensors")["policy.bias"].item()
    assert bias == pytest.approx(0.04, abs=0.011)  # of four steps
    assert vqa.main(evaluating(args))["accuracy"] == outcome["val_accuracy"]


@pytest.mark.parametrize("term", ["entropy", "batch_shaping"])
def test_a_term_changes_what_the_policy_learns_and_a_weight_of_0_does_not(args: VqaArgs, term: str) -> None:
    weights = []
    for number, weight in enumerate((None, 0.0, 5.0)):
        flags = {} if weight is None else {term: weight}
        vqa.main(replace(args, version=str(number), policy="light", **flags))
        weights.append(load_file(f"snap/vqa/{number}/BEST/model.safetensors")["policy.head.logits.weight"])
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
