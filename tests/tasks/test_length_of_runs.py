"""How long a run is: epochs that may be raised, steps, patience, and how many of its states are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.helpers.stop import stop_after

from common.errors import Interrupted, RunError
from tasks import vqa
from tasks.finetune.args import VqaArgs
from tasks.finetune.evaluate import Evaluation

STEPS = 4  # of an epoch
CONSTANT: dict[str, Any] = {"schedule": "constant", "warmup": 0.0}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times and memory."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    measured = ("second", "memory")
    return [{name: v for name, v in line.items() if not any(m in name for m in measured)} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    tensors = [load_file(folder / "LAST" / "state.safetensors") for folder in (one, other)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all((tensors[0][name] == tensors[1][name]).all() for name in tensors[0])


def test_epochs_may_be_raised_where_no_step_done_would_have_been_another(args: VqaArgs) -> None:
    args = replace(args, **CONSTANT)
    vqa.main(replace(args, version="whole", epochs=3))
    vqa.main(replace(args, epochs=1))
    outcome = vqa.main(replace(args, epochs=3))
    assert (outcome["epoch"], outcome["epochs"]) == (3, 3)
    assert_same_run(Path("snap/vqa/run"), Path("snap/vqa/whole"))


@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": "constant"}, CONSTANT | {"temperature_end": 1.0, "strategy": "SpotTune_Block"}],
)
def test_elsewhere_raised_epochs_are_one_sentence(args: VqaArgs, changes: dict[str, Any]) -> None:
    args = replace(args, **changes)
    vqa.main(replace(args, epochs=1))
    with pytest.raises(RunError, match="epochs was 1 and is now 2"):
        vqa.main(replace(args, epochs=2))


@pytest.mark.parametrize("steps", [2, STEPS, STEPS + 1])
def test_a_run_of_so_many_steps_ends_after_them_with_an_evaluation(args: VqaArgs, steps: int) -> None:
    outcome = vqa.main(replace(args, max_steps=steps, epochs=5))
    assert numbers(args.folder)[-1]["step"] == steps
    assert outcome["epoch"] == -(-steps // STEPS)
    assert vqa.main(replace(args, max_steps=steps, epochs=5)) == outcome  # it is complete


def test_patience_ends_a_run_that_has_no_new_best(args: VqaArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([30.0, 40.0, 40.0, 35.0, 90.0, 90.0])
    monkeypatch.setattr(Evaluation, "accuracy", property(lambda self: next(accuracies)))
    monkeypatch.setattr("tasks.finetune.metrics.EpochMetrics.of", classmethod(of_one_accuracy))
    outcome = vqa.main(replace(args, epochs=5, patience=2))
    assert (outcome["epoch"], outcome["best"]["epoch"]) == (4, 2)


def of_one_accuracy(cls: type, epoch: Any) -> Any:
    """Metrics that ask for the accuracy once, so that the sequence above is one an epoch."""
    accuracy = epoch.evaluation.accuracy
    return cls(
        epoch=epoch.number,
        train_loss=1.0,
        train_accuracy=50.0,
        val_accuracy=accuracy,
        gap=50.0 - accuracy,
        seconds=1.0,
        examples_per_second=1.0,
    )


def test_a_run_stopped_after_its_last_step_still_ends_its_epoch(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vqa.main(replace(args, version="whole"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(3 * STEPS, patch)
        vqa.main(args)
    outcome = vqa.main(args)
    assert outcome["epoch"] == whole["epoch"] == 3
    assert_same_run(Path("snap/vqa/run"), Path("snap/vqa/whole"))


def test_so_many_states_are_kept_and_each_can_be_gone_on_from(args: VqaArgs) -> None:
    whole = vqa.main(replace(args, version="whole"))
    vqa.main(replace(args, keep=3, save_every=3))
    states = sorted(path.name for path in args.folder.glob("LAST*"))
    assert states == ["LAST", "LAST-00000008", "LAST-00000009"]
    (args.folder / "LAST" / "state.json").write_text("")
    outcome = vqa.main(args)
    assert outcome["best"] == whole["best"]
    assert_same_run(Path("snap/vqa/run"), Path("snap/vqa/whole"))


def test_a_best_epoch_that_is_damaged_is_written_again_or_named(args: VqaArgs) -> None:
    """Again if the state is still that of the same epoch."""
    args = replace(args, **CONSTANT)
    vqa.main(replace(args, epochs=1))
    file = args.folder / "BEST" / "model.safetensors"
    before = file.read_bytes()
    file.write_bytes(before[:-1])
    vqa.main(replace(args, epochs=1))
    assert file.read_bytes() == before
    outcome = vqa.main(replace(args, epochs=3))
    if outcome["best"]["epoch"] == 3:
        pytest.fail("this test needs a best epoch that is not the last")
    file.unlink()
    with pytest.raises(RunError, match=r"model\.safetensors is missing.*best epoch, number"):
        vqa.main(replace(args, epochs=3))
