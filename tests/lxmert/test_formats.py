"""Every file format is read whole, with the right answers and words about it, or refused with the reason."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.checkpoints import (
    ANSWERS,
    assert_same,
    bert,
    load,
    original_config,
    original_names,
    original_tensors,
    small_config,
    write_folder,
    write_original,
)
from tests.helpers.paths import LXMERT_LISTS, needs_shared_data
from torch import Tensor
from transformers import BertForPreTraining, LxmertForPreTraining, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

from common.errors import CheckpointError
from common.files import sha256_of
from lxmert.formats import BERT, BERT_TOKENIZER
from lxmert.loading import answer_rows, fill
from lxmert.modeling import AnswerHead, LxmertModel

# ---------------------------------------------------------------------------------------- Hugging Face format


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_question_answering_folder_is_read_with_its_answers(tmp_path: Path, weights: str) -> None:
    model = write_folder(tmp_path, weights)
    loaded = load(tmp_path)
    assert_same(loaded.encoder, dict(model.lxmert.state_dict()))
    assert_same(loaded.answer_head, dict(model.answer_head.state_dict()))
    assert loaded.answers == ANSWERS
    assert loaded.source == str(tmp_path)
    assert loaded.sha256 == hashlib.sha256((tmp_path / weights).read_bytes()).hexdigest()
    assert (loaded.config.l_layers, loaded.config.r_layers, loaded.config.x_layers) == (2, 1, 2)
    count = len(model.lxmert.state_dict())
    assert loaded.messages == [
        f"loaded {count} tensors of the encoder and 6 of the answer head from {tmp_path / weights}"
    ]
    fill(LxmertModel(loaded.config), loaded.encoder, "the encoder")
    fill(AnswerHead(loaded.config, 5), loaded.answer_head, "the answer head")


@pytest.mark.parametrize("kind", [PublishedModel, LxmertForPreTraining, LxmertForQuestionAnswering])
def test_what_transformers_itself_saves_is_read(tmp_path: Path, kind: type) -> None:
    torch.manual_seed(0)
    model = kind(small_config())
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    base = model if kind is PublishedModel else model.lxmert
    assert_same(loaded.encoder, dict(base.state_dict()))
    assert (loaded.answer_head is None) == (kind is PublishedModel)
    dropped = [message.rsplit("(")[-1] for message in loaded.messages[1:]]
    assert dropped == (["cls.*)", "obj_predict_head.*)"] if kind is LxmertForPreTraining else [])


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    model = write_folder(tmp_path).half()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load(tmp_path)
    tensors = [*loaded.encoder.values(), *loaded.answer_head.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    name = "embeddings.word_embeddings.weight"
    assert torch.equal(loaded.encoder[name], model.lxmert.state_dict()[name].float())


def test_placeholder_labels_are_no_answers(tmp_path: Path) -> None:
    write_folder(tmp_path, id2label={i: f"LABEL_{i}" for i in range(5)}, label2id={})
    loaded = load(tmp_path)
    assert loaded.answers is None and loaded.answer_head is None
    assert loaded.messages[0].startswith(f"loaded {len(loaded.encoder)} tensors of the encoder from")
    assert loaded.messages[-1] == (
        "dropped answer_head.*: it does not say which answers its 5 rows are; to use it, put all_ans.json "
        "(LXMERT repository) beside it or into data/lxmert"
    )


@needs_shared_data
@pytest.mark.parametrize(("rows", "name"), [(9500, "all_ans.json"), (3129, "trainval_label2ans.json")])
def test_published_heads_without_labels_get_the_published_lists_and_a_message_says_so(
    tmp_path: Path, rows: int, name: str
) -> None:
    write_folder(tmp_path, num_qa_labels=rows, id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={})
    text = (LXMERT_LISTS / name).read_text()
    (tmp_path / name).write_text(text)
    loaded = load(tmp_path)
    assert loaded.answers == [a["ans"] if isinstance(a, dict) else a for a in json.loads(text)]
    assert f"answers of its {rows} rows: assumed to be those of {tmp_path / name}" in loaded.messages[-1]


def test_labels_that_do_not_fit_the_head_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, num_qa_labels=4)
    with pytest.raises(CheckpointError, match="names 5 answers and the answer head has 4 rows"):
        load(tmp_path)


def test_the_tokenizer_is_the_folder_s_own_or_else_bert_s(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert load(tmp_path).tokenizer == BERT_TOKENIZER
    (tmp_path / "vocab.txt").write_text("[PAD]\n")
    assert load(tmp_path).tokenizer == str(tmp_path)


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
def test_a_folder_is_read_strictly(tmp_path: Path, change: Any, message: str) -> None:
    tensors = dict(write_folder(tmp_path).state_dict())
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_a_configuration_of_another_size_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    small_config(l_layers=3).to_json_file(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"missing encoder\.layer\.2.* and 10 more; unexpected none"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        ("[]", "neither an LXMERT nor a BERT"),
        ('{"model_type": "gpt2"}', "neither an LXMERT nor a BERT"),
        ('{"model_type": "bert"}', "no BERT configuration: it has no vocab_size"),
        ('{"hidden_size": "big"}', "no configuration of an LXMERT"),
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
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    small_config().to_json_file(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"model\.safetensors nor pytorch_model\.bin"):
        load(tmp_path)


# --------------------------------------------------------------------------------- files of the original code


@pytest.mark.parametrize("zipped", [True, False], ids=["new format", "format of 2019"])
@pytest.mark.parametrize("ending", ["", "_LXRT.pth"])
def test_an_original_checkpoint_is_read_with_its_answers(tmp_path: Path, zipped: bool, ending: str) -> None:
    path = write_original(tmp_path, _use_new_zipfile_serialization=zipped)
    loaded = load(load_lxmert_qa=f"{path}{ending}")
    tensors = original_tensors()
    assert_same(
        loaded.encoder, {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
    )
    head = {n.removeprefix("answer_head."): t for n, t in tensors.items() if n.startswith("answer_head.")}
    assert_same(loaded.answer_head, head)
    assert loaded.answers == ANSWERS
    assert loaded.tokenizer == BERT_TOKENIZER
    assert loaded.sha256 == sha256_of(tmp_path / "m_LXRT.pth")
    assert loaded.messages[0].startswith(f"loaded {len(loaded.encoder)} tensors of the encoder and 6 of")
    assert [message.rsplit("(")[-1] for message in loaded.messages[1:]] == [
        "cls.*)",
        "obj_predict_head.*)",
        f"answers of its 5 rows: assumed to be those of {tmp_path / 'all_ans.json'}, in this order",
    ]


def test_sizes_come_from_the_shapes(tmp_path: Path) -> None:
    config = load(load_lxmert_qa=str(write_original(tmp_path))).config
    told = original_config()
    names = (
        "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings "
        "type_vocab_size visual_feat_dim visual_pos_dim l_layers r_layers x_layers"
    )
    for name in names.split():
        assert getattr(config, name) == getattr(told, name), name


def test_a_hidden_size_that_does_not_tell_the_heads_is_refused(tmp_path: Path) -> None:
    path = write_original(tmp_path, original_names(LxmertForPreTraining(small_config())))
    with pytest.raises(CheckpointError, match="hidden size 32, no multiple of the 64"):
        load(load_lxmert=str(path))


def test_the_prefix_of_multi_gpu_training_is_dropped(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    plain = load(load_lxmert_qa=str(path))
    torch.save({f"module.{n}": t for n, t in original_tensors().items()}, tmp_path / "m_LXRT.pth")
    wrapped = load(load_lxmert_qa=str(path))
    assert_same(wrapped.encoder, plain.encoder)
    assert_same(wrapped.answer_head, plain.answer_head)


def test_a_head_that_is_not_asked_for_is_dropped_and_needs_no_list(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").unlink()
    loaded = load(load_lxmert=str(path))
    assert loaded.answer_head is None
    assert loaded.answers is None
    assert loaded.messages[-1] == "dropped 6 tensors: answer head, which was not asked for (answer_head.*)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.update({"bert.extra": t.pop("bert.pooler.dense.bias")}),
            r"missing pooler\.dense\.bias; unexpected extra",
        ),
        (
            lambda t: t.update({"module.bert.pooler.dense.bias": torch.ones(64)}),
            r"missing none; unexpected module\.bert\.pooler\.dense\.bias",
        ),
        (lambda t: t.update({"optimizer.step": torch.ones(1)}), r"missing none; unexpected optimizer\.step"),
        (
            lambda t: t.update({"bert.encoder.r_layers.0.output.dense.bias": torch.ones(7)}),
            r"encoder\.r_layers\.0\.output\.dense\.bias is \(7,\) there and \(64,\) in the model",
        ),
        (lambda t: t.pop("answer_head.logit_fc.0.bias"), r"missing logit_fc\.0\.bias"),
        (lambda t: t.pop("bert.encoder.visn_fc.visn_fc.weight"), r"no matrix encoder\.visn_fc\.visn_fc"),
    ],
)
def test_an_original_checkpoint_is_read_strictly(tmp_path: Path, change: Any, message: str) -> None:
    path, tensors = write_original(tmp_path), original_tensors()
    change(tensors)
    torch.save(tensors, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match=message):
        load(load_lxmert_qa=str(path))


def test_a_missing_answer_list_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"5 rows.*all_ans\.json \(LXMERT repository"):
        load(load_lxmert_qa=str(path))
    (tmp_path / "data/lxmert").mkdir(parents=True)
    (tmp_path / "elsewhere").rename(tmp_path / "data/lxmert/all_ans.json")
    assert load(load_lxmert_qa=str(path)).answers == ANSWERS


@needs_shared_data
def test_lxmerts_own_list_labels_the_9500_rows_by_position(tmp_path: Path) -> None:
    torch.save(original_tensors(9500), tmp_path / "m_LXRT.pth")
    text = (LXMERT_LISTS / "all_ans.json").read_text()
    (tmp_path / "all_ans.json").write_text(text)
    loaded = load(load_lxmert_qa=f"{tmp_path}/m")
    assert loaded.answers == [entry["ans"] for entry in json.loads(text)]
    vqa = json.loads((LXMERT_LISTS / "trainval_label2ans.json").read_text())
    head, unmatched = answer_rows(loaded.answer_head, loaded.answers, vqa, str.lower)
    assert unmatched == ["", "visilab", "5 star", "1 4", "1 world"]
    row = loaded.answers.index("surfing")
    new_row = head["logit_fc.3.weight"][vqa.index("surfing")]
    assert torch.equal(new_row, loaded.answer_head["logit_fc.3.weight"][row])


def test_an_original_checkpoint_without_a_head_is_refused_when_one_is_asked_for(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    tensors = {n: t for n, t in original_tensors().items() if not n.startswith("answer_head.")}
    torch.save(tensors, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match="has no answer head; load it without one"):
        load(load_lxmert_qa=str(path))


def test_a_missing_file_names_both_places(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*m_LXRT\.pth \(nor a file .*m\)"):
        load(load_lxmert=f"{tmp_path}/m")


# ------------------------------------------------------------------------------------------------------- BERT


LANGUAGE = ("embeddings.", "encoder.layer.")


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
    loaded = load(tmp_path)
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
    loaded = load(tmp_path, rlayers=1, xlayers=2)
    torch.manual_seed(1)
    ours = LxmertModel(loaded.config)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    fill(ours, loaded.encoder, "BERT", loaded.initialised)
    after = dict(ours.state_dict())
    assert_same({n: t for n, t in after.items() if n.startswith(LANGUAGE)}, language_side(model, 3))
    rest = {name for name in after if not name.startswith(LANGUAGE)}
    assert rest == {name for name in after if name.startswith(tuple(BERT.absent))}
    assert_same({n: after[n] for n in rest}, {n: before[n] for n in rest})


def test_messages_say_what_was_loaded_dropped_and_initialised(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    loaded = load(tmp_path, llayers=2, rlayers=1, xlayers=1)
    first, *others = loaded.messages
    assert first == f"loaded {len(loaded.encoder)} tensors of the encoder from {tmp_path}/model.safetensors"
    assert sorted(others) == [
        "dropped 16 tensors: BERT's layers after the first 2",
        "dropped 2 tensors: pooler, which reads BERT's last layer and not LXMERT's (pooler.*)",
        "dropped 7 tensors: heads for masked words and for the next sentence (cls.*)",
        "initialised what a BERT does not have: region embedding, vision layers, cross layers, pooler",
    ]


def test_of_a_deep_bert_the_first_nine_layers_are_taken_unless_told(tmp_path: Path) -> None:
    model = bert(12)
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path).encoder, language_side(model, 9))
    assert_same(load(tmp_path, llayers=11).encoder, language_side(model, 11))
    with pytest.raises(CheckpointError, match=r"--llayers 13 contradicts .*has 12 layers"):
        load(tmp_path, llayers=13)
    with pytest.raises(CheckpointError, match="must be at least 1"):
        load(tmp_path, llayers=9, rlayers=0)


def test_the_language_side_computes_what_bert_computes(tmp_path: Path) -> None:
    model = bert().eval()
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
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
        (lambda t: t.update({"answer_head.x": torch.ones(1)}), r"unexpected answer_head\.x"),
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
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"hidden_act": "relu"}, "exact GELU"),
        ({"num_hidden_layers": "3"}, "its num_hidden_layers is '3'"),
        ({"hidden_size": "big"}, "no configuration of an LXMERT"),
    ],
)
def test_a_bert_of_another_kind_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    bert().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(bert().config.to_dict() | change))
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)
