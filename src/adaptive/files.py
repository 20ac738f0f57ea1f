"""What was trained, as files: `model.safetensors` with the tensors, `adaptive.json` with the configuration.

The frozen weights are not in it. Their digest is, so that it can only be put on the model that it came from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from adaptive.copies import is_tuned_side

TENSORS, ABOUT = "model.safetensors", "adaptive.json"  # transformers' Trainer looks for the first to resume
FORMAT = 1
# In config.json, where it makes transformers' from_pretrained refuse the folder. It would load random layers.
REFUSED = {"attn_implementation": "none, as this is no whole model: adaptive.load_adaptive(model, folder)"}
OWN = "adaptive."  # how names of the policy's parameters begin


class Saved(NamedTuple):
    """What is in a folder."""

    folder: Path
    config: dict[str, Any]
    base: dict[str, str]
    tensors: dict[str, Tensor]


def save_adaptive(model: nn.Module, folder: str | Path) -> None:
    """Write what was trained, the policy and the configuration to a folder, which is made if need be."""
    write(model, folder, trained(model))


def save_pretrained(model: nn.Module, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
    """What takes the place of `save_pretrained`: its files would be loaded with random layers and a warning.

    The arguments are those that transformers' Trainer gives; a state dict among them is where tensors are
    from.
    """
    if not kwargs.get("is_main_process", True):
        return
    state = kwargs.get("state_dict")
    tensors = trained(model)
    write(model, save_directory, tensors if state is None else {name: state[name] for name in tensors})


def trained(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that train, the policy, and buffers outside frozen copies, each under one name."""
    parameters = dict(model.named_parameters())
    found = {name: value for name, value in parameters.items() if value.requires_grad or name.startswith(OWN)}
    state = model.state_dict()
    buffers = {
        name: value for name, value in model.named_buffers() if name in state and ".frozen." not in name
    }
    return {name: value.detach() for name, value in (found | buffers).items()}


def write(model: nn.Module, folder: str | Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors and what belongs to them. ValueError for a model that was partly folded."""
    chooser = model.adaptive
    if chooser.folded:
        raise ValueError("a part of the model was folded: save it before, or fold all of it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {field.name: getattr(chooser.config, field.name) for field in dataclasses.fields(chooser.config)}
    config["policy"] = config["policy"] if isinstance(config["policy"], str) else None
    about = {
        "format": FORMAT,
        "config": config,
        "base": {
            "class": type(model).__name__,
            "name": str(getattr(getattr(model, "config", None), "_name_or_path", "") or ""),
            "sha256": digest(model, set(tensors)),
        },
    }
    save_file(
        {name: value.cpu().contiguous().clone() for name, value in tensors.items()},
        folder / TENSORS,
        {"format": "adaptive"},
    )
    (folder / "config.json").write_text(json.dumps(REFUSED) + "\n", encoding="utf-8")
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def read_folder(folder: str | Path) -> Saved:
    """What `write` wrote. ValueError if it is not there, or of a later format."""
    folder = Path(folder)
    for name in (ABOUT, TENSORS):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is no saved adaptive model: it has no {name}")
    about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    if about["format"] > FORMAT:
        raise ValueError(f"{folder} is of format {about['format']}, and this version reads up to {FORMAT}")
    return Saved(folder, about["config"], about["base"], load_file(folder / TENSORS))


def load_into(model: nn.Module, saved: Saved) -> nn.Module:
    """Fill an adaptive model with saved tensors, strictly, and return it; ValueError if any differs."""
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if not name.startswith(OWN) and not is_tuned_side(name):
            parameter.requires_grad_(name in saved.tensors)
    targets = trained(model)
    missing, unexpected = sorted(targets.keys() - saved.tensors), sorted(saved.tensors.keys() - targets)
    for names, what in ((missing, "lacks"), (unexpected, "has, which the model has not,")):
        if names:
            raise ValueError(
                f"{saved.folder} {what} {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            )
    for name, target in targets.items():
        if target.shape != saved.tensors[name].shape:
            shapes = f"{tuple(saved.tensors[name].shape)} there and {tuple(target.shape)} here"
            raise ValueError(f"{name} of {saved.folder} has another shape: {shapes}")
    if digest(model, set(targets)) != saved.base["sha256"]:
        raise ValueError(
            f"{saved.folder} belongs to other pre-trained weights ({saved.base['class']} "
            f"{saved.base['name']}): its "
            "frozen tensors are not those of this model"
        )
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(saved.tensors[name])
    return model


def digest(model: nn.Module, without: set[str]) -> str:
    """SHA-256 of names, types, shapes and numbers of all parameters but those named."""
    found = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name not in without:
            found.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
            found.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return found.hexdigest()
