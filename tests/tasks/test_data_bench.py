"""The benchmark of conversion and loading, at a size of seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tasks import data_bench

SMALL = ["--rows", "40", "--few", "20", "--boxes", "3", "--size", "16", "--repeats", "1", "--seconds", "0.01"]


def test_prints_and_writes_both_sides_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_bench, "_apart", lambda function, *arguments: function(*arguments))
    scratch, file, readme = tmp_path / "scratch", tmp_path / "out" / "figures.json", tmp_path / "README.md"
    readme.write_text("before\n<!-- data:begin -->\nold\n<!-- data:end -->\nafter\n")
    flags = ["--scratch", str(scratch), "--json", str(file), "--readme", str(readme)]
    assert data_bench.main([*SMALL, *flags]) == 0
    figures = json.loads(file.read_text())
    text = capsys.readouterr().out
    assert figures["ratio"] == pytest.approx(figures["ours"]["rows/s"] / figures["plain"]["rows/s"])
    assert f"ratio {figures['ratio']:.1f}" in text and "features of random batches" in text
    assert figures["loading"]["whole random batches, examples/s"] > 0
    assert not list(scratch.iterdir())
    block = readme.read_text()
    assert block.startswith("before\n<!-- data:begin -->\n| conversion |") and "old" not in block
    assert f"Ours is {figures['ratio']:.1f} times as fast" in block and block.endswith("end -->\nafter\n")
    readme.write_text("no markers")
    assert data_bench.main([*SMALL, *flags]) == 2
    assert "must have the markers <!-- data:begin -->" in capsys.readouterr().err


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10_000))
    assert data_bench.main([*SMALL, "--scratch", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: 40 rows need 0.0 GB in ")
    assert not list(tmp_path.iterdir())
