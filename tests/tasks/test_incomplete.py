"""A part of the features: what is left out is counted, and no file says more than it holds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.helpers.small import FEATURES, write_dataset

from common.errors import RunError
from tasks import vqa
from tasks.finetune.args import VqaArgs
from vqadata.feature_layout import Layout
from vqadata.features import write_store
from vqadata.folder import DataFolder


@pytest.fixture
def args(args: VqaArgs, tmp_path: Path) -> VqaArgs:
    """On a copy of the data set that tests may change."""
    write_dataset(tmp_path / "data" / "vqav2")
    return replace(args, data="data", strategy="standard", epochs=1)


def lose(args: VqaArgs, *splits: str) -> dict[str, int]:
    """Take the first two images of these splits out of the features; the questions that are about them."""
    folder = DataFolder(Path(args.data), "vqav2")
    lost, counts = set(), {}
    for split in splits:
        records = json.loads(folder.split_file(split).read_text())
        images = list(dict.fromkeys(record["img_id"] for record in records))[:2]
        lost |= set(images)
        counts[split] = sum(record["img_id"] in images for record in records)
    stores = folder.open_features()
    kept = [image for image in stores.stores[0].rows if image not in lost]
    regions = stores.read(stores.locate(kept))
    rows = [(f[m], b[m]) for f, b, m in zip(*regions, strict=True)]
    write_store(folder.own_features / "all", kept, rows, Layout(regions.mask.shape[1], FEATURES, "float32"))
    return counts


def test_questions_about_images_without_features_are_left_out_counted_and_recorded(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = lose(args, "train", "minival")
    assert all(counts.values())
    flags = [
        f"--{name}={getattr(args, name)}" for name in ("data", "dataset", "pretrained", "strategy", "epochs")
    ]
    assert vqa.cli([*flags, "--wandb=off", "--no-tqdm"]) == 2
    error = capsys.readouterr().err
    assert (
        "images have no features" in error
        and "leave out the questions about them with --skip-missing" in error
    )
    outcome = vqa.main(replace(args, skip_missing=True))
    printed = " ".join(capsys.readouterr().out.split())
    inputs = json.loads(Path("snap/vqa/run/inputs.json").read_text())
    for split, count in counts.items():
        assert f"left out, as their images have no features: {count} questions of {split}" in printed
        assert inputs[f"questions left out of {split}"] == count
    assert "questions left out of nominival" not in inputs
    folder = DataFolder(Path(args.data), "vqav2")
    sizes = {s: len(json.loads(folder.split_file(s).read_text())) for s in ("train", "nominival", "minival")}
    train = sizes["train"] + sizes["nominival"] - counts["train"]
    assert f"{train} training, {sizes['minival'] - counts['minival']} validation questions" in printed
    assert outcome["val_official"]["overall"] == pytest.approx(
        outcome["val_accuracy"]
    )  # of the same questions
    test = replace(args, strategy=None, dataset="auto", load="snap/vqa/run/BEST", test="minival")
    assert vqa.main(replace(test, skip_missing=True))["accuracy"] == outcome["best"]["val_accuracy"]
    printed = " ".join(capsys.readouterr().out.split())
    assert "They are INCOMPLETE" in printed and f"{counts['minival']} questions of minival" in printed
    predictions = json.loads(Path("snap/vqa/run/predictions/minival.json").read_text())
    assert len(predictions) == sizes["minival"] - counts["minival"]


def test_with_all_features_nothing_is_left_out_and_the_numbers_are_the_same(args: VqaArgs) -> None:
    plain = vqa.main(args)
    some = vqa.main(replace(args, skip_missing=True, version="some"))
    assert plain["val_accuracy"] == some["val_accuracy"] and plain["train_loss"] == some["train_loss"]
    inputs = json.loads(Path("snap/vqa/some/inputs.json").read_text())
    assert not [name for name in inputs if "left out" in name]


def test_a_run_is_not_gone_on_with_when_more_features_are_there(
    args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(args, "train")
    vqa.main(replace(args, skip_missing=True))
    write_store_again(args)
    with pytest.raises(RunError, match=r"questions left out of train was \d+ and is now None"):
        vqa.main(replace(args, skip_missing=True))


def write_store_again(args: VqaArgs) -> None:
    folder = Path(args.data)
    write_dataset(folder / "again")
    target = folder / "vqav2" / "features" / "all"
    for file in target.iterdir():
        file.write_bytes((folder / "again" / "features" / "all" / file.name).read_bytes())


def test_a_split_that_would_be_empty_is_refused(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = DataFolder(Path(args.data), "vqav2")
    records = json.loads(folder.split_file("minival").read_text())
    folder.split_file("minival").write_text(json.dumps([r | {"img_id": "nowhere"} for r in records]))
    flags = [f"--{name}={getattr(args, name)}" for name in ("data", "dataset", "pretrained", "strategy")]
    assert vqa.cli([*flags, "--skip-missing", "--wandb=off"]) == 2
    assert "That leaves no question of minival." in capsys.readouterr().err
    assert not Path("snap/vqa/run").exists()


@pytest.mark.parametrize(("split", "part"), [("test", "test2015"), ("test-dev", "test-dev2015")])
def test_predictions_for_the_evaluation_server_have_the_name_that_it_wants(
    args: VqaArgs, split: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(args)
    folder = DataFolder(Path(args.data), "vqav2")
    records = json.loads(folder.split_file("minival").read_text())
    for record in records:
        del record["label"]
    folder.split_file(split).write_text(json.dumps(records))
    test = replace(args, strategy=None, dataset="auto", load="snap/vqa/run/BEST", test=split)
    vqa.main(test)
    predictions = Path("snap/vqa/run/predictions")
    ready = predictions / f"vqa_OpenEnded_mscoco_{part}_run_results.json"
    assert f"for the evaluation server: {ready}" in capsys.readouterr().out
    assert ready.read_bytes() == (predictions / f"{split}.json").read_bytes()
    answered = json.loads(ready.read_text())
    assert [set(entry) for entry in answered] == [{"question_id", "answer"}] * len(records)
    vqa.main(replace(test, interpolate=0.5))
    assert (predictions / f"vqa_OpenEnded_mscoco_{part}_run-interpolated-0.5_results.json").exists()


def test_nothing_incomplete_and_nothing_that_the_server_has_not_gets_such_a_name(args: VqaArgs) -> None:
    vqa.main(args)
    folder = DataFolder(Path(args.data), "vqav2")
    folder.split_file("test").write_text(folder.split_file("minival").read_text())
    test = replace(args, strategy=None, dataset="auto", load="snap/vqa/run/BEST")
    lose(args, "test")
    vqa.main(replace(test, test="test", skip_missing=True))
    vqa.main(replace(test, test="nominival"))
    names = {path.name for path in Path("snap/vqa/run/predictions").iterdir()}
    assert names == {"test.json", "nominival.json"}
    assert np.isfinite(folder.open_features().stores[0].features).all()
