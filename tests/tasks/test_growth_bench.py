"""The benchmark of growth, at a size of seconds, and its arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from common.cli import run_command
from tasks import growth_bench
from tasks.bench.drawn import drawn_questions, write_dataset
from tasks.bench.projection import RINGS, example_bytes, links_table, rings_table, step_seconds
from tasks.growth_bench import Job, Sizes, process_jobs
from tasks.prepare.check import examine
from vqadata.folder import DataFolder

SMALL = Sizes(((300, 40),), 16, (2, 3), ((1, 1, 1), (1, 1, 2)), 1, 1)
WORDS = ["red", "blue", "what"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a second, and all in this process."""

    def processes(sizes: Sizes) -> Iterator[Job]:
        yield Job("processes", ("standard", 1), 1, lambda: {"examples/s": 8.0, "ms": 2.0})
        yield Job("processes", ("standard", 2), 1, lambda: {"examples/s": 4.0, "ms": 2.0})

    monkeypatch.setattr(growth_bench, "QUICK", SMALL)
    monkeypatch.setattr(growth_bench, "LAYERS", (1, 1, 1))
    monkeypatch.setattr(growth_bench, "apart", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(growth_bench, "process_jobs", processes)
    monkeypatch.setattr(growth_bench, "gradient_bytes", lambda variant: 800_000_000)


def test_prints_and_writes_what_was_measured_and_leaves_nothing_behind(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch, file, page = tmp_path / "scratch", tmp_path / "figures.json", tmp_path / "page.md"
    scratch.mkdir()
    page.write_text("before\n<!-- growth:begin -->\nold\n<!-- growth:end -->\nafter\n")
    flags = ["--quick", "--scratch", str(scratch), "--json", str(file), "--page", str(page), "--real", "none"]
    assert run_command(lambda: growth_bench.main(flags), "") == 0
    figures = json.loads(file.read_text())
    (start,) = figures["start"]
    assert start["row"] == [300, 40] and start["kept MB"] > 0 and start["second peak MB"] >= 0
    assert ["SpotTune", 33, 2, "1/1/1"] in [job["row"] for job in figures["step"]]
    assert len({tuple(job["row"]) for job in figures["step"]}) == len(figures["step"]) == 9
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    printed = " ".join(printed.split())  # where its lines end depends on the processor's name
    assert "Questions: drawn" in printed and "Computed, not measured" in printed and "0.50x" in printed
    assert not list(scratch.iterdir())
    before, tables, after = page.read_text().split(" -->\n")
    assert (
        "| 300 | 40 |" in tables
        and "| 8 GPUs, NVLink 300 GB/s | 105 (96%) |" in tables
        and "old" not in tables
    )
    assert (before, after) == ("before\n<!-- growth:begin", "after\n")


def test_a_page_without_markers_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth_bench, "measure_all", None)
    page = tmp_path / "page.md"
    page.write_text("no markers")
    assert run_command(lambda: growth_bench.main(["--page", str(page)]), "") == 2
    assert "must have the markers <!-- growth:begin -->" in capsys.readouterr().err


@pytest.mark.slow
def test_one_process_and_two_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth_bench, "COMPARED", ("SpotTune_Block",))
    jobs = list(process_jobs(SMALL._replace(steps=2)))
    assert [job.row for job in jobs] == [("SpotTune_Block", 1), ("SpotTune_Block", 2)]
    for job in jobs:
        figures = job.run()
        assert figures["examples/s"] == pytest.approx(1e3 * job.row[1] * SMALL.batch / figures["ms"])


def test_a_drawn_data_set_is_one_without_faults_and_takes_no_room(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path, "drawn")
    questions = drawn_questions(WORDS, 60)
    assert questions == drawn_questions(WORDS, 60)
    write_dataset(folder, questions, 200, 50)
    assert {finding.state for finding in examine(folder, verify=True)} == {"ok"}
    parts = folder.read_splits(["train", "minival"])
    assert {name: len(records) for name, records in parts.items()} == {"train": 192, "minival": 8}
    images = [record["img_id"] for records in parts.values() for record in records]
    assert {images.count(image) for image in set(images)} == {4} and len(set(images)) == 50
    assert {word for record in parts["train"] for word in record["sent"].rstrip("?").split()} == set(WORDS)
    file = folder.store("all") / "features.npy"
    assert file.stat().st_size > 50 * 36 * 2048 * 2 > 20 * 512 * file.stat().st_blocks
    regions = folder.open_features().read(np.array([[0, 49]]))
    assert regions.features.shape == (1, 36, 2048) and not regions.features.any() and regions.mask.all()


def test_computed_figures_follow_the_formula_that_is_printed() -> None:
    assert step_seconds(0.1, 800e6, 1, 1e9) == 0.1
    assert step_seconds(0.1, 800e6, 8, 1e9) == pytest.approx(0.1 + 0.8 * 2 * 7 / 8)
    assert example_bytes() == 36 * 2048 * 2 + 36 * 16 + 4 + 4
    _, sizes, *rows = rings_table({"standard": 800_000_000}, 0.1)
    assert sizes == ["gradients MB", "800"] and [row[0] for row in rows] == list(RINGS)
    assert rows[2][1] == "226 (44%)"  # 100 ms + 0.8 GB x 2 x 63 / 64 over 12.5 GB/s
    assert links_table(0.1, 32, 650_000)[2][1:] == ["8,444", "26.4", "1.3 min"]
