"""--policy-holdout: the policy learns on images that the weights never see; --refit: what follows from it."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.policy_step import best_model, watch_step
from tests.helpers.stop import stop_after
from torch import Tensor, nn

from common.errors import Interrupted, RunError, UserError
from tasks import vqa
from tasks.export import export
from tasks.finetune import run as finetune_run
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import vqa_loss
from tasks.finetune.run import Run
from training.machine import end_workers

SNAP, OUT = Path("snap/vqa"), Path("out")
TIMES = ("seconds", "examples_per_second", "wall_seconds", "peak_memory_gb")
SPLITS = ("train", "nominival")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """Two fifths of 25 images are held out: 60 questions are for the weights, 40 for the policy."""
    return replace(args, policy_holdout=0.4, batch_size=16, policy="light", policy_lr=0.01, epochs=2)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """The ids of the questions that weights and policy learn from, filled as runs go on."""
    found: dict[str, set[int]] = {"weights": set(), "policy": set()}
    who = ["weights"]
    watch, learn = finetune_run.BadSteps.watch, vqa.learn_policy

    def watched(self: Any, loss: Tensor, logits: Tensor, ids: Tensor) -> None:
        found[who[-1]] |= set(ids.tolist())
        watch(self, loss, logits, ids)

    def learned(run: Run) -> None:
        who.append("policy")
        learn(run)
        who.pop()

    monkeypatch.setattr(finetune_run.BadSteps, "watch", watched)
    monkeypatch.setattr(vqa, "learn_policy", learned)
    return found


def images_of(data: str, ids: set[int]) -> set[str]:
    files = [Path(data) / "vqav2" / f"{split}.json" for split in SPLITS]
    records = [record for file in files for record in json.loads(file.read_text())]
    return {record["img_id"] for record in records if record["question_id"] in ids}


def test_weights_and_policy_learn_from_different_images_and_each_from_all_of_theirs(
    args: VqaArgs, read: dict[str, set[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(args)
    weights, policy = (images_of(args.data, read[who]) for who in ("weights", "policy"))
    assert (len(weights), len(policy)) == (15, 10) and not weights & policy
    assert (len(read["weights"]), len(read["policy"])) == (60, 40)
    assert "for the policy alone: 40 questions about 40% of the training images" in capsys.readouterr().out


def test_which_images_are_held_out_depends_on_the_seed(args: VqaArgs, read: dict[str, set[int]]) -> None:
    held = []
    for version, seed in (("a", 1), ("b", 1), ("c", 2)):
        read["policy"] = set()
        vqa.main(replace(args, version=version, seed=seed, epochs=1))
        held.append(images_of(args.data, read["policy"]))
    assert held[0] == held[1] != held[2]


@pytest.mark.parametrize("every", [1, 3])
def test_a_step_of_the_policy_moves_nothing_else_and_is_the_only_one_that_moves_it(
    args: VqaArgs, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[set[str]] = []  # by the steps of the model since the last one of the policy, then by that
    last: dict[str, Tensor] = {}
    learn = vqa.learn_policy

    def note(run: Run) -> None:
        now = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        moved.append({name.split(".")[0] for name in last if not torch.equal(now[name], last[name])})
        last.update(now)

    def learned(run: Run) -> None:
        note(run)
        assert run.model.model.training
        learn(run)
        assert run.model.model.training
        note(run)

    monkeypatch.setattr(vqa, "learn_policy", learned)
    outcome = vqa.main(replace(args, policy_every=every))
    assert outcome["policy_steps"] == len(moved) // 2 == -(-2 * 4 // every)
    assert moved[1:] == [{"policy"}, *[{"model"}, {"policy"}] * (outcome["policy_steps"] - 1)]


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2}, {"tuned": "lora"}, {"entropy": 0.5}])
def test_the_gradient_of_the_policy_is_the_naive_one_of_the_mean_loss_without_dropout(
    args: VqaArgs, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both copies computed for all examples, and all parameters free to have gradients."""
    learn, compared = vqa.learn_policy, []

    def learned(run: Run) -> None:
        twin, noise = copy.deepcopy(run.model).train(), torch.get_rng_state()
        twin.gates.dense = twin.train_policy = True
        for part in twin.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        batch, gradients = watch_step(learn, run, monkeypatch)
        after = torch.get_rng_state()
        torch.set_rng_state(noise)
        output = twin(**batch["inputs"])
        p = output.policy_logits.softmax(-1)
        term = (p * p.log()).sum(-1).mean()  # of --entropy: minus the mean entropy
        (vqa_loss(output.outputs, batch["target"]) + changes.get("entropy", 0.0) * term).backward()
        assert torch.equal(after, torch.get_rng_state())
        expected = {f"policy.{name}": p.grad for name, p in twin.policy.named_parameters()}
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        compared.append(max(gradient.abs().max() for gradient in gradients.values()))

    monkeypatch.setattr(vqa, "learn_policy", learned)
    vqa.main(replace(args, epochs=1, **changes))
    assert len(compared) >= 2 and compared[-1] > 0


