"""Questions from Python: the command's answers, wherever the caller stands, and mistakes in one sentence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers.paths import ROOT, SRC
from transformers import LxmertConfig

from common.errors import UserError
from lxmert.units import gate_labels, list_units
from tasks import vqa
from tasks.export import export
from tasks.finetune.args import VqaArgs
from tasks.finetune.ask import Answer, Vqa, load
from tasks.finetune.strategies import STRATEGIES

RUN, IMAGE, QUESTION = Path("snap/vqa/demo"), "minival_0", "is it red?"


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """One epoch of a run that names data and model as they lie below the folder in which it is started."""
    Path("data").symlink_to(args.data)
    Path("model").symlink_to(args.pretrained)
    return replace(args, version="demo", data="data", pretrained="model", epochs=1)


def by_command(load: Path) -> Answer:
    (answer,) = vqa.main(VqaArgs(load=str(load), question=(QUESTION,), image_id=IMAGE))["asked"]
    return answer


@pytest.mark.parametrize("strategy", ["Frozen", "SpotTune"])
def test_command_function_run_best_and_export_give_the_same_answers(
    args: VqaArgs, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(replace(args, strategy=strategy))
    export(RUN, Path("out"))
    expected = by_command(RUN / "BEST")
    capsys.readouterr()
    state = torch.get_rng_state()
    of_run, of_best, of_export = (load(f).answer(IMAGE, QUESTION) for f in (RUN, RUN / "BEST", "out"))
    assert of_run == of_best == expected
    assert list(of_export.answers) == list(expected.answers)
    assert of_export.answers == pytest.approx(expected.answers, rel=1e-4)
    assert of_export.gates == expected.gates
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    assert capsys.readouterr() == ("", "")
    assert by_command(Path("out")).answers == of_export.answers

    if strategy == "Frozen":
        assert expected.gates is None
        return
    units = list_units(LxmertConfig.from_pretrained("model"), STRATEGIES[strategy].granularity)
    labels, tuned = gate_labels(units), np.array(expected.tuned)
    layers = np.char.add(np.char.add(labels["stream"], " "), labels["layer"].astype(str))
    assert expected.gates == {
        name: tuned[labels["live"] & (layers == name)].mean() for name in dict.fromkeys(layers.tolist())
    }


@pytest.mark.slow
def test_the_lines_of_the_readme_print_what_the_command_prints(
    args: VqaArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a process of their own, from a clone in which nothing is installed."""
    vqa.main(args)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"((?:^    .*\n)*^    .*import load\n(?:^    .*\n)*)", text, flags=re.M)
    lines = [line[4:] for line in block.splitlines()]
    assert len(lines) == 5
    code = "\n".join(lines)
    image, question = re.search(r'answer\("(.*?)", "(.*?)"\)', code).groups()
    capsys.readouterr()
    vqa.main(VqaArgs(load=str(RUN / "BEST"), question=(question,), image_id=IMAGE))
    (tmp_path / "src").symlink_to(SRC)
    done = subprocess.run(
        [sys.executable, "-c", code.replace(image, IMAGE)],
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
    )
    assert (done.stderr, done.stdout) == ("", capsys.readouterr().out)


@pytest.fixture
def elsewhere(args: VqaArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Vqa:
    """A model that is loaded, and asked, in another folder than the one in which its run was started."""
    vqa.main(args)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir("other")
    return load(Path("..") / RUN)


def test_paths_of_the_caller_and_of_the_run_count_from_where_each_stands(
    elsewhere: Vqa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_id = elsewhere.answer(IMAGE, QUESTION)
    Image.new("RGB", (40, 40)).save(f"{IMAGE}.png")  # of this name, so that it is taken from the store
    assert elsewhere.answer(f"{IMAGE}.png", QUESTION) == by_id
    first, second = elsewhere.answers(IMAGE, [QUESTION, "what is blue?"])
    assert first == by_id and second.question == "what is blue?"
    (tmp_path / "data").rename(tmp_path / "other" / "moved")
    assert load(tmp_path / RUN, data="moved").answer(IMAGE, QUESTION) == by_id

    with pytest.raises(UserError, match=r"There is no image none below .*, nor a file of that name"):
        elsewhere.answer("none", QUESTION)
    with pytest.raises(UserError, match=r"There is no photo none\.jpg\."):
        elsewhere.answer(Path("none.jpg"), QUESTION)
    with pytest.raises(UserError, match="the question is empty"):
        elsewhere.answer(IMAGE, " ")
    Image.new("RGB", (40, 40)).save("photo.png")
    with pytest.raises(UserError, match=r"photo\.png is not in .* find its own with what found those"):
        elsewhere.answer("photo.png", QUESTION)


@pytest.mark.parametrize("name", ["nowhere", "empty", "model"])
def test_what_is_no_fine_tuned_model_is_refused(args: VqaArgs, name: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(UserError, match=rf"^{name} is not a BEST folder"):
        load(name)
