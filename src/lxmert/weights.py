"""Pre-trained weights under one set of names, those of `LxmertModel` and `AnswerHead`.

`lxmert.hub` and `lxmert.original` read files and end here. Loading is strict: what a file may hold beside
those names is written down in `DROPPED`, what a BERT lacks in `lxmert.bert.NOT_IN_BERT`. All else is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LxmertConfig

from common.errors import CheckpointError
from common.files import sha256_of
from lxmert.bert import NOT_IN_BERT
from lxmert.files import read_json, rename
from lxmert.modeling import AnswerHead, LxmertModel

DROPPED = {
    "cls.": "heads for masked words and for matching question and image",
    "obj_predict_head.": "head for masked regions",
}
BERT_TOKENIZER = "google-bert/bert-base-uncased"
LIST_FOLDER = Path("data/lxmert")
# Label orders that published checkpoints do not carry themselves, by the number of answers.
PUBLISHED_LISTS = {9500: "all_ans.json", 3129: "trainval_label2ans.json"}
# Kinds of layers in the names of tensors: language, vision and cross; and their counts in LxmertConfig.
LAYER_KINDS = {"layer": "l_layers", "r_layers": "r_layers", "x_layers": "x_layers"}
LAYER = re.compile(rf"encoder\.({'|'.join(LAYER_KINDS)})\.(\d+)\.")
LAST_LINEAR = "logit_fc.3"  # of AnswerHead


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from, one road of four, and the sizes that the road may leave open."""

    pretrained: str | None  # folder or hub id
    load_lxmert: str | None  # path of an original file; without its answer head
    load_lxmert_qa: str | None  # with its answer head
    from_scratch: bool  # random weights, with the sizes and the tokenizer of `pretrained`
    llayers: int | None
    xlayers: int | None
    rlayers: int | None
    dropout: float | None


class Pretrained(NamedTuple):
    """Weights ready to `fill` models with."""

    config: LxmertConfig
    encoder: dict[str, Tensor]  # names of LxmertModel, float32
    answer_head: dict[str, Tensor] | None  # names of AnswerHead, float32
    answers: list[str] | None  # what the rows of the answer head stand for, in order
    tokenizer: str  # folder or hub id
    source: str
    sha256: str  # of the file with the weights
    report: list[str]  # what was loaded, initialised and dropped, a line each
    initialised: tuple[str, ...] = ()  # beginnings of LxmertModel's names that stay random


def fill(module: nn.Module, tensors: dict[str, Tensor], what: str, may_lack: tuple[str, ...] = ()) -> None:
    """Make `tensors` the parameters of `module`, every one and nothing else.

    They are moved, not copied, so that a model is never there twice: `tensors` is empty afterwards, and
    `module` may be on the meta device before. Parameters whose names begin as `may_lack` says stay as they
    are if they are not among the tensors. `what` names the source in errors. Raises CheckpointError, before
    anything is changed, on missing or unexpected names and on shapes that differ.
    """
    check_match(module, tensors, what, may_lack)
    module.load_state_dict(tensors, strict=False, assign=True)
    tensors.clear()


