"""What judges the cases of run/faults.bash sees what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.faults import run
from tests.faults.cases import Case, Group, Noted, Skip
from tests.faults.equal import difference
from tests.faults.place import Place, refused
from tests.faults.process import Outcome

# ------------------------------------------------------------------------------------------------ the judges


def write_run(folder: Path, loss: float = 0.5, weight: float = 1.0, seconds: float = 3.0) -> Path:
    (folder / "LAST").mkdir(parents=True)
    save_file({"w": torch.tensor([weight])}, folder / "LAST" / "model.safetensors")
    (folder / "LAST" / "manifest.json").write_text(json.dumps({"sha256": {"model": str(seconds)}}))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "seconds": seconds}) + "\n")
    return folder


def test_runs_that_differ_in_time_only_are_equal(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "a"), write_run(tmp_path / "b", seconds=4)
    assert difference(*runs) is None


def test_runs_that_differ_in_a_number_a_tensor_or_a_file_do_differ(tmp_path: Path) -> None:
    whole = write_run(tmp_path / "whole")
    assert "metrics.jsonl 1: loss differs" in difference(write_run(tmp_path / "a", loss=0.4), whole)
    assert "LAST/model.safetensors: w differs" in difference(write_run(tmp_path / "b", weight=2), whole)
    lines = write_run(tmp_path / "c") / "metrics.jsonl"
    lines.write_text(lines.read_text() * 2)
    assert "too many" in difference(lines.parent, whole)
    (write_run(tmp_path / "d") / "LAST" / "model.safetensors").write_bytes(b"")
    assert "damaged" in difference(tmp_path / "d", whole)
    shutil.rmtree(write_run(tmp_path / "e") / "LAST")
    assert "missing" in difference(tmp_path / "e", whole)


@pytest.mark.parametrize(
    ("outcome", "wrong"),
    [
        (Outcome(2, "", "error: data.json is missing.\n", 1), None),
        (Outcome(2, "", "error: something is missing.\n", 1), "names no data.json"),
        (Outcome(0, "data.json", "", 1), "as if all were well"),
        (Outcome(1, "", "error: data.json\n", 1), "exit code 1"),
        (Outcome(2, "", "data.json\n", 1), "no sentence"),
        (Outcome(2, "", "Traceback (most recent call last):\nKeyError: 'data.json'\n", 1), "KeyError"),
    ],
)
def test_a_refusal_is_a_sentence_with_the_name_and_exit_code_2(outcome: Outcome, wrong: str | None) -> None:
    said = refused(outcome, "data.json")
    assert said is None if wrong is None else wrong in said


# ------------------------------------------------------------------------------------------------ the driver


def skip(_: Place) -> str | None:
    raise Skip("no such disk")


def hang(place: Place) -> str | None:
    (place.root.parent / "leader").write_text(str(os.getpid()))
    if not os.fork():
        time.sleep(60)
    signal.pause()
    return None


CASES = [
    Case("good", lambda place: None),
    Case("bad", lambda place: "other numbers"),
    Case("broken", lambda place: str(1 / 0)),
    Case("skipped", skip),
    Case("noted", lambda place: Noted("1 %")),
    Case("hanging", hang, limit=1),
]


def test_every_case_gets_its_verdict_and_none_outlives_its_time(tmp_path: Path) -> None:
    group = Group("a", "a group", lambda place: CASES)
    verdicts = run.run_all([(group, case) for case in CASES], tmp_path, 2)
    wrong = {verdict.case.name: verdict.wrong for verdict in verdicts}
    notes = {verdict.case.name: verdict.note for verdict in verdicts if verdict.note}
    assert (wrong["good"], wrong["skipped"], wrong["noted"]) == (None, None, None)
    assert wrong["bad"] == "other numbers"
    assert "ZeroDivisionError" in wrong["broken"]
    assert "hung" in wrong["hanging"]
    assert notes == {"skipped": "no such disk", "noted": "1 %"}
    leader = int((tmp_path / "leader").read_text())
    deadline = time.monotonic() + 5
    while any(session_of(path) == leader for path in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < deadline, "a process of the case lives on"
        time.sleep(0.01)

    text = run.table([group], verdicts)
    assert columns(text, "a: a group") == ["6", "3"]
    assert "a: bad: other numbers" in text
    assert max(map(len, text.splitlines())) <= 80


def session_of(process: Path) -> int | None:
    """The session of a process that still runs."""
    try:
        state, *_, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
        return None if state == "Z" else int(session)
    except OSError:
        return None


def columns(text: str, row: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(row)).removeprefix(row).split()


def test_names_of_groups_and_cases_are_unique_and_the_quick_form_has_some_of_each(tmp_path: Path) -> None:
    assert len({group.name for group in run.GROUPS}) == len(run.GROUPS)
    for group in (group for group in run.GROUPS if group.name not in ("damage", "poison")):
        cases = group.cases(Place(tmp_path, tmp_path))
        assert len({case.name for case in cases}) == len(cases)
        assert any(case.quick for case in cases) != group.alone
