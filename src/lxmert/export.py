"""The way out: a model as a folder that transformers reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LxmertConfig

from lxmert.tokens import load_tokenizer


def write_question_answering(
    folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], answers: Sequence[str], tokenizer: str
) -> None:
    """Write what `LxmertForQuestionAnswering.from_pretrained(folder)` loads, label map included.

    tensors: names of LxmertModel behind `lxmert.`, of AnswerHead behind `answer_head.`. tokenizer: folder or
    hub id; AutoTokenizer reads the copy. Raises CheckpointError if there is no tokenizer.
    """
    config = _labelled(config, answers)
    _write(folder, config, tensors, "LxmertForQuestionAnswering", tokenizer)


def write_encoder(folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], tokenizer: str) -> None:
    """Write what `LxmertModel.from_pretrained(folder)` loads; tensors has the names of LxmertModel."""
    _write(folder, copy.deepcopy(config), tensors, "LxmertModel", tokenizer)


def _labelled(config: LxmertConfig, answers: Sequence[str]) -> LxmertConfig:
    config = copy.deepcopy(config)
    config.num_qa_labels = len(answers)
    config.id2label = dict(enumerate(answers))
    config.label2id = {answer: index for index, answer in enumerate(answers)}
    return config


def _write(
    folder: Path, config: LxmertConfig, tensors: Mapping[str, Tensor], architecture: str, tokenizer: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [architecture]
    config.dtype = torch.float32
    config.save_pretrained(folder)
    # Copies, because safetensors refuses two names for one memory.
    plain = {name: tensor.detach().cpu().float().clone() for name, tensor in tensors.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    load_tokenizer(tokenizer).save_pretrained(folder)
