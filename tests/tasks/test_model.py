"""`vqa_prepare model`: sizes, words and feature size for one's own data, and training from it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.checkpoints import load
from transformers import LxmertConfig

from lxmert.loading import set_feature_size
from lxmert.modeling import LxmertModel
from lxmert.sizes import SIZES, config_of
from lxmert.tokens import SPECIAL_PIECES, count_words, encode, load_tokenizer
from tasks import vqa, vqa_prepare
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder

SIZE = 7
QUESTIONS = ["What's the COLOUR of it?", "what's the colour of the café?", "is it unaffable?"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFolder:
    """data/mine: questions about ten images with features of a size of their own."""
    monkeypatch.chdir(tmp_path)
    folder = DataFolder(Path("data"), "mine")
    rng = np.random.default_rng(0)
    images = [f"photo{n}" for n in range(10)]
    rows = [(rng.random((3, SIZE), np.float32), np.full((3, 4), 0.5, np.float32)) for _ in images]
    write_store(folder.own_features / "photos", images, rows, Layout(3, SIZE))
    for start, split in enumerate(("train", "valid")):
        records = [
            {"question_id": 100 * start + n, "img_id": image, "sent": QUESTIONS[n % 3], "label": {"yes": 1.0}}
            for n, image in enumerate(images)
        ]
        folder.split_file(split).write_text(json.dumps(records))
    folder.answers_file.write_text('["yes", "no"]')
    return folder


def make(*flags: str) -> int:
    return vqa_prepare.main(["model", "--from", "data/mine", *flags])


def test_words_are_those_that_the_tokenizer_will_find(mine: DataFolder) -> None:
    counts = count_words(QUESTIONS)
    assert counts == {
        **{"what": 2, "'": 2, "s": 2, "the": 3, "colour": 2, "of": 2, "it": 2, "?": 3},
        **{"cafe": 1, "is": 1, "unaffable": 1},
    }
    assert make() == 0
    tokenizer = load_tokenizer("snap/pretrained/mine")
    assert len(tokenizer) == len(SPECIAL_PIECES) + len(counts)
    ids, lengths = encode(tokenizer, QUESTIONS)
    assert tokenizer.unk_token_id not in ids
    assert lengths.tolist() == [2 + count_words([text]).total() for text in QUESTIONS]


def test_rare_words_are_unknown_and_only_training_questions_count(mine: DataFolder) -> None:
    records = json.loads(mine.split_file("train").read_text())
    records[0]["sent"] = "zebra zebra crossing"
    mine.split_file("train").write_text(json.dumps(records))
    valid = json.loads(mine.split_file("valid").read_text())
    valid[0]["sent"] = valid[1]["sent"] = "giraffe"
    mine.split_file("valid").write_text(json.dumps(valid))
    assert make() == 0
    words = Path("snap/pretrained/mine/vocab.txt").read_text().split()
    assert "zebra" in words and "crossing" not in words and "giraffe" not in words
    assert make("--occurrences", "1", "--train", "valid") == 0
    words = Path("snap/pretrained/mine/vocab.txt").read_text().split()
    assert "giraffe" in words and "zebra" not in words
    counts = count_words(record["sent"] for record in valid)
    assert words[5:] == sorted(counts, key=lambda word: (-counts[word], word))


@pytest.mark.parametrize("size", SIZES)
def test_the_configuration_is_of_the_size_and_of_the_data(mine: DataFolder, size: str) -> None:
    assert make("--size", size, "--to", "made") == 0
    config = LxmertConfig.from_pretrained("made")
    assert (config.l_layers, config.r_layers, config.x_layers) == (
        SIZES[size].l_layers,
        SIZES[size].r_layers,
        SIZES[size].x_layers,
    )
    assert (config.hidden_size, config.visual_feat_dim, config.num_qa_labels) == (
        SIZES[size].hidden_size,
        SIZE,
        2,
    )
    assert config.vocab_size == len(load_tokenizer("made"))
    assert not list(Path("made").glob("*.safetensors")) and not list(Path("made").glob("*.bin"))


def test_base_is_the_published_size() -> None:
    ours, published = config_of(SIZES["base"], 30522, 2048, 9500), LxmertConfig()
    for field in (
        "l_layers",
        "r_layers",
        "x_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
    ):
        assert getattr(ours, field) == getattr(published, field)
    assert ours.initializer_range == published.initializer_range


def test_there_is_nothing_to_load_but_random_weights(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0
    printed = capsys.readouterr().out
    assert "It holds sizes and words, and no weights" in printed and max(map(len, printed.splitlines())) <= 80
    assert vqa.cli(["--dataset=mine", "--pretrained=snap/pretrained/mine", "--strategy=standard"]) == 2
    error = capsys.readouterr().err
    assert "snap/pretrained/mine has no weights" in error and "--fromScratch" in error
    pretrained = load(Path("snap/pretrained/mine"), from_scratch=True)
    assert pretrained.initialised == ("",) and not pretrained.encoder and pretrained.answer_head is None
    assert pretrained.messages == [
        "initialised everything: random weights with the sizes of snap/pretrained/mine"
    ]
    set_feature_size(pretrained, SIZE)
    LxmertModel(pretrained.config)


def test_the_command_that_is_printed_trains_and_the_run_answers(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0
    _, command = capsys.readouterr().out.split("bash run/vqa_finetune.bash 0 ")
    version, *flags = shlex.split(command.replace("\\\n", ""))
    assert vqa.cli(["--version", version, *flags, "--epochs=1", "--wandb=off", "--no-tqdm"]) == 0
    printed = capsys.readouterr().out
    assert "random weights with the sizes of snap/pretrained/mine" in " ".join(printed.split())
    result = json.loads(Path("snap/vqa/mine/result.json").read_text())
    assert (result["strategy"], result["from_scratch"], result["gates"]["total"]) == ("standard", True, 0)
    best = ["--load=snap/vqa/mine/BEST", "--no-tqdm"]
    assert vqa.cli([*best, "--version=mine", "--test=valid"]) == 0
    assert vqa.cli([*best, "--question=is it?", "--image-id=photo3"]) == 0


def test_a_folder_of_something_else_is_not_replaced(
    mine: DataFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make() == 0 and make("--size", "medium") == 0  # its own may be
    Path("snap/pretrained/mine/model.safetensors").write_bytes(b"trained for weeks")
    before = sorted(path.name for path in Path("snap/pretrained/mine").iterdir())
    capsys.readouterr()
    assert make() == 2
    assert "holds something else than a model of this command; name another --to" in capsys.readouterr().err
    assert sorted(path.name for path in Path("snap/pretrained/mine").iterdir()) == before


def test_what_is_missing_is_one_sentence(mine: DataFolder, capsys: pytest.CaptureFixture[str]) -> None:
    mine.split_file("train").rename(mine.split_file("other"))
    assert make() == 2
    assert "Which splits of data/mine are trained on? Name them with --train." in capsys.readouterr().err
    mine.split_file("other").rename(mine.split_file("train"))
    (mine.own_features / "photos").rename(mine.path / "photos")
    assert make() == 2
    assert "data/mine/features has no features yet" in capsys.readouterr().err
    assert not Path("snap").exists()
