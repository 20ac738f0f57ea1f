"""The table's numbers are the means of the runs, and the README changes only between its markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.cli import run_command
from report.results_table import make_tables
from report.run import Run
from report.statistics import crossed_interval, paired_interval, seeds_interval
from tasks import vqa_report

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

Capture = pytest.CaptureFixture[str]


def results(arguments: list[str]) -> int:
    return run_command(lambda: vqa_report.main(["results", *arguments]), "")


def markdown(arguments: list[str]) -> int:
    return results([*arguments, "--markdown-only"])


def write_run(root: Path, strategy: str, seed: int, train: float, val: float, **changes: Any) -> Path:
    scratch = "-scratch" * changes.get("from_scratch", False)
    run = root / f"compare-{changes.get('dataset', '')}{strategy}-{seed}{scratch}"
    result = {
        "dataset": "scenes",
        "strategy": strategy,
        "from_scratch": False,
        "seed": seed,
        "epochs": 14,
        "train_accuracy": train,
        "val_accuracy": val,
        "gap": train - val,
        "best": {"epoch": 3, "val_accuracy": val + 1},
        "share_tuned": 0.5 + seed / 10 if strategy.startswith("SpotTune") else None,
        "seconds": 30.0 + 4 * seed,
    }
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(result | changes))
    return run


def write_answered(root: Path, strategy: str, seed: int, scores: np.ndarray, **changes: Any) -> str:
    """A run with scores (N,), four questions an image."""
    accuracy = 100 * float(scores.mean())
    run = write_run(root, strategy, seed, accuracy + 10, accuracy, **changes)
    (run / "args.json").write_text('{"valid": "minival"}')
    (run / "scores").mkdir()
    number = np.arange(len(scores))
    columns = {"question_id": number, "image": (number // 4).astype(str), "answer": scores.astype(str)}
    np.savez(run / "scores" / "minival-last.npz", epoch=14, score=scores, probability=scores, **columns)
    return str(run)


def write_all(root: Path) -> list[str]:
    """Two seeds of each strategy, all orderings as expected; written in an order unlike the table's."""
    figures = {"SpotTune": (82, 73.5), "standard": (85, 72), "SpotTune_Block": (81, 73), "Frozen": (74, 72.5)}
    runs = [
        write_run(root, strategy, seed, train + 2 * seed, val + seed)
        for strategy, (train, val) in figures.items()
        for seed in (0, 1)
    ]
    runs += [write_run(root, "standard", seed, 49, 42, from_scratch=True) for seed in (0, 1)]
    return [str(run) for run in runs]


