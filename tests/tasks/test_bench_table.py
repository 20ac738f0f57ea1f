from __future__ import annotations

from tasks.bench.picture import PANELS, speed_figure
from tasks.bench.table import all_rows, medians


def row(name: str, train: list[float], evaluation: list[float], tensors: list[float], *against: str) -> dict:
    figures = {"train": train, "evaluation": evaluation, "tensors": tensors, "process": [9, 9, 9]}
    figures |= {"train_operations": [1200] * 3, "evaluation_operations": [400] * 3}
    return {"name": name, "against": list(against)} | figures


MEASURED = {
    "hardware": {"processor": "a processor", "threads": 2},
    "versions": {"torch": "1", "transformers": "2"},
    "arguments": {"batch": "32", "repeats": "3"},
    "rows": [
        row("slow", [1, 2, 4], [10, 10, 10], [8, 8, 8]),
        row("plain", [5, 5, 5], [20, 20, 20], [6, 6, 6]),
        row("ours", [3, 4, 16], [25, 25, 25], [4, 4, 4.004], "slow", "plain", "absent"),
    ],
}


def test_ratios_are_taken_repeat_by_repeat_and_against_each_reference_that_was_measured() -> None:
    lines = all_rows(MEASURED).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0][:7] == ["slow", "2.0 (1.0 to 4.0)", "10.0", "8.00", "9.00", "1,200", "400"]
    assert cells[2][7:] == ["slow", "3.00x (2.00 to 4.00)", "2.50x", "0.50x", "1.00x", "1.00x", "1.00x"]
    assert cells[3][6:] == ["", "plain", "0.80x (0.60 to 3.20)", "1.25x", "0.67x", *["1.00x"] * 3]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_the_note_says_what_it_was_measured_with() -> None:
    note = all_rows(MEASURED).splitlines()[-1]
    assert note.startswith("a processor, 2 threads, torch 1, transformers 2; batch 32, repeats: 3")


def test_a_line_of_medians_has_the_training_speed_against_the_first_reference() -> None:
    assert medians(MEASURED)[1:] == [
        ["slow", "2.0", "10.0", "8.00", "", ""],
        ["plain", "5.0", "20.0", "6.00", "", ""],
        ["ours", "4.0", "25.0", "4.00", "3.00x", "slow"],
    ]


def test_a_figure_that_could_not_be_measured_leaves_its_cells_empty() -> None:
    rows = [row | {"process": [None] * 3} for row in MEASURED["rows"]]
    lines = all_rows(MEASURED | {"rows": rows}).splitlines()
    assert [cell.strip() for cell in lines[4].strip("|").split("|")][4::7] == ["", ""]


def test_the_picture_has_a_bar_for_each_ratio_with_its_number() -> None:
    """Its variants at 1, 2, 3, ... times the speed of one reference, twice that in evaluation."""
    names = [f"{name}, {p}" for panel in PANELS.values() for name in panel.values() for p in ("fp32", "bf16")]
    rows = [row("reference", [1, 1, 1], [1, 1, 1], [1, 1, 1])]
    for speed, name in enumerate(names, 1):
        rows.append(row(name, [speed] * 3, [2 * speed] * 3, [1, 1, 1], "reference"))
    figure = speed_figure({"rows": rows})
    panels = figure.axes  # training and evaluation of the first panel, then of the others
    for train, evaluation in zip(panels[::2], panels[1::2], strict=True):
        assert [2 * bar.get_width() for bar in train.patches] == [
            bar.get_width() for bar in evaluation.patches
        ]
    drawn = [
        (bar.get_width(), text.get_text())
        for axes in panels[::2]
        for bar, text in zip(axes.patches, axes.texts, strict=True)
    ]
    assert drawn == [(speed, f"{speed:.2f}") for speed in range(1, len(names) + 1)]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for axes in panels for text in axes.texts]
    assert all(box.x1 <= figure.bbox.width for box in boxes)
