"""The file formats of pre-trained weights, as tables, and the one form that all of them are read into.

- `.pth` files of the original LXMERT code: model_LXRT.pth and those that users trained with it
- folders and hub models in Hugging Face format, of transformers' LxmertModel, LxmertForPreTraining and
  LxmertForQuestionAnswering
- the same of a BERT (BertModel, BertForPreTraining, ...): its embeddings and first layers are LXMERT's
  language side
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import LxmertConfig

from common.errors import CheckpointError
from common.files import read_json, sha256_of
from common.words import counted
from lxmert.modeling import LAYER_NORM_EPS
from lxmert.sources import TOKENIZER_FILES, VOCABULARY_FILES, local_folder, read_tensors
from lxmert.units import LAYER_LISTS

Layers = tuple[int | None, int | None, int | None]  # how many for language, vision and cross; None: not said


class Names(NamedTuple):
    """From the names of tensors in a file to those of `LxmertModel`, and of `AnswerHead` behind a prefix."""

    renamed: tuple[tuple[str, str], ...]  # (regular expression, replacement), one after the other
    dropped: tuple[tuple[str, str], ...]  # (how a new name begins, what that is and why it is not used)
    absent: dict[str, str]  # how a name of LxmertModel begins: what the format does not have


LXMERT = Names(
    renamed=(
        (r"^module\.", ""),  # written by training on several GPUs
        (r"^(bert|lxmert)\.", ""),  # the original code's prefix and Hugging Face's
    ),
    dropped=(
        ("cls.", "heads for masked words and for matching question and image (cls.*)"),
        ("obj_predict_head.", "head for masked regions (obj_predict_head.*)"),
    ),
    absent={},
)
BERT = Names(
    renamed=(
        (r"^bert\.", ""),
        (r"LayerNorm\.gamma$", "LayerNorm.weight"),  # the names before the end of 2019
        (r"LayerNorm\.beta$", "LayerNorm.bias"),
    ),
    dropped=(
        ("pooler.", "pooler, which reads BERT's last layer and not LXMERT's (pooler.*)"),
        ("cls.", "heads for masked words and for the next sentence (cls.*)"),
        ("embeddings.position_ids", "a constant (embeddings.position_ids)"),
    ),
    absent={
        "encoder.visn_fc.": "region embedding",
        "encoder.r_layers.": "vision layers",
        "encoder.x_layers.": "cross layers",
        "pooler.": "pooler",
    },
)
HEAD = "answer_head."
LAST_LINEAR = "logit_fc.3"  # of AnswerHead: one row per answer

# LxmertConfig's sizes in a file of the original code: the tensor that has them, and in which dimension.
SHAPES = {
    "vocab_size": ("embeddings.word_embeddings.weight", 0),
    "hidden_size": ("embeddings.word_embeddings.weight", 1),
    "max_position_embeddings": ("embeddings.position_embeddings.weight", 0),
    "type_vocab_size": ("embeddings.token_type_embeddings.weight", 0),
    "intermediate_size": ("encoder.x_layers.0.lang_inter.dense.weight", 0),
    "visual_feat_dim": ("encoder.visn_fc.visn_fc.weight", 1),
    "visual_pos_dim": ("encoder.visn_fc.box_fc.weight", 1),
}
HEAD_SIZE = 64  # of BERT and of every published LXMERT; no shape tells it

# What LxmertConfig takes over from BertConfig, and the numbers of layers that the published LXMERT has.
BERT_SIZES = (
    *("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings"),
    *("type_vocab_size", "initializer_range"),
)
MOST_LANGUAGE_LAYERS, VISION_LAYERS, CROSS_LAYERS = 9, 5, 5

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SIDE_FILES = ("config.json", *TOKENIZER_FILES)
SUFFIX = "_LXRT.pth"
BERT_TOKENIZER = "google-bert/bert-base-uncased"
# Label orders that published checkpoints do not carry themselves, by the number of answers.
PUBLISHED_LISTS = {9500: "all_ans.json", 3129: "trainval_label2ans.json"}
LIST_FOLDER = Path("data/lxmert")


class Pretrained(NamedTuple):
    """Weights ready to `lxmert.loading.fill` models with."""

    config: LxmertConfig
    encoder: dict[str, Tensor]  # names of LxmertModel, float32
    answer_head: dict[str, Tensor] | None  # names of AnswerHead, float32
    answers: list[str] | None  # what the rows of the answer head stand for, in order
    tokenizer: str  # folder or hub id
    source: str
    sha256: str  # of the file with the weights
    messages: list[str]  # what was loaded, dropped and initialised
    initialised: tuple[str, ...] = ()  # how names of LxmertModel begin that stay random


def read_original(path: str, with_head: bool) -> Pretrained:
    """Read a `.pth` file of the original code, given with or without its ending `_LXRT.pth`.

    `with_head` keeps the answer head too; its list of answers, all_ans.json, must lie beside the file or in
    data/lxmert. Sizes come from the tensors' shapes. CheckpointError if it cannot be used.
    """
    file = next((file for file in (Path(path), Path(f"{path}{SUFFIX}")) if file.is_file()), None)
    if file is None:
        raise CheckpointError(f"There is no checkpoint {path}{SUFFIX} (nor a file {path}).")
    encoder, messages = sort_tensors(read_tensors(file), LXMERT)
    head, answers = take_head(encoder), None
    config = config_of_shapes(encoder, file)
    if with_head:
        if not head:
            raise CheckpointError(f"{file} has no answer head; load it without one (--loadLXMERT).")
        answers, message = published_answers(count_rows(head, file), file.parent)
        if answers is None:
            raise CheckpointError(f"The answer head of {file} cannot be used: {message}.")
        messages.append(message)
    elif head:
        messages.append(
            f"dropped {counted(len(head), 'tensor')}: answer head, which was not asked for ({HEAD}*)"
        )
        head = None
    messages.insert(0, loaded_message(encoder, head, file))
    tokenizer = tokenizer_of(file.parent)
    return Pretrained(config, encoder, head, answers, tokenizer, str(file), sha256_of(file), messages)


def read_folder(source: str, layers: Layers = (None, None, None), *, weightless: bool = False) -> Pretrained:
    """Read a folder with config.json and weights, or a hub id such as unc-nlp/lxmert-base-uncased.

    Of a BERT, `layers` says how many LXMERT gets, see `config_of_bert`. weightless: weights may be missing,
    as random ones will do; all of the encoder is then `initialised`. CheckpointError if anything else is
    missing, damaged or not as config.json says.
    """
    folder = local_folder(source, SIDE_FILES, one_of=WEIGHT_FILES)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    described = folder / "config.json"
    if file is None and weightless and described.is_file():
        config = config_of_entries(read_json(described, CheckpointError), described)
        sizes = config, {}, None, None, tokenizer_of(folder), source, sha256_of(described), []
        return Pretrained(*sizes, initialised=("",))
    if file is None:
        raise CheckpointError(
            f"{source} has no weights: it holds neither {' nor '.join(WEIGHT_FILES)}. Random ones with its "
            "sizes are what --fromScratch starts from."
        )
    entries = read_json(described, CheckpointError)
    kind = entries.get("model_type", "lxmert") if isinstance(entries, dict) else None
    if kind == "bert":
        config = config_of_bert(entries, layers, described)
        deeper = range(config.l_layers, entries["num_hidden_layers"])
        rows = ((f"encoder.layer.{n}.", f"BERT's layers after the first {deeper.start}") for n in deeper)
        names = BERT._replace(dropped=(*BERT.dropped, *rows))
    elif kind == "lxmert":
        names, config = LXMERT, config_of_entries(entries, described)
    else:
        raise CheckpointError(f"{described} describes neither an LXMERT nor a BERT.")
    encoder, messages = sort_tensors(read_tensors(file), names)
    head = answers = None
    if names.absent:
        messages.append(f"initialised what a BERT does not have: {', '.join(names.absent.values())}")
    elif head := take_head(encoder):
        rows = count_rows(head, file)
        answers = labels_of(config, rows, described)
        if answers is None:
            answers, message = published_answers(rows, folder)
            messages.append(message if answers else f"dropped {HEAD}*: {message}")
        head = head if answers else None
    messages.insert(0, loaded_message(encoder, head, file))
    found = (config, encoder, head, answers, tokenizer_of(folder), source, sha256_of(file), messages)
    return Pretrained(*found, tuple(names.absent))


def sort_tensors(tensors: Mapping[str, Tensor], names: Names) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors to be used, under their new names, and messages on those that are dropped.

    What `names` does not know, or names twice, stays: `lxmert.loading.check_match` will name it.
    """
    kept: dict[str, Tensor] = {}
    dropped: Counter[str] = Counter()
    for old, tensor in tensors.items():
        name = old
        for pattern, replacement in names.renamed:
            name = re.sub(pattern, replacement, name)
        reason = next((reason for start, reason in names.dropped if name.startswith(start)), None)
        if reason:
            dropped[reason] += 1
        else:
            kept[f"{old} (once more)" if name in kept else name] = tensor
    return kept, [f"dropped {counted(count, 'tensor')}: {reason}" for reason, count in dropped.items()]


