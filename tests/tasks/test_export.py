"""What was fine-tuned can be taken elsewhere: to transformers, or as a folder that needs nothing else."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tests.helpers.checkpoints import bert
from tests.helpers.paths import ROOT
from tests.helpers.small import ANSWERS
from transformers import AutoTokenizer, LxmertForQuestionAnswering
from transformers import LxmertModel as PublishedModel

from common.cli import run_command
from common.errors import CheckpointError, UserError
from lxmert.tokens import encode, load_tokenizer
from tasks import vqa
from tasks.export import export, main
from tasks.exports.card import LEAKAGE, SCENES, public_name
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import load_base_weights, load_best, read_best
from tasks.finetune.model import build
from tasks.finetune.strategies import STRATEGIES

RUN, OUT = Path("snap/vqa/run"), Path("out")
ADAPTIVE = tuple(name for name, strategy in STRATEGIES.items() if strategy.adaptive)


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """One epoch from a pre-trained model that the test may move away."""
    shutil.copytree(args.pretrained, "model")
    return replace(args, strategy=None, pretrained="model", epochs=1)


def run_logits(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    best = read_best(RUN / "BEST")
    pretrained = load_base_weights(best)
    model, _, _ = build(best.spec, pretrained, best.answers)
    load_best(best, model, pretrained)
    return model.eval()(**inputs).outputs


@pytest.mark.parametrize("from_scratch", [False, True])
@pytest.mark.parametrize("strategy", ["standard", "Frozen"])
def test_transformers_loads_a_plain_run_and_gives_the_same_logits(
    args: VqaArgs, inputs: dict, strategy: str, from_scratch: bool
) -> None:
    vqa.main(replace(args, strategy=strategy, from_scratch=from_scratch))
    export(RUN, OUT)
    model, loading = LxmertForQuestionAnswering.from_pretrained("out", output_loading_info=True)
    assert not any(loading.values())
    logits = model.eval()(**inputs).question_answering_score
    torch.testing.assert_close(logits, run_logits(inputs), rtol=1e-5, atol=1e-5)
    assert [model.config.id2label[index] for index in range(len(ANSWERS))] == ANSWERS
    assert model.config.label2id == {answer: index for index, answer in enumerate(ANSWERS)}


def test_the_tokenizer_goes_along(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="standard"))
    export(RUN, OUT)
    questions = ["Is it red?", "what is the blue", "unknown words"]
    ids, lengths = encode(load_tokenizer("model"), questions)
    for there in (AutoTokenizer.from_pretrained("out"), load_tokenizer("out")):
        expected = [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]
        assert there(questions)["input_ids"] == expected


KINDS = {
    "standard": {"strategy": "standard"},
    "Frozen": {"strategy": "Frozen"},
    "some layers": {"strategy": "standard", "tune": "language.1"},
    "merged": {"strategy": "standard", "tuned": "lora", "rank": 2},
    "folded": {"strategy": "SpotTune_Block", "policy": "constant", "policy_start": 0.6},
    "folded, low-rank": {"strategy": "SpotTune", "policy": "constant", "tuned": "lora", "rank": 2},
    **{strategy: {"strategy": strategy} for strategy in ADAPTIVE},
    "low-rank": {"strategy": "SpotTune", "tuned": "lora", "rank": 2, "policy": "light"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_export_answers_as_its_run_did_and_is_trained_on(
    args: VqaArgs, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = vqa.main(replace(args, **KINDS[kind]))
    export(RUN, OUT, plain=kind.startswith("folded"))
    shutil.rmtree("model")
    other = VqaArgs(version="more", data=args.data, load="out", wandb="off", tqdm=False)
    test = replace(other, test="minival")
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    training = replace(other, epochs=1, batch_size=28, report=False)
    assert vqa.main(training)["epochs"] == 1
    capsys.readouterr()
    fresh = replace(training, version="fresh", load=None, dataset="vqav2", strategy="standard")
    if Path("out/pretrained").exists():
        with pytest.raises(
            CheckpointError,
            match="--load out goes on from it, --pretrained out/pretr",
        ):
            vqa.main(replace(fresh, pretrained="out"))
        vqa.main(replace(fresh, pretrained="out/pretrained"))
    else:
        with pytest.raises(UserError, match="--interpolate needs the pre-trained model"):
            vqa.main(replace(test, interpolate=0.5))
        vqa.main(replace(fresh, pretrained="out"))
        assert f"answer head: {len(ANSWERS)} answers loaded" in capsys.readouterr().out


def test_a_best_folder_is_no_pretrained_model(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="standard"))
    with pytest.raises(CheckpointError, match=rf"--load {RUN}/BEST goes on from it$"):
        vqa.main(replace(args, version="more", strategy="standard", pretrained=f"{RUN}/BEST"))


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        *((strategy, {}) for strategy in ADAPTIVE),
        ("SpotTune_Block", {"policy": "light"}),
        ("SpotTune_Block", {"from_scratch": True, "llayers": 1, "policy_xlayers": 2}),
    ],
)
def test_an_adaptive_run_becomes_a_folder_that_needs_nothing_else(
    args: VqaArgs, strategy: str, changes: dict
) -> None:
    outcome = vqa.main(replace(args, strategy=strategy, **changes))
    export(RUN, OUT)
    before = json.loads(Path("out/model.json").read_text())
    assert str(Path.cwd()) not in json.dumps(before)
    shutil.rmtree("model")
    shutil.rmtree(RUN)
    Path("out").rename("elsewhere")
    test = VqaArgs(version="v", dataset="auto", data=args.data, load="elsewhere", test="minival", wandb="off")
    assert vqa.main(replace(test, tqdm=False))["accuracy"] == outcome["best"]["val_accuracy"]


def write_bert(folder: Path, words: int) -> None:
    """A BERT of three layers, with the tokenizer of the small pre-trained model."""
    sizes = {"vocab_size": words, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    bert(**sizes, initializer_range=0.2).save_pretrained(folder)
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copyfile(f"model/{name}", folder / name)


@pytest.mark.parametrize("strategy", ["standard", "Frozen", "SpotTune_Block"])
def test_a_run_from_a_bert_keeps_what_was_random_in_it(
    args: VqaArgs, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Region features are as wide as the data's, and vision and cross layers stay those of training."""
    write_bert(Path("bert"), len(Path("model/vocab.txt").read_text().split()))
    layers = {"llayers": 2, "rlayers": 1, "xlayers": 1}
    outcome = vqa.main(replace(args, strategy=strategy, pretrained="bert", **layers))
    assert "initialised" in capsys.readouterr().out
    test = VqaArgs(version="v", data=args.data, load=f"{RUN}/BEST", test="minival", wandb="off", tqdm=False)
    torch.manual_seed(7)
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    export(RUN, OUT)
    shutil.rmtree("bert")
    if strategy == "SpotTune_Block":
        assert vqa.main(replace(test, load="out"))["accuracy"] == outcome["best"]["val_accuracy"]
    else:
        loading = LxmertForQuestionAnswering.from_pretrained("out", output_loading_info=True)[1]
        assert not any(loading.values())


