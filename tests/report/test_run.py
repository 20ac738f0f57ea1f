"""The public reader of run folders, on a folder that an earlier version wrote."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.helpers.paths import OLD_RUN, SRC

from common.errors import RunError
from report.run import Run


def test_every_file_of_a_run_is_read() -> None:
    run = Run(OLD_RUN)
    assert run.finished and run.adaptive
    assert run.result["best"]["val_accuracy"] == pytest.approx(100 / 3)
    assert run.arguments["strategy"] == run.result["strategy"] == "SpotTune_Block"
    assert run.environment["device"] == "cpu"
    assert run.metrics[0]["step"] == 1 and run.metrics[-1]["step"] == run.metrics[-2]["step"]
    assert run.usage["val"].shape == (run.result["epochs"], run.result["gates"]["total"])
    assert not run.has_scores  # it is older


@pytest.mark.parametrize(
    ("file", "content", "read"),
    [
        ("result.json", "{}", lambda run: run.result),
        ("result.json", "{", lambda run: run.adaptive),
        ("args.json", "[]", lambda run: run.arguments),
        ("env.json", None, lambda run: run.environment),
        ("metrics.jsonl", '{"step": 1}\n{"st', lambda run: run.metrics),
        ("usage.npz", "no archive", lambda run: run.usage),
        ("scores/minival-last.npz", "no archive", lambda run: run.scores()),
        ("scores/minival.npz", None, lambda run: run.scores("best")),
    ],
)
def test_a_missing_or_damaged_file_is_named(
    tmp_path: Path, file: str, content: str | None, read: Callable[[Run], object]
) -> None:
    folder = shutil.copytree(OLD_RUN, tmp_path / "run")
    (folder / "scores").mkdir()
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(content)
    with pytest.raises(RunError, match=str(folder / file)):
        read(Run(folder))


def test_reading_runs_needs_no_torch() -> None:
    modules = "report.run, report.pair, report.results_table, report.policy_plot"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(SRC)})
