"""The benchmark of conversion and loading, at a size of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from common.cli import run_command
from tasks import data_bench

SMALL = ["--rows", "40", "--few", "20", "--boxes", "3", "--size", "16", "--repeats", "1", "--seconds", "0.01"]


def bench(*flags: str) -> int:
    return run_command(lambda: data_bench.main([*SMALL, *flags]), "")


def test_prints_and_writes_what_was_measured_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_bench, "apart", lambda function, *arguments: function(*arguments))
    scratch, file, readme = tmp_path / "scratch", tmp_path / "out" / "figures.json", tmp_path / "README.md"
    (tmp_path / "run").mkdir()
    for page in (readme, tmp_path / "run" / "BENCHMARKS.md"):
        page.write_text("before\n<!-- data:begin -->\nold\n<!-- data:end -->\nafter\n")
    flags = ["--scratch", str(scratch), "--json", str(file), "--readme", str(readme)]
    assert bench(*flags) == 0
    figures = json.loads(file.read_text())
    printed = capsys.readouterr().out
    assert figures["ratio"] == pytest.approx(figures["ours"]["rows/s"] / figures["plain"]["rows/s"])
    assert f"Ours is {figures['ratio']:.1f} times as fast" in printed
    assert "features of random batches" in printed and max(map(len, printed.splitlines())) <= 80
    assert figures["loading"]["whole random batches, examples/s"] > 0
    assert not list(scratch.iterdir())
    before, sentence, after = readme.read_text().split(" -->\n")[0::1]
    assert before == "before\n<!-- data:begin" and after == "after\n"
    assert f"convert {figures['ours']['rows/s']:,.0f} images per second" in sentence and "\n<" in sentence
    full = (tmp_path / "run" / "BENCHMARKS.md").read_text()
    assert full.startswith("before\n<!-- data:begin -->\n| conversion |") and "old" not in full


def test_pages_without_markers_are_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_bench, "measure", None)
    readme = tmp_path / "README.md"
    readme.write_text("no markers")
    assert bench("--readme", str(readme)) == 2
    assert "must have the markers <!-- data:begin -->" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert bench("--scratch", str(tmp_path)) == 2
    assert capsys.readouterr().err.startswith("error: 40 rows need 0.0 GB in ")
    assert not list(tmp_path.iterdir())
