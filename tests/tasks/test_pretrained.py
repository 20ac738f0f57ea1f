"""Every format up to the model that trains: what is loaded, what is said, and that it computes the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers.checkpoints import ANSWERS, bert, original_config, original_names, write_original
from tests.helpers.paths import LXMERT_LISTS, SRC, needs_shared_data
from torch import Tensor
from transformers import LxmertConfig, LxmertForPreTraining, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

from common.errors import CheckpointError
from lxmert.loading import load_pretrained, set_feature_size
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import build
from tasks.finetune.spec import ModelSpec

FEATURES = 10


def config(**changes: Any) -> LxmertConfig:
    return original_config(
        **{"hidden_size": 128, "num_attention_heads": 2, "initializer_range": 0.1} | changes
    )


def publish(rows: int = len(ANSWERS), **changes: Any) -> LxmertForPreTraining:
    torch.manual_seed(0)
    model = LxmertForPreTraining(config(num_qa_labels=rows, **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and layer norms too
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def original_file(model: LxmertForPreTraining, folder: Path, prefix: str = "") -> str:
    return str(write_original(folder, original_names(model, prefix)))


def hub_folder(model: LxmertForPreTraining, folder: Path) -> dict[str, str]:
    model.save_pretrained(folder)
    return {"pretrained": str(folder)}


def hub_answering_folder(model: LxmertForPreTraining, folder: Path) -> dict[str, str]:
    answering = LxmertForQuestionAnswering(model.config)
    answering.lxmert, answering.answer_head = model.lxmert, model.answer_head
    answering.save_pretrained(folder)
    return {"pretrained": str(folder)}


def hub_bin(model: LxmertForPreTraining, folder: Path) -> dict[str, str]:
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return {"pretrained": str(folder)}


WITH_HEAD: dict[str, Callable[[LxmertForPreTraining, Path], dict[str, str]]] = {
    "loadLXMERTQA": lambda model, folder: {"load_lxmert_qa": original_file(model, folder)},
    "of several GPUs": lambda model, folder: {"load_lxmert_qa": original_file(model, folder, "module.")},
    "pre-training class": hub_folder,
    "answering class": hub_answering_folder,
    "hub .bin": hub_bin,
}
WITHOUT_HEAD: dict[str, Callable[[LxmertForPreTraining, Path], dict[str, str]]] = {
    "loadLXMERT": lambda model, folder: {"load_lxmert": original_file(model, folder)},
    "base class": lambda model, folder: hub_folder(model.lxmert, folder),
}


def spec_for(kind: dict[str, Any], strategy: str = "standard", **more: Any) -> ModelSpec:
    return ModelSpec.of(VqaArgs(strategy=strategy, **kind, **more))


def make_batch() -> dict[str, Tensor]:
    """Five questions of 3 to 7 word pieces and 2 to 6 regions."""
    generator = torch.Generator().manual_seed(1)
    words, regions = torch.tensor([7, 3, 5, 4, 6]), torch.tensor([6, 2, 5, 6, 3])
    return {
        "input_ids": torch.randint(1, 40, (5, 7), generator=generator),
        "attention_mask": torch.arange(7) < words[:, None],
        "visual_feats": torch.randn(5, 6, FEATURES, generator=generator),
        "visual_pos": torch.rand(5, 6, 4, generator=generator),
        "visual_attention_mask": torch.arange(6) < regions[:, None],
    }


@pytest.mark.parametrize("kind", WITH_HEAD)
def test_outputs_and_gradients_equal_the_published_model_in_every_format(tmp_path: Path, kind: str) -> None:
    published = publish()
    spec = spec_for(WITH_HEAD[kind](published, tmp_path))
    model = build(spec, load_pretrained(spec), ANSWERS)[0].model.eval()
    theirs = LxmertForQuestionAnswering(published.config).eval()
    theirs.lxmert, theirs.answer_head = published.lxmert.eval(), published.answer_head.eval()
    direction = torch.randn(5, len(ANSWERS), generator=torch.Generator().manual_seed(2))

    logits, expected = model(**make_batch()), theirs(**make_batch()).question_answering_score
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    (logits * direction).mean().backward()
    (expected * direction).mean().backward()
    ours = dict(model.named_parameters())
    assert ours.keys() == dict(theirs.named_parameters()).keys()
    for name, parameter in theirs.named_parameters():
        gradient = ours[name].grad
        if parameter.grad is None:  # the last cross layer's vision half reaches no answer
            assert gradient is None, name
        else:
            torch.testing.assert_close(
                gradient, parameter.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    assert sum(parameter.grad is not None for parameter in ours.values()) > 100


@pytest.mark.parametrize("kind", [*WITH_HEAD, *WITHOUT_HEAD])
def test_frozen_copies_are_pretrained_in_every_format(tmp_path: Path, kind: str) -> None:
    published = publish()
    spec = spec_for((WITH_HEAD | WITHOUT_HEAD)[kind](published, tmp_path), "SpotTune_Block")
    model, _, messages = build(spec, load_pretrained(spec), ANSWERS)
    state, expected = model.model.lxmert.state_dict(), published.lxmert.state_dict()
    for copy in (".frozen.", ".tuned."):
        names = [name for name in state if copy in name]
        assert names and all(torch.equal(state[name], expected[name.replace(copy, ".")]) for name in names)
    frozen, tuned = (state[f"encoder.layer.0.{copy}.output.dense.weight"] for copy in ("frozen", "tuned"))
    assert frozen.data_ptr() != tuned.data_ptr()
    assert messages[0].startswith(f"loaded {len(expected)} tensors of the encoder")
    head = "answer head: 5 answers loaded" if kind in WITH_HEAD else "answer head: initialised"
    assert messages[-1].startswith(head)


@pytest.mark.parametrize("kind", [*WITH_HEAD, *WITHOUT_HEAD])
@pytest.mark.parametrize(("flag", "available"), [("llayers", 2), ("rlayers", 1), ("xlayers", 2)])
def test_sizes_come_from_the_checkpoint_and_a_conflict_names_both(
    tmp_path: Path, kind: str, flag: str, available: int
) -> None:
    written = (WITH_HEAD | WITHOUT_HEAD)[kind](publish(), tmp_path)
    config = load_pretrained(spec_for(written, **{flag: available})).config
    assert (config.l_layers, config.r_layers, config.x_layers) == (2, 1, 2)
    with pytest.raises(
        CheckpointError, match=f"--{flag} 3 contradicts the pre-trained model, which has {available}"
    ):
        load_pretrained(spec_for(written, **{flag: 3}))


def test_region_features_of_another_size_are_one_sentence(tmp_path: Path) -> None:
    written = hub_folder(publish(), tmp_path)
    weights = load_pretrained(spec_for(written))
    set_feature_size(weights, FEATURES)
    assert weights.config.visual_feat_dim == FEATURES
    with pytest.raises(CheckpointError, match=r"features of size 10, and those of the data have 2048"):
        set_feature_size(weights, 2048)
    scratch = spec_for(written, from_scratch=True)
    weights = load_pretrained(scratch)
    set_feature_size(weights, 2048)
    model, _, messages = build(scratch, weights, ANSWERS)
    assert model.model.lxmert.encoder.visn_fc.visn_fc.weight.shape == (128, 2048)
    assert messages == [f"initialised everything: random weights with the sizes of {tmp_path}"]


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_bert_gives_the_language_side_and_the_data_the_size_of_features(
    tmp_path: Path, strategy: str
) -> None:
    model = bert().bert
    model.save_pretrained(tmp_path)
    spec = spec_for({"pretrained": str(tmp_path)}, strategy, llayers=2, rlayers=1, xlayers=1)
    weights = load_pretrained(spec)
    set_feature_size(weights, FEATURES)
    ours, _, messages = build(spec, weights, ANSWERS)
    state = ours.model.lxmert.state_dict()
    for copy in ("frozen", "tuned") if strategy == "SpotTune_Block" else ("",):
        name = ".".join(filter(None, ("encoder.layer.1", copy, "output.dense.weight")))
        assert torch.equal(state[name], model.state_dict()["encoder.layer.1.output.dense.weight"])
    assert [line.split()[0] for line in messages] == ["loaded", "dropped", "dropped", "initialised", "answer"]
    assert "region embedding, vision layers, cross layers, pooler" in messages[3]
    assert ours.eval()(**make_batch()).outputs.shape == (5, len(ANSWERS))
    with pytest.raises(CheckpointError, match=r"--llayers 4 contradicts the BERT of .*, which has 3 layers"):
        load_pretrained(spec_for({"pretrained": str(tmp_path)}, llayers=4))


@needs_shared_data
@pytest.mark.parametrize("kind", ["loadLXMERTQA", "pre-training class"])
def test_lxmerts_lists_give_3124_answers_and_each_its_own_row(tmp_path: Path, kind: str) -> None:
    published = publish(9500, id2label={0: "LABEL_0", 1: "LABEL_1"}, label2id={})
    spec = spec_for(WITH_HEAD[kind](published, tmp_path))
    (tmp_path / "all_ans.json").write_text((LXMERT_LISTS / "all_ans.json").read_text())
    answers = json.loads((LXMERT_LISTS / "trainval_label2ans.json").read_text())
    model, _, messages = build(spec, load_pretrained(spec), answers)
    assert messages[-1] == (
        "answer head: 3,124 answers loaded, 5 not: '', 'visilab', '5 star', '1 4', '1 world'"
    )
    assert f"assumed to be those of {tmp_path / 'all_ans.json'}" in messages[-2]

    rows = [entry["ans"] for entry in json.loads((LXMERT_LISTS / "all_ans.json").read_text())]
    old, new = published.answer_head.logit_fc[3], model.model.answer_head.logit_fc[3]
    known = [answer for answer in answers if answer in rows]
    assert len(known) > 3000
    there, here = [rows.index(answer) for answer in known], [answers.index(answer) for answer in known]
    assert torch.equal(new.weight[here], old.weight[there]) and torch.equal(new.bias[here], old.bias[there])
    for answer in ("", "visilab", "5 star", "1 4", "1 world"):
        index = answers.index(answer)
        assert not new.weight[index].any() and not new.bias[index]


# Runs by itself, so that nothing else counts: the process's peak, less what the imports took.
MEASURE = """
import sys
import torch
from pathlib import Path
from lxmert.loading import load_pretrained
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import build
from tasks.finetune.spec import ModelSpec
torch.set_num_threads(1)
def peak():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])
before = peak()
spec = ModelSpec.of(VqaArgs(strategy="SpotTune_Block", pretrained=sys.argv[1], frozen_dtype=sys.argv[2]))
model, _, _ = build(spec, load_pretrained(spec), ["answer"] * 3129)
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(size, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read as on Linux")
@pytest.mark.parametrize(("frozen_dtype", "least"), [("fp32", 6e8), ("bf16", 4.5e8)])
def test_building_from_a_file_of_base_width_never_holds_a_third_copy(
    tmp_path: Path, frozen_dtype: str, least: float
) -> None:
    config = LxmertConfig(l_layers=3, x_layers=2, r_layers=2)  # some: all have the same tensors
    with torch.device("meta"):
        names = PublishedModel(config).state_dict()
    save_file({f"lxmert.{n}": torch.zeros(t.shape) for n, t in names.items()}, tmp_path / "model.safetensors")
    config.save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), frozen_dtype],
        env={**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    size, peak = map(int, done.stdout.split())
    assert size > least
    assert 0.9 * size < peak < 1.3 * size
