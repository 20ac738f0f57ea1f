"""Pre-trained LXMERT weights, from wherever they come, under one set of names.

Two kinds are read: a Hugging Face folder or hub id (`load_pretrained`) and a `.pth` file of the original code
(`load_original`). Both end as the names of `LxmertModel` and `AnswerHead`. Loading is strict: what a file may
hold beside those names is written down in `LEFT_OVER`; everything else is an error, and nothing in a file is
ever executed.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LxmertConfig

from lxmert.modeling import AnswerHead, LxmertModel

LEFT_OVER = {
    "cls.": "heads for masked words and for matching question and image",
    "obj_predict_head.": "head for masked regions",
}
ORIGINAL_SUFFIX = "_LXRT.pth"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SIDE_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BERT_TOKENIZER = "google-bert/bert-base-uncased"
LIST_FOLDER = Path("data/lxmert")
# Label orders that published checkpoints do not carry themselves, by the number of answers.
PUBLISHED_LISTS = {9500: "all_ans.json", 3129: "trainval_label2ans.json"}
HEAD_SIZE = 64  # of BERT and of every published LXMERT


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


class Pretrained(NamedTuple):
    """Weights ready to `fill` models with."""

    config: LxmertConfig
    encoder: dict[str, Tensor]  # names of LxmertModel, float32
    answer_head: dict[str, Tensor] | None  # names of AnswerHead, float32
    answers: list[str] | None  # what the rows of the answer head stand for, in order
    tokenizer: str  # folder or hub id
    source: str
    sha256: str  # of the file with the weights
    report: list[str]  # what was loaded and left over, a line each


def load_pretrained(source: str | Path) -> Pretrained:
    """Read a folder with config.json and weights, or a hub id such as unc-nlp/lxmert-base-uncased.

    Understands transformers' LxmertModel, LxmertForPreTraining and LxmertForQuestionAnswering. Raises
    CheckpointError if anything is missing, damaged or not as config.json says.
    """
    folder = local_folder(source, SIDE_FILES, one_of=WEIGHT_FILES)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{source} has no weights: it holds neither {' nor '.join(WEIGHT_FILES)}.")
    config = _read_config(folder / "config.json")
    tensors = _read_tensors(file)
    prefix = "lxmert." if any(name.startswith("lxmert.") for name in tensors) else ""
    encoder, head, report = _sort_tensors(tensors, prefix, file)
    answers = None
    if head is not None:
        config.num_qa_labels = _rows(head, file)
        answers = _config_answers(config) or _listed_answers(config.num_qa_labels, folder)
        report.append("answers: not named by the checkpoint" if answers is None else f"answers: {len(answers)}")
    _check_sizes(config, encoder, head, file)
    return Pretrained(
        config, encoder, head, answers, _tokenizer_of(folder), str(source), sha256_of(file), report
    )


def load_original(
    path: str | Path,
    with_head: bool,
    layers: tuple[int, int, int] | None = None,
    *,
    heads: int | None = None,
) -> Pretrained:
    """Read a `.pth` file of the original code, given with or without its ending `_LXRT.pth`.

    With `with_head` the pre-trained answer head is kept too, and the list of its answers, all_ans.json, must
    lie beside the file or in data/lxmert. `layers` (language, vision, cross) keeps only the first layers of
    each kind. All sizes come from the tensors' shapes, except the number of attention heads, which no shape
    tells: hidden size / 64, as in every published model, unless `heads` is given. Raises CheckpointError.
    """
    file = _original_file(path)
    tensors = {name.removeprefix("module."): tensor for name, tensor in _read_tensors(file).items()}
    encoder, head, report = _sort_tensors(tensors, "bert.", file)
    if not with_head and head is not None:
        report.append(f"left over answer_head.* ({len(head)} tensors): not asked for")
        head = None
    answers = None
    if with_head:
        if head is None:
            raise CheckpointError(f"{file} has no answer head; load it without one (--loadLXMERT).")
        answers = _listed_answers(_rows(head, file), file.parent)
        if answers is None:
            raise CheckpointError(
                f"The answer head of {file} has {_rows(head, file)} rows and there is no list of as many "
                f"answers: put all_ans.json (LXMERT repository, data/lxmert/all_ans.json) beside it or into "
                f"{LIST_FOLDER}."
            )
    if layers is not None:
        encoder, dropped = _first_layers(encoder, layers, file)
        report.append(f"left over {dropped} tensors of layers beyond the first {layers}: not asked for")
    config = _derive_config(encoder, heads, file)
    config.num_qa_labels = config.num_qa_labels if head is None else _rows(head, file)
    _check_sizes(config, encoder, head, file)
    tokenizer = str(file.parent) if (file.parent / "vocab.txt").is_file() else BERT_TOKENIZER
    return Pretrained(config, encoder, head, answers, tokenizer, str(file), sha256_of(file), report)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load `tensors` into `module`, every one and nothing else.

    `what` names the source in errors. Raises CheckpointError, before anything is changed, on missing or
    unexpected names and on shapes that differ.
    """
    _check_match({name: tensor.shape for name, tensor in module.state_dict().items()}, tensors, what)
    module.load_state_dict(dict(tensors))


