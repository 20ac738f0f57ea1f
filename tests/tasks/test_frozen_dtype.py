"""`--frozen-dtype bf16`, from the flag to a run that is evaluated and taken elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tests.helpers.small import ANSWERS
from tests.helpers.stop import stop_after
from torch import Tensor

from adaptive.adapt import Adaptive
from common.errors import Interrupted
from common.files import CHECKSUMS
from lxmert.loading import load_pretrained
from tasks import vqa
from tasks.export import export
from tasks.finetune.args import VqaArgs, parse_args
from tasks.finetune.best import read_best
from tasks.finetune.model import build, vqa_loss
from tasks.finetune.spec import ModelSpec
from tasks.finetune.strategies import STRATEGIES

ADAPTIVE = tuple(name for name, strategy in STRATEGIES.items() if strategy.adaptive)


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """Two epochs with frozen copies in bf16."""
    return replace(args, strategy="SpotTune", frozen_dtype="bf16", epochs=2)


def make(pretrained: Path, strategy: str, frozen_dtype: str) -> Adaptive:
    """A model whose tuned copies have moved, the same ones whatever the type of the frozen ones."""
    spec = ModelSpec.of(
        VqaArgs(strategy=strategy, pretrained=str(pretrained), frozen_dtype=frozen_dtype, policy="light")
    )
    torch.manual_seed(0)
    model = build(spec, load_pretrained(spec), ANSWERS)[0]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".tuned." in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def numbers(model: Adaptive, inputs: dict[str, Tensor], gates: Tensor, amp: bool) -> dict[str, Tensor]:
    """Logits and all gradients in evaluation mode, so without dropout."""
    model.eval()
    leaf = gates.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):
        model.gates.fill(leaf)
        logits = model.model(**inputs)
    vqa_loss(logits, torch.full((6, len(ANSWERS)), 0.3)).backward()
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"logits": logits.detach().float(), "gates": leaf.grad, **named}


@pytest.mark.parametrize("strategy", ADAPTIVE)
@pytest.mark.parametrize("gate", [0.0, 0.5, 1.0])
def test_with_bf16_arithmetic_nothing_changes_and_without_it_little(
    pretrained: Path, inputs: dict, strategy: str, gate: float
) -> None:
    usual, halved = (make(pretrained, strategy, kind) for kind in ("fp32", "bf16"))
    gates = (torch.rand(6, halved.gates.total, generator=torch.Generator().manual_seed(1)) < gate).float()
    expected, found = (numbers(model, inputs, gates, amp=True) for model in (usual, halved))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for model in (usual, halved):
        model.zero_grad()
    expected, found = (numbers(model, inputs, gates, amp=False)["logits"] for model in (usual, halved))
    assert torch.allclose(expected, found, atol=0.03)
    assert torch.equal(expected, found) == (gate == 1.0)


def test_a_run_that_is_resumed_and_evaluated_keeps_its_frozen_copies(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3, patch)
        vqa.main(args)
    assert vqa.main(args)["best"] == whole["best"]
    tensors = load_file("snap/vqa/run/LAST/state.safetensors")
    dtypes = [t.dtype for name, t in tensors.items() if ".frozen." in name and t.dim() > 1]
    assert dtypes and set(dtypes) == {torch.bfloat16}
    assert read_best(Path("snap/vqa/run/BEST")).spec.frozen_dtype == "bf16"
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, wandb="off")
    assert vqa.main(test)["accuracy"] == whole["best"]["val_accuracy"]


@pytest.mark.parametrize("from_scratch", [False, True])
def test_an_exported_run_keeps_them_too(args: VqaArgs, from_scratch: bool) -> None:
    """From scratch, the frozen copies are in BEST itself."""
    outcome = vqa.main(replace(args, from_scratch=from_scratch))
    export(Path("snap/vqa/run"), Path("out"))
    test = VqaArgs(load="out", test="minival", data=args.data, tqdm=False, wandb="off")
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    assert "strategy: SpotTune, frozen weights in bf16" in Path("out/README.md").read_text()


def test_best_folders_from_before_the_flag_are_still_read(args: VqaArgs) -> None:
    outcome = vqa.main(replace(args, frozen_dtype="fp32", epochs=1))
    file = Path("snap/vqa/run/BEST/model.json")
    description = json.loads(file.read_text())
    del description["spec"]["frozen_dtype"]
    file.write_text(json.dumps(description))
    (file.parent / CHECKSUMS).unlink()  # which such a folder doesn't have either
    test = VqaArgs(load="snap/vqa/run/BEST", test="minival", data=args.data, tqdm=False, wandb="off")
    assert vqa.main(test)["accuracy"] == outcome["best"]["val_accuracy"]
    export(Path("snap/vqa/run"), Path("out"))


@pytest.mark.parametrize("strategy", ["standard", "Frozen"])
def test_strategies_without_copies_refuse_it_and_leave_nothing(
    args: VqaArgs, strategy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--strategy={strategy}", "--frozen-dtype=bf16", f"--data={args.data}"]
    assert vqa.cli([*flags, f"--pretrained={args.pretrained}", "--wandb=off"]) == 2
    error = capsys.readouterr().err
    assert f"--strategy {strategy} makes no copies" in error and error.count("\n") == 1
    assert not Path("snap").exists()


@pytest.fixture
def other_precision() -> Iterator[None]:
    """A process has one precision for good, unless accelerate forgets it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("other_precision")
def test_auto_holds_them_in_bf16_where_the_arithmetic_is_and_changes_no_number(
    args: VqaArgs, pretrained: Path
) -> None:
    spec = ModelSpec.of(VqaArgs(strategy="SpotTune_Block", pretrained=str(pretrained)))
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        model = build(spec, load_pretrained(spec), ANSWERS, precision)[0]
        assert model.model.lxmert.encoder.layer[0].frozen.output.dense.weight.dtype == dtype
    losses = []
    for frozen_dtype in ("auto", "fp32"):
        vqa.main(replace(args, version=frozen_dtype, precision="bf16", frozen_dtype=frozen_dtype))
        lines = map(json.loads, Path(f"snap/vqa/{frozen_dtype}/metrics.jsonl").read_text().splitlines())
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert len(losses[0]) == 8
    assert losses[0] == losses[1]


def test_the_flag_has_both_spellings_and_three_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_args(["--frozen-dtype", "bf16"]) == parse_args(["--frozen_dtype=bf16"])
    with pytest.raises(SystemExit):
        parse_args(["--frozen-dtype", "fp16"])
    assert "choose from" in capsys.readouterr().err
