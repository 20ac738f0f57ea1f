"""What is left open on the command line, and that a start that fails leaves nothing behind."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tests.helpers.small import write_dataset

from common.errors import UserError
from tasks import vqa
from tasks.finetune.args import RECIPES, VqaArgs, parse_args
from tasks.finetune.settle import settle
from tasks.finetune.spec import ModelSpec


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def best(args: VqaArgs) -> str:
    """The BEST folder of a run of one epoch, with the light policy."""
    vqa.main(replace(args, version="first", policy="light", epochs=1))
    return "snap/vqa/first/BEST"


MISTAKES = {
    "policy too deep": ({"policy_llayers": 9}, "--policy_llayers 9"),
    "no such data": ({"data": "nowhere"}, "needs files that are not there"),
    "no such split": ({"train": "trian"}, "trian.json"),
    "no such model": ({"pretrained": "nowhere"}, "nowhere"),
    "too many layers": ({"llayers": 7}, "--llayers 7"),
    "nothing to freeze": ({"strategy": "standard", "frozen_dtype": "bf16"}, "makes no copies"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_start_that_fails_leaves_nothing_and_the_corrected_command_runs(
    args: VqaArgs, mistake: str, tmp_path: Path
) -> None:
    changes, words = MISTAKES[mistake]
    with pytest.raises(UserError, match=words):
        vqa.main(replace(args, **changes))
    assert not everything(tmp_path)
    vqa.main(replace(args, epochs=1))


CONTRADICTIONS = {
    "policy": "lxmert",
    "strategy": "SpotTune",
    "policy_start": 0.9,
    "policy_xlayers": 2,
    "from_scratch": True,
    "frozen_dtype": "bf16",
    "dataset": "scenes",
}


def test_auto_contradicts_a_checkpoint_that_holds_its_frozen_copies_in_bf16(args: VqaArgs) -> None:
    vqa.main(replace(args, frozen_dtype="bf16", epochs=1))
    test = VqaArgs(load="snap/vqa/run/BEST", data=args.data, test="minival", tqdm=False)
    assert settle(test, print)[1].spec.frozen_dtype == "bf16"
    with pytest.raises(UserError, match="--frozen_dtype auto contradicts"):
        vqa.main(replace(test, frozen_dtype="auto"))


@pytest.mark.parametrize("flag", CONTRADICTIONS)
def test_a_flag_that_contradicts_the_checkpoint_is_named_before_anything_is_written(
    args: VqaArgs, best: str, flag: str, tmp_path: Path
) -> None:
    before = everything(tmp_path)
    follow_up = replace(args, version="second", strategy=None, load=best)
    with pytest.raises(UserError, match=f"--{flag} {CONTRADICTIONS[flag]} contradicts {best}"):
        vqa.main(replace(follow_up, **{flag: CONTRADICTIONS[flag]}))
    if flag != "dataset":  # evaluation may be on other data
        with pytest.raises(UserError, match=f"--{flag} {CONTRADICTIONS[flag]} contradicts {best}"):
            vqa.main(replace(follow_up, test="minival", **{flag: CONTRADICTIONS[flag]}))
    assert everything(tmp_path) == before


def test_the_checkpoint_says_what_the_command_line_leaves_open(args: VqaArgs, best: str) -> None:
    settled, checkpoint = settle(VqaArgs(load=best, data=args.data, temperature=2.0), print)
    spec = ModelSpec.of(settled)
    assert (spec.policy, spec.strategy, spec.pretrained) == ("light", "SpotTune_Block", args.pretrained)
    assert (settled.dataset, spec.temperature) == ("vqav2", 2.0)
    assert checkpoint.spec == spec
    vqa.main(replace(args, version="second", strategy=None, load=best, epochs=1, temperature=2.0))


def test_a_pretrained_file_that_moved_may_be_named_anew_and_another_one_may_not(
    args: VqaArgs, pretrained: Path
) -> None:
    for name in ("here", "there", "other"):
        shutil.copytree(pretrained, name)
    with Path("other/model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    vqa.main(replace(args, pretrained="here", epochs=1))
    shutil.rmtree("here")
    test = VqaArgs(load="snap/vqa/run/BEST", data=args.data, test="minival", tqdm=False)
    with pytest.raises(UserError, match="here"):
        vqa.main(test)
    vqa.main(replace(test, pretrained="there"))
    with pytest.raises(UserError, match="sha256"):
        vqa.main(replace(test, pretrained="other"))


def test_training_goes_on_from_a_checkpoint_only_with_its_answers(
    args: VqaArgs, best: str, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data" / "vqav2")
    (tmp_path / "data" / "vqav2" / "answers.json").write_text(json.dumps(["red", "blue", "yes", "no"]))
    with pytest.raises(UserError, match="other answers than those of"):
        vqa.main(replace(args, version="second", strategy=None, load=best, data=str(tmp_path / "data")))


def test_a_run_remembers_its_data_set(
    args: VqaArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command goes on although `--dataset auto` would now choose another."""
    write_dataset(tmp_path / "data" / "mine").rename(tmp_path / "data" / "vqav2")
    auto = replace(args, dataset="auto", data="data", epochs=1)
    vqa.main(auto)
    (tmp_path / "data" / "vqav2").rename(tmp_path / "data" / "aside")
    settled, _ = settle(auto, print)
    assert settled.dataset == "vqav2"
    other, _ = settle(replace(auto, version="new"), print)
    assert other.dataset == "scenes"
    assert capsys.readouterr().out.count("EMBEDDED SCENES") == 1


