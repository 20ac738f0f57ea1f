"""The report that a run leaves: the questions it keeps, what the data say of them, what a failure costs."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.helpers.paths import SRC
from tests.helpers.runs import write_run
from tests.helpers.small import write_dataset
from tests.report.test_html import Reader

from common.errors import RunError
from report.run import Run
from tasks import vqa, vqa_report
from tasks.finetune.args import VqaArgs
from tasks.finetune.examples import CHANCE, EXAMPLES, UNUSUAL, WRONG, choose_examples
from tasks.finetune.report import shrunk

FOLDER, FILE = Path("snap/vqa/run"), Path("visualizations/run/report.html")
Capture = pytest.CaptureFixture[str]


def page(file: Path = FILE) -> Reader:
    return Reader(file.read_text(encoding="utf-8"))


def test_questions_are_kept_for_a_reason() -> None:
    rng = np.random.default_rng(0)
    scores, probabilities = rng.integers(0, 2, 1000).astype(float), rng.random(1000)
    departing = rng.integers(0, 50, 1000)
    chosen = choose_examples(scores, probabilities, departing)
    assert len(chosen) == EXAMPLES
    by_reason = {
        reason: [p for p, why in chosen.items() if why == reason] for reason in (CHANCE, UNUSUAL, WRONG)
    }
    assert [len(places) for places in by_reason.values()] == [80, 60, 60]
    left = [place for place in range(1000) if place not in chosen]
    assert departing[by_reason[UNUSUAL]].min() >= departing[left].max()
    assert (scores[by_reason[WRONG]] == 0).all()
    assert probabilities[by_reason[WRONG]].min() > max(probabilities[p] for p in left if scores[p] == 0)
    # Those drawn at random are the same for a run that answers otherwise.
    other = choose_examples(1 - scores, probabilities, np.zeros(1000, int))
    assert {place for place, why in other.items() if why == CHANCE} >= set(by_reason[CHANCE])
    assert len(other) == EXAMPLES and UNUSUAL not in other.values()


def test_of_few_questions_all_are_kept() -> None:
    assert set(choose_examples(np.ones(7), np.ones(7), np.ones(7))) == set(range(7))


@pytest.mark.parametrize("strategy", ["standard", "SpotTune_Block"])
def test_what_is_kept_is_what_the_model_answers_to_the_question(args: VqaArgs, strategy: str) -> None:
    args = replace(args, strategy=strategy, lr=3e-2)
    vqa.main(args)
    kept, scores = Run(FOLDER).examples(), Run(FOLDER).scores("best")
    assert kept.epoch == scores.epoch and len(kept.question_id) == len(scores.question_id) == 60
    assert kept.answers[:, 0].tolist() == scores.answer.tolist()
    assert kept.probabilities[:, 0].tolist() == scores.probability.tolist()
    records = json.loads((Path(args.data) / "vqav2" / "minival.json").read_text())
    record = records[7]
    assert kept.question_id[7] == record["question_id"]
    question = {"question": [record["sent"]], "image_id": record["img_id"], "load": str(FOLDER / "BEST")}
    (asked,) = vqa.main(replace(args, strategy=None, **question))["asked"]
    assert dict(zip(kept.answers[7].tolist(), kept.probabilities[7].tolist(), strict=True)) == pytest.approx(
        asked.answers, rel=1e-4
    )
    assert kept.gates[7].tolist() == asked.tuned
    assert kept.usual.tolist() == (kept.gates.mean(0) > 0.5).tolist()  # all questions are kept here


def test_averaged_gates_are_no_choice_and_are_not_kept(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1, evaluate_gates="average"))
    assert Run(FOLDER).examples().gates.shape == (60, 0)


def test_every_run_ends_with_a_report_and_says_where(args: VqaArgs, capsys: Capture) -> None:
    vqa.main(replace(args, epochs=2, report=True))
    assert f"look at it: {FILE}" in " ".join(capsys.readouterr().out.split())
    read = page()
    (record,) = json.loads((Path(args.data) / "vqav2" / "minival.json").read_text())[3:4]
    (entry,) = (each for each in read.data["questions"] if each["id"] == str(record["question_id"]))
    (right,) = record["label"]
    assert entry["text"] == record["sent"]
    assert entry["human"] == [[right, "7 of 10"], ["a thing", "3 of 10"]]  # all of them, not the label
    assert read.data["images"][entry["image"]]["name"] == record["img_id"]
    assert read.data["images"][entry["image"]]["boxes"]
    assert read.data["missing"] == ""
    assert FILE.stat().st_size < 3_000_000


def test_no_report_is_written_where_none_is_wanted(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1, report=False))
    assert not FILE.exists()


def test_a_report_that_fails_costs_one_sentence(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug of the report")

    monkeypatch.setattr("tasks.finetune.report.make_report", fail)
    outcome = vqa.main(replace(args, epochs=1, report=True))
    assert json.loads((FOLDER / "result.json").read_text()) == outcome
    log = (FOLDER / "train.log").read_text()
    assert "There is no report of this run (RuntimeError: a bug of the report)." in " ".join(log.split())
    assert "look at it" not in log and "best weights" in log


def test_without_the_template_library_there_is_no_report(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tasks.finetune.report", raising=False)
    monkeypatch.delitem(sys.modules, "report.html", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    vqa.main(replace(args, epochs=1, report=True))
    assert "There is no report of this run (ModuleNotFoundError" in " ".join(
        (FOLDER / "train.log").read_text().split()
    )


def test_the_command_writes_the_same_report_again(args: VqaArgs, capsys: Capture) -> None:
    vqa.main(replace(args, epochs=1, report=True))
    written = FILE.read_bytes()
    FILE.unlink()
    capsys.readouterr()
    vqa_report.main(["run"])
    assert capsys.readouterr().out == f"wrote {FILE}\n"
    assert FILE.read_bytes() == written


def test_several_versions_get_a_report_of_their_own(args: VqaArgs, capsys: Capture) -> None:
    for name, lr in (("a", 3e-3), ("b", 1e-2)):
        vqa.main(replace(args, version=name, lr=lr, epochs=1))
    capsys.readouterr()
    vqa_report.main(["a", "snap/vqa/b"])
    assert capsys.readouterr().out == "wrote visualizations/a-b/report.html\n"
    assert "--lr 0.003 0.01" in page(Path("visualizations/a-b/report.html")).words
    vqa_report.main(["report", "a", "b", "--to", "there/both.html"])
    assert Path("there/both.html").is_file()


def test_a_run_with_the_name_of_a_command_is_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("snap/vqa/policy"))
    vqa_report.main(["report", "policy"])
    read = page(Path("visualizations/policy/report.html"))
    assert "data/mine" in read.data["missing"]  # there is no such data set, and the rest is there
    assert len(read.data["questions"]) == 24


def test_a_version_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match="snap/vqa/nowhere"):
        vqa_report.main(["nowhere"])
    assert not Path("visualizations").exists()


def drawn(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """A picture of noise, which no format makes small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def test_pictures_of_the_data_set_are_in_the_report(args: VqaArgs, tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "with" / "vqav2")
    (folder / "images").mkdir()
    drawn((64, 48)).save(folder / "images" / "minival_0.png")
    drawn((64, 48)).save(folder / "images" / "minival_1.jpg")
    (folder / "images" / "minival_2.png").write_bytes(b"no picture")
    vqa.main(replace(args, data=str(tmp_path / "with"), epochs=1, report=True))
    pictures = {image["name"]: image["picture"] for image in page().data["images"]}
    for name in ("minival_0", "minival_1"):
        url, width, height = pictures[name]
        assert (width, height) == (64, 48)
        content = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(content)).size == (64, 48)
    assert pictures["minival_2"] is pictures["minival_3"] is None


