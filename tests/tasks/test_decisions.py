"""--decisions example: all gates of an example are one decision, and its expected loss can be computed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.helpers.policy_step import best_model, watch_step
from tests.helpers.stop import stop_after
from torch import Tensor

from common.errors import Interrupted
from tasks import vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import vqa_loss
from tasks.finetune.run import Run

FOLDER = Path("snap/vqa/run")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, decisions="example", policy_start=0.5, policy_lr=0.01, epochs=2)


@pytest.mark.parametrize("policy", ["lxmert", "light", "constant", "random"])
@pytest.mark.parametrize("copies", ["full", "lora"])
def test_all_gates_of_an_example_are_drawn_and_chosen_as_one(
    args: VqaArgs, inputs: dict[str, Tensor], policy: str, copies: str
) -> None:
    outcome = vqa.main(replace(args, strategy="SpotTune", policy=policy, tuned=copies, epochs=1))
    assert "tied gates" in outcome["label"]
    model = best_model(FOLDER)
    drawn = [model.train()(**inputs) for _ in range(8)]
    chosen = model.eval()(**inputs)
    for output in (*drawn, chosen):
        assert output.gates.shape == (len(inputs["input_ids"]), model.gates.total)
        assert (output.gates == output.gates[:, :1]).all()
        assert output.policy_logits.shape[1:] == (1, 2)
    assert len({tuple(output.gates[:, 0].tolist()) for output in drawn}) > 1


def test_each_process_gets_the_noise_of_its_rows(args: VqaArgs, inputs: dict[str, Tensor]) -> None:
    """Two halves of a batch, each with generators in the same state, draw what the whole batch draws."""
    vqa.main(replace(args, epochs=1))
    model = best_model(FOLDER).train()
    gates = []
    for rows in (slice(0, 6), slice(0, 3), slice(3, 6)):
        model.draw_noise(torch.Generator().manual_seed(1), 6, rows)
        gates.append(model(**{name: tensor[rows] for name, tensor in inputs.items()}).gates)
    assert torch.equal(gates[0], torch.cat(gates[1:]))


@pytest.mark.parametrize("copies", ["full", "lora"])
def test_on_held_out_images_the_gradient_is_that_of_the_expected_loss(
    args: VqaArgs, copies: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both patterns of gates enumerated, whichever one was drawn."""
    learn, compared = vqa.learn_policy, []

    def learned(run: Run) -> None:
        twin = copy.deepcopy(run.model).train()
        twin.model.eval()
        batch, gradients = watch_step(learn, run, monkeypatch)
        inputs, target = batch["inputs"], batch["target"]
        p = twin.policy(**inputs).softmax(-1)[:, 0]  # (B, 2): frozen, tuned
        expected = 0.0
        for side in (0, 1):
            with torch.no_grad():
                logits = twin(gates=torch.full((len(target), 1), float(side)), **inputs).outputs
            each = torch.stack([vqa_loss(a[None], b[None]) for a, b in zip(logits, target, strict=True)])
            expected = expected + (p[:, side] * each).mean()
        expected.backward()
        wanted = {f"policy.{name}": q.grad for name, q in twin.policy.named_parameters()}
        assert gradients.keys() == wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7)
        compared.append(max(gradient.abs().max() for gradient in gradients.values()))

    monkeypatch.setattr(vqa, "learn_policy", learned)
    vqa.main(replace(args, policy="light", policy_holdout=0.4, batch_size=16, epochs=1, tuned=copies))
    assert len(compared) >= 2 and compared[-1] > 0


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = replace(args, policy_holdout=0.4, batch_size=16)
    whole = vqa.main(replace(held_out, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        vqa.main(held_out)
    outcome = vqa.main(held_out)
    assert (outcome["train_loss"], outcome["val_accuracy"]) == (whole["train_loss"], whole["val_accuracy"])


def test_gates_drawn_in_evaluation_are_tied_too(args: VqaArgs) -> None:
    vqa.main(replace(args, policy="random"))
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, controls=True)
    outcome = vqa.main(test)
    rows = {row["gates"]: row["accuracy"] for row in outcome["controls"]}
    assert {"all tuned", "all frozen"} <= rows.keys() and outcome["accuracy"] > 0