@pytest.mark.parametrize("found", [[], ["mine", "vqacpv2"]])
def test_the_banner_says_what_is_so(args: VqaArgs, found: list[str], tmp_path: Path) -> None:
    """There may be VQA data, only not that which `--dataset auto` takes."""
    for name in ("lxmert", "scenes", *found):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "train.json").write_text("[]")
    (tmp_path / "data" / "lxmert" / "train.json").unlink()
    said: list[str] = []
    settle(replace(args, dataset="auto", data="data"), said.append)
    (text,) = said
    assert max(map(len, text.splitlines())) <= 80
    assert "No VQA v2 below data/vqav2: this run uses the EMBEDDED SCENES" in " ".join(text.split())
    assert ("Prepared as well: mine, vqacpv2, for --dataset." in " ".join(text.split())) == bool(found)


def test_a_test_without_a_split_is_on_what_the_run_validated_on(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(replace(args, epochs=1, train="train,minival", valid="nominival", strategy="standard"))
    again = parse_args(["--version", "run", "--data", args.data, "--test", "--load", "snap/vqa/run/BEST"])
    assert again.test is not None
    capsys.readouterr()
    assert vqa.main(again)["split"] == "nominival"
    settled, _ = settle(replace(again, dataset="scenes", data="elsewhere"), print)
    assert settled.test == "minival"  # of the recipe: the run was on other data


@pytest.mark.parametrize("flag", ["--version", "--dataset", "--train", "--valid", "--test"])
@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/b", "\x1b[31m", ".hidden"])
def test_names_that_could_lead_elsewhere_are_refused(
    flag: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_args([f"{flag}={name}", "--load=x"])
    error = capsys.readouterr().err
    assert "may hold letters, digits" in error and "\x1b" not in error and error.count("\n") == 1


def test_human_answers_that_lack_a_question_are_refused_before_training(
    args: VqaArgs, tmp_path: Path
) -> None:
    write_dataset(tmp_path / "data" / "vqav2")
    file = tmp_path / "data" / "vqav2" / "annotations" / "minival.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps({"annotations": document["annotations"][1:]}))
    with pytest.raises(UserError, match="1 question has no annotation"):
        vqa.main(replace(args, data="data"))
    assert not Path("snap").exists()


@pytest.mark.parametrize("name", ["batch-size", "lr", "epochs"])
def test_help_says_the_defaults_of_each_data_set(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")  # nothing is broken
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    (said,) = re.findall(
        rf"^  --{name} [NX] +.* Default: (.*); for your own data", capsys.readouterr().out, re.M
    )
    said = said.partition(", with --tuned lora")[0]
    groups = [part.split(" for ") for part in said.split("; ")]
    found = {dataset: float(value) for value, datasets in groups for dataset in datasets.split(", ")}
    assert found == {data: getattr(recipe, name.replace("-", "_")) for data, recipe in RECIPES.items()}
