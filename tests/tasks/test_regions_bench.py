"""The benchmark of the detector, with a small one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.helpers.detector import SMALL

from common.cli import run_command
from tasks import regions_bench


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions_bench, "SIZES", SMALL)
    monkeypatch.setattr(regions_bench, "apart", lambda function, *arguments: function(*arguments))


def bench(*flags: str) -> int:
    return run_command(lambda: regions_bench.main([*flags]), "")


def test_prints_and_writes_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "figures.json", tmp_path / "README.md"
    page.write_text("before\n<!-- regions:begin -->\nold\n<!-- regions:end -->\nafter\n")
    assert bench("--photos", "1", "--json", str(file), "--readme", str(page)) == 0
    figures = json.loads(file.read_text())
    assert 0 < figures["share of res5"] < 1 and figures["seconds a photo"] > 0
    assert 0 < figures["proposals"] <= 300 and figures["peak memory GB"] > 0.01
    printed = capsys.readouterr().out
    assert f"{figures['seconds a photo']:.1f}" in printed and "900 x 600" in printed
    assert max(map(len, printed.splitlines())) <= 80
    text = page.read_text()
    assert (
        text.startswith("before\n<!-- regions:begin -->\n| detector, random weights |") and "old" not in text
    )


def test_a_page_without_markers_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions_bench, "measure", None)
    (tmp_path / "README.md").write_text("no markers")
    assert bench("--readme", str(tmp_path / "README.md")) == 2
    assert "must have the markers <!-- regions:begin -->" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench("--photos", "0")


def test_the_stopwatch_counts_what_a_module_gets_since_it_was_reset() -> None:
    layer = torch.nn.Linear(3, 2)
    watch = regions_bench.Stopwatch(layer)
    layer(torch.ones(5, 3))
    watch.reset()
    layer(torch.ones(4, 3))
    layer(torch.ones(2, 3))
    assert watch.examples == 6 and watch.seconds > 0
