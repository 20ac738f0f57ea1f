"""BERT as a start: embeddings and first layers are loaded, the rest is initialised, and all of it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.checkpoints import assert_same
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from common.errors import CheckpointError
from lxmert.bert import NOT_IN_BERT
from lxmert.hub import load_pretrained
from lxmert.modeling import LxmertModel
from lxmert.weights import BERT_TOKENIZER, fill

LANGUAGE = ("embeddings.", "encoder.layer.")


def bert(layers: int = 3, **changes: Any) -> BertForPreTraining:
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(**sizes, max_position_embeddings=24, num_hidden_layers=layers, **changes)
    model = BertForPreTraining(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases and layer norms too
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def language_side(model: BertForPreTraining, layers: int) -> dict[str, Tensor]:
    names = ("embeddings.", *(f"encoder.layer.{number}." for number in range(layers)))
    return {name: t for name, t in model.bert.state_dict().items() if name.startswith(names)}


def write_old(model: BertForPreTraining, folder: Path) -> None:
    """As in the files of 2018: .bin, gamma and beta, position_ids; with prefix and heads."""
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in model.state_dict().items()
    }
    tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(tensors, folder / "pytorch_model.bin")
    model.config.to_json_file(folder / "config.json", use_diff=False)


WRITERS = {
    "BertModel": lambda model, folder: model.bert.save_pretrained(folder),
    "BertForPreTraining": lambda model, folder: model.save_pretrained(folder),
    "old names": write_old,
}


@pytest.mark.parametrize("form", WRITERS)
def test_embeddings_and_language_layers_are_read_in_every_form(tmp_path: Path, form: str) -> None:
    model = bert()
    WRITERS[form](model, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert_same(loaded.encoder, language_side(model, 3))
    assert loaded.answer_head is None and loaded.answers is None
    assert loaded.tokenizer == BERT_TOKENIZER
    config = loaded.config
    assert (config.l_layers, config.r_layers, config.x_layers) == (3, 5, 5)
    assert (config.vocab_size, config.hidden_size, config.num_attention_heads) == (40, 32, 4)
    assert (config.intermediate_size, config.max_position_embeddings) == (48, 24)


def test_the_model_gets_berts_language_side_and_keeps_its_own_rest(tmp_path: Path) -> None:
    model = bert()
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, (None, 1, 2))
    torch.manual_seed(1)
    ours = LxmertModel(loaded.config)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    fill(ours, loaded.encoder, "BERT", loaded.initialised)
    after = dict(ours.state_dict())
    assert_same({n: t for n, t in after.items() if n.startswith(LANGUAGE)}, language_side(model, 3))
    rest = {name for name in after if not name.startswith(LANGUAGE)}
    assert rest == {name for name in after if name.startswith(tuple(NOT_IN_BERT))}
    assert_same({n: after[n] for n in rest}, {n: before[n] for n in rest})


def test_the_report_says_what_was_loaded_dropped_and_initialised(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path, (2, 1, 1))
    initialised = len(LxmertModel(loaded.config).state_dict()) - len(loaded.encoder)
    assert [line.split(" from ")[0] for line in loaded.report] == [
        f"loaded {len(loaded.encoder)} tensors of the encoder",
        "dropped pooler.* (2 tensors): it reads BERT's last layer",
        "dropped cls.* (7 tensors): heads for masked words and for the next sentence",
        "dropped BERT's layers",
        f"initialised {initialised} tensors that a BERT lacks: "
        "region embedding, vision layers, cross layers, pooler",
    ]
    assert loaded.report[3].endswith("from number 3 on (16 tensors)")


def test_of_a_deep_bert_the_first_nine_layers_are_taken_unless_told(tmp_path: Path) -> None:
    model = bert(12)
    model.save_pretrained(tmp_path)
    assert_same(load_pretrained(tmp_path).encoder, language_side(model, 9))
    assert_same(load_pretrained(tmp_path, (11, None, None)).encoder, language_side(model, 11))
    with pytest.raises(CheckpointError, match=r"--llayers 13 contradicts .*has 12 layers"):
        load_pretrained(tmp_path, (13, None, None))
    with pytest.raises(CheckpointError, match="must be at least 1"):
        load_pretrained(tmp_path, (9, 0, None))


def test_the_language_side_computes_what_bert_computes(tmp_path: Path) -> None:
    model = bert().eval()
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    ours = LxmertModel(loaded.config).eval()
    fill(ours, loaded.encoder, "BERT", loaded.initialised)
    ids, mask = torch.randint(1, 40, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    hidden = ours.embeddings(ids)
    for layer in ours.encoder.layer:
        hidden = layer(hidden, mask.bool())
    expected = model.bert(ids, mask).last_hidden_state
    torch.testing.assert_close(hidden[mask.bool()], expected[mask.bool()], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("bert.encoder.layer.1.output.dense.bias"), r"missing encoder\.layer\.1\.output"),
        (lambda t: t.update({"classifier.weight": torch.ones(1)}), r"unexpected classifier\.weight"),
        (
            lambda t: t.update({"bert.embeddings.LayerNorm.gamma": torch.ones(32)}),
            r"missing none; unexpected bert\.embeddings\.LayerNorm\.\w+ \(once more\)",
        ),
        (
            lambda t: t.update({"bert.encoder.layer.0.output.dense.bias": torch.ones(7)}),
            r"layer\.0\.output\.dense\.bias is \(7,\) there and \(32,\) in the model",
        ),
    ],
)
def test_a_bert_is_read_strictly_too(tmp_path: Path, change: Any, message: str) -> None:
    model = bert()
    model.config.save_pretrained(tmp_path)
    tensors = {name: t.clone() for name, t in model.state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"), ({"hidden_act": "relu"}, "exact GELU")],
)
def test_a_bert_of_another_kind_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    bert(**change).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)
