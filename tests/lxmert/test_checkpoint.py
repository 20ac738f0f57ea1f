"""Hugging Face folders, filling models and moving answers: complete, strict, and said in words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.checkpoints import ANSWERS, assert_same, small_config, write_folder
from tests.helpers.paths import LXMERT_LISTS, needs_shared_data
from torch import Tensor, nn
from transformers import LxmertForPreTraining, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

from common.errors import CheckpointError
from lxmert.hub import load_pretrained
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.weights import BERT_TOKENIZER, answer_rows, fill


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_question_answering_folder_is_read_with_its_answers(tmp_path: Path, weights: str) -> None:
    model = write_folder(tmp_path, weights)
    loaded = load_pretrained(tmp_path)
    assert_same(loaded.encoder, dict(model.lxmert.state_dict()))
    assert_same(loaded.answer_head, dict(model.answer_head.state_dict()))
    assert loaded.answers == ANSWERS
    assert loaded.source == str(tmp_path)
    assert loaded.sha256 == hashlib.sha256((tmp_path / weights).read_bytes()).hexdigest()
    assert (loaded.config.l_layers, loaded.config.r_layers, loaded.config.x_layers) == (2, 1, 2)
    count = len(model.lxmert.state_dict())
    assert loaded.report == [
        f"loaded {count} tensors of the encoder and 6 of the answer head from {tmp_path / weights}"
    ]
    fill(LxmertModel(loaded.config), loaded.encoder, "the encoder")
    fill(AnswerHead(loaded.config, 5), loaded.answer_head, "the answer head")


@pytest.mark.parametrize("kind", [PublishedModel, LxmertForPreTraining, LxmertForQuestionAnswering])
def test_what_transformers_itself_saves_is_read(tmp_path: Path, kind: type) -> None:
    torch.manual_seed(0)
    model = kind(small_config())
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    base = model if kind is PublishedModel else model.lxmert
    assert_same(loaded.encoder, dict(base.state_dict()))
    assert (loaded.answer_head is None) == (kind is PublishedModel)
    left = [line.split(" (")[0] for line in loaded.report[1:]]
    heads = ["dropped cls.*", "dropped obj_predict_head.*"]
    assert left == (heads if kind is LxmertForPreTraining else [])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = write_folder(tmp_path).half()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_pretrained(tmp_path)
    tensors = [*loaded.encoder.values(), *loaded.answer_head.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(loaded.encoder[name], model.lxmert.state_dict()[name].float())


def test_placeholder_labels_are_no_answers(tmp_path: Path) -> None:
    write_folder(tmp_path, id2label={i: f"LABEL_{i}" for i in range(5)}, label2id={})
    loaded = load_pretrained(tmp_path)
    assert loaded.answers is None and loaded.answer_head is None
    assert loaded.report[0].startswith(f"loaded {len(loaded.encoder)} tensors of the encoder from")
    assert loaded.report[-1] == (
        "dropped answer_head.*: it does not say which answers its 5 rows are; to use it, put all_ans.json "
        "(LXMERT repository) into data/lxmert"
    )


@needs_shared_data
@pytest.mark.parametrize(("rows", "name"), [(9500, "all_ans.json"), (3129, "trainval_label2ans.json")])
def test_published_heads_without_labels_get_the_published_lists_and_the_report_says_so(
    tmp_path: Path, rows: int, name: str
) -> None:
    write_folder(tmp_path, num_qa_labels=rows, id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={})
    text = (LXMERT_LISTS / name).read_text()
    (tmp_path / name).write_text(text)
    loaded = load_pretrained(tmp_path)
    assert loaded.answers == [a["ans"] if isinstance(a, dict) else a for a in json.loads(text)]
    assert f"answers of its {rows} rows: assumed to be those of {tmp_path / name}" in loaded.report[-1]


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, num_qa_labels=4)
    with pytest.raises(CheckpointError, match="names 5 answers and the answer head has 4 rows"):
        load_pretrained(tmp_path)


def test_the_tokenizer_is_the_folder_s_own_or_else_bert_s(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert load_pretrained(tmp_path).tokenizer == BERT_TOKENIZER
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert load_pretrained(tmp_path).tokenizer == str(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("lxmert.pooler.dense.bias"), r"missing pooler\.dense\.bias; unexpected none"),
        (
            lambda t: t.update({"lxmert.extra": t.pop("lxmert.pooler.dense.bias")}),
            r"missing pooler\.dense\.bias; unexpected extra",
        ),
        (
            lambda t: t.update({"pooler.dense.bias": torch.ones(32)}),
            r"none; unexpected (lxmert\.)?pooler\.dense",
        ),
        (lambda t: t.update({"stray.weight": torch.ones(1)}), r"missing none; unexpected stray\.weight"),
        (
            lambda t: t.update({"lxmert.pooler.dense.bias": torch.ones(7)}),
            r"pooler\.dense\.bias is \(7,\) there and \(32,\) in the model",
        ),
        (lambda t: t.pop("answer_head.logit_fc.0.bias"), r"missing logit_fc\.0\.bias"),
        (lambda t: t.pop("answer_head.logit_fc.3.weight"), r"without logit_fc\.3\.weight"),
    ],
)
def test_loading_is_strict(tmp_path: Path, change: Any, message: str) -> None:
    tensors = dict(write_folder(tmp_path).state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(tmp_path)


def test_a_configuration_of_another_size_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    small_config(l_layers=3).to_json_file(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"missing encoder\.layer\.2.* and 10 more; unexpected none"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "There is no"),
        ("{", "cannot be read"),
        ("[]", "neither an LXMERT nor a BERT"),
        ('{"model_type": "gpt2"}', "neither an LXMERT nor a BERT"),
        ('{"model_type": "bert"}', "no BERT configuration: it lacks vocab_size"),
        ('{"hidden_size": "big"}', "no LXMERT configuration"),
        ('{"hidden_act": "relu"}', "exact GELU"),
        ('{"num_attention_heads": 5}', "no multiple of 5 heads"),
    ],
)
def test_a_bad_configuration_is_one_sentence(tmp_path: Path, text: str | None, message: str) -> None:
    write_folder(tmp_path)
    (tmp_path / "config.json").unlink()
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    small_config().to_json_file(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"model\.safetensors nor pytorch_model\.bin"):
        load_pretrained(tmp_path)


# Filling and answer-head surgery


def test_fill_moves_every_tensor_and_changes_nothing_on_failure() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for bad, message in (
        ({"weight": other.weight.data}, "the head does not fit: missing bias; unexpected none"),
        ({**other.state_dict(), "more": torch.ones(1)}, "missing none; unexpected more"),
        ({**other.state_dict(), "bias": torch.ones(5)}, r"bias is \(5,\) there and \(2,\) in the model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill(module, bad, "the head")
        assert_same(dict(module.state_dict()), before)
    tensors = dict(other.state_dict())
    fill(module, tensors, "the head")
    assert_same(dict(module.state_dict()), dict(other.state_dict()))
    assert module.weight.data_ptr() == other.weight.data_ptr()
    assert tensors == {}
    assert module.weight.requires_grad and not module.bias.requires_grad


def test_fill_leaves_as_it_is_what_may_be_lacking() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    bias = module.bias.detach().clone()
    fill(module, {"weight": other.weight.data}, "the head", may_lack=("bi",))
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, bias)
    with pytest.raises(CheckpointError, match="missing weight; unexpected none"):
        fill(module, {}, "the head", may_lack=("bi",))


def test_long_lists_of_names_are_shortened() -> None:
    with pytest.raises(CheckpointError, match=r"unexpected t0, t1, t2, t3, t4, t5 and 3 more"):
        fill(nn.Identity(), {f"t{i}": torch.ones(1) for i in range(9)}, "it")


def convert(answer: str) -> str:
    return {"two": "2", "grey": "gray"}.get(answer.lower(), answer.lower())


def make_head() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(AnswerHead(small_config(), len(ANSWERS)).state_dict())


def test_answer_rows_move_by_string() -> None:
    head = make_head()
    new, unmatched = answer_rows(head, ANSWERS, ["Grey", "dog", "no", "two", "yes"], convert)
    assert unmatched == ["dog"]
    for kind in ("weight", "bias"):
        old_rows, new_rows = head[f"logit_fc.3.{kind}"], new[f"logit_fc.3.{kind}"]
        assert torch.equal(new_rows[[0, 2, 3, 4]], old_rows[[3, 1, 2, 0]])
        assert not new_rows[1].any()
    rest = {"logit_fc.0.weight", "logit_fc.0.bias", "logit_fc.2.weight", "logit_fc.2.bias"}
    assert_same({n: new[n] for n in rest}, {n: head[n] for n in rest})


def test_the_same_answers_keep_the_head_as_it_is() -> None:
    head = make_head()
    new, unmatched = answer_rows(head, ANSWERS, ANSWERS, convert)
    assert unmatched == []
    assert_same(new, head)


def test_an_exact_answer_goes_before_a_converted_one() -> None:
    head = make_head()
    old = ["two", "2", "Yes", "yes", "cat"]
    new, _ = answer_rows(head, old, ["2", "two", "YES"], convert)
    assert torch.equal(new["logit_fc.3.weight"], head["logit_fc.3.weight"][[1, 0, 3]])


def test_surgery_does_not_touch_the_old_head() -> None:
    head = make_head()
    before = {name: tensor.clone() for name, tensor in head.items()}
    answer_rows(head, ANSWERS, ["dog"] * 5, convert)[0]["logit_fc.3.weight"].fill_(7)
    assert_same(head, before)


def test_a_list_of_another_length_than_the_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match="5 rows and 4 answers"):
        answer_rows(make_head(), ANSWERS[:4], ANSWERS, convert)
