import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LxmertConfig, LxmertForPreTraining, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

import lxmert.checkpoint
from lxmert.checkpoint import (
    BERT_TOKENIZER,
    CheckpointError,
    answer_rows,
    fill,
    load_original,
    load_pretrained,
    local_folder,
    sha256_of,
)
from lxmert.modeling import AnswerHead, LxmertModel

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "lxmert"
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
    tensors = LxmertForPreTraining(small_config(num_qa_labels=rows)).state_dict()
    return {name.replace("lxmert.", "bert.", 1): tensor.clone() for name, tensor in tensors.items()}


def write_original(folder: Path, **options: Any) -> Path:
    """Write m_LXRT.pth and all_ans.json; returns the path as users give it, without the ending."""
    torch.save(original_tensors(), folder / "m_LXRT.pth", **options)
    (folder / "all_ans.json").write_text(json.dumps([{"ans": a, "dsets": ["vqa"]} for a in ANSWERS]))
    return folder / "m"


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


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


class TouchesAFile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


# Hugging Face folders


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
    heads = ["left over cls.*", "left over obj_predict_head.*"]
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
    assert load_pretrained(tmp_path).answers is None


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
        (lambda t: t.update({"lxmert.extra": torch.ones(1)}), "missing none; unexpected extra"),
        (lambda t: t.update({"stray.weight": torch.ones(1)}), r"no part of LXMERT: stray\.weight"),
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
        ("[]", "does not describe an LXMERT"),
        ('{"model_type": "bert"}', "does not describe an LXMERT"),
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


# The hub


def test_without_a_network_a_hub_id_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("first line\nsecond line")

    monkeypatch.setattr(lxmert.checkpoint, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="unc-nlp/lxmert-base-uncased is not a folder, and") as error:
        load_pretrained("unc-nlp/lxmert-base-uncased")
    assert "\n" not in str(error.value)


def test_what_can_be_no_hub_id_is_not_looked_for() -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a model"):
        load_pretrained("snap/pretrained/no such folder")


@pytest.mark.parametrize("there", ["model.safetensors", "pytorch_model.bin"])
def test_only_needed_files_are_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    asked: set[str] = set()

    def download(source: str, allow_patterns: list[str]) -> str:
        asked.update(allow_patterns)
        if there in allow_patterns:
            write_folder(tmp_path, there)
        return str(tmp_path)

    monkeypatch.setattr(lxmert.checkpoint, "snapshot_download", download)
    assert load_pretrained("someone/lxmert").answers == ANSWERS
    assert ("pytorch_model.bin" in asked) == (there == "pytorch_model.bin")
    assert not any("*" in pattern for pattern in asked)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="not a folder"):
        local_folder(str(tmp_path / "file"), ["vocab.txt"])


# Files of the original code


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
        "left over cls.*",
        "left over obj_predict_head.*",
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


def test_an_unwanted_head_is_left_over_and_needs_no_list(tmp_path: Path) -> None:
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").unlink()
    loaded = load_original(path, with_head=False, heads=4)
    assert loaded.answer_head is None
    assert loaded.answers is None
    assert loaded.report[-1] == "left over answer_head.* (6 tensors): not asked for"


def test_only_the_first_layers_are_kept_when_asked(tmp_path: Path) -> None:
    loaded = load_original(write_original(tmp_path), with_head=False, layers=(1, 1, 1), heads=4)
    config = loaded.config
    assert (config.l_layers, config.r_layers, config.x_layers) == (1, 1, 1)
    fill(LxmertModel(config), loaded.encoder, "the encoder")
    assert any("layers beyond the first (1, 1, 1)" in line for line in loaded.report)
    with pytest.raises(CheckpointError, match=r"has \(2, 1, 2\) .* \(2, 2, 2\) were asked for"):
        load_original(tmp_path / "m", with_head=False, layers=(2, 2, 2), heads=4)


def test_a_missing_answer_list_says_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_original(tmp_path)
    (tmp_path / "all_ans.json").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"5 rows.*all_ans\.json \(LXMERT repository"):
        load_original(path, with_head=True, heads=4)
    (tmp_path / "data/lxmert").mkdir(parents=True)
    (tmp_path / "elsewhere").rename(tmp_path / "data/lxmert/all_ans.json")
    assert load_original(path, with_head=True, heads=4).answers == ANSWERS


def test_lxmerts_own_list_labels_the_9500_rows_by_position(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("LXMERT's answer lists are not beside the checkout")
    torch.save(original_tensors(9500), tmp_path / "m_LXRT.pth")
    text = (SHARED / "all_ans.json").read_text()
    (tmp_path / "all_ans.json").write_text(text)
    loaded = load_original(tmp_path / "m", with_head=True, heads=4)
    assert loaded.answers == [entry["ans"] for entry in json.loads(text)]
    vqa = json.loads((SHARED / "trainval_label2ans.json").read_text())
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


# Files that cannot be trusted


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["m_LXRT.pth", "pytorch_model.bin"])
def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path: Path, name: str, zipped: bool) -> None:
    trap = tmp_path / "trap"
    file = tmp_path / name
    small_config().to_json_file(tmp_path / "config.json")
    torch.save({"bert.x": TouchesAFile(trap)}, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="would run code when read; it was refused") as error:
        load_original(file, with_head=False) if name.endswith("pth") else load_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    assert not trap.exists()
    torch.load(file, weights_only=False)  # the file is a trap indeed
    assert trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_original_checkpoint_is_one_sentence(tmp_path: Path, share: float, zipped: bool) -> None:
    file = Path(f"{write_original(tmp_path, _use_new_zipfile_serialization=zipped)}_LXRT.pth")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged") as error:
        load_original(file, with_head=False, heads=4)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_cut_safetensors_are_one_sentence(tmp_path: Path, share: float) -> None:
    write_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(CheckpointError, match="damaged"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", [b"<html>not found</html>", b"\x80", pickle.dumps([1], 2)[:-1], b"\0" * 512]
)
def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "m_LXRT.pth"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_original(file, with_head=False)


@pytest.mark.parametrize("content", [torch.ones(3), {"state_dict": {"bert.x": torch.ones(3)}}, {}])
def test_what_holds_no_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "m_LXRT.pth")
    with pytest.raises(CheckpointError, match=r"no dictionary of tensors|holds no LXMERT"):
        load_original(tmp_path / "m", with_head=False)


# Filling and answer-head surgery


def test_fill_loads_every_bit_and_changes_nothing_on_failure() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for bad, message in (
        ({"weight": other.weight.data}, "the head does not fit: missing bias; unexpected none"),
        ({**other.state_dict(), "more": torch.ones(1)}, "missing none; unexpected more"),
        ({**other.state_dict(), "bias": torch.ones(5)}, r"bias is \(5,\) there and \(2,\) in the model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill(module, bad, "the head")
        assert_same(dict(module.state_dict()), before)
    fill(module, other.state_dict(), "the head")
    assert_same(dict(module.state_dict()), dict(other.state_dict()))


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
