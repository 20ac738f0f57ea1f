"""The page shows the tables of all data sets, and pictures on which every name can be read."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from common.cli import run_command
from report.results_page import (
    MARKER,
    choose_places,
    origin_of,
    overlap,
    scatter_figure,
    write_page,
)
from report.results_table import Row, Table, make_tables, results_block
from report.run import Run
from tasks import vqa_report

EIGHT = ("standard", "standard, lr 3e-4", "Frozen", "SpotTune", "SpotTune_Block", "language.1,vision.1")
EIGHT = (*EIGHT, "SpotTune_Block + LoRA (rank 8)", "found on held-out images, refitted")


def write_run(root: Path, label: str, seed: int, dataset: str = "scenes", **changes: Any) -> Run:
    result = {
        "dataset": dataset,
        "strategy": "standard",
        "label": label,
        "from_scratch": False,
        "seed": seed,
        "epochs": 14,
        "train_accuracy": 80.0 + seed,
        "val_accuracy": 72.0 + len(label) / 10,
        "gap": 8.0 + seed - len(label) / 10,
        "best": {"epoch": 3, "val_accuracy": 73.0},
        "share_tuned": None,
        "seconds": 30.0 + len(label),
    }
    folder = root / f"{dataset}-{label}-{seed}{'-scratch' * changes.get('from_scratch', False)}"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result | changes))
    return Run(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Two rows and one from scratch on two data sets, two seeds each."""
    return [
        write_run(tmp_path, label, seed, dataset, from_scratch=scratch)
        for dataset in ("scenes", "scenes-mixed")
        for label, scratch in (("standard", True), ("standard", False), ("Frozen", False))
        for seed in (0, 1)
    ]


def row(name: str, val: float, gap: float, seconds: float, spread: float) -> Row:
    figures = {"val_accuracy": val, "gap": gap, "seconds": seconds}
    return Row(
        name, [0, 1], 14, False, False, {n: {"mean": v, "std": spread} for n, v in figures.items()}, {}
    )


def names_on(axes: Any) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation)]


def test_the_page_holds_the_table_of_each_data_set_and_pictures_that_are_there(
    runs: list[Run], tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "results.md"
    files = write_page(page, make_tables(runs, ["standard", "Frozen"]), runs)
    text = page.read_text()
    assert re.findall("^## (.*)$", text, flags=re.M) == ["scenes", "scenes-mixed"]
    for table in make_tables(runs, ["standard", "Frozen"]):
        assert results_block(table) in text
    assert f"generated. {len(runs)} runs." in text
    pictures = [page.parent / name for name in re.findall(r"!\[.+?\]\((.+?)\)", text)]
    assert files == [page, *pictures] and len(pictures) == 2
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)


def test_the_page_says_which_layers_were_found_and_how_groups_fared(tmp_path: Path) -> None:
    groups = {"clean": 80.0, "shifted": 60.0}
    worth = {"worth": 0.5, "worth_low": 0.0, "worth_high": 1.0, "share_tuned": 0.25}
    runs = [write_run(tmp_path, "standard", seed, val_by_group=groups) for seed in range(3)]
    tuned = {"val_by_group": {"clean": 81.0, "shifted": 62.0}}
    tuned["worth_by_group"] = {"clean": worth, "shifted": worth | {"share_tuned": 0.75}}
    found = ("language.1,vision.1", "language.1", "language.1,vision.1", None, None)
    for seed, layers in enumerate(found):
        gated = {"worth": 0.5} if seed == 3 else {}  # a refit without gates has no choice to value
        runs.append(write_run(tmp_path, "refit", seed, **tuned, **gated))
        arguments = {"refit": f"found-{seed}", "tune": layers}
        (runs[-1].folder / "args.json").write_text(json.dumps(arguments))
    text = write_page(tmp_path / "r.md", make_tables(runs), runs)[0].read_text()
    assert "| refit | language.1, vision.1 | 2 |" in text
    assert "| refit | language.1 | 1 |" in text
    assert "| refit | decided by the policy that was found | 1 |" in text
    assert "| refit | none | 1 |" in text
    assert "| standard | 80.0 | none | none | 60.0 | none | none |" in text
    assert "| refit | 81.0 | 0.50 | 0.25 | 62.0 | 0.50 | 0.75 |" in text