def rows(output: str) -> list[list[str]]:
    lines = [line for line in output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def orderings(capsys: Capture) -> list[str]:
    """The claims that were printed, each in one line again."""
    text = capsys.readouterr().out.partition("\nOrderings:\n- ")[2]
    return [" ".join(claim.split()) for claim in text.split("\n- ") if claim]


def error(arguments: list[str], capsys: Capture) -> str:
    assert results(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    return captured.err


def test_cells_are_means_and_sample_standard_deviations(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        str(write_run(tmp_path, "SpotTune", 0, 80.0, 70.0)),
        str(write_run(tmp_path, "SpotTune", 1, 82.0, 73.0)),
        str(write_run(tmp_path, "SpotTune", 2, 87.0, 73.0)),
    ]
    assert markdown(runs) == 0
    output = capsys.readouterr().out
    # train 80, 82, 87: mean 83, deviations -3, -1, 4, so sqrt(26 / 2) = 3.61; validation 70, 73, 73: mean 72,
    # sqrt(6 / 2) = 1.73; gap 10, 9, 14: mean 11, sqrt(14 / 2) = 2.65; share .5, .6, .7; seconds 30, 34, 38.
    expected = ["SpotTune", "83.0 ± 3.6", "72.0 ± 1.7", "11.0 ± 2.6", "73.0 ± 1.7", "0.60 ± 0.10", "34 ± 4"]
    assert rows(output)[2] == expected
    assert "Data set scenes, 14 epochs, 3 seeds per strategy" in output


def test_one_seed_has_no_deviation_and_no_policy_no_share(tmp_path: Path, capsys: Capture) -> None:
    assert markdown([str(write_run(tmp_path, "Frozen", 0, 74.0, 72.5))]) == 0
    output = capsys.readouterr().out
    assert rows(output)[2] == ["Frozen", "74.0", "72.5", "1.5", "73.5", "none", "30"]
    assert "1 seed per strategy" in output and "±" not in output


@pytest.mark.parametrize(
    ("seconds", "unit", "text"), [(599, "s", "599"), (3000, "min", "50.0"), (18000, "h", "5.0")]
)
def test_times_have_a_unit_that_suits_them(
    tmp_path: Path, capsys: Capture, seconds: int, unit: str, text: str
) -> None:
    assert markdown([str(write_run(tmp_path, "Frozen", 0, 74.0, 72.5, seconds=seconds))]) == 0
    table = rows(capsys.readouterr().out)
    assert table[0][-1] == f"training time ({unit})" and table[2][-1] == text


def test_rows_are_in_the_order_of_the_strategy_table_and_unknown_strategies_come_last(
    tmp_path: Path, capsys: Capture
) -> None:
    runs = write_all(tmp_path)
    runs.insert(0, str(write_run(tmp_path, "SpotTune_Hat", 0, 81.0, 73.0)))
    assert markdown(runs) == 0
    output = capsys.readouterr().out
    names = [row[0] for row in rows(output)[2:]]
    assert names == ["from scratch", "standard", "Frozen", "SpotTune", "SpotTune_Block", "SpotTune_Hat"]
    assert "standard 2" in output and "SpotTune_Hat 1" in output


def test_orderings_that_hold_are_said_to_hold_with_their_numbers(tmp_path: Path, capsys: Capture) -> None:
    runs = write_all(tmp_path)
    assert results(runs) == 0
    lines = orderings(capsys)
    assert len(lines) == 5
    assert all(line.endswith(": holds") for line in lines)
    # Validation: from scratch 42, standard (72 + 73) / 2, SpotTune (73.5 + 74.5) / 2.
    assert "30.50 below standard" in lines[0]
    assert "SpotTune is at most 1.5 points below standard in validation: +1.50" in lines[1]
    # Gaps: Frozen (1.5 + 2.5) / 2, SpotTune (8.5 + 9.5) / 2, standard (13 + 14) / 2.
    assert "2.00, 9.00, 13.50; 4.50 below standard" in lines[3]


@pytest.mark.parametrize(
    ("strategy", "scratch", "train", "val", "claim"),
    [
        ("standard", True, 60.0, 53.5, "from scratch is at least"),
        ("SpotTune", False, 80.0, 71.0, "SpotTune is at most 1.5"),
        ("SpotTune", False, 84.1, 73.5, "gap Frozen < SpotTune"),  # 2.4 points below standard's
        ("SpotTune", False, 74.0, 73.5, "gap Frozen < SpotTune"),  # below Frozen's
    ],
)
def test_an_ordering_that_fails_is_said_to_fail(
    tmp_path: Path, capsys: Capture, strategy: str, scratch: bool, train: float, val: float, claim: str
) -> None:
    figures = {"standard": (86.0, 73.0), "Frozen": (75.0, 73.0), "SpotTune": (82.0, 73.5)}
    baselines = {(name, False): figure for name, figure in figures.items()} | {
        ("standard", True): (49.0, 42.0)
    }
    all_runs = baselines | {(strategy, scratch): (train, val)}
    runs = [str(write_run(tmp_path, n, 0, *figure, from_scratch=s)) for (n, s), figure in all_runs.items()]
    assert results(runs) == 0
    lines = orderings(capsys)
    failed = [line for line in lines if line.endswith("does not hold")]
    assert len(lines) == 3
    assert len(failed) == 1 and claim in failed[0]


def test_orderings_without_their_strategies_are_left_out(tmp_path: Path, capsys: Capture) -> None:
    runs = [str(write_run(tmp_path, name, 0, 80.0, 72.0)) for name in ("standard", "SpotTune")]
    assert results(runs) == 0
    lines = orderings(capsys)
    assert len(lines) == 1 and "at most 1.5 points" in lines[0]


def test_the_readme_changes_only_between_its_markers(tmp_path: Path, capsys: Capture) -> None:
    runs = write_all(tmp_path)
    readme = tmp_path / "README.md"
    before, after = "# Title\n\n| a | b |\n", "\n## Later\nend without newline"
    readme.write_text(f"{before}{BEGIN}\nold\n{END}{after}", encoding="utf-8")
    assert markdown([*runs, "--readme", str(readme)]) == 0
    first = readme.read_text(encoding="utf-8")
    table = capsys.readouterr().out.strip()
    assert first == f"{before}{BEGIN}\n{table}\n{END}{after}"
    assert "holds" not in first
    assert results([*runs, "--readme", str(readme)]) == 0
    assert readme.read_text(encoding="utf-8") == first
    assert "holds" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", BEGIN, f"{END} {BEGIN}", f"{BEGIN} {BEGIN} {END}"])
def test_a_readme_without_its_markers_is_an_error_and_untouched(
    tmp_path: Path, capsys: Capture, text: str
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    run = write_run(tmp_path, "Frozen", 0, 74.0, 72.5)
    message = error([str(run), "--readme", str(readme)], capsys)
    assert BEGIN in message and END in message and str(readme) in message
    assert readme.read_text() == text


def test_the_json_file_holds_the_numbers_unrounded(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    assert results([*write_all(tmp_path), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    (content,) = content["tables"]
    assert (content["dataset"], content["reference"]) == ("scenes", "standard")
    (spottune,) = [row for row in content["rows"] if row["name"] == "SpotTune"]
    assert (spottune["seeds"], spottune["epochs"]) == ([0, 1], 14)
    assert spottune["to_reference"]["mean"] == 1.5
    assert spottune["val_accuracy"] == {"mean": 74.0, "std": pytest.approx(0.5**0.5)}
    assert len(content["orderings"]) == 5 and content["orderings"][0]["holds"] is True


def test_unfinished_runs_are_all_named(tmp_path: Path, capsys: Capture) -> None:
    finished = write_run(tmp_path, "Frozen", 0, 74.0, 72.5)
    (tmp_path / "compare-unfinished").mkdir()
    message = error(
        [str(finished), *(str(tmp_path / f"compare-{n}") for n in ("unfinished", "none"))], capsys
    )
    assert "compare-unfinished" in message and "compare-none" in message and str(finished) not in message


def test_runs_of_one_row_with_other_epochs_are_an_error(tmp_path: Path, capsys: Capture) -> None:
    runs = [write_run(tmp_path, "Frozen", 0, 74, 72), write_run(tmp_path, "Frozen", 1, 86, 73, epochs=4)]
    assert "Frozen have different numbers of epochs [4, 14]" in error([str(run) for run in runs], capsys)


def test_rows_may_have_epochs_of_their_own_which_the_caption_says(tmp_path: Path, capsys: Capture) -> None:
    runs = [write_run(tmp_path, "Frozen", 0, 74, 72), write_run(tmp_path, "standard", 0, 86, 73, epochs=4)]
    assert results([str(run) for run in runs]) == 0
    assert "epochs: standard 4, Frozen 14" in capsys.readouterr().out


def test_every_data_set_has_a_table_of_its_own(tmp_path: Path, capsys: Capture) -> None:
    runs = [write_run(tmp_path, "Frozen", 0, 74, 72, dataset=name) for name in ("vqav2", "scenes")]
    assert markdown([str(run) for run in runs]) == 0
    output = capsys.readouterr().out
    assert output.index("Data set vqav2") < output.index("Data set scenes")
    assert output.count("| Frozen |") == 2


# ------------------------------------------------------------------------------------------------ differences


def answered(root: Path, seeds: int = 3) -> tuple[list[str], dict[str, np.ndarray]]:
    """Runs of three strategies on 400 questions: SpotTune hardly better than standard, and Frozen worse."""
    rng = np.random.default_rng(0)
    hard = np.repeat(rng.normal(size=100), 4)
    shifts = {"standard": 0.0, "SpotTune": 0.02, "Frozen": -0.6}
    scores = {
        name: (hard + rng.normal(size=(seeds, 400)) + shift > 0).astype(float)
        for name, shift in shifts.items()
    }
    runs = [write_answered(root, name, s, of_all[s]) for name, of_all in scores.items() for s in range(seeds)]
    return runs, scores


def test_differences_are_paired_over_seeds_and_images(tmp_path: Path, capsys: Capture) -> None:
    runs, scores = answered(tmp_path)
    assert markdown(runs) == 0
    table = rows(capsys.readouterr().out)
    assert table[0][3] == "difference to standard"
    by_name = {row[0]: row for row in table[2:]}
    assert by_name["standard"][3] == ""
    images = np.arange(400) // 4
    for name in ("SpotTune", "Frozen"):
        interval = crossed_interval(100 * (scores[name] - scores["standard"]), images)
        assert by_name[name][3] == f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"


def test_another_row_can_be_the_reference(tmp_path: Path, capsys: Capture) -> None:
    runs, _ = answered(tmp_path)
    assert markdown([*runs, "--reference", "Frozen"]) == 0
    table = rows(capsys.readouterr().out)
    assert table[0][3] == "difference to Frozen"
    assert {row[0] for row in table[2:] if not row[3]} == {"Frozen"}
    assert "there is no row 'Frosen' to compare with; there are" in error(
        [*runs, "--reference", "Frosen"], capsys
    )


def test_rows_that_the_best_one_is_not_told_from_are_marked(tmp_path: Path, capsys: Capture) -> None:
    runs, _ = answered(tmp_path)
    assert markdown(runs) == 0
    output = capsys.readouterr().out
    marked = {row[0]: row[2].endswith("†") for row in rows(output)[2:]}
    assert marked == {"standard": True, "SpotTune": True, "Frozen": False}
    assert "† best, or tied with the best: the interval of the difference includes 0." in output


def test_the_caption_says_which_difference_would_be_found(tmp_path: Path, capsys: Capture) -> None:
    runs, scores = answered(tmp_path)
    assert markdown(runs) == 0
    images = np.arange(400) // 4
    differences = [scores[name] - scores["standard"] for name in ("SpotTune", "Frozen")]
    least = np.median([crossed_interval(100 * part, images).least_detectable for part in differences])
    assert f"finds a difference of {least:.1f} points in 80 % of cases." in capsys.readouterr().out


def test_one_seed_is_paired_over_images_alone(tmp_path: Path, capsys: Capture) -> None:
    runs, scores = answered(tmp_path, seeds=1)
    assert markdown(runs) == 0
    interval = paired_interval(100 * (scores["Frozen"] - scores["standard"])[0], np.arange(400) // 4)
    text = f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    assert text in capsys.readouterr().out


def test_runs_of_before_there_were_scores_are_paired_over_seeds_alone(
    tmp_path: Path, capsys: Capture
) -> None:
    accuracies = {"standard": (72.0, 73.5, 72.2), "Frozen": (74.0, 74.5, 75.0)}
    runs = [
        str(write_run(tmp_path, name, seed, 80, value))
        for name, values in accuracies.items()
        for seed, value in enumerate(values)
    ]
    assert markdown(runs) == 0
    interval = seeds_interval(np.array(accuracies["Frozen"]) - accuracies["standard"])
    text = f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
    assert text in capsys.readouterr().out


def test_without_seeds_in_common_there_is_no_interval(tmp_path: Path, capsys: Capture) -> None:
    runs = [str(write_run(tmp_path, "Frozen", 0, 80, 74)), str(write_run(tmp_path, "standard", 1, 80, 72))]
    assert markdown(runs) == 0
    output = capsys.readouterr().out
    assert "difference" not in output and "†" not in output


def test_other_questions_are_an_error(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        write_answered(tmp_path, name, 0, np.ones(count))
        for name, count in (("standard", 40), ("Frozen", 44))
    ]
    assert "answered other validation questions" in error(runs, capsys)


def test_a_number_that_only_some_runs_have_is_a_column(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        str(write_run(tmp_path, "standard", 0, 86, 73, own_gap=16.94)),
        str(write_run(tmp_path, "SpotTune", 0, 84, 73, own_gap=14.31, worth=0.256)),
    ]
    assert markdown(runs) == 0
    heading, _, standard, spottune = rows(capsys.readouterr().out)
    columns = heading.index("own gap (points)"), heading.index("worth of the choice per input (points)")
    assert [standard[column] for column in columns] == ["16.9", "none"]
    assert [spottune[column] for column in columns] == ["14.3", "0.26"]


def test_a_label_makes_a_row(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        str(write_run(tmp_path, "standard", 0, 86, 73)),
        str(write_run(tmp_path / "x", "standard", 0, 84, 74, label="a third")),
    ]
    assert markdown(runs) == 0
    assert [row[0] for row in rows(capsys.readouterr().out)[2:]] == ["standard", "a third"]


def test_the_same_run_twice_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    run = str(write_run(tmp_path, "Frozen", 0, 74, 72))
    assert "Frozen has two runs with the same seed" in error([run, run], capsys)


def test_a_share_tuned_in_some_runs_of_a_strategy_only_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    runs = [
        write_run(tmp_path, "SpotTune", seed, 82, 73, share_tuned=share)
        for seed, share in ((0, 0.5), (1, None))
    ]
    assert "some runs of SpotTune have a share tuned" in error([str(run) for run in runs], capsys)


def test_runs_that_refit_what_others_found_may_have_gates_or_none(tmp_path: Path) -> None:
    runs = []
    for seed, share in ((0, 0.5), (1, None)):
        runs.append(Run(write_run(tmp_path, "SpotTune", seed, 82, 73, share_tuned=share)))
        (runs[-1].folder / "args.json").write_text('{"refit": "found"}')
    (row,) = make_tables(runs)[0].rows
    assert row.measures["share_tuned"] is None and row.mean("val_accuracy") == 73


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds no JSON object"),
        ('{"dataset": "scenes"}', "lacks a usable strategy"),
        ('{"dataset": null}', "lacks a usable dataset"),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, capsys: Capture, content: str, words: str) -> None:
    run = write_run(tmp_path, "Frozen", 0, 74, 72)
    (run / "result.json").write_text(content)
    message = error([str(run)], capsys)
    assert words in message and str(run) in message


def test_what_is_printed_fits_a_terminal_and_has_the_numbers_of_the_markdown(
    tmp_path: Path, capsys: Capture
) -> None:
    runs = [*write_all(tmp_path), str(write_run(tmp_path, "SpotTune_Res", 0, 80.0, 70.0, seconds=4000))]
    assert markdown(runs) == 0
    cells = [cell for row in rows(capsys.readouterr().out)[2:] for cell in row]
    assert results(runs) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert all(cell.replace(" ± ", "±") in printed for cell in cells)
