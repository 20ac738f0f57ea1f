"""What the gates of an adaptive BERT cost, measured in one command."""

import json
from pathlib import Path

import pytest

from tasks import adaptive_bench


def test_it_prints_and_writes_ratios_of_every_kind_and_sizes_of_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"
    adaptive_bench.main(["--quick", "--batch", "2", "--tokens", "8", "--json", str(file)])
    figures, printed = json.loads(file.read_text()), capsys.readouterr().out
    for tuned in ("full", "lora"):
        assert set(figures[tuned]) == {"frozen", "tuned", "policy"}
        for row in figures[tuned].values():
            assert 0 < row["least"] <= row["ratio"] <= row["most"] and row["plain"] > 0
            assert f"{row['ratio']:.3f} ({row['least']:.3f} to {row['most']:.3f})" in printed
    assert figures["lora, MB"] < figures["full, MB"] < 2 * figures["whole model, MB"]
    assert all(len(line) <= 80 for line in printed.splitlines())


def test_sizes_that_cannot_be_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        adaptive_bench.main(["--tokens", "513"])
    assert stop.value.code == 2 and "--tokens at most 512" in capsys.readouterr().err
