"""The trainer end to end, on a data set of a hundred questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.helpers.paths import SRC
from tests.helpers.stop import stop_after

from common.errors import Interrupted
from tasks import vqa
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.evaluate import Exam
from tasks.finetune.strategies import STRATEGIES
from vqadata.dataset import VqaDataset

TIMES = ("seconds", "examples_per_second", "wall_seconds", "peak_memory_gb")


def metrics_of(folder: Path) -> list[dict]:
    """Everything recorded but the times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def interrupt_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make Ctrl-C arrive while the second evaluation answers its first questions."""
    official, finished = Exam.official_accuracy, []
    read = VqaDataset.__getitems__

    def count(self: Exam, *arguments: Any) -> Any:
        finished.append(self.dataset)
        return official(self, *arguments)

    def interrupted_read(self: VqaDataset, indices: Any) -> Any:
        if len(finished) == 1 and self is finished[0]:
            os.kill(os.getpid(), signal.SIGINT)
            finished.append(None)
        return read(self, indices)

    monkeypatch.setattr(Exam, "official_accuracy", count)
    monkeypatch.setattr(VqaDataset, "__getitems__", interrupted_read)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_run_leaves_the_promised_folder(args: VqaArgs, pictures: None, strategy: str) -> None:
    outcome = vqa.main(replace(args, strategy=strategy, epochs=2))
    folder = Path("snap/vqa/run")
    files = {path.name for path in folder.iterdir()}
    adaptive = strategy.startswith("SpotTune")
    expected = {
        ".lock",
        "args.json",
        "inputs.json",
        "env.json",
        "train.log",
        "metrics.jsonl",
        "LAST",
        "BEST",
        "scores",
        "result.json",
    }
    assert files == expected | ({"usage.npz"} if adaptive else set())
    assert json.loads((folder / "result.json").read_text()) == outcome
    assert outcome["gap"] == pytest.approx(outcome["train_accuracy"] - outcome["val_accuracy"])
    pictures = {path.name for path in Path("visualizations/run").glob("*.png")}
    both = {f"epoch_{epoch:02d}_{split}.png" for epoch in (1, 2) for split in ("train", "val")}
    assert pictures == (both if adaptive else set())
    assert (outcome["gates"]["total"] > 0) == adaptive


def test_the_same_seed_gives_the_same_run_and_another_seed_another(args: VqaArgs) -> None:
    for version, seed in (("a", 1), ("b", 1), ("c", 2)):
        vqa.main(replace(args, version=version, seed=seed, epochs=1))
    a, b, c = (metrics_of(Path("snap/vqa") / version) for version in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("where", [1, 2, 4, 11, "evaluation"])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(
    args: VqaArgs, where: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of an epoch, after its last step, and during an evaluation."""
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch:
        if where == "evaluation":
            interrupt_evaluation(patch)
        else:
            stop_after(where, patch)
        with pytest.raises(Interrupted, match="all is saved in snap/vqa/run/LAST"):
            vqa.main(args)
    resumed = vqa.main(args)
    folders = Path("snap/vqa/whole"), Path("snap/vqa/run")
    assert metrics_of(folders[0]) == metrics_of(folders[1])
    differing = {"version", *TIMES}
    assert {k: v for k, v in whole.items() if k not in differing} == {
        k: v for k, v in resumed.items() if k not in differing
    }
    for part in ("LAST/state", "BEST/model"):
        one, two = (load_file(folder / f"{part}.safetensors") for folder in folders)
        assert all((one[name] == two[name]).all() for name in one)


def test_a_finished_run_is_not_trained_again(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    first = vqa.main(replace(args, epochs=1))
    assert vqa.main(replace(args, epochs=1)) == first
    assert "this run is complete" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_evaluating_best_reproduces_the_score_to_the_last_digit(args: VqaArgs, strategy: str) -> None:
    outcome = vqa.main(replace(args, strategy=strategy))
    test = replace(
        args, strategy=None, load="snap/vqa/run/BEST", test="minival", dataset="auto", batch_size=7
    )
    predictions = []
    for _ in range(2):
        assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
        predictions.append(Path("snap/vqa/run/predictions/minival.json").read_text())
    assert predictions[0] == predictions[1]


def test_predictions_answer_every_question_in_the_challenge_format(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1))
    vqa.main(replace(args, load="snap/vqa/run/BEST", test="minival"))
    predictions = json.loads(Path("snap/vqa/run/predictions/minival.json").read_text())
    asked = json.loads((Path(args.data) / "vqav2" / "minival.json").read_text())
    assert [p["question_id"] for p in predictions] == [record["question_id"] for record in asked]
    assert all(isinstance(p["answer"], str) for p in predictions)


def test_the_official_score_is_that_of_the_scoring_command(args: VqaArgs) -> None:
    outcome = vqa.main(replace(args, epochs=2, strategy="standard"))
    tested = vqa.main(replace(args, load="snap/vqa/run/BEST", test="minival", strategy=None))
    annotations = Path(args.data) / "vqav2" / "annotations" / "minival.json"
    predictions = "snap/vqa/run/predictions/minival.json"
    command = [
        str(SRC / "vqadata" / "scoring.py"),
        "--predictions",
        predictions,
        "--annotations",
        annotations,
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert f"{tested['official']['overall']:.2f}" in done.stdout
    assert set(outcome["val_official"]["by_question_type"]) == {"colour", "yes or no"}
    official = tested["official"]
    assert all(official[name] == round(official[name], 4) for name in ("overall", "vocabulary_bound"))
    # With seven of ten humans saying the right answer, the official score is that of the label.
    assert tested["official"]["overall"] == pytest.approx(tested["accuracy"], abs=1e-4)


def test_the_policy_is_part_of_best(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1))
    tensors = load_file("snap/vqa/run/BEST/model.safetensors")
    assert [name for name in tensors if name.startswith("policy.head.")]
    assert [name for name in tensors if name.startswith("policy.lxmert.")]
    assert not [name for name in tensors if ".frozen." in name]