def test_data_with_other_features_than_the_model_reads_are_one_sentence(
    args: VqaArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--strategy=standard", f"--data={args.data}", "--wandb=off", "--no-tqdm", "--dataset=vqav2"]
    config = json.loads(Path("model/config.json").read_text())
    tensors = load_file("model/model.safetensors")
    name = "lxmert.encoder.visn_fc.visn_fc.weight"
    save_file({**tensors, name: torch.zeros(16, 5)}, "model/model.safetensors")
    Path("model/config.json").write_text(json.dumps(config | {"visual_feat_dim": 5}))
    assert vqa.cli([*flags, "--pretrained=model"]) == 2
    error = capsys.readouterr().err
    assert "reads region features of size 5, and those of the data have 12" in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_launcher_exports_a_run_in_a_folder_of_its_own(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="standard", pretrained=str(Path("model").resolve())))

    def launch(*flags: str) -> subprocess.CompletedProcess[str]:
        """In the repository, because that is where the launcher goes."""
        command = ["bash", str(ROOT / "run/export.bash"), *flags]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(command, capture_output=True, text=True, env=environment)

    out = OUT.resolve()
    done = launch("--run", str(RUN.resolve()), "--to", str(out))
    assert (done.returncode, done.stdout) == (0, f"wrote {out}; see {out}/README.md\n"), done.stderr
    assert {path.name for path in out.iterdir()} >= {"config.json", "model.safetensors", "README.md"}
    again = launch("--run", str(RUN.resolve()), "--to", str(out))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1) and "exists already" in again.stderr


def test_the_frozen_side_is_the_pretrained_model_for_transformers_too(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="SpotTune"))
    export(RUN, OUT)
    frozen = PublishedModel.from_pretrained("out/pretrained").state_dict()
    before = load_file("model/model.safetensors")
    layers = [name for name in frozen if name.startswith("encoder.") and "visn_fc" not in name]
    assert layers and all(torch.equal(frozen[name], before[f"lxmert.{name}"]) for name in layers)


def test_best_stays_small(args: VqaArgs) -> None:
    """Tuned weights, head and policy, but nothing that the pre-trained file gives."""
    vqa.main(replace(args, strategy="SpotTune_Block"))
    best = RUN / "BEST"
    assert {path.name for path in best.iterdir()} == {
        "model.safetensors",
        "model.json",
        "answers.json",
        "checksums.json",
    }
    tensors = load_file(best / "model.safetensors")
    assert not [name for name in tensors if ".frozen." in name]
    origin = json.loads((best / "model.json").read_text())["pretrained"]
    assert origin["source"] == "model" and len(origin["sha256"]) == 64