def test_a_large_picture_is_made_small(tmp_path: Path) -> None:
    drawn((1600, 1200)).save(tmp_path / "large.png")
    url, width, height = shrunk(tmp_path / "large.png", 8_000)
    assert len(base64.b64decode(url.partition(",")[2])) <= 8_000
    assert width / height == pytest.approx(4 / 3, rel=0.05)
    _, width, _ = shrunk(tmp_path / "large.png", 10**9)
    assert width == 360


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda data: shutil.rmtree(data), "vqav2"),
        (lambda data: (data / "vqav2" / "minival.json").write_text("[{"), "minival.json"),
        (lambda data: shutil.rmtree(data / "vqav2" / "features"), "features"),
    ],
)
def test_data_that_is_gone_costs_what_it_says(
    args: VqaArgs, tmp_path: Path, harm: Callable[[Path], Any], said: str
) -> None:
    data = tmp_path / "mine"
    write_dataset(data / "vqav2")
    vqa.main(replace(args, data=str(data), epochs=1))
    harm(data)
    vqa_report.main(["run"])
    assert said in page().data["missing"]
    assert len(page().data["questions"]) == 60


def test_accuracies_by_type_are_in_the_closing_table_before_the_overall_one(
    args: VqaArgs, tmp_path: Path
) -> None:
    """On data without human answers, and with questions of no type."""
    folder = write_dataset(tmp_path / "mine" / "vqav2")
    shutil.rmtree(folder / "annotations")
    file = folder / "minival.json"
    records = json.loads(file.read_text())
    for record in records[::3]:
        del record["question_type"]
    records[0]["answer_type"] = "number"
    file.write_text(json.dumps(records))
    outcome = vqa.main(replace(args, data=str(tmp_path / "mine"), epochs=1, strategy="standard"))
    scores = Run(FOLDER).scores()
    by_type = outcome["val_by_question_type"]
    assert list(by_type) == ["colour", "yes or no", "(none)"]
    for name, accuracy in by_type.items():
        chosen = scores.types["question type"] == name.replace("(none)", "")
        assert accuracy == pytest.approx(100 * scores.score[chosen].mean(), abs=1e-4)
    assert list(outcome["val_by_answer_type"]) == ["number", "other"]
    assert "val_official" not in {name for name, value in outcome.items() if value is not None}
    table = (FOLDER / "train.log").read_text().split("-----\n")[1]
    lines = [" ".join(line.split()) for line in table.splitlines()]
    start = lines.index("validation accuracy by question type")
    expected = [f"{name} {accuracy:.2f} %" for name, accuracy in by_type.items()]
    assert lines[start + 1 : start + 4] == expected
    overall = f"validation accuracy (soft target, last epoch) {outcome['val_accuracy']:.2f} %"
    assert lines.index(overall) > start + 3


