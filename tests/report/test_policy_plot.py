"""The pictures show the numbers they are given, at every size and granularity."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection, QuadMesh
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import imread
from tests.helpers.paths import SRC

from common.errors import RunError
from report.policy_plot import DEAD_LABEL, draw_policy, draw_run, policy_figure, question_type_figure
from report.run import Run

SMALL, BASE = (3, 2, 2, 4), (9, 5, 5, 12)  # language, vision, cross layers; heads
RNG = np.random.default_rng


def numbered(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(1, count + 1)]


def components(granularity: str, stream: str, heads: int) -> list[str]:
    if granularity == "block":
        return ["layer"]
    if granularity == "residual":
        crossing = ["cross attention", "language attention", "vision attention", "language FFN", "vision FFN"]
        return crossing if stream == "cross" else ["attention", "FFN"]
    if stream != "cross":
        return [*numbered("head", heads), "attention output", "FFN in", "FFN out"]
    halves = ("cross", "language", "vision")
    attention = [c for half in halves for c in (*numbered(f"{half} head", heads), f"{half} output")]
    return [*attention, "language FFN in", "vision FFN in", "language FFN out", "vision FFN out"]


def gate_table(granularity: str, size: tuple[int, int, int, int]) -> dict[str, np.ndarray]:
    *layers, heads = size
    gates = [
        (stream, layer, component, not (component.startswith("vision") and layer == count))
        for stream, count in zip(("language", "vision", "cross"), layers, strict=True)
        for layer in range(1, count + 1)
        for component in components(granularity, stream, heads)
    ]
    columns = zip(*gates, strict=True)
    names = ("stream", "layer", "component", "live")
    return {name: np.array(column) for name, column in zip(names, columns, strict=True)}


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title() == title)


def cells(axes: Axes) -> np.ma.MaskedArray:
    return next(c for c in axes.collections if isinstance(c, QuadMesh)).get_array()


def dead_cells(axes: Axes) -> set[tuple[int, int]]:
    """(row, column) of the hatched cells."""
    patches = [c for c in axes.collections if isinstance(c, PatchCollection) and c.get_label() == DEAD_LABEL]
    return {
        (round(p.vertices[0, 1]), round(p.vertices[0, 0])) for patch in patches for p in patch.get_paths()
    }


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def test_the_two_sizes_have_the_gates_they_should() -> None:
    table = gate_table("component", BASE)
    assert len(table["live"]) == 425 and np.sum(~table["live"]) == 15
    assert len(gate_table("component", SMALL)["live"]) == 73


@pytest.mark.parametrize("size", [SMALL, BASE])
@pytest.mark.parametrize("granularity", ["component", "residual"])
def test_every_cell_shows_its_gates_share(granularity: str, size: tuple[int, int, int, int]) -> None:
    table = gate_table(granularity, size)
    share = RNG(0).random(len(table["live"]))
    figure = policy_figure(table, share, "title")
    heads = size[3]
    # Columns: the cross panel brings its three groups together, each in model order.
    cross = components(granularity, "cross", heads)
    grouped = [c for group in ("cross", "language", "vision") for c in cross if c.startswith(group)]
    for gate, (stream, layer, component) in enumerate(
        zip(table["stream"], table["layer"], table["component"], strict=True)
    ):
        order = grouped if stream == "cross" else components(granularity, stream, heads)
        axes, cell = panel(figure, stream), (layer - 1, order.index(component))
        if table["live"][gate]:
            assert cells(axes)[cell] == share[gate]
            assert cell not in dead_cells(axes)
        else:
            assert cells(axes).mask[cell]
            assert cell in dead_cells(axes)


def test_layer_one_is_on_top() -> None:
    figure = policy_figure(gate_table("component", SMALL), np.zeros(73), "title")
    axes = panel(figure, "language")
    ticks = {label.get_text(): y for y, label in zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)}
    assert axes.transData.transform((0, ticks["1"]))[1] > axes.transData.transform((0, ticks["3"]))[1]


def test_columns_carry_the_numbers_of_the_heads_and_the_names_of_the_rest() -> None:
    figure = policy_figure(gate_table("component", SMALL), np.zeros(73), "title")
    axes = panel(figure, "cross")
    labels = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
    half = ["1", "2", "3", "4", "output"]
    assert labels == [*half, *half, "FFN in", "FFN out", *half, "FFN in", "FFN out"]
    assert [text.get_text() for text in axes.texts if text.get_text() in ("cross", "language", "vision")] == [
        "cross",
        "language",
        "vision",
    ]
    assert sum(text.get_text() == "heads" for text in axes.texts) == 3


@pytest.mark.parametrize("size", [SMALL, BASE])
def test_labels_below_the_panels_do_not_overlap(size: tuple[int, int, int, int]) -> None:
    table = gate_table("component", size)
    figure = policy_figure(table, np.full(len(table["live"]), 0.5), "title")
    figure.draw_without_rendering()
    for name in ("language", "vision", "cross"):
        boxes = [label.get_window_extent() for label in panel(figure, name).get_xticklabels()]
        # Neighbours may touch by a pixel: a rotated label's box has room for accents that it does not use.
        assert all(a.x1 <= b.x0 + 1 for a, b in pairwise(boxes))
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0 for box in boxes)


@pytest.mark.parametrize("granularity", ["block", "component"])
def test_a_dead_gate_is_grey_and_not_in_the_mean(granularity: str) -> None:
    table = gate_table(granularity, SMALL)
    table["live"] = np.arange(len(table["live"])) > 0
    share = np.full(len(table["live"]), 0.25)
    share[0] = 1.0
    figure = policy_figure(table, share, "title")
    assert f"mean share tuned 0.25 over {len(share) - 1} live gates (1 dead)" in texts(figure)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [DEAD_LABEL]
    if granularity == "block":
        dead, live = figure.axes[0].containers[0].patches[:2]
        (line,) = [line for line in figure.axes[0].lines if line.get_label() == "mean"]
        assert set(line.get_ydata()) == {0.25}
        dead_colour, live_colour = to_rgba(dead.get_facecolor()), to_rgba(live.get_facecolor())
    else:
        live, dead = panel(figure, "language").collections
        dead_colour, live_colour = dead.get_facecolor()[0], live.to_rgba(0.25)
    assert dead.get_hatch()
    assert len(set(dead_colour[:3])) == 1  # equal parts of red, green and blue
    assert len(set(live_colour[:3])) == 3


def test_no_legend_of_dead_gates_where_there_are_none() -> None:
    assert not policy_figure(gate_table("block", BASE), np.zeros(19), "title").legends


@pytest.mark.parametrize("size", [SMALL, BASE])
def test_bars_have_the_heights_of_the_shares_and_their_numbers(size: tuple[int, int, int, int]) -> None:
    table = gate_table("block", size)
    share = RNG(1).random(len(table["live"]))
    panels = policy_figure(table, share, "title").axes
    bars = [bar for axes in panels for bar in axes.patches]
    assert [bar.get_height() for bar in bars] == list(share)
    assert {f"{value:.2f}" for value in share} <= {text.get_text() for axes in panels for text in axes.texts}
    assert [axes.get_xlabel() for axes in panels] == ["language layer", "vision layer", "cross layer"]
    labels = [label.get_text() for axes in panels for label in axes.get_xticklabels()]
    assert labels == [str(layer) for layer in table["layer"]]
    assert len({to_hex(bar.get_facecolor()) for bar in bars}) == 3
    assert {axes.get_ylim() for axes in panels} == {(0, 1.1)}


@pytest.mark.parametrize("granularity", ["block", "component", "residual"])
@pytest.mark.parametrize("size", [SMALL, BASE])
def test_the_file_is_a_png_of_sane_size(
    tmp_path: Path, granularity: str, size: tuple[int, int, int, int]
) -> None:
    table = gate_table(granularity, size)
    path = tmp_path / "new" / "policy.png"
    draw_policy(table, RNG(2).random(len(table["live"])), "title", path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    height, width = imread(path).shape[:2]
    assert width == 1200 and 300 < height < 1000
    assert path.stat().st_size < 120_000


def test_question_types_show_their_departure_from_the_average() -> None:
    table = gate_table("component", SMALL)
    live = table["live"]
    share = np.full(len(live), 0.5)
    by_type = np.stack([share - 0.2, share + 0.1, np.full(len(live), np.nan)])
    by_type[0, 0] = 1.0
    by_type[:2, ~live] = 1.0
    figure = question_type_figure(table, ["colour", "count", "never asked"], by_type, share, "title")
    axes = panel(figure, "language")
    mean = by_type[0, live].mean()
    assert [t.get_text() for t in axes.get_yticklabels()] == ["count (0.60)", f"colour ({mean:.2f})"]
    assert cells(axes)[1, 0] == pytest.approx(0.5)
    assert cells(axes)[1, 1] == pytest.approx(-0.2)
    assert cells(axes)[0, 0] == pytest.approx(0.1)
    dead = len([label for label in table["component"] if label.startswith("vision")]) // 2
    assert len(dead_cells(panel(figure, "cross"))) == 2 * dead


def test_of_many_question_types_those_that_depart_most_are_shown() -> None:
    table = gate_table("block", SMALL)
    share = np.full(7, 0.5)
    by_type = np.stack([share + 0.005 * k for k in range(30)])
    names = [f"type {k}" for k in range(30)]
    figure = question_type_figure(table, names, by_type, share, "title")
    labels = [label.get_text() for label in panel(figure, "language").get_yticklabels()]
    assert [label.split(" (")[0] for label in labels] == [f"type {k}" for k in range(29, 17, -1)]
    assert "the 12 of 30 types that depart most" in texts(figure)


def test_arrays_that_do_not_fit_are_refused() -> None:
    table = gate_table("block", SMALL)
    with pytest.raises(RunError, match="do not fit 6 shares"):
        policy_figure(table, np.zeros(6), "title")
    with pytest.raises(RunError, match=r"outside 0\.\.1"):
        policy_figure(table, np.full(7, 1.5), "title")
    with pytest.raises(RunError, match=r"shape \(1, 7\), expected \(2, 7\)"):
        question_type_figure(table, ["a", "b"], np.zeros((1, 7)), np.zeros(7), "title")
    with pytest.raises(RunError, match="nothing to compare"):
        question_type_figure(table, ["a"], np.full((1, 7), np.nan), np.zeros(7), "title")
    table["layer"] = np.ones(7, dtype=int)
    with pytest.raises(RunError, match="two gates"):
        policy_figure(table, np.zeros(7), "title")


def write_usage(run: Path, **changes: np.ndarray) -> Path:
    table = gate_table("component", SMALL)
    shares = RNG(3).random((2, len(table["live"])))
    by_type = {"question_types": np.array(["colour", "count"]), "val_by_type": shares}
    run.mkdir(parents=True)
    np.savez(run / "usage.npz", **(table | {"train": shares, "val": shares} | by_type | changes))
    return run


def test_a_run_is_drawn_as_it_was_in_its_last_epoch(tmp_path: Path) -> None:
    run = write_usage(tmp_path / "snap" / "vqa" / "mine")
    pictures = draw_run(Run(run), tmp_path / "pictures")
    names = ["policy_by_question_type.png", "policy_train.png", "policy_val.png"]
    assert sorted(path.name for path in pictures) == names
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names
    # The last epoch, not the first: the same picture as drawn from its shares.
    with np.load(run / "usage.npz") as usage:
        draw_policy(usage, usage["val"][-1], "mine: validation, epoch 2", tmp_path / "expected.png")
    assert np.array_equal(imread(tmp_path / "pictures" / "policy_val.png"), imread(tmp_path / "expected.png"))


def test_names_with_dollars_are_no_formulas(tmp_path: Path) -> None:
    types = {"question_types": np.array(["how many $", r"$\frac{"])}
    draw_run(Run(write_usage(tmp_path / "a $x^{ run$", **types)), tmp_path / "pictures")
    assert (tmp_path / "pictures" / "policy_by_question_type.png").is_file()


def test_long_names_are_cut() -> None:
    usage = gate_table("block", SMALL)
    gates = len(usage["live"])
    types = ["what is the colour of the thing " * 8, "count"]
    share = np.full((2, gates), 0.5) + [[0.1], [0.2]]
    figure = question_type_figure(usage, types, share, np.full(gates, 0.5), "run " * 100)
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert max(map(len, labels)) <= 40 + len(" (0.60)") and any("…" in label for label in labels)
    assert len(figure.texts[0].get_text()) <= 95


@pytest.mark.parametrize("backend", ["nonsense", "module://matplotlib_inline.backend_inline"])
def test_pictures_need_no_window_whatever_the_users_back_end_is(backend: str) -> None:
    code = "import report.policy_plot, matplotlib; print(matplotlib.rcParams['backend'])"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "agg\n"), done.stderr


def test_usage_that_cannot_be_drawn_is_named_and_leaves_no_picture(tmp_path: Path) -> None:
    empty = write_usage(tmp_path / "empty", train=np.zeros((0, 73)), val=np.zeros((0, 73)))
    damaged = write_usage(tmp_path / "damaged")
    (damaged / "usage.npz").write_bytes(b"no archive")
    partial = tmp_path / "partial"
    partial.mkdir()
    np.savez(partial / "usage.npz", **gate_table("block", SMALL))
    for run, words in (
        (tmp_path / "none", "is missing"),
        (empty, "holds no epoch yet"),
        (damaged, "cannot be read"),
        (partial, "lacks train, val, question_types, val_by_type"),
    ):
        with pytest.raises(RunError, match=words):
            draw_run(Run(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()
