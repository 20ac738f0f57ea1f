from __future__ import annotations

from report.bench_table import bench_markdown


def row(name: str, train: float, evaluation: float, peak: float, *against: str) -> dict:
    spread = {"train": train, "evaluation": evaluation, "peak": peak}
    return {"name": name, "against": list(against)} | {k: [v - 1, v, v + 1] for k, v in spread.items()}


REPORT = {
    "hardware": {"processor": "a processor", "threads": 2},
    "versions": {"torch": "1", "transformers": "2"},
    "arguments": {"batch": "32", "repeats": "3"},
    "rows": [row("slow", 2, 10, 8), row("plain", 5, 20, 6), row("ours", 6, 25, 4, "slow", "plain", "absent")],
}


def test_ratios_are_of_medians_and_a_line_for_each_reference_that_was_measured() -> None:
    lines = bench_markdown(REPORT).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:6]]
    assert cells[0][:4] == ["slow", "2.0 (1.0 to 3.0)", "10.0 (9.0 to 11.0)", "8.00"]
    assert cells[2][4:] == ["slow", "3.00x", "2.50x", "0.50x"]
    assert cells[3] == ["", "", "", "", "plain", "1.20x", "1.25x", "0.67x"]
    assert len({line.count("|") for line in lines[:6]}) == 1


def test_the_note_says_what_it_was_measured_with() -> None:
    note = bench_markdown(REPORT).splitlines()[-1]
    assert note.startswith("a processor, 2 threads, torch 1, transformers 2; batch 32, 3 turns")