def answer_rows(
    head: Mapping[str, Tensor],
    old_answers: Sequence[str],
    new_answers: Sequence[str],
    normalise: Callable[[str], str],
) -> tuple[dict[str, Tensor], list[str]]:
    """Make an answer head for other answers: rows are moved by answer, never by index.

    The last linear layer (rows x 2H) gets one row for each of `new_answers`: that of the same answer among
    `old_answers`, else that of the answer with the same `normalise`d spelling, else zeros. Returns the
    tensors and the answers that have zeros. The other tensors are handed on as they are.
    """
    last = _last_linear(head, "the answer head")
    weight, bias = head[f"{last}.weight"], head[f"{last}.bias"]
    if len(old_answers) != len(weight):
        raise CheckpointError(f"The answer head has {len(weight)} rows and {len(old_answers)} answers.")
    row_of = {normalise(answer): row for row, answer in reversed(list(enumerate(old_answers)))}
    row_of |= {answer: row for row, answer in enumerate(old_answers)}
    rows = [row_of.get(answer, row_of.get(normalise(answer))) for answer in new_answers]
    there = [index for index, row in enumerate(rows) if row is not None]
    taken = [row for row in rows if row is not None]
    new_weight, new_bias = weight.new_zeros(len(rows), weight.shape[1]), bias.new_zeros(len(rows))
    new_weight[there], new_bias[there] = weight[taken], bias[taken]
    unmatched = [answer for answer, row in zip(new_answers, rows, strict=True) if row is None]
    return {**head, f"{last}.weight": new_weight, f"{last}.bias": new_bias}, unmatched


def sha256_of(path: str | Path) -> str:
    """Checksum of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_folder(source: str | Path, files: Sequence[str], one_of: Sequence[str] = ()) -> Path:
    """The folder `source`, or the local copy of the hub id `source` with `files` and one of `one_of` in it."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or isinstance(source, Path):
        raise CheckpointError(f"{source} is not a folder with a model.")
    try:
        copy = Path(snapshot_download(source, allow_patterns=list(files)))
        for name in one_of:
            copy = Path(snapshot_download(source, allow_patterns=[*files, name]))
            if (copy / name).is_file():
                break
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(f"{source} is neither a folder nor a model on the Hugging Face hub.") from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = type(error).__name__
        raise CheckpointError(
            f"{source} is not a folder, and the Hugging Face hub cannot be reached for it ({reason}): "
            "check the path, or download the model where there is a network."
        ) from None
    return copy


def _original_file(path: str | Path) -> Path:
    tried = [Path(path), Path(f"{path}{ORIGINAL_SUFFIX}")]
    for file in tried:
        if file.is_file():
            return file
    raise CheckpointError(f"There is no checkpoint {tried[1]} (nor a file {tried[0]}).")


def _read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, floating ones in float32; refuses whatever would have to run code."""
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error):
            raise CheckpointError(
                f"{file} holds more than tensors and would run code when read; it was refused. "
                "Use a file of weights only."
            ) from None
        raise CheckpointError(f"{file} is damaged or no PyTorch checkpoint; get it again.") from None
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, AssertionError):
        # What torch raises on a cut file depends on where it was cut.
        raise CheckpointError(f"{file} is damaged or no checkpoint; get it again.") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} is no dictionary of tensors by name; save a state_dict.")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _sort_tensors(
    tensors: Mapping[str, Tensor], prefix: str, file: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, list[str]]:
    """Encoder, answer head (or None) and a report; names that are neither nor in LEFT_OVER stay in the encoder,
    where the strict check finds them."""
    head: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    left = dict.fromkeys(LEFT_OVER, 0)
    for name, tensor in tensors.items():
        part = next((part for part in LEFT_OVER if name.startswith(part)), None)
        if part is not None:
            left[part] += 1
        elif name.startswith("answer_head."):
            head[name.removeprefix("answer_head.")] = tensor
        else:
            encoder[name.removeprefix(prefix)] = tensor
    report = [f"loaded {len(encoder)} tensors of the encoder and {len(head)} of the answer head from {file}"]
    report += [f"left over {part}* ({n} tensors): {LEFT_OVER[part]}" for part, n in left.items() if n]
    return encoder, head or None, report