def test_a_panel_has_a_point_with_bars_for_each_row_but_those_from_scratch(runs: list[Run]) -> None:
    figure = scatter_figure(make_tables(runs), "val_accuracy", "gap")
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert sorted(note.get_text() for note in names_on(axes)) == ["Frozen", "standard"]
        assert axes.get_title("right") == "off the picture: from scratch (72.8, 7.7)"
        frozen = next(note for note in names_on(axes) if note.get_text() == "Frozen")
        assert frozen.xy == pytest.approx((72.6, 7.9))  # the mean of 7.4 and 8.4
        lengths = [np.ptp(bar.get_segments()[0], axis=0).max() for bar in axes.collections]
        assert sorted(lengths) == pytest.approx(
            [0, 0, 2**0.5, 2**0.5]
        )  # twice the deviation, of the gap only


def test_names_of_data_are_no_formulas_and_are_cut_where_they_are_long(tmp_path: Path) -> None:
    name = r"$\\frac{ rate $" + " of a third" * 20
    runs = [write_run(tmp_path, label, seed, "mine") for label in (name, "standard") for seed in (0, 1)]
    (axes,) = scatter_figure(make_tables(runs), "val_accuracy", "gap").axes
    texts = [note.get_text() for note in names_on(axes)]
    assert max(map(len, texts)) == 40 and any(text.startswith("$") for text in texts)


def test_shapes_tell_rows_apart_and_are_the_same_in_every_panel(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, label, 0, dataset) for dataset in ("a", "b") for label in EIGHT]
    shapes = []
    for axes in scatter_figure(make_tables(runs[:-1]), "seconds", "val_accuracy").axes:
        points = [line for line in axes.lines if line.get_markersize() == MARKER]
        shapes.append([line.get_marker() for line in points])
    assert len(set(shapes[0])) == len(EIGHT)
    assert set(shapes[1]) < set(shapes[0])


@pytest.mark.parametrize("seed", range(6))
def test_no_name_of_eight_rows_covers_another_or_a_point_or_leaves_the_panel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = rng.normal((74, 9, 40), (1, 2, 12), (len(EIGHT), 3))
    spots[:, 2] = np.abs(spots[:, 2]) + 5
    rows = [row(name, *spot, spread=0.4) for name, spot in zip(EIGHT, spots.tolist(), strict=True)]
    for x, y in (("val_accuracy", "gap"), ("seconds", "val_accuracy")):
        figure = scatter_figure([Table("scenes", None, "", rows)], x, y)
        (axes,) = figure.axes
        renderer = figure.canvas.get_renderer()
        notes = names_on(axes)
        boxes = [Text.get_window_extent(note, renderer) for note in notes]
        points = axes.transData.transform([note.xy for note in notes])
        assert len(boxes) == len(EIGHT)
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        for box in boxes:
            assert not any(box.contains(*point) for point in points)
            inside = axes.bbox
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1
            assert inside.y0 <= box.y0 and box.y1 <= inside.y1


def test_common_areas_are_those_of_counted_cells() -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (20, 2))
    boxes = np.hstack([low, low + rng.integers(1, 8, (20, 2))])

    def cells(box: np.ndarray) -> set[tuple[int, int]]:
        return set(itertools.product(range(box[0], box[2]), range(box[1], box[3])))

    expected = [[len(cells(one) & cells(other)) for other in boxes[:7]] for one in boxes]
    assert overlap(boxes.astype(float), boxes[:7].astype(float)).tolist() == expected


def test_a_name_alone_stays_next_to_its_point() -> None:
    point, size = np.array([[100.0, 100.0]]), np.array([[40.0, 10.0]])
    nothing, inside = np.zeros((0, 4)), np.array([0.0, 0.0, 200.0, 200.0])
    (middle,) = choose_places(point, size, nothing, inside, 1.0)
    assert np.abs(middle - point).max() <= 20 + 5 + 1e-9


def test_the_page_says_which_commits_its_runs_are_of(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "standard", seed) for seed in range(3)]
    assert origin_of(runs) == "3 runs."
    for run, dirty in zip(runs[:2], (False, True), strict=True):
        environment = {"commit": "0123456789abcdef", "dirty": dirty, "device": "cpu", "platform": "Linux"}
        environment |= {} if dirty else {"processor": "Fast CPU"}
        (run.folder / "env.json").write_text(json.dumps(environment | {"packages": {"torch": "2.13.0"}}))
    commits = "commit 0123456789, 0123456789 and uncommitted changes"
    assert origin_of(runs) == f"3 runs: {commits}; on Fast CPU (Linux), cpu (Linux); with torch 2.13.0."


def test_the_command_writes_the_page_and_names_its_files(
    runs: list[Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["page", *(str(run.folder) for run in runs)]
    assert run_command(lambda: vqa_report.main(arguments), "") == 0
    files = [line.removeprefix("wrote ") for line in capsys.readouterr().out.splitlines()]
    assert files == [f"visualizations/results{end}" for end in (".md", "_gap.png", "_time.png")]
    assert all(Path(file).is_file() for file in files)
