"""An adapted LXMERT as a plain one: low-rank updates go into the weights, constant gates choose for good."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from transformers import LxmertConfig

from adaptive.copies import is_tuned_side, plain_name
from common.errors import UserError
from report.run import Run
from tasks.finetune.best import ENCODER, Best
from tasks.finetune.model import gated_units


def constant_gates(run: Run, best: Best) -> np.ndarray:
    """The gates (G,), bool, if each was the same for every validation question of a run's best epoch.

    UserError if they were not. What the gates were that cannot reach the answer does not matter.
    """
    usage = run.usage
    share, live = usage["val"][best.metrics["epoch"] - 1], usage["live"]
    varying = live & (share > 0) & (share < 1)
    if varying.any():
        raise UserError(
            f"{varying.sum()} of the {live.sum()} gates of {best.folder} differ between questions, so that "
            "it is no plain LXMERT: export it without --plain."
        )
    return share > 0.5


def fold(
    encoder: Mapping[str, Tensor],
    best: Best,
    tensors: Mapping[str, Tensor],
    config: LxmertConfig,
    gates: np.ndarray,
) -> dict[str, Tensor]:
    """The tensors of the plain LXMERT that the model of a BEST folder is where its gates are `gates` (G,).

    encoder: those of the frozen side, by their plain names. tensors: those of the BEST folder. Without gates
    (None) everything is tuned.
    """
    spec, folded = best.spec, dict(encoder)
    chosen = {}  # by the name of a gated module, bool (w,)
    start = 0
    for unit in gated_units(spec, config):
        chosen |= dict.fromkeys(unit.modules, torch.from_numpy(gates[start : start + unit.width]))
        start += unit.width

    def tuned_rows(name: str, tensor: Tensor) -> Tensor:
        """Which rows of a parameter are the tuned copy's: bool (rows, 1, ...)."""
        module = next((module for module in chosen if name.startswith(f"{module}.")), None)
        slices = chosen[module] if module else torch.ones(1, dtype=torch.bool)
        return slices.repeat_interleave(len(tensor) // len(slices)).view(-1, *[1] * (tensor.dim() - 1))

    for name, tensor in tensors.items():
        plain = plain_name(name.removeprefix(ENCODER))
        if not is_tuned_side(name):
            continue
        if ".tuned." in name:
            folded[plain] = torch.where(tuned_rows(plain, tensor), tensor, folded[plain])
        elif name.endswith(".up"):
            weight = plain.removesuffix("up") + "weight"
            update = spec.alpha / spec.rank * tensor @ tensors[name.removesuffix("up") + "down"]
            folded[weight] = folded[weight] + torch.where(tuned_rows(plain, tensor), update, 0.0)
    return folded
