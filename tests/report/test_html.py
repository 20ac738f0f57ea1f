"""The report as a file: its numbers are those of the run, it needs nothing else, and texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.paths import OLD_RUN, SRC
from tests.helpers.runs import FIRST_ID, GATES, QUESTIONS, write_run

from common.errors import RunError
from report import html
from report.examples import Asked, Picture
from report.html import View, accuracies_of, duration, figures_of, side_by_side, usage_of, write_report
from report.run import Run
from report.statistics import paired_interval

HOSTILE = (
    "<script>alert(1)</script>",
    "שלום עולם \u202e",
    "$\\x$ {{ 7 * 7 }}",
    "a" * 2000,
    "</script><b>&amp;'\"",
)


class Reader(HTMLParser):
    """Tags with their attributes, and the texts of style sheets, scripts and everything else."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("style", "script") else ""
        self.texts.setdefault(self._inside, []).append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._inside, [""])[-1] += data

    @property
    def policy(self) -> str:
        return next(a["content"] for tag, a in self.tags if a.get("http-equiv") == "Content-Security-Policy")

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.texts["script"][0])

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.texts[""]).split())


def nothing(images: Mapping[int, str]) -> Asked:
    return Asked()


def report_of(tmp_path: Path, *runs: Run, look_up: Any = nothing) -> Reader:
    write_report(runs, tmp_path / "report.html", look_up)
    return Reader((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_figures_are_those_of_the_run_with_intervals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    figures = dict(figures_of([View(run, 0, True)]))
    for at, epoch in (("last", ""), ("best", ", epoch 2")):
        scores = run.scores(at)
        interval = paired_interval(100 * scores.score.astype(float), scores.image)
        (cell,) = figures[f"validation accuracy, {at} epoch (%)"]
        assert cell.note == f"[{interval.low:.2f}, {interval.high:.2f}]{epoch}"
    texts = {name: cells[0].text for name, cells in figures.items()}
    assert texts["validation accuracy, last epoch (%)"] == "70.00"
    assert texts["validation accuracy, best epoch (%)"] == "75.00"
    assert texts["gap, to the running one (points)"] == "+20.00"
    assert figures["worth of the choice per input (points)"][0] == ("+1.50", "[+0.50, +2.50]")
    assert texts["training time"] == "30 s"
    assert "official VQA accuracy, last epoch (%)" not in texts  # nobody has it


def test_accuracies_by_type_end_with_that_of_all_questions(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", types=("colour", ""))
    rows = list(accuracies_of([View(run, 0, True)]))
    names = [(row.kind, row.name) for row in rows]
    assert names == [
        *(("answer type", name) for name in ("other", "yes/no")),
        *(("question type", name) for name in ("colour", "(none)")),
        ("", "all"),
    ]
    scores = run.scores()
    chosen = scores.types["question type"] == ""
    (interval,) = rows[3].of_runs
    assert interval == paired_interval(100 * scores.score[chosen].astype(float), scores.image[chosen])
    assert rows[3].questions == QUESTIONS // 2 and rows[-1].questions == QUESTIONS


def test_the_slider_has_the_shares_of_every_gate_in_every_epoch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    usage = usage_of(View(run, 0, True))
    assert usage["epochs"] == [1, 2, 3]
    assert np.allclose(usage["val"], 100 * run.usage["val"], atol=0.5)
    assert np.allclose(usage["train"], 100 * run.usage["train"], atol=0.5)
    assert [name for name, _ in usage["types"]] == ["count", "colour"]
    assert np.allclose([share for _, share in usage["types"]], 100 * run.usage["val_by_type"], atol=0.5)


def test_each_gate_is_on_the_page_once_and_dead_ones_say_so(tmp_path: Path) -> None:
    page = report_of(tmp_path, write_run(tmp_path / "a"))
    cells = [attributes for tag, attributes in page.tags if "data-gate" in attributes]
    assert sorted(int(cell["data-gate"]) for cell in cells) == list(range(len(GATES)))
    names = {int(cell["data-gate"]): cell["data-name"] for cell in cells}
    for number, (stream, layer, part, live) in enumerate(GATES):
        assert names[number] == f"{stream} layer {layer}, {part}"
        assert ("dead" in next(c["class"] for c in cells if c["data-gate"] == str(number))) != live


def test_the_page_needs_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    page = report_of(tmp_path, write_run(tmp_path / "a"))
    style, script = page.texts["style"][0], page.texts["script"][1]
    for name, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in page.policy
    assert "default-src 'none'" in page.policy and "unsafe" not in page.policy
    assert "eval(" not in script and "innerHTML" not in script
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "base")
        assert not [name for name in attributes if name == "style" or name.startswith("on")]
        assert not {"src", "srcset", "data"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"url\(|@import", style)


def test_the_script_is_short() -> None:
    assert len((SRC / "report" / html.SCRIPT).read_text().splitlines()) <= 150


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    images = ("__proto__", "<img src=x onerror=alert(1)>")
    arguments = {"label": HOSTILE[0], "note": HOSTILE[4]}
    run = write_run(tmp_path / "a", types=HOSTILE, answers=HOSTILE, images=images, **arguments)

    def look_up(images: Mapping[int, str]) -> Asked:
        return Asked(
            {question: HOSTILE[question % len(HOSTILE)] for question in images},
            {question: [(text, text) for text in HOSTILE] for question in images},
        )

    page = report_of(tmp_path, run, look_up=look_up)
    assert len(page.texts["script"]) == 2 and "img" not in dict(page.tags) and "b" not in dict(page.tags)
    for text in HOSTILE:
        assert " ".join(text.split()) in page.words
    questions = page.data["questions"]
    assert {question["text"] for question in questions} <= set(HOSTILE)
    assert [answer for answer, _ in questions[0]["human"]] == list(HOSTILE)
    assert [image["name"] for image in page.data["images"]] == list(images)


def test_a_question_id_beyond_javascripts_numbers_keeps_all_its_digits(tmp_path: Path) -> None:
    page = report_of(tmp_path, write_run(tmp_path / "a"))
    assert page.data["questions"][0]["id"] == str(FIRST_ID)


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", 1, adaptive=False, lr=3e-4)]
    page = report_of(tmp_path, *runs)
    assert "A one: SpotTune on mine, 3 epochs" in page.words and "B two: standard on mine" in page.words
    assert "--lr 0.001 0.0003" in page.words
    one, other = (run.scores() for run in runs)
    interval = paired_interval(100 * (other.score.astype(float) - one.score), one.image)
    assert f"{interval.mean:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]" in page.words
    differ = (one.answer != other.answer).sum()
    assert f"They give different answers to {differ} of {QUESTIONS} questions" in page.words
    assert page.data["letters"] == ["A", "B"] and len(page.data["maps"]) == 1
    both = [question for question in page.data["questions"] if all(question["runs"])]
    assert any(question["differ"] for question in both)


def test_the_third_run_is_called_c_in_its_comparison(tmp_path: Path) -> None:
    page = report_of(tmp_path, *(write_run(tmp_path / name, seed) for seed, name in enumerate("xyz")))
    assert "B against A" in page.words and "C against A" in page.words
    assert re.search(r": C scores higher on \d+, A on \d+", page.words)


def test_runs_on_other_data_have_no_questions_side_by_side(tmp_path: Path) -> None:
    page = report_of(tmp_path, write_run(tmp_path / "a"), write_run(tmp_path / "b", dataset="another"))
    assert page.data["questions"] == [] and "on different data" in page.data["missing"]


def test_an_older_run_has_a_report_of_what_it_kept(tmp_path: Path) -> None:
    page = report_of(tmp_path, Run(OLD_RUN))
    assert "scores/minival-last.npz is missing" in page.words
    assert "33.33" in page.words and "This run kept none." in page.words
    assert [map["epochs"] for map in page.data["maps"]] == [[1, 2]]


def test_a_run_that_goes_on_has_a_report_of_the_epochs_there_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run.folder / "result.json").unlink()
    page = report_of(tmp_path, Run(run.folder))
    assert "SpotTune on mine, 3 epochs, not finished" in page.words and "75.00" in page.words


def test_without_an_epoch_there_is_nothing_to_report(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    (run.folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    with pytest.raises(RunError, match="holds no epoch yet"):
        write_report([Run(run.folder)], tmp_path / "report.html", nothing)
    assert not (tmp_path / "report.html").exists()


def test_what_the_data_set_does_not_say_is_said(tmp_path: Path) -> None:
    page = report_of(
        tmp_path, write_run(tmp_path / "a"), look_up=lambda images: Asked(faults=["no such folder."] * 2)
    )
    assert page.data["missing"] == "Of the questions not all can be shown. no such folder."


def test_a_page_that_would_be_too_large_has_fewer_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(images: Mapping[int, str]) -> Asked:
        return Asked(pictures={image: Picture("data:," + "x" * 50_000, 1, 1) for image in images.values()})

    whole = report_of(tmp_path, write_run(tmp_path / "a"), look_up=look_up).data
    monkeypatch.setattr(html, "MOST_BYTES", 300_000)
    monkeypatch.setattr(html, "MOST_QUESTIONS", (200, 4, 0))
    small = report_of(tmp_path, write_run(tmp_path / "b"), look_up=look_up).data
    assert len(whole["questions"]) == 24 and len(small["questions"]) == 4
    assert (tmp_path / "report.html").stat().st_size <= 300_000


def test_values_of_set_ups_stand_beside_each_other() -> None:
    rows = side_by_side([{"a": {"b": 1, "c": [1, 2]}, "d": None}, {"a": {"b": 2}}])
    assert rows == [("a.b", ["1", "2"]), ("a.c", ["1 2", ""]), ("d", ["not given", ""])]


def test_times_are_in_units_that_people_read() -> None:
    assert [duration(seconds) for seconds in (58, 725, 12_345)] == ["58 s", "12 min", "3.4 h"]
