"""One question about one image: what is printed, and that it is what an evaluation computes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import LxmertConfig

from lxmert.units import list_units
from tasks import vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.ask import by_layer, describe_gates
from tasks.finetune.best import Best, read_best
from tasks.finetune.strategies import STRATEGIES


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, strategy="SpotTune", epochs=1)


def asking(args: VqaArgs, record: dict) -> VqaArgs:
    return replace(
        args,
        strategy=None,
        dataset="auto",
        load="snap/vqa/run/BEST",
        question=(record["sent"],),
        image_id=record["img_id"],
    )


@pytest.mark.parametrize("strategy", ["standard", "Frozen", "SpotTune", "SpotTune_Block"])
def test_it_answers_as_the_evaluation_does(
    args: VqaArgs, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vqa.main(replace(args, strategy=strategy))
    vqa.main(replace(args, strategy=None, load="snap/vqa/run/BEST", test="minival"))
    predicted = json.loads(Path("snap/vqa/run/predictions/minival.json").read_text())
    asked = json.loads((Path(args.data) / "vqav2" / "minival.json").read_text())
    before = set(Path("snap").rglob("*"))
    for record, prediction in list(zip(asked, predicted, strict=True))[:6]:
        capsys.readouterr()
        (outcome,) = vqa.main(asking(args, record))["asked"]
        lines = capsys.readouterr().out.splitlines()
        likeliest = next(iter(outcome.answers))
        assert likeliest == prediction["answer"]
        assert lines[0] == f"{record['sent']}  ({record['img_id']} of vqav2)"
        assert lines[1].split() == [likeliest, f"{outcome.answers[likeliest]:.1%}"]
        assert list(outcome.answers.values()) == sorted(outcome.answers.values(), reverse=True)
        gates = "\n".join(lines[lines.index("") + 1 :])
        if strategy in ("standard", "Frozen"):
            assert gates.startswith(f"{strategy} has no gates")
        else:
            units = list_units(
                LxmertConfig.from_pretrained(args.pretrained), STRATEGIES[strategy].granularity
            )
            assert len(outcome.tuned) == sum(unit.width for unit in units)
            assert all(f"\n  {unit.stream} {unit.layer} " in gates for unit in units)
    assert set(Path("snap").rglob("*")) == before  # asking leaves nothing behind


def test_every_gate_of_the_base_size_is_shown_by_layer(args: VqaArgs) -> None:
    vqa.main(args)
    best: Best = read_best(Path("snap/vqa/run/BEST"))
    config = LxmertConfig()
    blocks = list_units(config, "layer")
    tuned = [number % 3 == 0 for number in range(19)]
    lines = list(describe_gates(best, by_layer(blocks, tuned)))
    assert len(lines) == 20 and "7 of 19 gates" in lines[0]
    assert [line.split()[-1] for line in lines[1:]] == ["tuned" if on else "frozen" for on in tuned]
    components = list_units(config, "component")
    lines = list(describe_gates(best, by_layer(components, [True] * 9 * 15 + [False] * (425 - 9 * 15))))
    assert "135 of 410 gates ran tuned (33%); 15 cannot reach the answer" in lines[0]
    assert lines[1].split()[:5] == ["language", "1", "100%", "tuned", "head"]
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines[1:-1])
    assert (text.count("1" * 12), text.count("0" * 12), text.count("-" * 12)) == (9, 19, 1)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--question=what?"], "--question needs --image-id or --image"),
        (["--questions=many.txt"], "--question needs --image-id or --image"),
        (["--image=a.jpg"], "--image-id needs --question, a question about it; so does --image"),
        (["--question=what?", "--image=a.jpg", "--image-id=a"], "--image and --image_id exclude each other"),
        (["--question=what?", "--image-id=a", "--weights=w"], "--weights are those that find the regions"),
        (["--image-id=a"], "--image-id needs --question"),
        (["--question=what?", "--image-id=a"], "--question needs --load"),
        (["--question=a", "--question= ", "--image-id=a", "--load=x"], "--question is empty"),
        (["--question=a", "--image_id=a", "--load=x", "--test=minival"], "exclude each other"),
        (["--question=a", "--image-id=a", "--load=nowhere"], "nowhere is not a BEST folder"),
    ],
)
def test_a_mistake_is_one_sentence(
    flags: list[str], sentence: str, args: VqaArgs, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = vqa.cli([*flags, f"--data={args.data}"])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1 and sentence in error


def test_an_unknown_image_is_told_with_examples(args: VqaArgs, capsys: pytest.CaptureFixture[str]) -> None:
    vqa.main(args)
    flags = ["--load=snap/vqa/run/BEST", "--question=is it?", "--image-id=none", f"--data={args.data}"]
    assert vqa.cli(flags) == 2
    error = capsys.readouterr().err
    assert "no image none below" in error and "has 40 images, such as train_0, train_1, train_2, nor" in error
