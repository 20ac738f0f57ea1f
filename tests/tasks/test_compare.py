"""Comparing strategies, with stand-ins for the trainer and the results table."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.helpers.paths import SRC

COMMAND = (sys.executable, "src/tasks/compare.py")

# Fails as Frozen; with --wait counts the interrupts it gets within half a second of the first one.
TRAINER = """
import os, pathlib, signal, sys, time
version, strategy = sys.argv[2:4]
folder = pathlib.Path("snap/vqa", version)
folder.mkdir(parents=True)
(folder / "command").write_text(" ".join([*sys.argv[3:], os.environ["OMP_NUM_THREADS"]]))
if "--wait" in sys.argv:
    interrupts = []
    signal.signal(signal.SIGINT, lambda number, frame: interrupts.append(number))
    (folder / "ready").touch()
    while not interrupts:
        time.sleep(0.02)
    time.sleep(0.5)
    (folder / "interrupts").write_text(str(len(interrupts)))
    sys.exit(130)
if strategy == "--strategy=Frozen":
    print("10%\\r20%\\rthe reason")
    sys.exit(3)
(folder / "result.json").write_text("{}")
"""
RESULTS_TABLE = "import sys; print('table', *sys.argv[1:])"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of three scripts."""
    for package in ("tasks", "report"):
        (tmp_path / "src" / package).mkdir(parents=True)
    shutil.copy(SRC / "tasks" / "compare.py", tmp_path / "src" / "tasks")
    (tmp_path / "src" / "tasks" / "vqa.py").write_text(TRAINER)
    (tmp_path / "src" / "report" / "results_table.py").write_text(RESULTS_TABLE)
    return tmp_path


def compare(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], cwd=root, capture_output=True, text=True, timeout=60)


def test_runs_each_strategy_with_each_seed_and_prints_the_table(root: Path) -> None:
    flags = ["--strategies", "from scratch,SpotTune", "--seeds", "0,1", "--prefix", "c", "--readme", "R.md"]
    done = compare(root, *flags, "--", "--epochs", "2")
    runs = ["c-from_scratch-0", "c-SpotTune-0", "c-from_scratch-1", "c-SpotTune-1"]
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"table {' '.join(f'snap/vqa/{run}' for run in runs)} --readme R.md\n"
    commands = [(root / "snap/vqa" / run / "command").read_text() for run in runs[1:3]]
    assert commands == [
        "--strategy=SpotTune --seed 0 --epochs 2 1",
        "--strategy=standard --fromScratch --seed 1 --epochs 2 1",
    ]


def test_names_a_failing_run_and_goes_on_with_the_others(root: Path) -> None:
    done = compare(root, "--strategies", "Frozen,standard", "--seeds", "0", "--jobs", "1")
    assert done.returncode == 1
    assert "compare-Frozen-0 failed with exit code 3:\n    the reason\n" in done.stderr
    assert done.stdout == "table snap/vqa/compare-standard-0\n"


def test_does_not_repeat_a_finished_run(root: Path) -> None:
    finished = root / "snap/vqa/compare-standard-0"
    finished.mkdir(parents=True)
    (finished / "result.json").write_text("{}")
    done = compare(root, "--strategies", "standard", "--seeds", "0")
    assert done.stdout.splitlines() == [
        "1 of 1 runs were finished earlier and are not repeated.",
        "table snap/vqa/compare-standard-0",
    ]
    assert not (finished / "command").exists()


def test_interrupted_comparison_interrupts_each_run_once_and_waits_for_it(root: Path) -> None:
    runs = [root / "snap/vqa" / f"compare-standard-{seed}" for seed in range(2)]
    process = subprocess.Popen(
        [*COMMAND, "--strategies=standard", "--seeds=0,1,2", "--jobs=2", "--", "--wait"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Workers of pytest-xdist ignore interrupts, which processes inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    patience = time.monotonic() + 30
    while not all((run / "ready").exists() for run in runs) and time.monotonic() < patience:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the whole foreground group
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output == "Interrupted: run the same command again to go on.\n"
    assert [(run / "interrupts").read_text() for run in runs] == ["1", "1"]
    assert not (root / "snap/vqa/compare-standard-2").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--strategies", "Frosen"], "unknown strategy 'Frosen'"),
        (["--seeds", "0,x"], "seeds are whole numbers"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--prefix", "a/b"], "--prefix may hold"),
        (["--epochs", "3"], "--epochs"),
    ],
)
def test_refuses_bad_flags_in_one_sentence(root: Path, flags: list[str], reason: str) -> None:
    done = compare(root, *flags)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{reason}.*\n", done.stderr)