def test_training_can_start_from_another_runs_best(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    vqa.main(replace(args, epochs=1))
    vqa.main(replace(args, version="next", load="snap/vqa/run/BEST", epochs=1))
    assert "fine-tuned weights of snap/vqa/run/BEST" in capsys.readouterr().out


def test_something_is_learned(args: VqaArgs) -> None:
    """The questions' answers follow from first word and image: better than the best constant (a quarter)."""
    outcome = vqa.main(replace(args, strategy="standard", epochs=25, batch_size=10))
    assert outcome["train_accuracy"] > 60


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(args: VqaArgs, tmp_path: Path) -> None:
    command = [sys.executable, "-u", str(SRC / "tasks" / "vqa.py"), "--version=cut", "--strategy=SpotTune"]
    command += ["--dataset=vqav2", f"--data={args.data}", f"--pretrained={args.pretrained}", "--wandb=off"]
    command += ["--epochs=400", "--batchSize=10", "--no-tqdm"]
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch  2"):
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert (tmp_path / "snap/vqa/cut/LAST").is_dir()
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.startswith("epoch"):
                process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    assert [line for line in lines if line.startswith("going on in epoch")]


MISTAKES = {
    "unknown strategy": (["--strategy=SpotTun"], "SpotTune_Block"),
    "unknown flag": (["--batchsize=3"], "did you mean --batch_size"),
    "version name": (["--version=a/b"], "letters, digits"),
    "missing data": (["--data=nowhere", "--dataset=vqav2"], "train.json"),
    "missing split": (["--train=trian"], "trian.json"),
    "missing pre-trained model": (["--pretrained=nowhere/model"], "nowhere/model"),
    "missing BEST": (["--load=nowhere", "--test=minival"], "nowhere"),
    "test without load": (["--test=minival"], "--load"),
    "wrong layers": (["--llayers=7"], "--llayers 7"),
    "policy too deep": (["--policy_llayers=9"], "--policy_llayers 9"),
    "two origins": (["--loadLXMERT=a", "--loadLXMERTQA=b"], "exclude each other"),
    "no epochs": (["--epochs=0"], "--epochs"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_sentence(
    mistake: str, args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, sentence = MISTAKES[mistake]
    base = [f"--data={args.data}", "--wandb=off", "--no-tqdm"]
    if "two origins" not in mistake:
        base.append(f"--pretrained={args.pretrained}")
    try:
        code = vqa.cli(base + flags)
    except SystemExit as exit:
        code = exit.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert sentence in error
    assert not list(Path().glob("snap/vqa/*/BEST"))


def test_other_arguments_for_an_existing_run_are_refused_and_nothing_is_lost(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(replace(args, epochs=1))
    before = {path: path.read_bytes() for path in Path("snap").rglob("*") if path.is_file()}
    flags = ["--version=run", "--strategy=standard", f"--data={args.data}", f"--pretrained={args.pretrained}"]
    assert vqa.cli(flags) == 2
    assert "strategy was 'SpotTune_Block' and is now 'standard'" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in Path("snap").rglob("*") if path.is_file()}


def test_a_damaged_question_file_names_file_and_place(
    args: VqaArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken" / "vqav2"
    broken.mkdir(parents=True)
    for path in (Path(args.data) / "vqav2").iterdir():
        (broken / path.name).symlink_to(path)
    (broken / "train.json").unlink()
    for content, sentence in (
        (b"[{", "not valid JSON"),
        (b"\xff[]", "not UTF-8"),
        (b'[{"sent": "x"}]', "record 0"),
    ):
        (broken / "train.json").write_bytes(content)
        assert vqa.cli([f"--data={broken.parent}", f"--pretrained={args.pretrained}", "--wandb=off"]) == 2
        error = capsys.readouterr().err
        assert sentence in error and "train.json" in error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_snap_folder_is_a_sentence(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    Path("snap").mkdir(mode=0o500)
    assert vqa.cli([f"--data={args.data}", f"--pretrained={args.pretrained}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_in_the_place_of_snap_is_a_sentence(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    Path("snap").write_text("")
    assert vqa.cli([f"--data={args.data}", f"--pretrained={args.pretrained}"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_best_folder_refuses_another_pretrained_file(
    args: VqaArgs, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "model"
    other.mkdir()
    for path in pretrained.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    vqa.main(replace(args, pretrained=str(other), epochs=1))
    tensors = bytearray((other / "model.safetensors").read_bytes())
    tensors[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(tensors))
    assert vqa.cli(["--load=snap/vqa/run/BEST", "--test=minival", f"--data={args.data}"]) == 2
    assert "sha256" in capsys.readouterr().err


def test_old_spellings_mean_the_same_as_new_ones() -> None:
    old = "--batchSize 8 --numWorkers 2 --loadLXMERTQA x --policy_llayers 2 --tqdm --optim bert --fast"
    new = "--batch-size 8 --num-workers 2 --load-lxmert-qa x --policy-llayers 2 --optim bert --fast"
    assert parse_args(old.split()) == parse_args(new.split())