def numbers(version: str) -> list[dict[str, Any]]:
    lines = (SNAP / version / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if name not in TIMES} for line in lines]


def assert_same_run(one: str, other: str) -> None:
    assert numbers(one) == numbers(other)
    for part in ("LAST/state", "BEST/model"):
        ours, theirs = (load_file(SNAP / version / f"{part}.safetensors") for version in (one, other))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("stop", "changes"),
    [(2, {}), (5, {"num_workers": 1}), (7, {"policy_every": 2, "tuned": "lora", "group_by_length": False})],
)
def test_an_interrupted_run_goes_on_with_both_orders(
    args: VqaArgs, stop: int, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(version: str) -> dict[str, Any]:
        try:
            return vqa.main(replace(args, version=version, **changes))
        finally:
            end_workers()  # else torch waits 5 s for those of each loader, when garbage collection finds it

    whole = run("whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(stop, patch)
        run("run")
    assert run("run")["policy_steps"] == whole["policy_steps"]
    assert_same_run("run", "whole")


def test_a_run_with_another_share_is_another_run(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1))
    with pytest.raises(RunError, match=r"policy_holdout was 0\.4 and is now 0\.2"):
        vqa.main(replace(args, epochs=1, policy_holdout=0.2))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"strategy": "standard"}, "--strategy standard has none"),
        ({"policy_holdout": 0.01}, "leaves none on one side"),
        ({"policy": "random"}, "--policy_holdout .* --policy random has nothing to learn"),
        ({"policy": "oracle:question_type"}, "--policy_holdout .*question_type has nothing to learn"),
        ({"policy": "random", "policy_holdout": 0.0, "policy_every": 2}, "--policy_every .* random has noth"),
    ],
)
def test_nothing_to_learn_on_or_nobody_to_learn_is_one_sentence(
    args: VqaArgs, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        vqa.main(replace(args, **changes))
    assert not SNAP.exists()


# The second act


def finish(args: VqaArgs, share: float, first: float = 0.99, worth_low: float = 0.5) -> None:
    """A run whose gate of the first language layer is tuned for nearly all questions, others for a share.

    worth_low: where the interval of the worth of its choice per input begins.
    """
    vqa.main(replace(args, epochs=1))
    result = json.loads((SNAP / "run" / "result.json").read_text()) | {"worth_low": worth_low}
    (SNAP / "run" / "result.json").write_text(json.dumps(result))
    with np.load(SNAP / "run" / "usage.npz") as archive:
        usage = dict(archive)
    usage["val"][:] = np.array([first, *[share] * (len(usage["live"]) - 1)])
    np.savez(SNAP / "run" / "usage.npz", **usage)


@pytest.fixture
def second(args: VqaArgs) -> VqaArgs:
    left_open = {"strategy": None, "policy": None, "policy_holdout": 0.0, "dataset": "auto"}
    return replace(args, version="second", refit="run", **left_open)


def test_a_fixed_mask_is_refitted_as_standard_of_these_layers_on_all_questions(
    args: VqaArgs, second: VqaArgs, read: dict[str, set[int]]
) -> None:
    finish(args, 0.01)
    read["weights"] = set()
    outcome = vqa.main(second)
    assert len(read["weights"]) == 100
    assert (outcome["label"], outcome["dataset"]) == ("standard of language.1, refit", "vqav2")
    named = vqa.main(replace(second, version="named", refit=None, tune="language.1", dataset="vqav2"))
    assert named["train_loss"] == outcome["train_loss"]
    export(SNAP / "second", OUT)
    assert (OUT / "config.json").is_file()


def test_the_second_act_begins_from_the_files_of_the_first(args: VqaArgs, second: VqaArgs) -> None:
    shutil.copy(Path(args.pretrained) / "vocab.txt", "words.txt")
    finish(replace(args, vocab="words.txt"), 0.01)
    vqa.main(replace(second, pretrained=None))
    arguments = json.loads((SNAP / "second" / "args.json").read_text())
    assert (arguments["vocab"], arguments["pretrained"]) == ("words.txt", args.pretrained)


def test_a_choice_that_is_worth_nothing_is_a_fixed_mask(args: VqaArgs, second: VqaArgs) -> None:
    finish(args, 0.3, worth_low=-0.1)
    assert vqa.main(second)["label"] == "standard of language.1, refit"


def test_a_run_that_found_nothing_to_tune_is_refitted_as_frozen(
    args: VqaArgs, second: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(replace(args, tuned="lora"), 0.01, first=0.01)
    second = replace(second, layers_lr=0.01)  # which nobody could know to be that of none
    whole = vqa.main(replace(second, version="whole"))
    assert (whole["label"], whole["share_tuned"]) == ("Frozen, refit", None)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        vqa.main(second)
    shutil.rmtree(SNAP / "run")  # it goes on all the same
    vqa.main(second)
    assert_same_run("second", "whole")


@pytest.mark.parametrize("target", [None, 0.6])
def test_a_policy_that_looks_at_its_input_decides_as_it_did_and_learns_no_more(
    args: VqaArgs,
    second: VqaArgs,
    target: float | None,
    read: dict[str, set[int]],
    inputs: dict,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish(replace(args, target_share=target), 0.3)
    found = best_model(SNAP / "run").eval()
    runs, prepare, pretrained = [], vqa.prepare, load_file(Path(args.pretrained) / "model.safetensors")

    def prepared(*arguments: Any) -> Run:
        runs.append(prepare(*arguments))
        for name, tensor in runs[-1].model.state_dict().items():
            if name.startswith("model.lxmert."):
                plain = name.removeprefix("model.").replace(".tuned.", ".").replace(".frozen.", ".")
                assert torch.equal(tensor, pretrained[plain]), name
        return runs[-1]

    monkeypatch.setattr(vqa, "prepare", prepared)
    read["weights"], read["policy"] = set(), set()
    outcome = vqa.main(second)
    assert outcome["label"] == "SpotTune_Block, refit"
    assert (len(read["weights"]), len(read["policy"])) == (100, 0)
    model, ours = runs[0].model, best_model(SNAP / "second")
    with torch.no_grad():
        # More than a few inputs, and also in training: the embeddings that it reads have moved meanwhile.
        moved = model.model.lxmert.embeddings.word_embeddings.weight
        assert not torch.equal(moved, pretrained["lxmert.embeddings.word_embeddings.weight"])
        expected = found(**inputs)
        assert torch.equal(model.train()(**inputs).gates, expected.gates)
        for other in (model, ours):
            assert torch.equal(other.eval()(**inputs).policy_logits, expected.policy_logits)
    test = VqaArgs(load="snap/vqa/second/BEST", data=args.data, test="minival", tqdm=False)
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    export(SNAP / "second", OUT)
    assert vqa.main(replace(test, load="out"))["accuracy"] == outcome["best"]["val_accuracy"]


def test_an_interrupted_refit_goes_on(
    args: VqaArgs, second: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(args, 0.3)
    second = replace(second, layers_lr=0.01)
    vqa.main(replace(second, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        vqa.main(second)
    vqa.main(second)
    assert_same_run("second", "whole")


def test_flags_that_contradict_what_was_found_are_named(args: VqaArgs, second: VqaArgs) -> None:
    finish(args, 0.01)
    with pytest.raises(UserError, match="goes with --strategy standard: leave --strategy Frozen out"):
        vqa.main(replace(second, strategy="Frozen"))
    with pytest.raises(UserError, match=r"goes with --tune language\.1: leave --tune vision\.1 out"):
        vqa.main(replace(second, tune="vision.1"))
    assert not (SNAP / "second").exists()
