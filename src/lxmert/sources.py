"""Folders, hub models and files of tensors, read safely: what would run code, or is damaged, is refused."""

import pickle
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from common.errors import CheckpointError

VOCABULARY_FILES = ("vocab.txt", "tokenizer.json")
TOKENIZER_FILES = (*VOCABULARY_FILES, "tokenizer_config.json", "special_tokens_map.json")


def local_folder(source: str, files: Sequence[str], one_of: Sequence[str] = ()) -> Path:
    """The folder `source`, or a copy of the hub id with `files` and the first of `one_of` that it has."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is not a folder with a model.")
    try:
        for patterns in [[*files, name] for name in one_of] or [list(files)]:
            copy = Path(snapshot_download(source, allow_patterns=patterns))
            if (copy / patterns[-1]).is_file():
                break
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(f"{source} is neither a folder nor a model on the Hugging Face hub.") from None
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{source} is not a folder, and the Hugging Face hub cannot be reached for it "
            f"({type(error).__name__}): check the path, or download the model where there is a network."
        ) from None
    return copy


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, floating ones in float32; refuses whatever would have to run code.

    Each tensor has memory of its own, and no more than one of them is ever there twice.
    """
    try:
        if file.suffix == ".safetensors":
            return _read_safetensors(file)
        with warnings.catch_warnings():  # of pickles that it then refuses
            warnings.simplefilter("ignore")
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError:
        raise CheckpointError(f"{file} may not be read by you.") from None
    except (
        *(SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError),
        *(AssertionError, AttributeError, TypeError, struct.error),  # which, depends on where the damage is
    ) as error:
        if "GLOBAL" in str(error):  # how torch names a function or class that it did not call
            raise CheckpointError(
                f"{file} was refused: it would run code when read. Use a file of weights only."
            ) from None
        raise CheckpointError(
            f"{file} is damaged or no checkpoint of tensors only; it was refused, and nothing in it was run. "
            "Get it again, from a source that you trust."
        ) from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} is no dictionary of tensors by name; save a state_dict.")
    return {name: _own(tensors.pop(name)) for name in list(tensors)}


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    tensors = {}
    for name in names:
        # The file is mapped into memory; opened anew, it does not stay there whole beside the copies.
        with safe_open(file, framework="pt") as opened:
            tensors[name] = _own(opened.get_tensor(name))
    return tensors


def _own(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
