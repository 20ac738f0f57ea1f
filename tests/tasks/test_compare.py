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
from typing import Any

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
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: interrupts.append(number))
    (folder / "ready").touch()
    while not interrupts:
        time.sleep(0.02)
    time.sleep(0.5)
    (folder / "interrupts").write_text(str(len(interrupts)))
    sys.exit(130)
if strategy == "--strategy=Frozen":
    print("10%\\r20%\\rthe reason")
    sys.exit(3)
flags = dict(flag[2:].split("=", 1) for flag in sys.argv if "=" in flag)
result = RESULT | {"strategy": strategy.partition("=")[2], "from_scratch": "--fromScratch" in sys.argv}
result |= {name: flags[name] for name in ("dataset", "label") if name in flags}
result["seed"] = int(sys.argv[sys.argv.index("--seed") + 1])
(folder / "env.json").write_text(json.dumps({"command": sys.argv}))
(folder / "result.json").write_text(json.dumps(result))
"""
RESULT = {
    **{"dataset": "scenes", "epochs": 2, "share_tuned": None, "seconds": 1.0},
    **{"train_accuracy": 50.0, "val_accuracy": 40.0, "gap": 10.0, "best": {"val_accuracy": 41.0}},
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What a comparison needs of the repository, with another trainer."""
    for path in ("common", "report", "vqadata", "tasks/compare.py", "tasks/finetune/strategies.py"):
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
    candidates = command.parse_args([]).candidates
    assert [candidate.name for candidate in candidates] == ["from scratch", *STRATEGIES]
    assert command.trainer_command("v", candidates[-1], "", 3, ["--epochs", "2"])[2:] == [
        *("--version", "v", "--strategy=Toy", "--seed", "3", "--epochs", "2")
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


def test_rows_have_names_and_flags_of_their_own_and_every_data_set_has_a_table(root: Path) -> None:
    row = "a third=--strategy=standard --lr '3e-4'"
    flags = ["--strategies", "standard", "--row", row, "--datasets", "one,two", "--seeds", "0,1"]
    done = compare(root, *flags, "--", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    names = [
        f"compare-{data}-{row}-{seed}"
        for data in ("one", "two")
        for row in ("standard", "a_third")
        for seed in "01"
    ]
    assert {path.name for path in (root / "snap/vqa").iterdir()} == set(names)
    assert (root / "snap/vqa/compare-two-a_third-1/command").read_text() == (
        "--strategy=standard --lr 3e-4 --label=a third --dataset=two --seed 1 --epochs 2 1"
    )
    tables = done.stdout.split("\n\n\n")
    assert [table_rows(table) for table in tables] == [["standard", "a third"]] * 2
    assert [re.search(r"Data set (\w+)", table)[1] for table in tables] == ["one", "two"]
    assert "+0.0 [+0.0, +0.0]" in tables[0]


def test_a_row_can_name_the_runs_of_another_row_and_waits_for_them(root: Path) -> None:
    both = "--refit=compare-one-found-{seed} --tune-from compare-{dataset}-found-{seed}"
    refit = f"refit=--strategy=standard {both}"
    flags = ["--row", refit, "--row", "found=--strategy=standard", "--datasets", "one", "--seeds", "0,1"]
    done = compare(root, *flags, "--jobs", "2")
    assert done.returncode == 0, done.stderr
    command = (root / "snap/vqa/compare-one-refit-1/command").read_text()
    assert "--refit=compare-one-found-1 --tune-from compare-one-found-1 --label=refit" in command


def test_runs_wait_for_those_that_they_name_and_for_no_others() -> None:
    commands = {"a": ["--load=snap/vqa/b/BEST"], "b": ["--version", "b"], "c": ["--refit", "a"], "d": []}
    assert command.ready(commands, ["a", "b", "c", "d"], []) == "b"
    assert command.ready(commands, ["a", "c", "d"], ["b"]) == "d"
    assert command.ready(commands, ["a", "c"], ["b"]) is None
    assert command.ready(commands, ["a", "c"], ["d"]) == "a"
    assert command.ready(commands, [], []) is None
    assert command.ready({"a": ["b"], "b": ["a"]}, ["a", "b"], []) == "a"


def test_rows_alone_are_compared_alone() -> None:
    args = command.parse_args(["--row", "a=--lr 1", "--row", "b=--lr 2"])
    assert [candidate.name for candidate in args.candidates] == ["a", "b"]


def test_the_reference_is_named_as_the_rows_are(root: Path) -> None:
    flags = ["--row", "a=--strategy=standard", "--row", "b=--strategy=standard", "--reference", "b"]
    done = compare(root, *flags, "--seeds", "0,1")
    assert " to b " in done.stdout, done.stderr


def test_a_finished_run_with_other_flags_is_said_to_be_one(root: Path) -> None:
    for flags in (["--", "--lr", "1"], ["--", "--lr", "1"], ["--", "--lr", "2"]):
        done = compare(root, "--strategies", "standard", "--seeds", "0", *flags)
        assert done.returncode == 0, done.stderr
        assert ("Made with other flags than now: compare-standard-0." in done.stdout) == (flags[-1] == "2")


def test_the_time_left_is_that_of_the_same_row_shared_by_the_runs_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: now[0])
    times = command.Times(jobs=2)
    times.begin("a-0")
    times.begin("b-0")
    assert times.left(["a-1", "b-1", "c-0"]) == "time left not known yet"
    now[0] = 60
    times.end("a-0")
    # b has run for as long as any other did, so it is as good as done; a takes 60, b and c as long as that.
    assert times.left(["a-1", "b-1", "c-0"]) == f"{(0 + 60 + 60 + 60) / 2:.0f} s left"
    now[0] = 300
    times.end("b-0")
    times.begin("a-1")
    now[0] = 330
    # Of a-1 half a minute is left, b-1 takes five, c-0 the mean of one and five.
    assert times.left(["b-1", "c-0"]) == f"{(0.5 + 5 + 3) / 2:.0f} min left"
    times.end("a-1")
    times.begin("b-1")
    assert times.left([]) == "5 min left"  # one run alone cannot be shared


ANSWERS = {1: "red", 2: "Two", 3: "yes", 4: "no"}
HUMANS = {1: ["red"] * 10, 2: ["2"] * 4 + ["three"] * 6, 3: ["no"] * 8 + ["yes"] * 2, 4: ["no"] * 10}


def write_predictions(root: Path, name: str, answers: dict[int, str]) -> Path:
    file = root / name
    file.write_text(json.dumps([{"question_id": q, "answer": answer} for q, answer in answers.items()]))
    return file


def write_annotations(root: Path, **changes: object) -> Path:
    records = [
        {"question_id": q, "image_id": q // 2, "question_type": f"type {q % 2}", "answers": answers}
        for q, answers in {**HUMANS, 5: ["a"] * 10}.items()
    ]
    file = root / "annotations.json"
    file.write_text(json.dumps({"annotations": [record | changes for record in records]}))
    return file


def test_two_prediction_files_are_compared_with_the_official_accuracy(root: Path) -> None:
    """Of four questions about three images; a fifth one is annotated, and nobody answers it."""
    one = write_predictions(root, "one.json", ANSWERS)
    other = write_predictions(root, "other.json", ANSWERS | {2: "three", 3: "NO", 1: "Red"})
    files = ["--predictions", one.name, other.name, "--annotations", write_annotations(root).name]
    done = compare(root, *files)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines() if "[" in line]
    rows = {line.split("  ")[0]: line.split()[-6:] for line in lines}
    # A: 1, 1, .6, 1; B: 0 (all humans agree, so case counts), 1, 1, 1.
    assert rows["all"][:3] == ["4", "90.00", "75.00"]
    assert rows["type 0"][:3] == ["2", "100.00", "100.00"]
    assert rows["type 1"][:3] == ["2", "80.00", "50.00"]
    words = " ".join(done.stdout.split())
    assert "different answers to 3 of 4 questions (75.0%): B scores higher on 1, A on 1, and both" in words
    assert "draws the 3 images" in words
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_predictions_that_cannot_be_compared_are_one_sentence(root: Path) -> None:
    one = write_predictions(root, "one.json", ANSWERS)
    few = write_predictions(root, "few.json", {1: "red"})
    more = write_predictions(root, "more.json", ANSWERS | {9: "red"})
    annotations = write_annotations(root)
    for pair, reason in (
        ((one, few), "3 questions are answered in only one of"),
        ((more, more), "1 question has no annotation: 9"),
        ((one, root / "none.json"), "none.json"),
    ):
        files = ["--predictions", *(file.name for file in pair), "--annotations", annotations.name]
        done = compare(root, *files)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and reason in done.stderr
        assert done.stderr.count("\n") == 1
    write_annotations(root, image_id="")
    done = compare(root, "--predictions", one.name, one.name, "--annotations", annotations.name)
    assert "does not say which image question 1 is about" in done.stderr


@pytest.mark.parametrize(
    ("interrupt", "sent"),
    [(signal.default_int_handler, signal.SIGINT), (signal.SIG_IGN, signal.SIGTERM)],
    ids=["in a terminal", "in the background of a script"],
)
def test_interrupted_comparison_interrupts_each_run_once_and_waits_for_it(
    root: Path, interrupt: Any, sent: signal.Signals
) -> None:
    runs = [root / "snap/vqa" / f"compare-standard-{seed}" for seed in range(2)]
    process = subprocess.Popen(
        [*COMMAND, "--strategies=standard", "--seeds=0,1,2", "--jobs=2", "--", "--wait"],
        cwd=root,
        env=environment(root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # What is ignored is inherited; a shell lets what it starts with & ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, interrupt),
    )
    patience = time.monotonic() + 30
    while not all((run / "ready").exists() for run in runs) and time.monotonic() < patience:
        time.sleep(0.02)
    os.killpg(process.pid, sent)  # as a terminal does, to the whole foreground group
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + sent
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
        (["--datasets", "a,../b"], "--datasets name '../b' may hold"),
        (["--row", "third"], "a row is a name, without |, and flags"),
        (["--row", "a|b=--lr 1"], "a row is a name, without |, and flags"),
        (["--row", "third=--label 'x"], "cannot be read as flags"),
        (["--row", "a b=--lr 1", "--row", "a_b=--lr 2"], "the same run folders: a b, a_b"),
        (
            ["--row", "standard=--lr 1", "--strategies", "standard"],
            "the same run folders: standard, standard",
        ),
        (["--reference", "standard", "--strategies", "Frozen"], "--reference standard is none of the rows"),
        (["--runs", "a"], "--runs: expected 2 arguments"),
        (["--runs", "a", "b"], "snap/vqa/a/args.json is missing"),
        (["--predictions", "a", "b"], "--predictions needs --annotations"),
        (["--annotations", "a"], "--annotations needs --predictions"),
        (["--epochs", "3"], "--epochs"),
    ],
)
def test_refuses_bad_flags_in_one_sentence(root: Path, flags: list[str], reason: str) -> None:
    done = compare(root, *flags)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*{re.escape(reason)}.*\n", done.stderr)
