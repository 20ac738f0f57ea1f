"""Comparing strategies, with a stand-in for the trainer."""

import json
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

from tasks import compare as command
from tasks.finetune.strategies import STRATEGIES, Strategy

COMMAND = (sys.executable, "src/tasks/compare.py")

# Fails as Frozen; with --wait counts the interrupts it gets within half a second of the first one.
TRAINER = """
import json, os, pathlib, signal, sys, time
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
result = RESULT | {"strategy": strategy.partition("=")[2], "from_scratch": "--fromScratch" in sys.argv}
result["seed"] = int(sys.argv[sys.argv.index("--seed") + 1])
(folder / "result.json").write_text(json.dumps(result))
"""
RESULT = {
    **{"dataset": "scenes", "epochs": 2, "share_tuned": None, "seconds": 1.0},
    **{"train_accuracy": 50.0, "val_accuracy": 40.0, "gap": 10.0, "best": {"val_accuracy": 41.0}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a comparison needs of the repository, with another trainer."""
    for path in ("common", "report", "tasks/compare.py", "tasks/finetune/strategies.py"):
        source, target = SRC / path, tmp_path / "src" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    (tmp_path / "src" / "tasks" / "vqa.py").write_text(TRAINER.replace("RESULT |", f"{RESULT!r} |"))
    return tmp_path


def environment(root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(root / "src")}


def compare(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *flags], cwd=root, env=environment(root), capture_output=True, text=True, timeout=60
    )


def table_rows(text: str) -> list[str]:
    """The strategies of the table that was printed."""
    return [line.split("  ")[0] for line in text.split("\n\n")[0].splitlines() if " 50.0" in line]


def test_runs_each_strategy_with_each_seed_and_prints_and_writes_the_table(root: Path) -> None:
    readme = root / "R.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    flags = ["--strategies", "from scratch,SpotTune", "--seeds", "0,1", "--prefix", "c", "--readme", "R.md"]
    done = compare(root, *flags, "--", "--epochs", "2")
    runs = ["c-from_scratch-0", "c-SpotTune-0", "c-from_scratch-1", "c-SpotTune-1"]
    assert done.returncode == 0, done.stderr
    assert table_rows(done.stdout) == ["from scratch", "SpotTune"]
    assert "| SpotTune | 50.0 ± 0.0 |" in readme.read_text()
    commands = [(root / "snap/vqa" / run / "command").read_text() for run in runs[1:3]]
    assert commands == [
        "--strategy=SpotTune --seed 0 --epochs 2 1",
        "--strategy=standard --fromScratch --seed 1 --epochs 2 1",
    ]
    assert max(len(line) for text in (done.stdout, done.stderr) for line in re.split("[\r\n]", text)) <= 80


def test_a_readme_without_markers_is_refused_before_anything_runs(root: Path) -> None:
    done = compare(root, "--readme", "none.md", "--seeds", "0")
    assert (done.returncode, done.stderr) == (2, "error: none.md is missing.\n")
    assert not (root / "snap").exists()


def test_a_row_of_the_strategy_table_is_all_that_a_new_strategy_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(STRATEGIES, "Toy", Strategy("Toy", "a sentence about the toy", "layer"))
    with pytest.raises(SystemExit):
        command.parse_args(["--help"])
    assert re.search(r"^  Toy +a sentence about the toy$", capsys.readouterr().out, re.MULTILINE)
    args = command.parse_args([])
    assert args.strategies == ["from scratch", *STRATEGIES]
    assert command.trainer_command(args, "Toy", 3)[2:] == [
        *("--version", "compare-Toy-3", "--strategy=Toy", "--seed", "3")
    ]


def test_help_does_not_wait_for_torch(root: Path) -> None:
    code = "import sys, tasks.compare; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(root))


def test_names_a_failing_run_and_goes_on_with_the_others(root: Path) -> None:
    done = compare(root, "--strategies", "Frozen,standard", "--seeds", "0", "--jobs", "1")
    assert done.returncode == 1
    assert "compare-Frozen-0 failed with exit code 3:\n    the reason\n" in done.stderr
    assert table_rows(done.stdout) == ["standard"]


def test_does_not_repeat_a_finished_run(root: Path) -> None:
    finished = root / "snap/vqa/compare-standard-0"
    finished.mkdir(parents=True)
    result = RESULT | {"strategy": "standard", "from_scratch": False, "seed": 0}
    (finished / "result.json").write_text(json.dumps(result))
    done = compare(root, "--strategies", "standard", "--seeds", "0")
    assert done.stdout.startswith("1 of 1 runs were finished earlier and are not repeated.\n")
    assert table_rows(done.stdout) == ["standard"]
    assert not (finished / "command").exists()


def test_interrupted_comparison_interrupts_each_run_once_and_waits_for_it(root: Path) -> None:
    runs = [root / "snap/vqa" / f"compare-standard-{seed}" for seed in range(2)]
    process = subprocess.Popen(
        [*COMMAND, "--strategies=standard", "--seeds=0,1,2", "--jobs=2", "--", "--wait"],
        cwd=root,
        env=environment(root),
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
    assert output == "\nInterrupted: run the same command again to go on.\n"
    assert [(run / "interrupts").read_text() for run in runs] == ["1", "1"]
    assert not (root / "snap/vqa/compare-standard-2").exists()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--strategies", "Frosen"], "unknown strategy 'Frosen'"),
        (["--seeds", "0,x"], "seeds are whole numbers"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--prefix", "a/b"], "--prefix name 'a/b' may hold"),
        (["--epochs", "3"], "--epochs"),
    ],
)
def test_refuses_bad_flags_in_one_sentence(root: Path, flags: list[str], reason: str) -> None:
    done = compare(root, *flags)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{reason}.*\n", done.stderr)
