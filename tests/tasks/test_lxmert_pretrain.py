import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.helpers.paths import ROOT, SRC
from transformers import AutoTokenizer, LxmertConfig, LxmertForQuestionAnswering

from lxmert.modeling import AnswerHead, LxmertModel
from tasks.lxmert_pretrain import (
    NOTHING,
    Examples,
    PretrainingModel,
    accuracy,
    draw_examples,
    parse_args,
    pretrain,
    small_config,
)
from vqadata import scenes

SHIPPED = ROOT / "snap/pretrained/lxmert-scenes"
TINY = ["--scenes", "6", "--questions", "4", "--epochs", "1", "--batch-size", "10"]


class Answering(torch.nn.Module):
    """Our modules with the weights of a folder, called as `accuracy` calls the model."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        config = LxmertConfig.from_pretrained(folder)
        self.lxmert = LxmertModel(config)
        self.answer_head = AnswerHead(config, config.num_qa_labels)
        weights = load_file(folder / "model.safetensors")
        self.load_state_dict({name: value.float() for name, value in weights.items()})

    def forward(self, batch: Examples) -> tuple[torch.Tensor, None]:
        real = batch.colors != NOTHING
        output = self.lxmert(batch.input_ids, batch.input_ids != 0, batch.features, batch.boxes, real)
        return self.answer_head(output.pooled), None


def examples(folder: Path, count: int) -> Examples:
    """Clean questions, eight per scene, about scenes that the model has not learned from."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return draw_examples(scenes.PRETRAINING_CHECK, 77, count, 8, tokenizer)


def assert_loads_alike(folder: Path) -> None:
    """Ours and transformers' model give the same logits, in float32."""
    questions = examples(folder, 6)
    batch = next(questions.batches(torch.arange(len(questions.answers)), 48))
    theirs, loading = LxmertForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    with torch.no_grad():
        expected = theirs.eval()(
            input_ids=batch.input_ids,
            attention_mask=(batch.input_ids != 0).long(),
            visual_feats=batch.features,
            visual_pos=batch.boxes,
            visual_attention_mask=(batch.colors != NOTHING).long(),
        ).question_answering_score
        ours = Answering(folder).eval()(batch)[0]
    assert expected.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_the_shipped_model_is_the_one_its_record_describes() -> None:
    record = json.loads((SHIPPED / "pretraining.json").read_text())
    content = (SHIPPED / "model.safetensors").read_bytes()
    assert record["sha256"] == hashlib.sha256(content).hexdigest()
    assert {value.dtype for value in load_file(SHIPPED / "model.safetensors").values()} == {torch.float16}


def test_the_shipped_model_was_made_by_the_default_command() -> None:
    """Or the launcher would remake something else."""
    defaults = vars(parse_args(["--output", str(SHIPPED)]))
    del defaults["output"]
    assert json.loads((SHIPPED / "pretraining.json").read_text())["recipe"] == defaults


def test_the_shipped_model_is_small() -> None:
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_500_000


def test_the_shipped_model_knows_the_answers_in_their_order() -> None:
    config = LxmertConfig.from_pretrained(SHIPPED)
    assert tuple(config.id2label[index] for index in range(config.num_qa_labels)) == scenes.ANSWERS
    assert config.label2id == {answer: index for index, answer in enumerate(scenes.ANSWERS)}


def test_the_shipped_model_loads_in_transformers_with_the_same_logits() -> None:
    assert_loads_alike(SHIPPED)


def test_the_shipped_model_answers_clean_questions_far_above_chance() -> None:
    right = accuracy(Answering(SHIPPED), examples(SHIPPED, 60))
    assert right["all"] > 75
    assert min(right.values()) > 60, right


def test_the_shipped_tokenizer_knows_every_word_of_both_wordings() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED)
    config = LxmertConfig.from_pretrained(SHIPPED)
    assert (SHIPPED / "vocab.txt").read_text().split()[5:] == scenes.vocabulary()
    assert len(tokenizer) == config.vocab_size
    for wording in (0, 1):
        rng = np.random.default_rng([1, wording])
        questions = [
            q.text for _ in range(60) for q in scenes.ask(scenes.draw_scene(rng).things, 10, wording, rng)
        ]
        for ids in tokenizer(questions)["input_ids"]:
            assert tokenizer.unk_token_id not in ids
            assert len(ids) <= config.max_position_embeddings


@pytest.fixture
def few_check_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.lxmert_pretrain.CHECK_SCENES", 5)


@pytest.mark.usefixtures("few_check_scenes")
def test_the_same_seed_makes_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    sums = [
        pretrain(parse_args([*TINY, "--seed", seed, "--output", str(tmp_path / name)]))["sha256"]
        for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    ]
    assert sums[0] == sums[1] != sums[2]


@pytest.mark.usefixtures("few_check_scenes")
def test_an_earlier_model_is_replaced_at_the_end_and_nothing_is_left_aside(tmp_path: Path) -> None:
    output = tmp_path / "models/model"
    first, second = (
        pretrain(parse_args([*TINY, "--seed", seed, "--output", str(output)])) for seed in ("1", "2")
    )
    assert first["sha256"] != second["sha256"]
    assert json.loads((output / "pretraining.json").read_text()) == second
    assert [path.name for path in output.parent.iterdir()] == ["model"]


def test_every_objective_can_be_learned() -> None:
    """Steps on the sum of the losses lower each of them, so none is cut off from its head or its targets."""
    torch.manual_seed(0)
    model = PretrainingModel(small_config(len(scenes.vocabulary()) + 5))
    questions = examples(SHIPPED, 6)
    batch = next(questions.batches(torch.arange(48), 48))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    first = {name: loss.item() for name, loss in model(batch)[1].items()}
    for _ in range(25):
        optimizer.zero_grad()
        sum(model(batch)[1].values()).backward()
        optimizer.step()
    last = {name: loss.item() for name, loss in model(batch)[1].items()}
    assert last.keys() == {"answer", "color", "shape"}
    assert all(last[name] < 0.7 * first[name] for name in last), (first, last)


@pytest.mark.slow
def test_the_script_writes_a_loadable_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SRC / "tasks/lxmert_pretrain.py", *TINY, "--output", tmp_path / "model"],
        env=os.environ | {"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "model/pretraining.json").read_text())["sha256"] in done.stdout
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        *("model.safetensors", "config.json", "vocab.txt", "tokenizer_config.json", "pretraining.json"),
        "checksums.json",
    }
    assert_loads_alike(tmp_path / "model")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(["--epochs", "0"], "--epochs must be"), (["--lr", "-1"], "--lr must be"), (["--seed", "-1"], "--seed")],
)
def test_impossible_numbers_are_refused(
    flags: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args(flags)
    assert sentence in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_never_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--output", str(tmp_path)])
    assert "is no model" in capsys.readouterr().err


def test_a_seed_makes_the_model_of_its_draw_and_only_the_default_one_is_the_shipped_one() -> None:
    assert parse_args(["--seed", "3"]).output == Path("snap/pretrained/lxmert-scenes-draw3")
    assert parse_args([]).output == Path("snap/pretrained/lxmert-scenes")
