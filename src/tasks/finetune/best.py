"""BEST folders and the models they hold; their files are those of `lxmert.best`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import lxmert.best
from common.errors import CheckpointError, UserError
from common.files import replace_folder
from lxmert.best import WEIGHTS, Best, write_best
from lxmert.checkpoint import require_same_file
from lxmert.weights import Pretrained
from tasks.finetune.spec import ModelSpec


def save_best(
    folder: Path,
    model: nn.Module,
    spec: ModelSpec,
    weights: Pretrained,
    answers: list[str],
    dataset: str,
    metrics: dict[str, Any],
) -> None:
    """Write the folder as a whole; `metrics` are those of the epoch that it holds."""
    best = Best(
        folder,
        dataclasses.asdict(spec),
        dataset,
        weights.config.visual_feat_dim,
        answers,
        weights.source,
        weights.sha256,
        metrics,
    )
    with replace_folder(folder) as fresh:
        write_best(best._replace(folder=fresh), _own_tensors(model, weights))


def read_best(folder: Path) -> Best:
    """All but the tensors, with a `ModelSpec`; CheckpointError if something is missing or damaged."""
    best = lxmert.best.read_best(folder)
    try:
        return best._replace(spec=ModelSpec(**best.spec))
    except (TypeError, UserError) as error:
        raise CheckpointError(f"{folder} is damaged: {error}.") from None


def load_best(best: Best, model: nn.Module, weights: Pretrained) -> None:
    """Put the saved tensors over a model freshly built from the same pre-trained file.

    CheckpointError if that file is another one, or if not exactly the expected tensors are there.
    """
    require_same_file(best, weights)
    file = best.folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from None
    _overlay(_own_tensors(model, weights), tensors, file)


def _own_tensors(model: nn.Module, weights: Pretrained) -> dict[str, Tensor]:
    """What the pre-trained file does not give: all but those tensors of LXMERT that came from it and stay."""
    stays = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    random = tuple(f"model.lxmert.{start}" for start in weights.initialised)
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in stays or not name.startswith("model.lxmert.") or name.startswith(random)
    }


def _overlay(expected: dict[str, Tensor], tensors: dict[str, Tensor], file: Path) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise CheckpointError(
            f"{file} does not fit the model: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} are unknown ({', '.join(unknown[:3])})."
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{file}: {name} has the shape {tuple(tensors[name].shape)}; "
                    f"the model expects {tuple(tensor.shape)}."
                )
            tensor.copy_(tensors[name])


def load_base_weights(best: Best, spec: ModelSpec) -> Pretrained:
    from lxmert.checkpoint import weights_behind

    return weights_behind(best, spec)
