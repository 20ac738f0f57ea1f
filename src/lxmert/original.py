"""`.pth` files of the original LXMERT code: model_LXRT.pth and those that users trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import LxmertConfig

from common.errors import CheckpointError
from lxmert.files import read_tensors, rename
from lxmert.weights import (
    LIST_FOLDER,
    Pretrained,
    count_layers,
    count_rows,
    finish,
    listed_answers,
    sort_tensors,
)

SUFFIX = "_LXRT.pth"
PREFIX = "bert."
HEAD_SIZE = 64  # of BERT and of every published LXMERT


def load_original(path: str | Path, with_head: bool, *, heads: int | None = None) -> Pretrained:
    """Read a `.pth` file of the original code, given with or without its ending `_LXRT.pth`.

    With `with_head` the pre-trained answer head is kept too, and the list of its answers, all_ans.json, must
    lie beside the file or in data/lxmert. All sizes come from the tensors' shapes, except the number of
    attention heads, which no shape tells: hidden size / 64, as in every published model, unless `heads` is
    given. Raises CheckpointError.
    """
    file = _find(path)
    tensors = rename(read_tensors(file), lambda name: name.removeprefix("module."))
    encoder, head, report = sort_tensors(tensors, PREFIX, file)
    if not with_head and head is not None:
        report.append(f"dropped answer_head.* ({len(head)} tensors): not asked for")
        head = None
    answers = None
    if with_head:
        if head is None:
            raise CheckpointError(f"{file} has no answer head; load it without one (--loadLXMERT).")
        rows = count_rows(head, file)
        answers, line = listed_answers(rows, file.parent)
        if answers is None:
            raise CheckpointError(
                f"The answer head of {file} has {rows} rows and there is no list of as many answers: put "
                f"all_ans.json (LXMERT repository, data/lxmert/all_ans.json) beside it or into {LIST_FOLDER}."
            )
        report.append(line)
    config = _derive_config(encoder, heads, file)
    if head is not None:
        config.num_qa_labels = count_rows(head, file)
    return finish(Pretrained(config, encoder, head, answers, "", str(file), "", report), file, file.parent)


def _find(path: str | Path) -> Path:
    tried = [Path(path), Path(f"{path}{SUFFIX}")]
    for file in tried:
        if file.is_file():
            return file
    raise CheckpointError(f"There is no checkpoint {tried[1]} (nor a file {tried[0]}).")


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
    return LxmertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_attention_heads=hidden // HEAD_SIZE if heads is None else heads,
        intermediate_size=shape("encoder.x_layers.0.lang_inter.dense.weight")[0],
        max_position_embeddings=shape("embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("embeddings.token_type_embeddings.weight")[0],
        visual_feat_dim=shape("encoder.visn_fc.visn_fc.weight")[1],
        visual_pos_dim=shape("encoder.visn_fc.box_fc.weight")[1],
        **count_layers(encoder),
    )
