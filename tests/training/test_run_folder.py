"""A run folder: whose it is, that a failed start leaves nothing behind, and what it says of the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from common import files
from common.errors import RunError
from training import run_folder
from training.machine import Machine
from training.record import Record, recorded_arguments
from training.run_folder import PROCESSES, RunFolder, describe_environment
from training.tracker import Channels

ARGUMENTS: dict[str, Any] = {"lr": 5e-5, "seed": 1, "load": None, "betas": (0.9, 0.99)}
DIGEST, OTHER = "0" * 64, "1" * 64
INPUTS: dict[str, Any] = {"train.json": DIGEST, "precision": "fp32", PROCESSES: 1}


def record(arguments: Mapping[str, Any], inputs: Mapping[str, Any] = INPUTS) -> Record:
    """Of a run to whose numbers the progress bar makes no difference."""
    return Record(arguments, inputs, lambda a: {name: a[name] for name in a if name != "tqdm"})


def open_folder(path: Path, **changes: Any) -> AbstractContextManager[RunFolder]:
    return RunFolder.open(path, record({**ARGUMENTS, **changes}), Accelerator())


def begin(path: Path, **changes: Any) -> None:
    """A run that has begun: its state was saved once."""
    with open_folder(path, **changes) as folder:
        folder.save_state({}, 1)


def test_a_new_folder_is_made_and_holds_the_arguments(tmp_path: Path) -> None:
    folder = tmp_path / "vqa" / "run"
    assert recorded_arguments(folder) is None
    begin(folder)
    assert recorded_arguments(folder) == {**ARGUMENTS, "betas": [0.9, 0.99]}


def test_the_same_arguments_open_the_same_folder_again(tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "train.log").write_text("epoch 1")
    with RunFolder.open(tmp_path, record(dict(reversed(ARGUMENTS.items()))), Accelerator()):
        pass
    assert (tmp_path / "train.log").read_text() == "epoch 1"


def test_other_arguments_are_refused_and_the_differing_ones_named(tmp_path: Path) -> None:
    begin(tmp_path, gone=3)
    before = (tmp_path / "args.json").read_bytes()
    with pytest.raises(RunError) as refusal, open_folder(tmp_path, lr=1e-4, added="x"):
        pass
    message = str(refusal.value)
    assert "lr was 5e-05 and is now 0.0001" in message
    assert "gone was 3 and is now None" in message
    assert "added was None and is now 'x'" in message
    assert "seed" not in message
    assert "Choose another version name" in message
    assert (tmp_path / "args.json").read_bytes() == before


def test_free_arguments_may_differ_and_the_last_ones_are_kept(tmp_path: Path) -> None:
    begin(tmp_path, tqdm=True)
    begin(tmp_path, tqdm=False)
    assert recorded_arguments(tmp_path)["tqdm"] is False


@pytest.mark.parametrize("content", ["", '{"lr": 5e-0', "\0\0\0", "[]"])
def test_damaged_arguments_are_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "args.json").write_text(content)
    with pytest.raises(RunError, match=r"args\.json .*Delete .* or choose another"), open_folder(tmp_path):
        pass
    assert (tmp_path / "args.json").read_text() == content


@pytest.mark.parametrize("content", [None, "", "[]", '{"lr": 1}'])
def test_arguments_that_are_lost_or_changed_are_those_of_the_state(
    tmp_path: Path, content: str | None
) -> None:
    begin(tmp_path)
    (tmp_path / "args.json").unlink()
    if content is not None:
        (tmp_path / "args.json").write_text(content)
    with pytest.raises(RunError, match=r"lr was 5e-05 and is now 1\.0"), open_folder(tmp_path, lr=1.0):
        pass
    begin(tmp_path)
    assert json.loads((tmp_path / "args.json").read_text())["lr"] == 5e-5


def test_other_inputs_are_refused_by_name_unless_they_are_accepted(tmp_path: Path) -> None:
    begin(tmp_path)
    for changes, words in (
        ({"train.json": OTHER}, "train.json is another one"),
        ({"answers.json": DIGEST}, "answers.json is new"),
        ({"precision": "bf16"}, "precision was 'fp32' and is now 'bf16'"),
    ):
        other = record(ARGUMENTS, INPUTS | changes)
        with pytest.raises(RunError, match=words), RunFolder.open(tmp_path, other, Accelerator()):
            pass
    with RunFolder.open(tmp_path, other, Accelerator(), accept_changes=True) as folder:
        folder.start_tracker(Channels(mode="off"))
        folder.save_state({}, 2)
    assert words in (tmp_path / "train.log").read_text()
    assert json.loads((tmp_path / "inputs.json").read_text())["precision"] == "bf16"
    with RunFolder.open(tmp_path, other, Accelerator()):
        pass


def test_another_number_of_processes_is_never_accepted(tmp_path: Path) -> None:
    begin(tmp_path)
    other = record(ARGUMENTS, INPUTS | {PROCESSES: 2})
    options = {"accept_changes": True}
    with pytest.raises(RunError, match=r"number of processes was 1 and is now 2"):  # noqa: SIM117
        with RunFolder.open(tmp_path, other, Accelerator(), **options):
            pass


def test_a_damaged_state_gives_way_to_the_one_kept_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = nn.Linear(1, 1)
    for keep, found in ((1, {"LAST"}), (3, {"LAST", "LAST-00000003", "LAST-00000002"})):
        folder = tmp_path / str(keep)
        with RunFolder.open(folder, record(ARGUMENTS), Accelerator(), keep=keep) as run:
            for updates in range(5):
                nn.init.constant_(part.weight, updates)
                run.save_state({"part": part}, updates)
        assert {path.name for path in folder.glob("LAST*")} == found
        (folder / "LAST" / "state.safetensors").write_bytes(b"")
        if keep == 1:
            with pytest.raises(RunError, match=r"state.safetensors is not what was written"):  # noqa: SIM117
                with open_folder(folder):
                    pass
            continue
        with open_folder(folder) as run:
            assert run.load_state({"part": part})
            run.start_tracker(Channels(mode="off"))
        assert part.weight.item() == 3
        assert "Going on from" in capsys.readouterr().out


def test_a_state_of_the_older_format_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "LAST").mkdir()
    (tmp_path / "LAST" / "custom_checkpoint_0.pkl").write_bytes(b"")
    with pytest.raises(RunError, match=r"LAST is of an older format"), open_folder(tmp_path):
        pass


def test_the_curves_are_those_of_the_state_whatever_became_of_their_file(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        tracker = folder.start_tracker(Channels(mode="off"))
        tracker.record({"loss": 2.0}, 1)
        folder.save_state({}, 1)
        tracker.record({"loss": 1.0}, 2)  # not saved: the run will come to it again
    for damage in ("", "no JSON", None):
        file = tmp_path / "metrics.jsonl"
        file.unlink() if damage is None else file.write_text(damage)
        with open_folder(tmp_path) as folder:
            folder.load_state({})
            folder.start_tracker(Channels(mode="off"))
        assert file.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written: Not a directory\.$"):  # noqa: SIM117
        with open_folder(tmp_path / "file" / "run"):
            pass


def test_a_run_that_fails_before_its_first_save_leaves_nothing_that_blocks_the_next(tmp_path: Path) -> None:
    """A folder that was there before stays, without the arguments."""
    for found in (False, True):
        folder = tmp_path / str(found)
        if found:
            (folder / "predictions").mkdir(parents=True)
        with pytest.raises(MemoryError), open_folder(folder) as run:
            run.start_tracker(Channels(mode="off")).say("started")
            raise MemoryError
        assert folder.exists() == found
        assert not (folder / "args.json").exists()
        begin(folder, lr=1.0)


def test_a_run_that_fails_later_keeps_what_it_saved(tmp_path: Path) -> None:
    with pytest.raises(MemoryError), open_folder(tmp_path / "run") as folder:
        folder.save_state({}, 1)
        raise MemoryError
    assert recorded_arguments(tmp_path / "run") and (tmp_path / "run" / "LAST").is_dir()


def test_a_folder_in_use_is_refused_with_who_uses_it_and_free_again_afterwards(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        folder.save_state({}, 1)
        words = rf"is in use by another run \(.*process {os.getpid()}, since 20"
        with pytest.raises(RunError, match=words), open_folder(tmp_path):
            pass
        assert recorded_arguments(tmp_path)
    begin(tmp_path)


def test_a_killed_run_leaves_its_folder_free(tmp_path: Path) -> None:
    code = "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX);"
    code += "print(1, flush=True); time.sleep(60)"
    (tmp_path / ".lock").touch()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(RunError, match="in use"), open_folder(tmp_path):
            pass
        other.kill()
        other.wait()
    begin(tmp_path)


def test_a_disk_without_locks_costs_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with open_folder(tmp_path) as folder:
        folder.start_tracker(Channels(mode="off"))
        folder.save_state({}, 1)
    assert "cannot be locked on this disk" in capsys.readouterr().out


def test_a_saved_state_is_one_folder_that_brings_everything_back(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    saved = model.weight.detach().clone()
    with RunFolder.open(tmp_path, record(ARGUMENTS), Accelerator()) as folder:
        assert not folder.load_state({"model": model})
        torch.manual_seed(3)
        folder.save_state({"model": model}, 1)
        drawn = torch.rand(3)
    with torch.no_grad():
        model.weight.zero_()
    with RunFolder.open(tmp_path, record(ARGUMENTS), Accelerator()) as folder:
        assert folder.load_state({"model": model})
    assert torch.equal(model.weight, saved)
    assert torch.equal(torch.rand(3), drawn)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "args.json", "inputs.json", "LAST"}


def test_environment_and_result_are_files_of_the_folder(tmp_path: Path) -> None:
    with open_folder(tmp_path) as folder:
        folder.write("env.json", {"processes": 1})
        folder.write("result.json", {"gap": 1.5})
        folder.save_state({}, 1)
    assert json.loads((tmp_path / "env.json").read_text())["processes"] == 1
    assert json.loads((tmp_path / "result.json").read_text()) == {"gap": 1.5}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in no repository, in which the code pretends to be."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "run_folder.py"))
    return tmp_path


def test_the_environment_holds_versions_device_and_command() -> None:
    environment = describe_environment(Machine("fp32"))
    assert environment["packages"]["torch"] == str(torch.__version__)
    assert environment["packages"].keys() >= {"transformers", "accelerate", "safetensors", "numpy"}
    assert environment["python"] == platform.python_version()
    assert environment["device"] == "cpu" or torch.cuda.is_available()
    assert environment["processor"] and environment["processor"] != "unknown"
    assert (environment["precision"], environment["processes"]) == ("fp32", 1)
    assert environment["threads"] >= 1
    assert environment["command"] == sys.argv
    assert json.loads(json.dumps(environment)) == environment


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_environment_names_the_commit_and_whether_it_was_changed(elsewhere: Path) -> None:
    file = elsewhere / "run_folder.py"
    file.write_text("committed")
    git(elsewhere, "init")
    git(elsewhere, "add", "run_folder.py")
    git(elsewhere, "commit", "-m", "first")
    (elsewhere / "notes.txt").write_text("not tracked")
    clean = describe_environment(Machine("fp32"))
    assert clean["commit"] == git(elsewhere, "rev-parse", "HEAD")
    assert clean["dirty"] is False
    file.write_text("changed")
    assert describe_environment(Machine("fp32")) == {**clean, "dirty": True}


def test_a_copy_without_history_has_no_commit(elsewhere: Path) -> None:
    assert describe_environment(Machine("fp32"))["commit"] is None


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_environment(Machine("fp32"))["commit"] is None


@pytest.mark.parametrize("git", ["sleep 60", "printf '\\377'; exit 0", "exit 1"])
def test_git_that_hangs_or_says_nonsense_costs_the_commit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, git: str
) -> None:
    stand_in = tmp_path / "git"
    stand_in.write_text(f"#!/bin/sh\n{git}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(run_folder, "GIT_PATIENCE", 0.2)
    assert describe_environment(Machine("fp32"))["commit"] in (None, "�")