def take_head(tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Take the answer head, if there is one, from among the tensors; its names are those of AnswerHead."""
    names = [name for name in tensors if name.startswith(HEAD)]
    return {name.removeprefix(HEAD): tensors.pop(name) for name in names} or None


def loaded_message(encoder: Mapping[str, Tensor], head: Mapping[str, Tensor] | None, file: Path) -> str:
    of_head = f" and {len(head)} of the answer head" if head else ""
    return f"loaded {counted(len(encoder), 'tensor')} of the encoder{of_head} from {file}"


def config_of_shapes(encoder: Mapping[str, Tensor], file: Path) -> LxmertConfig:
    """The configuration of a model that has tensors of these shapes; CheckpointError if it is no LXMERT."""
    sizes = {}
    for field, (name, dimension) in SHAPES.items():
        if name not in encoder or encoder[name].ndim != 2:
            raise CheckpointError(f"{file} holds no LXMERT: it has no matrix {name}.")
        sizes[field] = encoder[name].shape[dimension]
    for field, part in LAYER_LISTS.values():
        found = (re.match(rf"encoder\.{part}\.(\d+)\.", name) for name in encoder)
        sizes[field] = 1 + max((int(match[1]) for match in found if match), default=-1)
    if sizes["hidden_size"] % HEAD_SIZE:
        raise CheckpointError(
            f"{file} has hidden size {sizes['hidden_size']}, no multiple of the {HEAD_SIZE} that "
            "a head of every published LXMERT has: write it in Hugging Face format, which says their number."
        )
    return LxmertConfig(num_attention_heads=sizes["hidden_size"] // HEAD_SIZE, **sizes)


def config_of_entries(entries: Mapping[str, Any], file: Path) -> LxmertConfig:
    """LXMERT's configuration with these entries of config.json; CheckpointError if it cannot have them."""
    try:
        return LxmertConfig.from_dict(entries)
    except Exception as error:  # transformers checks types with exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[-1]
        raise CheckpointError(f"{file} is no configuration of an LXMERT ({reason}).") from None


def config_of_bert(entries: Mapping[str, Any], layers: Layers, file: Path) -> LxmertConfig:
    """An LXMERT around the BERT that a config.json describes.

    Language layers are the first ones of BERT. Where `layers` says none, there are as many as the published
    LXMERT has: 9, 5 and 5, or all of BERT's if those are fewer. CheckpointError if it cannot be done.
    """
    if missing := [name for name in (*BERT_SIZES, "num_hidden_layers") if name not in entries]:
        raise CheckpointError(f"{file} is no BERT configuration: it has no {', '.join(missing)}.")
    available = entries["num_hidden_layers"]
    if type(available) is not int:
        raise CheckpointError(f"{file} is no BERT configuration: its num_hidden_layers is {available!r}.")
    defaults = min(MOST_LANGUAGE_LAYERS, available), VISION_LAYERS, CROSS_LAYERS
    counts = [n if said is None else said for said, n in zip(layers, defaults, strict=True)]
    if counts[0] > available:
        raise CheckpointError(
            f"--llayers {counts[0]} contradicts the BERT of {file}, which has {available} layers."
        )
    if min(counts) < 1:
        raise CheckpointError(f"--llayers, --rlayers and --xlayers must be at least 1, not {counts}.")
    if entries.get("layer_norm_eps", LAYER_NORM_EPS) != LAYER_NORM_EPS:
        raise CheckpointError(
            f"{file} says layer_norm_eps {entries['layer_norm_eps']}; LXMERT's is {LAYER_NORM_EPS}."
        )
    sizes = {name: entries[name] for name in BERT_SIZES}
    layer_counts = {field: n for (field, _), n in zip(LAYER_LISTS.values(), counts, strict=True)}
    return config_of_entries(sizes | layer_counts, file)


def count_rows(head: Mapping[str, Tensor], file: Path) -> int:
    """The number of answers of an answer head; `file` is for the error."""
    if f"{LAST_LINEAR}.weight" not in head:
        raise CheckpointError(f"{file} has an answer head without {LAST_LINEAR}.weight.")
    return len(head[f"{LAST_LINEAR}.weight"])


def labels_of(config: LxmertConfig, rows: int, file: Path) -> list[str] | None:
    """The answers that config.json names; None if it has only transformers' LABEL_0, LABEL_1, ..."""
    labels = config.id2label
    if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()):
        return None
    if sorted(labels) != list(range(rows)):
        raise CheckpointError(f"{file} names {len(labels)} answers and the answer head has {rows} rows.")
    return [labels[index] for index in range(len(labels))]


def published_answers(rows: int, folder: Path) -> tuple[list[str] | None, str]:
    """The published list of as many answers as the head has rows, or None; and a message.

    It is looked for in `folder` and in data/lxmert. An entry is an answer or {"ans": answer, "dsets": [...]};
    its position is the label.
    """
    name = PUBLISHED_LISTS.get(rows, "all_ans.json")
    for file in (folder / name, LIST_FOLDER / name):
        if file.is_file():
            entries = read_json(file, CheckpointError)
            try:
                answers = [entry["ans"] if isinstance(entry, dict) else str(entry) for entry in entries]
            except (KeyError, TypeError):
                raise CheckpointError(f"{file} is no list of answers.") from None
            if len(answers) == rows:
                return answers, f"answers of its {rows} rows: assumed to be those of {file}, in this order"
    where = f"put {name} (LXMERT repository) beside it or into {LIST_FOLDER}"
    return None, f"it does not say which answers its {rows} rows are; to use it, {where}"


def tokenizer_of(folder: Path) -> str:
    """The folder if it has a tokenizer, else the hub's BERT."""
    has_one = any((folder / name).is_file() for name in VOCABULARY_FILES)
    return str(folder) if has_one else BERT_TOKENIZER
