"""BEST/: what training changed, and how to build the rest again.

model.safetensors   the trainable tensors (of a run from scratch: all of them)
model.json          ModelSpec, data set, size of region features, name and sha256 of the pre-trained file,
                    epoch and accuracy
answers.json        the answers in label order
pretrained/         the pre-trained model; only in folders made by vqa_export.py, which need nothing else
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lxmert.checkpoint import Pretrained
from lxmert.files import CheckpointError
from tasks.vqa_model import ModelSpec, load_weights
from training.checkpoint import open_aside, swap_in

FORMAT = 1
INSIDE = "pretrained"


class BestError(ValueError):
    """A BEST folder that cannot be used; the message says why."""


class Best(NamedTuple):
    """A BEST folder, read."""

    folder: Path
    spec: ModelSpec
    dataset: str
    features: int  # size of a region's features
    answers: list[str]
    pretrained_source: str
    pretrained_sha256: str
    metrics: dict[str, float]  # of the epoch that it holds


def save_best(
    folder: Path,
    model: nn.Module,
    spec: ModelSpec,
    weights: Pretrained,
    answers: list[str],
    dataset: str,
    metrics: dict[str, float],
) -> None:
    """Write the folder as a whole; `metrics` are those of the epoch that it holds."""
    fresh = open_aside(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _own_tensors(model, spec).items()}
    save_file(tensors, fresh / "model.safetensors")
    description = {
        "format": FORMAT,
        "spec": dataclasses.asdict(spec),
        "dataset": dataset,
        "features": weights.config.visual_feat_dim,
        "pretrained": {"source": weights.source, "sha256": weights.sha256},
        "metrics": metrics,
    }
    (fresh / "model.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    (fresh / "answers.json").write_text(json.dumps(answers) + "\n", encoding="utf-8")
    swap_in(folder)


def read_best(folder: Path) -> Best:
    """All but the tensors; BestError if something is missing or damaged."""
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        answers = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise BestError(f"{folder} is of format {description['format']}; this code reads {FORMAT}.")
        spec = ModelSpec(**description["spec"])
        if (folder / INSIDE).is_dir():
            inside = str(folder / INSIDE)
            spec = dataclasses.replace(spec, pretrained=inside, load_lxmert=None, load_lxmert_qa=None)
        return Best(
            folder,
            spec,
            description["dataset"],
            description["features"],
            answers,
            description["pretrained"]["source"],
            description["pretrained"]["sha256"],
            description["metrics"],
        )
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise BestError(
            f"{folder} is not a BEST folder: {name} is missing. It looks like snap/vqa/<version>/BEST."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise BestError(f"{folder} is damaged: {error}.") from None


def weights_behind(best: Best) -> Pretrained:
    """The pre-trained weights that a BEST folder was trained from.

    BestError says which file is missing, or is another one than it was.
    """
    try:
        weights = load_weights(best.spec, best.features)
    except CheckpointError as error:
        raise BestError(
            f"{best.folder} needs the pre-trained {best.pretrained_source} (sha256 "
            f"{best.pretrained_sha256[:12]}...), from which it was trained: {error}"
        ) from None
    _require_same_file(best, weights)
    return weights


def load_best(best: Best, model: nn.Module, weights: Pretrained) -> None:
    """Put the saved tensors over a model freshly built from the same pre-trained file.

    BestError if that file is another one, or if not exactly the expected tensors are there.
    """
    _require_same_file(best, weights)
    file = best.folder / "model.safetensors"
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise BestError(f"{file} cannot be read: {error}.") from None
    _overlay(_own_tensors(model, best.spec), tensors, file)


def _require_same_file(best: Best, weights: Pretrained) -> None:
    if weights.sha256 != best.pretrained_sha256:
        raise BestError(
            f"{best.folder} was trained from {best.pretrained_source} with the sha256 "
            f"{best.pretrained_sha256[:12]}..., but {weights.source} has {weights.sha256[:12]}...; "
            "its frozen parts would be wrong. Put the original file back."
        )


def _own_tensors(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    """What the pre-trained file does not give: what trains, and after a start from scratch everything."""
    if spec.from_scratch:
        return model.state_dict()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _overlay(expected: dict[str, Tensor], tensors: dict[str, Tensor], file: Path) -> None:
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unknown:
        raise BestError(
            f"{file} does not fit the model: {len(missing)} tensors are missing ({', '.join(missing[:3])}), "
            f"{len(unknown)} are unknown ({', '.join(unknown[:3])})."
        )
    with torch.no_grad():
        for name, tensor in expected.items():
            if tensor.shape != tensors[name].shape:
                raise BestError(
                    f"{file}: {name} has the shape {tuple(tensors[name].shape)}; "
                    f"the model expects {tuple(tensor.shape)}."
                )
            tensor.copy_(tensors[name])
