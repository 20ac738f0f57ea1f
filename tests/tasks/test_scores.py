"""What a run says of each validation question, and how well it answers those that it trained on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.helpers.stop import stop_after

from common.errors import Interrupted, UserError
from report.run import Run
from tasks import compare, vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.run import fixed_sample

FOLDER = Path("snap/vqa/run")


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, strategy="standard")


def records_of(args: VqaArgs, *splits: str) -> list[dict[str, Any]]:
    files = (Path(args.data) / "vqav2" / f"{split}.json" for split in splits)
    return [record for file in files for record in json.loads(file.read_text())]


def predicted(args: VqaArgs, split: str) -> list[str]:
    """The answers of BEST to a split, as the command for evaluation writes them."""
    vqa.main(replace(args, strategy=None, load=str(FOLDER / "BEST"), test=split))
    return [record["answer"] for record in json.loads((FOLDER / "predictions" / f"{split}.json").read_text())]


def test_the_scores_are_those_of_the_last_and_of_the_best_epoch(args: VqaArgs) -> None:
    outcome = vqa.main(replace(args, epochs=4, lr=3e-2))  # so high that the best epoch is not the last
    run, records = Run(FOLDER), records_of(args, "minival")
    for at, expected in (("last", outcome), ("best", outcome["best"])):
        scores = run.scores(at)
        assert scores.epoch == expected["epoch"]
        assert 100 * scores.score.astype(float).mean() == expected["val_accuracy"]
        assert scores.question_id.tolist() == [record["question_id"] for record in records]
        assert scores.image.tolist() == [record["img_id"] for record in records]
        assert scores.types["question type"].tolist() == [record["question_type"] for record in records]
        assert set(scores.types["answer type"]) == {"other"}
        right = [record["label"].get(a, 0) for record, a in zip(records, scores.answer.tolist(), strict=True)]
        assert scores.score.tolist() == right
    assert outcome["best"]["epoch"] < outcome["epoch"] == 4
    assert run.scores("best").answer.tolist() == predicted(args, "minival")


def test_the_probability_is_that_of_the_answer_by_itself(args: VqaArgs) -> None:
    vqa.main(replace(args, epochs=1))
    scores = Run(FOLDER).scores("best")
    (record,) = records_of(args, "minival")[7:8]
    question = {"question": (record["sent"],), "image_id": record["img_id"], "load": str(FOLDER / "BEST")}
    (asked,) = vqa.main(replace(args, strategy=None, **question))["asked"]
    answers = asked.answers
    assert max(answers, key=answers.get) == scores.answer[7]
    assert scores.probability[7] == pytest.approx(max(answers.values()), rel=1e-4)


def test_the_own_accuracy_is_that_of_the_model_on_a_sample_of_what_it_trained_on(args: VqaArgs) -> None:
    """The same questions, answered by the command for evaluation, which knows nothing of the sample."""
    outcome = vqa.main(replace(args, epochs=1, lr=1e-2))
    records = records_of(args, "train", "nominival")
    answers = [answer for split in ("train", "nominival") for answer in predicted(args, split)]
    right = [record["label"].get(a, 0) for record, a in zip(records, answers, strict=True)]
    sample = fixed_sample(len(records), len(records_of(args, "minival")))
    assert len(sample) == len(set(sample)) == 60 < len(records)
    assert outcome["own_train_accuracy"] == pytest.approx(100 * np.mean([right[n] for n in sample]))
    assert outcome["own_gap"] == outcome["own_train_accuracy"] - outcome["val_accuracy"]
    last = json.loads((FOLDER / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["own_gap"] == outcome["own_gap"]
    log = " ".join((FOLDER / "train.log").read_text().split())
    assert f" own gap {outcome['own_gap']:+.2f} points " in log


def test_an_interrupted_run_has_the_scores_of_an_uninterrupted_one(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(Interrupted):
            vqa.main(args)
    vqa.main(args)
    for name in ("minival", "minival-last"):
        one, two = (dict(np.load(Path("snap/vqa", run, "scores", f"{name}.npz"))) for run in ("whole", "run"))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[column], two[column]) for column in one)


def test_scores_that_cannot_be_written_cost_a_sentence_and_nothing_else(args: VqaArgs) -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "scores").write_text("in the way")
    assert vqa.main(replace(args, epochs=1))["epoch"] == 1
    assert "The scores of this epoch are missing; training goes on." in (FOLDER / "train.log").read_text()


def test_two_runs_are_compared_question_by_question(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [
        vqa.main(replace(args, version=name, lr=lr, epochs=1)) for name, lr in (("a", 3e-3), ("b", 1e-2))
    ]
    capsys.readouterr()
    assert compare.main(["--runs", "a", "snap/vqa/b", "--at", "best"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(
        "A: a, epoch 1\nB: b, epoch 1\n\narguments that differ:\n  --lr: A 0.003, B 0.01\n\n"
    )
    (line,) = (line for line in printed.splitlines() if line.startswith("all  "))
    assert line.split()[1:4] == ["60", *(f"{outcome['val_accuracy']:.2f}" for outcome in outcomes)]
    assert "question type\n  colour " in printed and "draws the 15 images" in " ".join(printed.split())


def test_two_runs_are_compared_on_a_split_that_both_were_tested_on(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, lr in (("a", 3e-3), ("b", 1e-2)):
        vqa.main(replace(args, version=name, lr=lr, epochs=1))
    with pytest.raises(UserError, match=r"bash run/vqa_test\.bash 0 a --test nominival writes it"):
        compare.main(["--runs", "a", "b", "--split", "nominival"])
    outcomes = [
        vqa.main(
            VqaArgs(version=name, load=f"snap/vqa/{name}/BEST", test="nominival", data=args.data, tqdm=False)
        )
        for name in "ab"
    ]
    capsys.readouterr()
    assert compare.main(["--runs", "a", "b", "--split", "nominival"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("all  "))
    assert line.split()[2:4] == [f"{outcome['accuracy']:.2f}" for outcome in outcomes]


def test_groups_are_told_apart_where_records_name_them(args: VqaArgs, tmp_path: Path) -> None:
    shutil.copytree(args.data, "data")
    file = tmp_path / "data" / "vqav2" / "minival.json"
    records = json.loads(file.read_text())
    groups = ["clean" if number % 3 else "shifted" for number in range(len(records))]
    file.write_text(json.dumps([r | {"group": group} for r, group in zip(records, groups, strict=True)]))
    outcome = vqa.main(replace(args, data="data", epochs=1))
    scores = Run(FOLDER).scores()
    assert scores.types["group"].tolist() == groups
    expected = {
        name: 100 * scores.score[scores.types["group"] == name].mean() for name in ("clean", "shifted")
    }
    assert outcome["val_by_group"] == pytest.approx(expected, abs=1e-4)
    log = " ".join((FOLDER / "train.log").read_text().split())
    assert (
        f"validation accuracy by group clean {expected['clean']:.2f} % shifted {expected['shifted']:.2f} %"
        in log
    )
