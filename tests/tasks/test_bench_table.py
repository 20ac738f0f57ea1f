from __future__ import annotations

from tasks.bench.table import bench_markdown


def row(name: str, train: list[float], evaluation: list[float], tensors: list[float], *against: str) -> dict:
    figures = {"train": train, "evaluation": evaluation, "tensors": tensors, "process": [9, 9, 9]}
    return {"name": name, "against": list(against)} | figures


REPORT = {
    "hardware": {"processor": "a processor", "threads": 2},
    "versions": {"torch": "1", "transformers": "2"},
    "arguments": {"batch": "32", "repeats": "3"},
    "rows": [
        row("slow", [1, 2, 4], [10, 10, 10], [8, 8, 8]),
        row("plain", [5, 5, 5], [20, 20, 20], [6, 6, 6]),
        row("ours", [3, 4, 16], [25, 25, 25], [4, 4, 4.004], "slow", "plain", "absent"),
    ],
}


def test_ratios_are_taken_turn_by_turn_and_against_each_reference_that_was_measured() -> None:
    lines = bench_markdown(REPORT).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0][:5] == ["slow", "2.0 (1.0 to 4.0)", "10.0", "8.00", "9.00"]
    assert cells[2][5:] == ["slow", "3.00x (2.00 to 4.00)", "2.50x", "0.50x", "1.00x"]
    assert cells[3][4:] == ["", "plain", "0.80x (0.60 to 3.20)", "1.25x", "0.67x", "1.00x"]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_the_note_says_what_it_was_measured_with() -> None:
    note = bench_markdown(REPORT).splitlines()[-1]
    assert note.startswith("a processor, 2 threads, torch 1, transformers 2; batch 32, turns: 3")
