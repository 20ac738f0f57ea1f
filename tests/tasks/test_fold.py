"""What low-rank copies and constant gates learned, in plain weights: the same logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LxmertForQuestionAnswering

from common.errors import UserError
from tasks import vqa
from tasks.export import export, main
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import load_base_weights, load_best, read_best
from tasks.finetune.model import build

RUN, OUT = Path("snap/vqa/run"), Path("out")
ADAPTIVE = ("SpotTune", "SpotTune_Res", "SpotTune_Block")


class Constant(nn.Module):
    """A policy that sees nothing: the same gates for every example."""

    def __init__(self, gates: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.stack([torch.zeros(len(gates)), gates - 0.5], -1))

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(inputs["input_ids"]), -1, -1)


def run_logits(inputs: dict[str, torch.Tensor], gates: np.ndarray | None) -> torch.Tensor:
    """Those of the run's best epoch, with these gates instead of its own."""
    best = read_best(RUN / "BEST")
    pretrained = load_base_weights(best)
    model, _, _ = build(best.spec, pretrained, best.answers)
    load_best(best, model, pretrained)
    if gates is not None:
        model.policy = Constant(torch.from_numpy(gates).float())
    return model.eval()(**inputs).outputs


def plain_logits(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model, loading = LxmertForQuestionAnswering.from_pretrained("out", output_loading_info=True)
    assert not any(loading.values())
    return model.eval()(**inputs).question_answering_score


def set_validation_shares(change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    with np.load(RUN / "usage.npz") as archive:
        usage = dict(archive)
    usage["val"] = change(usage["val"])
    np.savez(RUN / "usage.npz", **usage)
    return usage["val"][-1]


@pytest.mark.parametrize("embeddings", ["train", "frozen"])
def test_low_rank_updates_of_a_standard_run_are_merged(args: VqaArgs, inputs: dict, embeddings: str) -> None:
    low = {"tuned": "lora", "rank": 2, "alpha": 3.0, "embeddings": embeddings}
    vqa.main(replace(args, strategy="standard", epochs=1, **low))
    export(RUN, OUT)
    torch.testing.assert_close(plain_logits(inputs), run_logits(inputs, None), rtol=1e-5, atol=1e-5)
    assert "LoRA (rank 2)" in (OUT / "README.md").read_text()


@pytest.mark.parametrize("tuned", ["full", "lora"])
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_a_run_whose_gates_are_constant_becomes_a_plain_model(
    args: VqaArgs, inputs: dict, strategy: str, tuned: str
) -> None:
    vqa.main(replace(args, strategy=strategy, tuned=tuned, epochs=1, policy="light"))
    generator = np.random.default_rng(0)
    gates = set_validation_shares(lambda share: generator.integers(0, 2, share.shape).astype(share.dtype))
    assert 0 < gates.mean() < 1
    export(RUN, OUT, plain=True)
    torch.testing.assert_close(plain_logits(inputs), run_logits(inputs, gates), rtol=1e-5, atol=1e-5)
    assert "all there is here" in (OUT / "README.md").read_text()


@pytest.mark.parametrize("tuned", ["full", "lora"])
def test_a_run_with_a_constant_policy_becomes_a_plain_model_as_it_is(
    args: VqaArgs, inputs: dict, tuned: str
) -> None:
    """Its own gates, as training left them, and not ones that a test put into its usage."""
    learned = {"policy": "constant", "policy_start": 0.5, "policy_lr": 1e-2}
    vqa.main(replace(args, strategy="SpotTune", tuned=tuned, epochs=1, **learned))
    with np.load(RUN / "usage.npz") as usage:
        assert 0 < usage["val"][-1].mean() < 1
    export(RUN, OUT, plain=True)
    torch.testing.assert_close(plain_logits(inputs), run_logits(inputs, None), rtol=1e-5, atol=1e-5)


def test_gates_that_differ_between_questions_are_refused(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="SpotTune_Block", epochs=1))
    set_validation_shares(lambda share: np.full_like(share, 0.25))
    with pytest.raises(UserError, match=r"gates of .* differ between questions"):
        main(["run", "--to", "out", "--plain"])
    assert not OUT.exists()


def test_an_adaptive_low_rank_run_is_exported_and_answers_the_same(args: VqaArgs, inputs: dict) -> None:
    vqa.main(replace(args, strategy="SpotTune", tuned="lora", epochs=1))
    expected = run_logits(inputs, None)
    export(RUN, OUT)
    best = read_best(OUT)
    pretrained = load_base_weights(best)
    model, _, _ = build(best.spec, pretrained, best.answers)
    load_best(best, model, pretrained)
    assert torch.equal(model.eval()(**inputs).outputs, expected)
