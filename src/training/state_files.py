"""The state of a run as files that hold data only: tensors as safetensors, everything else as JSON.

What state dictionaries are made of comes back as it was, to the bit: dictionaries, lists, tuples, tensors,
numbers, strings, None. Nothing in such a file can be run.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import RunError
from common.files import read_json

KIND = "kind"  # the key of an object that stands for what JSON has no word for


def save_tree(tree: Any, stem: Path) -> None:
    """Write `tree` to <stem>.safetensors and <stem>.json; TypeError for anything that is not plain data."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(tree, "", tensors), allow_nan=False)
    save_file(tensors, stem.with_suffix(".safetensors"))
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def load_tree(stem: Path) -> Any:
    """What `save_tree` wrote; tensors are on the CPU. RunError if a file is missing or damaged."""
    file = stem.with_suffix(".safetensors")
    try:
        return _decode(read_json(stem.with_suffix(".json"), RunError), load_file(file))
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} cannot be read ({error}).") from None
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{stem.with_suffix('.json')} is damaged ({error!r}).") from None


def random_states() -> dict[str, Any]:
    """Of the global generators of Python, numpy and torch, on the CPU and on every GPU of this process."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the global one, which libraries use
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put the global generators where they were."""
    random.setstate(states["python"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` in JSON's words; its tensors go into `tensors`, under their place in the tree."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous()
        return {KIND: "tensor", "name": name}
    if isinstance(value, dict):
        parts = {key: _encode(part, f"{name}/{key}".lstrip("/"), tensors) for key, part in value.items()}
        if all(isinstance(key, str) for key in parts) and KIND not in parts:
            return parts
        return {KIND: "dict", "items": [[_encode(key, "", tensors), part] for key, part in parts.items()]}
    if isinstance(value, list | tuple):
        parts = [_encode(part, f"{name}/{index}", tensors) for index, part in enumerate(value)]
        return parts if isinstance(value, list) else {KIND: "tuple", "items": parts}
    if isinstance(value, float) and not math.isfinite(value):
        return {KIND: "float", "text": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{name} is {type(value).__name__}, which is no plain data")


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    if KIND not in value:
        return {key: _decode(part, tensors) for key, part in value.items()}
    if value[KIND] == "tensor":
        return tensors[value["name"]]
    if value[KIND] == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in value["items"]}
    if value[KIND] == "tuple":
        return tuple(_decode(part, tensors) for part in value["items"])
    return float(value["text"])
