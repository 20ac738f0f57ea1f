"""A step of the policy on held-out images, watched from outside; and the model that a run left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from adaptive.adapt import Adaptive
from tasks.finetune import run as finetune_run
from tasks.finetune.best import load_base_weights, load_best, read_best
from tasks.finetune.model import build
from tasks.finetune.run import Run


def watch_step(
    learn: Callable[[Run], None], run: Run, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Tensor]]:
    """Take the step; return its batch, and the gradients before they are clipped, by parameter."""
    clip, take = finetune_run.clip_gradients, run.held_out.take
    gradients: dict[str, Tensor] = {}
    batches: list[Any] = []

    def clipped(accelerator: object, modules: list[nn.Module], most: float) -> Tensor:
        named = run.model.named_parameters()
        gradients.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        return clip(accelerator, modules, most)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_run, "clip_gradients", clipped)
        patch.setattr(run.held_out, "take", lambda done: batches.append(take(done)) or batches[0])
        learn(run)
    ((batch, _),) = batches
    return batch, gradients


def best_model(folder: Path) -> Adaptive:
    """The model of a run folder's best epoch."""
    best = read_best(folder / "BEST")
    weights = load_base_weights(best)
    model, _, _ = build(best.spec, weights, best.answers)
    load_best(best, model, weights)
    return model