def test_the_model_card_says_what_it_is(args: VqaArgs, pictures: None) -> None:
    outcome = vqa.main(replace(args, strategy="SpotTune_Block"))
    export(RUN, OUT)
    card = Path("out/README.md").read_text()
    best = json.loads((RUN / "BEST/model.json").read_text())
    commit = json.loads((RUN / "env.json").read_text())["commit"]
    for text in (
        "run: LXMERT",
        "vqav2, trained on train,nominival, validated on minival, 4 answers",
        "strategy: SpotTune_Block",
        f"start: `model` (sha256 `{best['pretrained']['sha256']}`)",
        f"commit `{commit or 'unknown'}`",
        f"| validation accuracy | {outcome['best']['val_accuracy']:.2f} % |",
        LEAKAGE,
        "run/vqa_test.bash 0 run --load out",
    ):
        assert text in card, text
    assert SCENES not in card
    by_type = json.loads((RUN / "result.json").read_text())["val_by_question_type"]
    assert f"| colour | {by_type['colour']:.2f} |" in card  # the best epoch is the only one
    assert (OUT / "policy.png").read_bytes().startswith(b"\x89PNG") and "](policy.png)" in card


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_the_head_of_the_card_is_what_the_hub_reads(args: VqaArgs, strategy: str) -> None:
    outcome = vqa.main(replace(args, strategy=strategy))
    hostile = Path("a: 'b' # c\n---\n- [x](y) \"|")
    RUN.rename(hostile)
    export(hostile, OUT)
    card = ModelCard.load(OUT / "README.md")
    head, adaptive = card.data, strategy in ADAPTIVE
    assert head.to_dict()["library_name"] == ("lxmert-spottune" if adaptive else "transformers")
    assert (head.pipeline_tag, head.metrics) == ("visual-question-answering", ["accuracy"])
    assert head.tags == ["lxmert", strategy] and head.base_model is None
    (accuracy,) = head.eval_results
    assert accuracy.metric_value == round(outcome["best"]["val_accuracy"], 2)
    assert (accuracy.dataset_type, accuracy.dataset_split, accuracy.metric_type) == (
        "vqav2",
        "minival",
        "accuracy",
    )
    assert head.model_name == str(hostile)
    assert card.text.lstrip().splitlines()[0].startswith("# a: 'b' \\# c --- - \\[x\\](y)")


def test_a_model_of_the_hub_is_named_and_a_local_one_is_not(args: VqaArgs) -> None:
    assert public_name("unc-nlp/lxmert-base-uncased") == "unc-nlp/lxmert-base-uncased"
    assert public_name("model") == public_name(str(Path("model").resolve())) == "model"


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_an_export_tells_no_path_of_the_machine(args: VqaArgs, strategy: str) -> None:
    here = str(Path.cwd())
    settings = Path("model/tokenizer_config.json")
    named = json.loads(settings.read_text()) | {"name_or_path": f"{here}/model"}
    settings.write_text(json.dumps(named))
    vqa.main(replace(args, strategy=strategy, policy="light", pretrained=f"{here}/model"))
    assert here in (RUN / "BEST/model.json").read_text()
    export(RUN.resolve(), OUT.resolve(), graphs=["torch-export"])
    files = [path for path in OUT.rglob("*") if path.is_file()]
    assert len(files) > 6
    for file in files:
        for path in (here, str(ROOT), str(Path.home())):
            assert path.encode() not in file.read_bytes(), (file, path)


def test_a_missing_or_different_pretrained_model_is_named(args: VqaArgs) -> None:
    vqa.main(replace(args, strategy="SpotTune_Block"))
    tensors = bytearray(Path("model/model.safetensors").read_bytes())
    tensors[-1] ^= 1
    Path("model/model.safetensors").write_bytes(bytes(tensors))
    with pytest.raises(CheckpointError, match="was trained from model with the sha256"):
        export(RUN, OUT)
    shutil.rmtree("model")
    with pytest.raises(CheckpointError, match=rf"{RUN}/BEST needs the pre-trained model \(sha256"):
        export(RUN, OUT)
    assert not OUT.exists()


def test_mistakes_are_one_sentence_and_leave_nothing(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: str) -> str:
        try:
            code = run_command(lambda: main(flags), "")
        except SystemExit as stop:  # the parser's way
            code = stop.code
        error = capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1
        return error

    assert "snap/vqa/nowhere/BEST is not a BEST folder" in refused("nowhere", "--to", "out")
    assert "nowhere/BEST is not a BEST folder" in refused("--run", "nowhere", "--to", "out")
    assert "the version name '../run'" in refused("../run", "--to", "out")
    assert "required" in refused("--to", "out")
    assert "not allowed with" in refused("run", "--run", "run", "--to", "out")
    assert not OUT.exists()
    vqa.main(replace(args, strategy="standard"))
    OUT.mkdir()
    (OUT / "mine").write_text("")
    assert "out exists already" in refused("run", "--to", "out")
    assert "out/mine/model cannot be written: Not a directory" in refused("run", "--to", "out/mine/model")
    assert [path.name for path in OUT.iterdir()] == ["mine"]


def test_an_export_that_breaks_off_leaves_nothing(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    vqa.main(replace(args, strategy="SpotTune_Block"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tasks.export.write_best", fail)
    before = sorted(Path().iterdir())
    with pytest.raises(UserError, match="out cannot be written: the disk is full"):
        export(RUN, OUT)
    assert sorted(Path().iterdir()) == before