def test_an_evaluation_ends_with_the_overall_accuracy_rounded(args: VqaArgs, capsys: Capture) -> None:
    vqa.main(replace(args, epochs=1))
    capsys.readouterr()
    tested = vqa.main(replace(args, strategy=None, load=str(FOLDER / "BEST"), test="minival"))
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == f"minival: 60 questions, soft-target accuracy {tested['accuracy']:.2f} %"
    names = [line.split("  ")[0] for line in lines]
    order = ["soft-target accuracy by answer type", "soft-target accuracy by question type"]
    order += ["official VQA accuracy by question type", "official VQA accuracy by answer type"]
    places = [names.index(name) for name in (*order, "official VQA accuracy")]
    assert places == sorted(places)


def test_the_kept_questions_are_read_without_torch(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1))
    code = (
        "import sys, report.html\nfrom pathlib import Path\nfrom report.run import Run\n"
        f"from report.examples import Asked\nrun = Run(Path({str(FOLDER)!r}))\n"
        "assert len(run.examples().question_id) == 60\n"
        "report.html.write_report([run], Path('alone.html'), lambda images: Asked())\n"
        "assert not {'torch', 'matplotlib'} & sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert Path("alone.html").is_file()


def test_examples_that_cannot_be_written_leave_no_part_of_them(args: VqaArgs) -> None:
    (FOLDER / "scores" / "minival-examples.npz").mkdir(parents=True)
    assert vqa.main(replace(args, epochs=1))["epoch"] == 1
    assert "The scores of this epoch are missing" in (FOLDER / "train.log").read_text()
    assert [path.name for path in (FOLDER / "scores").glob("*examples*")] == ["minival-examples.npz"]
    assert list((FOLDER / "scores" / "minival-examples.npz").iterdir()) == []
