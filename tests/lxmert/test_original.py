"""Files of the original code: read whole, with the right answers, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.checkpoints import (
    ANSWERS,
    assert_same,
    original_tensors,
    small_config,
    write_original,
)
from tests.helpers.paths import LXMERT_LISTS, needs_shared_data
from transformers import LxmertModel as PublishedModel

from common.errors import CheckpointError
from common.files import sha256_of
from lxmert.original import load_original
from lxmert.weights import BERT_TOKENIZER, answer_rows


@pytest.mark.parametrize("zipped", [True, False], ids=["new format", "format of 2019"])
@pytest.mark.parametrize("ending", ["", "_LXRT.pth"])
def test_an_original_checkpoint_is_read_with_its_answers(tmp_path: Path, zipped: bool, ending: str) -> None:
    path = write_original(tmp_path, _use_new_zipfile_serialization=zipped)
    loaded = load_original(f"{path}{ending}", with_head=True, heads=4)
    tensors = original_tensors()
    assert_same(
        loaded.encoder, {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    )
    head = {n.removeprefix("answer_head."): t for n, t in tensors.items() if n.startswith("answer_head.")}
    assert_same(loaded.answer_head, head)
    assert loaded.answers == ANSWERS
    assert loaded.tokenizer == BERT_TOKENIZER
    assert loaded.sha256 == sha256_of(tmp_path / "m_LXRT.pth")
    assert loaded.report[0].startswith(f"loaded {len(loaded.encoder)} tensors of the encoder and 6 of")
    assert [line.split(" (")[0] for line in loaded.report[1:]] == [
        "dropped cls.*",
        "dropped obj_predict_head.*",
        f"answers of its 5 rows: assumed to be those of {tmp_path / 'all_ans.json'}, in this order",
    ]


def test_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    config = load_original(write_original(tmp_path), with_head=True, heads=4).config
    told = small_config()
    names = (
        "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings "
        "type_vocab_size visual_feat_dim visual_pos_dim l_layers r_layers x_layers num_qa_labels"
    )
    for name in names.split():
        assert getattr(config, name) == getattr(told, name), name


def test_heads_are_64_wide_unless_told(tmp_path: Path) -> None:
    config = small_config(hidden_size=128, num_attention_heads=2)
    tensors = {f"bert.{name}": tensor for name, tensor in PublishedModel(config).state_dict().items()}
    torch.save(tensors, tmp_path / "m_LXRT.pth")
    assert load_original(tmp_path / "m", with_head=False).config.num_attention_heads == 2
    assert load_original(tmp_path / "m", with_head=False, heads=8).config.num_attention_heads == 8


def test_a_hidden_size_that_does_not_tell_the_heads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="hidden size 32, no multiple of 64: say how many heads"):
        load_original(write_original(tmp_path), with_head=False)


def test_the_prefix_of_multi_gpu_training_is_dropped(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    plain = load_original(path, with_head=True, heads=4)
    torch.save({f"module.{n}": t for n, t in original_tensors().items()}, tmp_path / "m_LXRT.pth")
    wrapped = load_original(path, with_head=True, heads=4)
    assert_same(wrapped.encoder, plain.encoder)
    assert_same(wrapped.answer_head, plain.answer_head)


def test_an_unwanted_head_is_dropped_and_needs_no_list(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").unlink()
    loaded = load_original(path, with_head=False, heads=4)
    assert loaded.answer_head is None
    assert loaded.answers is None
    assert loaded.report[-1] == "dropped answer_head.* (6 tensors): not asked for"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"bert.extra": t.pop("bert.pooler.dense.bias")}),
            r"missing pooler\.dense\.bias; unexpected extra",
        ),
        (
            lambda t: t.update({"module.bert.pooler.dense.bias": torch.ones(32)}),
            r"missing none; unexpected module\.bert\.pooler\.dense\.bias",
        ),
        (lambda t: t.update({"optimizer.step": torch.ones(1)}), r"missing none; unexpected optimizer\.step"),
        (
            lambda t: t.update({"bert.encoder.r_layers.0.output.dense.bias": torch.ones(7)}),
            r"encoder\.r_layers\.0\.output\.dense\.bias is \(7,\) there and \(32,\) in the model",
        ),
        (lambda t: t.pop("answer_head.logit_fc.0.bias"), r"missing logit_fc\.0\.bias"),
        (lambda t: t.pop("bert.encoder.visn_fc.visn_fc.weight"), r"no matrix encoder\.visn_fc\.visn_fc"),
    ],
)
def test_loading_is_strict(tmp_path: Path, change: Any, message: str) -> None:
    path, tensors = write_original(tmp_path), original_tensors()
    change(tensors)
    torch.save(tensors, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match=message):
        load_original(path, with_head=True, heads=4)


def test_a_missing_answer_list_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"5 rows.*all_ans\.json \(LXMERT repository"):
        load_original(path, with_head=True, heads=4)
    (tmp_path / "data/lxmert").mkdir(parents=True)
    (tmp_path / "elsewhere").rename(tmp_path / "data/lxmert/all_ans.json")
    assert load_original(path, with_head=True, heads=4).answers == ANSWERS


@needs_shared_data
def test_lxmerts_own_list_labels_the_9500_rows_by_position(tmp_path: Path) -> None:
    torch.save(original_tensors(9500), tmp_path / "m_LXRT.pth")
    text = (LXMERT_LISTS / "all_ans.json").read_text()
    (tmp_path / "all_ans.json").write_text(text)
    loaded = load_original(tmp_path / "m", with_head=True, heads=4)
    assert loaded.answers == [entry["ans"] for entry in json.loads(text)]
    vqa = json.loads((LXMERT_LISTS / "trainval_label2ans.json").read_text())
    head, unmatched = answer_rows(loaded.answer_head, loaded.answers, vqa, str.lower)
    assert unmatched == ["", "visilab", "5 star", "1 4", "1 world"]
    row = loaded.answers.index("surfing")
    new_row = head["logit_fc.3.weight"][vqa.index("surfing")]
    assert torch.equal(new_row, loaded.answer_head["logit_fc.3.weight"][row])


def test_an_original_checkpoint_without_a_head_is_refused_when_one_is_asked(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    tensors = {n: t for n, t in original_tensors().items() if not n.startswith("answer_head.")}
    torch.save(tensors, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match="has no answer head; load it without one"):
        load_original(path, with_head=True, heads=4)


def test_a_missing_file_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*m_LXRT\.pth \(nor a file .*m\)"):
        load_original(tmp_path / "m", with_head=False)
