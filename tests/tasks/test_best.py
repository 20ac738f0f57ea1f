"""BEST folders: written whole, read with care, and never mixed with another pre-trained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.helpers.paths import ASSETS
from tests.helpers.small import ANSWERS

from common.errors import CheckpointError
from tasks.finetune.best import load_base_weights, load_best, read_best, save_best
from tasks.finetune.model import build

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BEST folder of format 1, with its pre-trained model in place."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ASSETS / "run_format_1" / "pretrained", "pretrained")
    shutil.copytree(ASSETS / "run_format_1" / "run" / "BEST", "BEST")
    return Path("BEST")


def describe(best: Path, change: Change) -> None:
    file = best / "model.json"
    description = json.loads(file.read_text())
    change(description)
    file.write_text(json.dumps(description))


def test_what_is_saved_is_what_is_read(best: Path) -> None:
    old = read_best(best)
    pretrained = load_base_weights(old)
    model = build(old.spec, pretrained, old.answers)[0]
    load_best(old, model, pretrained)
    new = old._replace(folder=Path("new/BEST"))
    save_best(new, model, pretrained)
    assert read_best(Path("new/BEST")) == new
    assert [path.name for path in Path("new").iterdir()] == ["BEST"]
    saved, loaded = (load_file(folder / "model.safetensors") for folder in (new.folder, best))
    assert saved.keys() == loaded.keys()
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)


def test_the_predecessor_is_read_if_the_machine_stopped_between_two_renames(best: Path) -> None:
    best.rename(".BEST.old")
    assert read_best(best).answers == ANSWERS


def set_spec(**values: Any) -> Change:
    return lambda description: description["spec"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "BEST is of format 2; this code reads 1"),
        (lambda d: d.pop("format"), "does not say 'format'"),
        *((lambda d, n=n: d.pop(n), f"does not say '{n}'") for n in ("spec", "features", "pretrained")),
        (lambda d: d.update(dataset="../elsewhere"), "the data set name '../elsewhere' may hold letters"),
        (lambda d: d.update(dataset=3), "says dataset is 3, which cannot be"),
        (lambda d: d.update(features=-5), "says features is -5, which cannot be"),
        (lambda d: d.update(features=True), "says features is True, which cannot be"),
        (lambda d: d.update(metrics=[]), r"says metrics is \[\], which cannot be"),
        (lambda d: d["pretrained"].pop("sha256"), "does not say 'sha256'"),
        (lambda d: d["spec"].pop("strategy"), "does not say 'strategy'"),
        (set_spec(strategy="SpotTune_Head"), "there is no strategy 'SpotTune_Head'; there are standard, "),
        (set_spec(strategy=["SpotTune"]), r"says strategy is \['SpotTune'\], which cannot be"),
        (set_spec(policy="heavy"), "there is no policy 'heavy'"),
        (set_spec(frozen_dtype="int8"), "there is no frozen_dtype 'int8'"),
        (set_spec(strategy="standard", frozen_dtype="bf16"), "makes no copies"),
        (set_spec(policy_start=1.5), "--policy_start is a share above 0 and below 1, not 1.5"),
        (set_spec(temperature="hot"), "says temperature is 'hot', which cannot be"),
        (set_spec(policy_llayers=1.5), "says policy_llayers is 1.5, which cannot be"),
        (set_spec(from_scratch=1), "says from_scratch is 1, which cannot be"),
        (set_spec(pretrained=None), "names no pre-trained model"),
        (set_spec(device="cuda"), "something unknown of the model: device"),
    ],
)
def test_a_description_that_cannot_be_is_one_sentence(best: Path, change: Change, message: str) -> None:
    describe(best, change)
    with pytest.raises(CheckpointError, match=message) as error:
        read_best(best)
    assert str(error.value).startswith("BEST is ") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.json", None, r"BEST is not a BEST folder: model\.json is missing"),
        ("model.json", b"[]", "does not hold an object"),
        ("model.json", b'{"format": 1', r"model\.json is not valid JSON"),
        ("model.json", b"\xff\xfe", "is not UTF-8"),
        ("answers.json", None, r"BEST is not a BEST folder: answers\.json is missing"),
        ("answers.json", b'["yes", 3]', "is not a list of answers"),
        ("answers.json", b'{"yes": 0}', "is not a list of answers"),
    ],
)
def test_a_damaged_file_is_one_sentence(best: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (best / name).unlink()
    else:
        (best / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_best(best)
    assert "\n" not in str(error.value)


def test_whole_numbers_may_stand_for_fractions(best: Path) -> None:
    describe(best, set_spec(temperature=5))
    assert read_best(best).spec.temperature == 5.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(min(t)), "missing .*; unexpected none"),
        (lambda t: t.update(extra=torch.ones(1)), "missing none; unexpected extra"),
        (lambda t: t.update({min(t): torch.ones(7, 7, 7)}), r"is \(7, 7, 7\) there and"),
    ],
)
def test_tensors_are_loaded_strictly(best: Path, change: Change, message: str) -> None:
    tensors = load_file(best / "model.safetensors")
    change(tensors)
    save_file(tensors, best / "model.safetensors")
    saved = read_best(best)
    pretrained = load_base_weights(saved)
    model = build(saved.spec, pretrained, saved.answers)[0]
    with pytest.raises(CheckpointError, match=message):
        load_best(saved, model, pretrained)


def test_another_pretrained_file_is_refused_by_its_checksum(best: Path) -> None:
    saved = read_best(best)
    pretrained = load_base_weights(saved)
    model = build(saved.spec, pretrained, saved.answers)[0]
    with pytest.raises(CheckpointError, match="but pretrained has 0000"):
        load_best(saved, model, pretrained._replace(sha256="0" * 64))
