"""Hugging Face folders and hub ids: an LXMERT of one of transformers' classes, or a BERT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import LxmertConfig

from common.errors import CheckpointError
from lxmert.bert import NOT_IN_BERT, bert_config, sort_bert
from lxmert.files import local_folder, read_json, read_tensors
from lxmert.weights import Pretrained, count_rows, finish, listed_answers, sort_tensors

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SIDE_FILES = (
    "config.json",
    "vocab.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def load_pretrained(
    source: str | Path, layers: tuple[int | None, int | None, int | None] = (None, None, None)
) -> Pretrained:
    """Read a folder with config.json and weights, or a hub id such as unc-nlp/lxmert-base-uncased.

    Understands transformers' LxmertModel, LxmertForPreTraining and LxmertForQuestionAnswering; and of a BERT
    (BertModel, BertForPreTraining, ...) the embeddings and the first layers, for which `layers` sets the
    number of language, vision and cross layers (see `bert_config`). Raises CheckpointError if anything is
    missing, damaged or not as config.json says.
    """
    folder = local_folder(source, SIDE_FILES, one_of=WEIGHT_FILES)
    file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{source} has no weights: it holds neither {' nor '.join(WEIGHT_FILES)}.")
    entries = read_json(folder / "config.json")
    if isinstance(entries, dict) and entries.get("model_type") == "bert":
        config = bert_config(entries, layers, folder / "config.json")
        encoder, report = sort_bert(read_tensors(file), config.l_layers)
        bert = Pretrained(config, encoder, None, None, "", str(source), "", report, tuple(NOT_IN_BERT))
        return finish(bert, file, folder)
    config = _read_config(entries, folder / "config.json")
    tensors = read_tensors(file)
    prefix = "lxmert." if any(name.startswith("lxmert.") for name in tensors) else ""
    encoder, head, report = sort_tensors(tensors, prefix, file)
    answers = None
    if head is not None:
        config.num_qa_labels = count_rows(head, file)
        answers = _config_answers(config, folder / "config.json")
        if answers is None:
            answers, line = listed_answers(config.num_qa_labels, folder)
            report.append(line)
        if answers is None:
            head = None
    return finish(Pretrained(config, encoder, head, answers, "", str(source), "", report), file, folder)


def _read_config(entries: Any, file: Path) -> LxmertConfig:
    if not isinstance(entries, dict) or entries.get("model_type", "lxmert") != "lxmert":
        raise CheckpointError(f"{file} describes neither an LXMERT nor a BERT.")
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
