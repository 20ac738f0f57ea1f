"""Run folders made up for tests of what reads them: as a run leaves them, with numbers of our own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from report.run import Run

QUESTIONS, IMAGES, EPOCHS, KEPT = 48, 12, 3, 24
TYPES = ("count", "colour")
ANSWERS = ("yes", "no", "red", "2", "a dog", "left")
FIRST_ID = 9_007_199_254_740_993  # beyond what JavaScript can count to
GATES = [
    (stream, layer, part, not (stream == "cross" and part.startswith("vision")))
    for stream, layers, parts in (
        ("language", 2, ("head 1", "head 2", "FFN in")),
        ("vision", 1, ("head 1", "head 2", "FFN in")),
        ("cross", 1, ("cross head 1", "language FFN in", "vision FFN in")),
    )
    for layer in range(1, layers + 1)
    for part in parts
]


def write_run(
    folder: Path,
    seed: int = 0,
    adaptive: bool = True,
    types: Sequence[str] = TYPES,
    answers: Sequence[str] = ANSWERS,
    images: Sequence[str] | None = None,
    **arguments: Any,
) -> Run:
    """A finished run of three epochs, the second the best, on questions with one image in four."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    (folder / "scores").mkdir()
    accuracies = [60.0, 75.0, 70.0]
    lines = []
    for epoch, accuracy in enumerate(accuracies, 1):
        lines += [
            {"step": 4 * epoch - 4 + step, "train/loss": 3 / (epoch + step), "train/accuracy": 50.0 + step}
            for step in range(1, 5)
        ]
        figures = {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 60.0 + 10 * epoch}
        figures |= {"val_accuracy": accuracy, "gap": 60.0 + 10 * epoch - accuracy, "seconds": 10.0}
        figures |= {"examples_per_second": 120.0} | (
            {"share_tuned": 0.4, "gate_variation": 0.1} if adaptive else {}
        )
        lines.append({"step": 4 * epoch, **figures})
    settings = {"dataset": "mine", "strategy": "SpotTune" if adaptive else "standard", "seed": seed}
    result = settings | {"from_scratch": False, "epochs": EPOCHS, "best": {"epoch": 2, "val_accuracy": 75.0}}
    result |= {name: value for name, value in lines[-1].items() if name != "step"} | {"seconds": 30.0}
    result |= {"share_tuned": 0.4 if adaptive else None, "gates": {"total": len(GATES) * adaptive}}
    result |= {"worth": 1.5, "worth_low": 0.5, "worth_high": 2.5} if adaptive else {}
    given = settings | {"version": folder.name, "valid": "minival", "data": "data", "lr": 1e-3} | arguments
    for name, content in (
        ("result.json", result),
        ("args.json", given),
        ("env.json", {"device": "cpu", "packages": {"torch": "2.13.0"}}),
        ("inputs.json", {"train.json": "ab" * 32}),
    ):
        (folder / name).write_text(json.dumps(content))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    number = np.arange(QUESTIONS)
    names = np.array(list(images or [f"image_{place}" for place in range(IMAGES)]))
    columns = {
        "question_id": FIRST_ID + number,
        "image": names[number * len(names) // QUESTIONS],
        "question_type": np.array(list(types))[number % len(types)],
        "answer_type": np.array(["yes/no", "other"])[number % 2],
        "group": np.array([""])[number * 0],
    }
    for name, epoch in (("minival", 2), ("minival-last", 3)):
        score = rng.integers(0, 2, QUESTIONS).astype(np.float32)
        chosen = np.array(list(answers))[rng.integers(0, len(answers), QUESTIONS)]
        probability = rng.random(QUESTIONS).astype(np.float32)
        kept = {"score": score, "answer": chosen, "probability": probability, "epoch": np.array(epoch)}
        np.savez(folder / "scores" / f"{name}.npz", **columns, **kept)
        if name == "minival":
            write_examples(folder, columns["question_id"], chosen, answers, adaptive)
    if adaptive:
        stream, layer, component, live = (np.array(column) for column in zip(*GATES, strict=True))
        table = {"stream": stream, "layer": layer, "component": component, "live": live}
        share = rng.random((2, EPOCHS, len(GATES)))
        by_type = {
            "question_types": np.array(list(types)),
            "val_by_type": rng.random((len(types), len(GATES))),
        }
        np.savez(folder / "usage.npz", **table, train=share[0], val=share[1], **by_type)
    return Run(folder)


def write_examples(
    folder: Path, question_id: np.ndarray, chosen: np.ndarray, answers: Sequence[str], adaptive: bool
) -> None:
    """Every second question with five answers; half of the gates of the first one are not the usual ones."""
    places = np.arange(0, 2 * KEPT, 2)
    others = [[answer for answer in answers if answer != first] for first in chosen[places].tolist()]
    listed = [[first, *rest][:5] for first, rest in zip(chosen[places].tolist(), others, strict=True)]
    gates = np.zeros((KEPT, len(GATES) * adaptive), bool)
    gates[0, ::2] = gates[0, -1:] = True
    examples = {
        "epoch": np.array(2),
        "question_id": question_id[places],
        "why": np.array(["drawn at random"] * KEPT),
        "answers": np.array(listed),
        "probabilities": np.tile(np.float32([0.75, 0.125, 0.1, 0.05, 0.01]), (KEPT, 1))[:, : len(listed[0])],
        "gates": gates,
        "usual": np.zeros(gates.shape[1], bool),
    }
    np.savez(folder / "scores" / "minival-examples.npz", **examples)
