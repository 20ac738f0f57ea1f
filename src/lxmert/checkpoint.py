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
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
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
SIDE_FILES = (
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
BERT_TOKENIZER = "google-bert/bert-base-uncased"
LIST_FOLDER = Path("data/lxmert")
# Label orders that published checkpoints do not carry themselves, by the number of answers.
PUBLISHED_LISTS = {9500: "all_ans.json", 3129: "trainval_label2ans.json"}
LAYER_KINDS = ("layer", "r_layers", "x_layers")  # language, vision, cross
LAYER = re.compile(rf"encoder\.({'|'.join(LAYER_KINDS)})\.(\d+)\.")
LAST_LINEAR = "logit_fc.3"  # of AnswerHead
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
    encoder, head, left = _sort_tensors(tensors, prefix, file)
    answers = None
    if head is not None:
        config.num_qa_labels = _rows(head, file)
        answers = _config_answers(config, folder / "config.json") or _listed_answers(
            config.num_qa_labels, folder
        )
    return _finish(Pretrained(config, encoder, head, answers, "", str(source), "", left), file, folder)


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
    encoder, head, left = _sort_tensors(tensors, "bert.", file)
    if not with_head and head is not None:
        left.append(f"left over answer_head.* ({len(head)} tensors): not asked for")
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
        left.append(f"left over {dropped} tensors of layers beyond the first {layers}: not asked for")
    config = _derive_config(encoder, heads, file)
    if head is not None:
        config.num_qa_labels = _rows(head, file)
    return _finish(Pretrained(config, encoder, head, answers, "", str(file), "", left), file, file.parent)


def fill(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load `tensors` into `module`, every one and nothing else.

    `what` names the source in errors. Raises CheckpointError, before anything is changed, on missing or
    unexpected names and on shapes that differ.
    """
    _check_match(module, tensors, what)
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
    weight, bias = head[f"{LAST_LINEAR}.weight"], head[f"{LAST_LINEAR}.bias"]
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
    return {**head, f"{LAST_LINEAR}.weight": new_weight, f"{LAST_LINEAR}.bias": new_bias}, unmatched


def sha256_of(path: str | Path) -> str:
    """Checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def local_folder(source: str | Path, files: Sequence[str], one_of: Sequence[str] = ()) -> Path:
    """The folder `source`, or a copy of the hub id with `files` and the first there is of `one_of`."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or isinstance(source, Path):
        raise CheckpointError(f"{source} is not a folder with a model.")
    try:
        for wanted in [[*files, name] for name in one_of] or [list(files)]:
            copy = Path(snapshot_download(source, allow_patterns=wanted))
            if (copy / wanted[-1]).is_file():
                break
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(f"{source} is neither a folder nor a model on the Hugging Face hub.") from None
    except (HTTPError, OSError) as error:
        raise CheckpointError(
            f"{source} is not a folder, and the Hugging Face hub cannot be reached for it "
            f"({type(error).__name__}): check the path, or download the model where there is a network."
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
        if "GLOBAL" in str(error):  # how torch names a function or class that it did not call
            raise CheckpointError(
                f"{file} holds more than tensors and would run code when read; it was refused. "
                "Use a file of weights only."
            ) from None
        raise CheckpointError(f"{file} is damaged or no PyTorch checkpoint; get it again.") from None
    except (
        SafetensorError,
        RuntimeError,
        OSError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AssertionError,
    ):
        # What torch raises on a cut file depends on where it was cut.
        raise CheckpointError(f"{file} is damaged or no checkpoint; get it again.") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(f"{file} is no dictionary of tensors by name; save a state_dict.")
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _sort_tensors(
    tensors: Mapping[str, Tensor], prefix: str, file: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, list[str]]:
    """Encoder, answer head (None if there is none) and a line for each kind that is left over."""
    head: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    left = dict.fromkeys(LEFT_OVER, 0)
    strays = []
    for name, tensor in tensors.items():
        part = next((part for part in LEFT_OVER if name.startswith(part)), None)
        if part is not None:
            left[part] += 1
        elif name.startswith("answer_head."):
            head[name.removeprefix("answer_head.")] = tensor
        elif name.startswith(prefix):
            encoder[name.removeprefix(prefix)] = tensor
        else:
            strays.append(name)
    if not encoder:
        raise CheckpointError(f"{file} holds no LXMERT: no name in it begins with {prefix!r}.")
    if strays:
        raise CheckpointError(f"{file} holds tensors that are no part of LXMERT: {_shorten(strays)}.")
    lines = [f"left over {part}* ({n} tensors): {LEFT_OVER[part]}" for part, n in left.items() if n]
    return encoder, head or None, lines


def _finish(weights: Pretrained, file: Path, folder: Path) -> Pretrained:
    """Check every name and shape against the models that will be filled, and complete the description."""
    try:
        with torch.device("meta"):
            _check_match(LxmertModel(weights.config), weights.encoder, str(file))
            if weights.answer_head is not None:
                head = AnswerHead(weights.config, _rows(weights.answer_head, file))
                _check_match(head, weights.answer_head, str(file))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}.") from None
    loaded = f"loaded {len(weights.encoder)} tensors of the encoder"
    if weights.answer_head is not None:
        loaded += f" and {len(weights.answer_head)} of the answer head"
    has_tokenizer = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    return weights._replace(
        tokenizer=str(folder) if has_tokenizer else BERT_TOKENIZER,
        sha256=sha256_of(file),
        report=[f"{loaded} from {file}", *weights.report],
    )


def _check_match(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{what} does not fit: missing {_shorten(missing)}; unexpected {_shorten(unexpected)}."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"{what} does not fit: {name} is {tuple(tensors[name].shape)} there and {shape} in the model."
            )


def _shorten(names: Iterable[str], most: int = 6) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "none"


def _rows(head: Mapping[str, Tensor], file: Path) -> int:
    if f"{LAST_LINEAR}.weight" not in head:
        raise CheckpointError(f"{file} has an answer head without {LAST_LINEAR}.weight.")
    return len(head[f"{LAST_LINEAR}.weight"])


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"There is no {file}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}).") from None


def _read_config(file: Path) -> LxmertConfig:
    entries = _read_json(file)
    if not isinstance(entries, dict) or entries.get("model_type", "lxmert") != "lxmert":
        raise CheckpointError(f"{file} does not describe an LXMERT model.")
    try:
        return LxmertConfig.from_dict(entries)
    except Exception as error:  # transformers checks types with exceptions of its own
        raise CheckpointError(f"{file} is no LXMERT configuration ({str(error).splitlines()[-1]}).") from None


def _config_answers(config: LxmertConfig, file: Path) -> list[str] | None:
    """The answers that config.json names; None if it has only transformers' LABEL_0, LABEL_1, ..."""
    labels = config.id2label
    if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()):
        return None
    if sorted(labels) != list(range(config.num_qa_labels)):
        raise CheckpointError(
            f"{file} names {len(labels)} answers and the answer head has {config.num_qa_labels} rows."
        )
    return [labels[index] for index in range(len(labels))]


def _listed_answers(rows: int, folder: Path) -> list[str] | None:
    """The published list with as many answers as the head has rows, from `folder` or data/lxmert.

    An entry is an answer or {"ans": answer, "dsets": [...]}; its position is the label.
    """
    name = PUBLISHED_LISTS.get(rows, "all_ans.json")
    for file in (folder / name, LIST_FOLDER / name):
        if file.is_file():
            entries = _read_json(file)
            try:
                answers = [entry["ans"] if isinstance(entry, dict) else str(entry) for entry in entries]
            except (KeyError, TypeError):
                raise CheckpointError(f"{file} is no list of answers.") from None
            if len(answers) == rows:
                return answers
    return None


def _derive_config(encoder: Mapping[str, Tensor], heads: int | None, file: Path) -> LxmertConfig:
    def shape(name: str) -> torch.Size:
        if name not in encoder or encoder[name].ndim != 2:
            raise CheckpointError(f"{file} is no LXMERT checkpoint: it has no matrix {name}.")
        return encoder[name].shape

    vocabulary, hidden = shape("embeddings.word_embeddings.weight")
    if heads is None and hidden % HEAD_SIZE:
        raise CheckpointError(
            f"{file} has hidden size {hidden}, no multiple of {HEAD_SIZE}: say how many heads."
        )
    counts = _count_layers(encoder)
    return LxmertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_SIZE if heads is None else heads,
        intermediate_size=shape("encoder.x_layers.0.lang_inter.dense.weight")[0],
        max_position_embeddings=shape("embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("embeddings.token_type_embeddings.weight")[0],
        visual_feat_dim=shape("encoder.visn_fc.visn_fc.weight")[1],
        visual_pos_dim=shape("encoder.visn_fc.box_fc.weight")[1],
        l_layers=counts["layer"],
        r_layers=counts["r_layers"],
        x_layers=counts["x_layers"],
    )


def _count_layers(encoder: Iterable[str]) -> dict[str, int]:
    """Number of language, vision and cross layers, in this order."""
    places = [match.groups() for match in map(LAYER.match, encoder) if match]
    return {kind: 1 + max((int(i) for k, i in places if k == kind), default=-1) for kind in LAYER_KINDS}


def _first_layers(
    encoder: dict[str, Tensor], layers: tuple[int, int, int], file: Path
) -> tuple[dict[str, Tensor], int]:
    """The encoder with the first (language, vision, cross) layers only, and how many tensors went."""
    there = _count_layers(encoder)
    wanted = dict(zip(LAYER_KINDS, layers, strict=True))
    if any(not 0 <= wanted[kind] <= there[kind] for kind in LAYER_KINDS):
        raise CheckpointError(
            f"{file} has {tuple(there.values())} language, vision and cross layers; {layers} were asked for."
        )
    kept = {
        name: tensor
        for name, tensor in encoder.items()
        if not (match := LAYER.match(name)) or int(match[2]) < wanted[match[1]]
    }
    return kept, len(encoder) - len(kept)