def check_match(
    module: nn.Module, tensors: Mapping[str, Tensor], what: str, may_lack: tuple[str, ...] = ()
) -> None:
    """CheckpointError unless `tensors` are the parameters of `module`, by name and shape; see `fill`."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in expected.keys() - tensors.keys() if not name.startswith(may_lack)]
    unexpected = tensors.keys() - expected.keys()
    if missing or unexpected:
        raise CheckpointError(
            f"{what} does not fit: missing {_shorten(missing)}; unexpected {_shorten(unexpected)}."
        )
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(
                f"{what} does not fit: {name} is {tuple(tensor.shape)} there "
                f"and {expected[name]} in the model."
            )


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


def sort_tensors(
    tensors: Mapping[str, Tensor], prefix: str, file: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None, list[str]]:
    """Encoder, answer head (None if there is none) and a line for each kind that is dropped.

    What is neither is handed on with the encoder: the comparison with the model will name it.
    """
    head: dict[str, Tensor] = {}
    encoder: dict[str, Tensor] = {}
    dropped = dict.fromkeys(DROPPED, 0)
    for name, tensor in tensors.items():
        part = next((part for part in DROPPED if name.startswith(part)), None)
        if part is not None:
            dropped[part] += 1
        elif name.startswith("answer_head."):
            head[name.removeprefix("answer_head.")] = tensor
        else:
            encoder[name] = tensor
    if not any(name.startswith(f"{prefix}encoder.") for name in tensors):
        raise CheckpointError(f"{file} holds no LXMERT: no name in it begins with {prefix}encoder.")
    lines = [f"dropped {part}* ({n} tensors): {DROPPED[part]}" for part, n in dropped.items() if n]
    return rename(encoder, lambda name: name.removeprefix(prefix)), head or None, lines


def finish(weights: Pretrained, file: Path, folder: Path) -> Pretrained:
    """Check every name and shape against the models that will be filled, and complete the description."""
    try:
        with torch.device("meta"):
            model = LxmertModel(weights.config)
            check_match(model, weights.encoder, str(file), weights.initialised)
            if weights.answer_head is not None:
                head = AnswerHead(weights.config, count_rows(weights.answer_head, file))
                check_match(head, weights.answer_head, str(file))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}.") from None
    loaded = f"loaded {len(weights.encoder)} tensors of the encoder"
    if weights.answer_head is not None:
        loaded += f" and {len(weights.answer_head)} of the answer head"
    lines = [f"{loaded} from {file}", *weights.report]
    if weights.initialised:
        lacking = len(model.state_dict()) - len(weights.encoder)
        lines.append(f"initialised {lacking} tensors that a BERT lacks: {', '.join(NOT_IN_BERT.values())}")
    has_tokenizer = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    return weights._replace(
        tokenizer=str(folder) if has_tokenizer else BERT_TOKENIZER, sha256=sha256_of(file), report=lines
    )


def _shorten(names: Iterable[str], most: int = 6) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return (", ".join(ordered[:most]) + more) or "none"


def count_rows(head: Mapping[str, Tensor], file: Path) -> int:
    """The number of answers of an answer head; `file` is for the error."""
    if f"{LAST_LINEAR}.weight" not in head:
        raise CheckpointError(f"{file} has an answer head without {LAST_LINEAR}.weight.")
    return len(head[f"{LAST_LINEAR}.weight"])


def listed_answers(rows: int, folder: Path) -> tuple[list[str] | None, str]:
    """The published list with as many answers as the head has rows, or None; and a line for the report.

    It is looked for in `folder` and in data/lxmert. An entry is an answer or {"ans": answer, "dsets": [...]};
    its position is the label.
    """
    name = PUBLISHED_LISTS.get(rows, "all_ans.json")
    for file in (folder / name, LIST_FOLDER / name):
        if file.is_file():
            entries = read_json(file)
            try:
                answers = [entry["ans"] if isinstance(entry, dict) else str(entry) for entry in entries]
            except (KeyError, TypeError):
                raise CheckpointError(f"{file} is no list of answers.") from None
            if len(answers) == rows:
                return answers, f"answers of its {rows} rows: assumed to be those of {file}, in this order"
    return None, (
        f"dropped answer_head.*: it does not say which answers its {rows} rows are; to use it, put {name} "
        f"(LXMERT repository) into {LIST_FOLDER}"
    )


def count_layers(encoder: Iterable[str]) -> dict[str, int]:
    """l_layers, r_layers and x_layers of LxmertConfig, from the names of tensors."""
    places = [match.groups() for match in map(LAYER.match, encoder) if match]
    return {
        entry: 1 + max((int(number) for k, number in places if k == kind), default=-1)
        for kind, entry in LAYER_KINDS.items()
    }
