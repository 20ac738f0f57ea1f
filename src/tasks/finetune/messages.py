"""What a run leaves for people: its opening lines, pictures, closing table, predictions and result.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from report.policy_plot import draw_policy
from tasks.finetune.args import VqaArgs
from tasks.finetune.state import Progress, share_by_split
from training.tracker import Tracker
from vqadata.dataset import VqaDataset

PICTURES = Path("visualizations")


def count_gates(labels: Mapping[str, np.ndarray]) -> dict[str, int]:
    """All gates, and those that the answer depends on."""
    return {"total": len(labels["live"]), "live": int(labels["live"].sum())}


def opening(
    args: VqaArgs,
    train_examples: int,
    valid_examples: int,
    loaded: Sequence[str],
    parameters: Mapping[str, int],
    gates: Mapping[str, int],
) -> str:
    """What is about to happen, before the first step."""
    lines = [
        f"{args.strategy} on {args.dataset}: {train_examples:,} training and {valid_examples:,} validation "
        f"examples, {args.epochs} epochs, batch {args.batch_size}, seed {args.seed}",
        *loaded,
        f"parameters: {parameters['trainable']:,} trainable + {parameters['frozen']:,} frozen "
        f"= {parameters['total']:,}",
    ]
    if gates["total"]:
        dead = gates["total"] - gates["live"]
        lines.append(
            f"gates: {gates['total']}" + (f", {dead} of which cannot reach the answer" if dead else "")
        )
    return "\n".join(lines)


def going_on(progress: Progress, args: VqaArgs) -> str:
    """Where a resumed run stands."""
    if progress.epoch == args.epochs:
        return f"this run is complete; for another, choose another version name or delete {args.folder}"
    return f"going on in epoch {progress.epoch + 1} after {progress.step} steps"


def brief(means: Mapping[str, float], gated: bool, bar: tqdm, batch_size: int) -> str:
    """The running means beside the progress bar."""
    rate = bar.format_dict["rate"] or 0.0
    share = f" tuned {means['share_tuned']:.2f}" if gated else ""
    return (
        f"loss {means['loss']:.3f} accuracy {means['accuracy']:.1f}{share} {rate * batch_size:.0f} examples/s"
    )


def epoch_line(metrics: Mapping[str, float], epochs: int) -> str:
    """One epoch in one line."""
    share = f"  tuned {metrics['share_tuned']:.2f}" if "share_tuned" in metrics else ""
    graded = f"  official {metrics['val_official']['overall']:.2f}" if "val_official" in metrics else ""
    return (
        f"epoch {metrics['epoch']:>2}/{epochs}  loss {metrics['train_loss']:.3f}  "
        f"train {metrics['train_accuracy']:.2f}  val {metrics['val_accuracy']:.2f}{graded}  "
        f"gap {metrics['gap']:+.2f}{share}  {metrics['examples_per_second']:.0f} examples/s"
    )


def show_policy(
    args: VqaArgs,
    tracker: Tracker,
    labels: Mapping[str, np.ndarray],
    progress: Progress,
    question_types: Sequence[str],
) -> None:
    """Write usage.npz and draw the epoch just finished, train and val, if there are gates."""
    if not len(labels["live"]):
        return
    shares = share_by_split(progress)
    by_type = {"question_types": np.array(question_types), "val_by_type": progress.by_type.numpy()}
    np.savez(args.folder / "usage.npz", **labels, **shares, **by_type)
    folder = PICTURES / args.version
    folder.mkdir(parents=True, exist_ok=True)
    for split, how in (("train", "training, gates sampled"), ("val", "validation, the likelier copy")):
        path = folder / f"epoch_{progress.epoch:02d}_{split}.png"
        title = f"{args.strategy} on {args.dataset}, epoch {progress.epoch}: {how}"
        draw_policy(labels, shares[split][-1], title, path)
        tracker.picture(f"policy/{split}", path, progress.updates)


def result(
    args: VqaArgs, progress: Progress, parameters: Mapping[str, int], gates: Mapping[str, int]
) -> dict[str, Any]:
    """What result.json holds. `gap` is running train minus validation accuracy in the last epoch."""
    last, best = progress.history[-1], progress.best
    return {
        "version": args.version,
        "dataset": args.dataset,
        "strategy": args.strategy,
        "from_scratch": args.from_scratch,
        "seed": args.seed,
        "epochs": args.epochs,
        **{name: last[name] for name in ("train_accuracy", "val_accuracy", "gap")},
        "best": {"epoch": best["epoch"], "val_accuracy": best["val_accuracy"]},
        "val_official": last.get("val_official"),
        "share_tuned": last.get("share_tuned"),
        "gate_variation": last.get("gate_variation"),
        "parameters": parameters,
        "gates": gates,
        "seconds": progress.seconds,
        "examples_per_second": last["examples_per_second"],
    }


def closing(args: VqaArgs, outcome: Mapping[str, Any]) -> str:
    """The table at the end of a run: figures, and where everything is."""
    best = outcome["best"]
    rows = [
        ("train accuracy (soft target, running, last epoch)", f"{outcome['train_accuracy']:.2f} %"),
        ("validation accuracy (soft target, last epoch)", f"{outcome['val_accuracy']:.2f} %"),
        ("gap", f"{outcome['gap']:+.2f} points"),
        *official_rows(outcome["val_official"]),
        (f"best validation accuracy (epoch {best['epoch']})", f"{best['val_accuracy']:.2f} %"),
    ]
    if outcome["share_tuned"] is not None:
        rows.append(("share tuned (validation)", f"{outcome['share_tuned']:.3f}"))
        rows.append(
            ("departures from a gate's usual choice", f"{outcome['gate_variation']:.3f} (0: fixed mask)")
        )
    rows.append(("training time", f"{outcome['seconds']:.0f} s"))
    rows.append(("best weights", f"{args.folder / 'BEST'}"))
    if outcome["share_tuned"] is not None:
        rows.append(("policy pictures", f"{PICTURES / args.version}"))
    width = max(len(name) for name, _ in rows)
    body = [f"{name:<{width}}  {value}" for name, value in rows]
    rule = "-" * max(map(len, body))
    evaluate = f"bash run/vqa_test.bash 0 {args.version} --test {args.valid} --load {args.folder / 'BEST'}"
    return "\n".join([rule, *body, rule, f"evaluate again:  {evaluate}"])


def tested(args: VqaArgs, dataset: VqaDataset, accuracy: float, file: Path) -> str:
    """What an evaluation found and where its predictions are. accuracy: soft-target, in per cent."""
    found = f"soft-target accuracy {accuracy!r} %" if dataset.labelled else "no answers to score against"
    lines = [f"{args.test}: {len(dataset):,} questions, {found}", f"predictions: {file}"]
    if args.tiny or args.fast:
        flag = "--tiny" if args.tiny else "--fast"
        lines.append(
            f"They are INCOMPLETE: {flag} asks about the first images only. Do not submit this file."
        )
    return "\n".join(lines)


def official_rows(graded: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The official VQA accuracy, overall and by answer type, if the human answers are at hand."""
    if not graded:
        return []
    parts = [("official VQA accuracy", graded["overall"]), *graded["by_answer_type"].items()]
    bound = ("best possible with these answers", graded["vocabulary_bound"])
    return [(name, f"{percent:.2f} %") for name, percent in (*parts, bound)]


def official_table(graded: Mapping[str, Any]) -> str:
    """The same with question types, a line each."""
    rows = official_rows(graded)
    rows += [(f"  {name}", f"{percent:.2f} %") for name, percent in graded["by_question_type"].items()]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def save_predictions(
    path: Path, question_ids: np.ndarray, chosen: np.ndarray, answers: Sequence[str]
) -> None:
    """Predictions in the format of the VQA challenge: a list of question_id and answer."""
    predictions = [
        {"question_id": int(question), "answer": answers[number]}
        for question, number in zip(question_ids, chosen, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(predictions) + "\n", encoding="utf-8")
