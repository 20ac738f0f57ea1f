"""Numbers that are none: the run stops before they are in anything that is kept, and says where they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.faults.cases import Case, Group
from tests.faults.equal import state
from tests.faults.place import Place, refused
from tests.faults.process import Outcome
from tests.faults.sealed import reseal

TRAINING, VALIDATION = "train_7", "minival_3"  # images
SAVING = ("--save_every", "1")


def spoil(array: str, image: str, value: float) -> Callable[[Place], None]:
    """One number of an image's first region, in a store that is otherwise as if it had been prepared so."""

    def act(place: Place) -> None:
        row = json.loads((place.store / "image_ids.json").read_text()).index(image)
        values = np.load(place.store / f"{array}.npy", mmap_mode="r+")
        values[row, 0, 1] = value
        values.flush()
        reseal(place.store)

    return act


def spoil_pretrained(place: Place) -> None:
    file = place.model / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name][5] = float("nan")
    save_file(tensors, file)


def questions_about(place: Place, image: str) -> list[str]:
    splits = (
        json.loads(path.read_text()) for path in place.data.glob("*.json") if path.name != "answers.json"
    )
    return [str(record["question_id"]) for split in splits for record in split if record["img_id"] == image]


def stops(
    spoil: Callable[[Place], None], names: Callable[[Place], list[str]], *flags: str
) -> Case | Callable:
    """It stops with a sentence that has "step" and one of `names`, twice alike, and keeps what was good."""

    def fault(place: Place) -> str | None:
        spoil(place.take("data"))
        words = names(place)
        first = place.train(*SAVING, *flags)
        wrong = refused(first, *words) or not_finite(place.run)
        if wrong:
            return wrong
        if not {"minival", "model.safetensors"} & {*words} and "step" not in first.sentence:
            return f"the sentence names no step: {first.sentence}"
        before = state(place.run / "LAST"), state(place.run / "BEST")
        again = place.train(*SAVING, *flags)
        if (wrong := refused(again, *words)) or before[0].keys() != state(place.run / "LAST").keys():
            return f"the second time: {wrong or 'another LAST'}"
        return not_finite(place.run)

    return fault


def not_finite(run: Path) -> str | None:
    """Where a run folder holds what is not a number."""
    for part in ("LAST", "BEST"):
        for name, value in state(run / part).items():
            if isinstance(value, torch.Tensor) and not value.isfinite().all():
                return f"{name} is not finite"
    lines = run / "metrics.jsonl"
    if lines.exists() and ("NaN" in lines.read_text() or "Infinity" in lines.read_text()):
        return "metrics.jsonl holds what is not JSON"
    return None


def skips(place: Place) -> str | None:
    """With --max-bad-steps as large as needed it goes on to the end, and writes down what it left out."""
    spoil("features", TRAINING, np.nan)(place.take("data"))
    outcome = place.train("--max-bad-steps", "20")
    if outcome.traceback or outcome.code:
        return f"exit code {outcome.code}: {outcome.traceback or outcome.sentence}"
    words = outcome.out + outcome.err + (place.run / "train.log").read_text()
    if not any(question in words for question in questions_about(place, TRAINING)):
        return "the questions of the steps left out are nowhere said"
    return not_finite(place.run)


def skips_so_many(place: Place) -> str | None:
    """The image is in several steps of an epoch: after one the next is too many."""
    spoil("features", TRAINING, np.nan)(place.take("data"))
    outcome = place.train("--max-bad-steps", "1", *SAVING)
    return refused(outcome, *questions_about(place, TRAINING)) or not_finite(place.run)


def skips_none_when_all_is_well(place: Place) -> str | None:
    return place.equal(place.take("data").train("--max-bad-steps", "3"))


def stopped_and_counted(place: Place) -> str | None:
    """What was skipped before a stop counts after it."""
    spoil("features", TRAINING, np.nan)(place.take("data"))
    outcomes: list[Outcome] = [place.train("--max-bad-steps", "1", *SAVING) for _ in range(3)]
    return next((wrong for outcome in outcomes if (wrong := refused(outcome, "step"))), None)


def cases(place: Place) -> list[Case]:
    def ids(place: Place) -> list[str]:
        return questions_about(place, TRAINING)

    def split(_: Place) -> list[str]:
        return ["minival"]

    def any_ids(place: Place) -> list[str]:
        splits = (json.loads((place.data / f"{name}.json").read_text()) for name in ("train", "nominival"))
        return [str(record["question_id"]) for records in splits for record in records]

    def nothing(_: Place) -> None:
        pass

    def rate(place: Place) -> list[str]:
        """The step itself was finite, and what it left was not: no question is to blame."""
        return ["--policy_lr", *any_ids(place)]

    def weights(place: Place) -> list[str]:
        return ["model.safetensors", *any_ids(place)]

    data = [
        Case(f"{value} in {array} of one training image", stops(spoil(array, TRAINING, value), ids), quick)
        for array, value, quick in (
            ("features", np.nan, True),
            ("features", np.inf, False),
            ("features", -np.inf, False),
            ("boxes", np.nan, False),
            ("boxes", np.inf, True),
        )
    ]
    validation = [
        Case(
            f"{value} in {array} of one validation image",
            stops(spoil(array, VALIDATION, value), split),
            quick,
        )
        for array, value, quick in (
            ("features", np.nan, True),
            ("features", np.inf, False),
            ("boxes", np.nan, False),
        )
    ]
    rates = [
        Case("--lr 1e30", stops(nothing, any_ids, "--lr", "1e30"), quick=True),
        Case("--policy_lr 1e38", stops(nothing, rate, "--policy_lr", "1e38")),
        Case("NaN in a pre-trained weight", stops(spoil_pretrained, weights), quick=True),
        Case(
            "--accumulate 2, NaN in a feature",
            stops(spoil("features", TRAINING, np.nan), ids, "--accumulate", "2"),
        ),
    ]
    skipping = [
        Case("--max-bad-steps 20 goes on to the end", skips, quick=True),
        Case("--max-bad-steps 1 stops at the second", skips_so_many),
        Case("--max-bad-steps counts over stops", stopped_and_counted),
        Case("--max-bad-steps changes nothing if all is well", skips_none_when_all_is_well),
    ]
    return [*data, *validation, *rates, *skipping]


GROUP = Group("nonfinite", "NaN and infinity in data, rate, weights", cases)
