"""Small pre-trained models in every file format."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
    LxmertConfig,
    LxmertForPreTraining,
    LxmertForQuestionAnswering,
)

from lxmert.loading import Origin, Pretrained, load_pretrained

ANSWERS = ["yes", "no", "2", "gray", "cat"]


def small_config(**changes: Any) -> LxmertConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "visual_feat_dim": 10,
        "max_position_embeddings": 24,
        "num_object_labels": 3,
        "num_attr_labels": 3,
        "num_qa_labels": len(ANSWERS),
        "id2label": dict(enumerate(ANSWERS)),
        "label2id": {answer: index for index, answer in enumerate(ANSWERS)},
        "l_layers": 2,
        "r_layers": 1,
        "x_layers": 2,
    }
    return LxmertConfig(**sizes | changes)


def original_tensors(rows: int = len(ANSWERS)) -> dict[str, Tensor]:
    """What the original code would save: the published pre-training class under the prefix `bert.`."""
    torch.manual_seed(0)
    return original_names(LxmertForPreTraining(original_config(num_qa_labels=rows)))


def original_config(**changes: Any) -> LxmertConfig:
    """With heads of the size that files of the original code are taken to have, 64."""
    return small_config(**{"hidden_size": 64, "num_attention_heads": 1} | changes)


def original_names(model: LxmertForPreTraining, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a model under the names of the original code."""
    tensors = model.state_dict().items()
    return {prefix + name.replace("lxmert.", "bert.", 1): tensor.clone() for name, tensor in tensors}


def write_original(folder: Path, tensors: dict[str, Tensor] | None = None, **options: Any) -> Path:
    """Write m_LXRT.pth and all_ans.json; returns the path as users give it, without the ending."""
    torch.save(tensors or original_tensors(), folder / "m_LXRT.pth", **options)
    (folder / "all_ans.json").write_text(json.dumps([{"ans": a, "dsets": ["vqa"]} for a in ANSWERS]))
    return folder / "m"


def load(pretrained: Path | None = None, **origin: Any) -> Pretrained:
    """`load_pretrained` from a folder, or as the fields of `Origin` say."""
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Origin)) | {"from_scratch": False}
    folder = str(pretrained) if pretrained else None
    return load_pretrained(Origin(**fields | {"pretrained": folder} | origin))


def write_folder(
    folder: Path, weights: str = "model.safetensors", **changes: Any
) -> LxmertForQuestionAnswering:
    torch.manual_seed(0)
    model = LxmertForQuestionAnswering(small_config(**changes))
    model.config.to_json_file(folder / "config.json")
    if weights == "model.safetensors":
        save_file(model.state_dict(), folder / weights)
    else:
        torch.save(model.state_dict(), folder / weights)
    return model


def bert(layers: int = 3, **changes: Any) -> BertForPreTraining:
    """A BERT whose biases and layer norms differ from what they are initialised to."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    positions = {"max_position_embeddings": 24, "num_hidden_layers": layers}
    model = BertForPreTraining(BertConfig(**sizes | positions | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
