"""What a run leaves for people: its texts, its pictures, its predictions, and what result.json holds."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.errors import UserError
from common.files import replace_file, write_json
from common.words import counted, duration
from report.run import TESTED, Run
from tasks.finetune.controls import Controls
from tasks.finetune.evaluate import BREAKDOWNS, Evaluation, Exam
from tasks.finetune.examples import example_columns
from tasks.finetune.gating import WAYS
from tasks.finetune.metrics import EpochMetrics, FinalMetrics
from tasks.finetune.setup import Setup
from tasks.finetune.state import TrainState
from training.machine import Machine
from training.run_folder import RunFolder, write_arrays
from vqadata.dataset import VqaDataset
from vqadata.official import results_name

PICTURES, REPORT = Path("visualizations"), "report.html"
WIDTH = 80  # columns
LONG_PATHS_STAY = {"subsequent_indent": "  ", "break_long_words": False, "break_on_hyphens": False}
MEANS = {"loss": "loss {:.3f}", "accuracy": "acc {:.1f}", "share_tuned": "tuned {:.2f}"}  # while training
IDENTITY = ("version", "dataset", "strategy", "from_scratch", "seed", "epochs")  # of a run, for result.json


def start_message(what: Mapping[str, Any], setup: Setup, machine: Machine) -> str:
    """What is about to happen, before the first step; what: the arguments of the run, by name."""
    processes, threads = machine.processes, torch.get_num_threads()
    shared, each = (f"{processes} x ", " each") if processes > 1 else ("", "")
    parameters, gates = setup.sizes["parameters"], setup.sizes["gates"]
    train, valid = map(len, setup.datasets)
    lines = [
        f"{setup.spec.title} on {what['dataset']}: {train:,} training, "
        f"{counted(valid, 'validation question')}",
        f"{counted(what['epochs'], 'epoch')}, batch {shared}{what['batch_size']}, seed {what['seed']}",
        f"{counted(processes, 'process')} on {machine.device_name}, {machine.precision}, "
        f"{counted(threads, 'thread')}{each}",
        *setup.loaded,
        f"parameters: {parameters['trainable']:,} trainable + {parameters['frozen']:,} frozen "
        f"= {parameters['total']:,}",
    ]
    if gates["total"]:
        dead = gates["total"] - gates["live"]
        lines.append(
            f"gates: {gates['total']}" + (f", {dead} of which cannot reach the answer" if dead else "")
        )
    return "\n".join(textwrap.fill(line, WIDTH, **LONG_PATHS_STAY) for line in lines)


def resume_message(state: TrainState, goes_on: bool, folder: Path) -> str:
    """Where a resumed run stands."""
    if not goes_on:
        return f"this run is complete; for another, choose another version name or delete {folder}"
    return f"going on in epoch {state.epoch + 1} after {state.step} steps"


def progress_text(means: Mapping[str, float], bar: tqdm, batch_size: int) -> str:
    """The running means, behind the title of a progress bar over batches."""
    examples_per_second = batch_size * (bar.format_dict["rate"] or 0.0)
    words = [MEANS[name].format(value) for name, value in means.items()]
    return " ".join(["", *words, f"{examples_per_second:.0f} ex/s"])


def left(seconds: float) -> str:
    """How long the rest of a run takes, as words behind others; nothing if there is none."""
    return f", {tqdm.format_interval(seconds)} left" if seconds else ""


def epoch_line(metrics: EpochMetrics, epochs: int, seconds_left: float) -> str:
    """One line for a finished epoch out of so many; what does not fit a terminal beside it is left out."""
    line = metrics.log_text(epochs)
    with_left = line + left(seconds_left)
    return with_left if len(with_left) <= WIDTH else line


def result_of(
    what: Mapping[str, Any], state: TrainState, setup: Setup, final: FinalMetrics, machine: Machine
) -> dict[str, Any]:
    """What result.json holds: what was run, the metrics of the last epoch and of the end, and the best epoch.

    `gap` is running train minus validation accuracy in the last epoch; `seconds` are those of all training,
    `wall_seconds` those up to the end of the last epoch, start and evaluations included.
    """
    best = state.best
    return {
        **{name: what[name] for name in IDENTITY},
        "label": what["label"] or setup.spec.title,
        **vars(state.history[-1]),
        **vars(final),
        "best": {"epoch": best.epoch, "val_accuracy": best.val_accuracy},
        **setup.sizes,
        "precision": machine.precision,
        "threads": torch.get_num_threads(),
        "seconds": state.seconds,
    } | ({"policy_steps": state.policy_steps} if state.policy_steps else {})


def summary_table(
    state: TrainState,
    final: FinalMetrics,
    folder: Path,
    more: Sequence[tuple[str, str]] = (),
    report: Path | None = None,
) -> str:
    """The table at the end of a run: figures, where everything is, and how to evaluate again.

    Accuracies by type come first, the overall ones after them. more: rows of figures that were measured after
    the last epoch. report: the file, if there is one.
    """
    last, best = state.history[-1], state.best
    by = {field: getattr(last, f"val_by_{field}") for field in BREAKDOWNS}
    rows = [
        *breakdown_rows("validation accuracy", by),
        *official_rows(last.val_official),
        *last.rows(),
        *final.rows(),
        *more,
        (f"best validation accuracy (epoch {best.epoch})", f"{best.val_accuracy:.2f} %"),
        ("training time", duration(state.seconds)),
        ("total time", duration(state.wall_seconds)),
    ]
    places = [f"best weights:    {folder / 'BEST'}"]  # below the table, where long paths have room
    if state.policy_steps:
        rows.append(("steps of the policy on held-out images", f"{state.policy_steps:,}"))
    with suppress(OSError):  # a folder that may not even be looked at
        if (pictures := PICTURES / folder.name).is_dir():
            places.append(f"policy pictures: {pictures}")
    body = aligned(rows)
    rule = "-" * max(map(len, body.splitlines()))
    lines = [*places, f"evaluate again:  bash run/vqa_test.bash 0 {folder.name}"]
    if report:
        lines.append(f"look at it:      {report}")
    return "\n".join([rule, body, rule, *lines])


def test_message(
    split: str, dataset: VqaDataset, evaluation: Evaluation, files: Sequence[Path], partial: bool
) -> str:
    """What an evaluation found and where its predictions are, in the last of `files` for the server.

    partial: they are those of a part of the images only.
    """
    lines = [f"predictions: {files[0]}", *(f"for the evaluation server: {file}" for file in files[1:])]
    lines += dataset.omissions()
    if partial:
        lines.append("They are INCOMPLETE, of a part of the images only. Do not submit this file.")
    found = "no answers to score against"
    if dataset.labelled:
        found = f"soft-target accuracy {evaluation.accuracy:.2f} %"
        rows = breakdown_rows("soft-target accuracy", evaluation.by)
        if evaluation.official:
            by_type = evaluation.official["by_question_type"]
            rows += breakdown_rows("official VQA accuracy", {"question_type": by_type})
        if rows := [*rows, *official_rows(evaluation.official)]:
            lines.append(aligned(rows))
    lines.append(f"{split}: {counted(len(evaluation.chosen), 'question')}, {found}")
    return "\n".join(lines)


def breakdown_rows(what: str, by: Mapping[str, Mapping[str, float] | None]) -> list[tuple[str, str]]:
    """Accuracies in per cent by the values of each field, a row each below one that names the field."""
    rows = []
    for field, accuracies in by.items():
        if accuracies:
            rows.append((f"{what} by {field.replace('_', ' ')}", ""))
            rows += [(f"  {name}", f"{percent:.2f} %") for name, percent in accuracies.items()]
    return rows


def official_rows(official: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The official VQA accuracy, by answer type and overall, if the human answers are at hand."""
    if not official:
        return []
    by_type = breakdown_rows("official VQA accuracy", {"answer_type": official["by_answer_type"]})
    overall = {"  best possible with these answers": "vocabulary_bound", "official VQA accuracy": "overall"}
    return [*by_type, *((name, f"{official[key]:.2f} %") for name, key in overall.items())]


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows)


def show_policy(folder: RunFolder, title: str, setup: Setup, state: TrainState) -> None:
    """Write usage.npz and draw the epoch just finished, if there are gates; a failure costs one sentence."""
    if not setup.sizes["gates"]["total"]:
        return
    try:
        # Imported here: where the drawing library cannot be used, training goes on all the same.
        from report.policy_plot import draw_policy

        shares = {split: torch.stack(epochs).numpy() for split, epochs in state.shares.items()}  # (E, G)
        question_types = np.array(setup.exam.dataset.question_types)
        by_type = {"question_types": question_types, "val_by_type": state.by_type.numpy()}
        folder.write_arrays("usage.npz", setup.labels | shares | by_type)
        validation = f"validation, {WAYS[setup.spec.evaluate_gates].caption}"
        for split, how in (("train", "training, gates sampled"), ("val", validation)):
            path = PICTURES / folder.path.name / f"epoch_{state.epoch:02d}_{split}.png"
            caption = f"{title}, epoch {state.epoch}: {how}"
            draw_policy(setup.labels, shares[split][-1], caption, path)
            folder.tracker.record({f"policy/{split}": path}, state.updates)
    except Exception as error:  # whatever it is, a run is worth more than its pictures
        text = f"The policy's pictures are missing ({type(error).__name__}: {error}); training goes on."
        folder.tracker.say(textwrap.fill(text, WIDTH, **LONG_PATHS_STAY))


def show_report(folder: RunFolder) -> Path | None:
    """Write the report of a run, and return its file; a failure costs one sentence."""
    file = PICTURES / folder.path.name / REPORT
    try:
        # Imported here: where a library cannot be used, training has gone on all the same.
        from tasks.finetune.report import make_report

        make_report([Run(folder.path)], file)
    except Exception as error:  # whatever it is, a run is worth more than its report
        text = f"There is no report of this run ({type(error).__name__}: {error})."
        folder.tracker.say(textwrap.fill(text, WIDTH, **LONG_PATHS_STAY))
        return None
    return file


def save_scores(folder: RunFolder, evaluation: Evaluation, exam: Exam, state: TrainState) -> None:
    """Write how the epoch just finished answered each question, and again if it is the best one so far.

    scores/<splits>-last.npz and scores/<splits>.npz; of the best epoch scores/<splits>-examples.npz too, see
    `report.run.Examples`. A failure costs one sentence.
    """
    columns = score_columns(evaluation, exam, state.epoch)
    files = {f"{exam.splits}-last": columns}
    if state.best.epoch == state.epoch:
        examples = example_columns(evaluation, exam.answers) | {"epoch": columns["epoch"]}
        files |= {exam.splits: columns, f"{exam.splits}-examples": examples}
    try:
        for name, content in files.items():
            folder.write_arrays(f"scores/{name}.npz", content)
    except UserError as error:
        folder.tracker.say(f"The scores of this epoch are missing; training goes on. {error}")


def save_tested(folder: Path, name: str, evaluation: Evaluation, exam: Exam, epoch: int) -> None:
    """Write how the model of an epoch answered each question of a split: scores/<name>-tested.npz."""
    write_arrays(folder / "scores" / f"{name}{TESTED}.npz", score_columns(evaluation, exam, epoch))


def score_columns(evaluation: Evaluation, exam: Exam, epoch: int) -> dict[str, np.ndarray]:
    """How each question was answered, for a file in scores/; `report.run.Scores` explains the fields."""
    questions = exam.dataset
    return {
        "question_id": evaluation.question_ids,
        "image": np.array(questions.images)[questions.image],
        "question_type": questions.question_types[questions.question_type],
        "answer_type": questions.answer_types[questions.answer_type],
        "group": questions.groups[questions.group],
        "score": evaluation.scores,
        "answer": np.array(exam.answers)[evaluation.chosen],
        "probability": evaluation.probabilities,
        "epoch": np.array(epoch),
    }


def save_controls(path: Path, controls: Controls) -> None:
    """What the table of controls shows, as JSON."""
    write_json(path, controls.values())


def prediction_files(folder: Path, dataset: str, split: str, name: str, partial: bool) -> list[Path]:
    """Where a run's predictions go: predictions/<name>.json, and a copy if the evaluation server takes them.

    The copy is called as the server wants it; there is none of predictions for a part of the images.
    """
    files = [folder / "predictions" / f"{name}.json"]
    entry = folder.name + name.removeprefix(split)
    submitted = results_name(split, entry) if dataset == "vqav2" and not partial else None
    return files + ([files[0].with_name(submitted)] if submitted else [])


def save_predictions(files: Sequence[Path], evaluation: Evaluation, answers: Sequence[str]) -> None:
    """Predictions in the format of the VQA challenge: a list of question_id and answer."""
    pairs = zip(evaluation.question_ids, evaluation.chosen, strict=True)
    predictions = [{"question_id": int(question), "answer": answers[number]} for question, number in pairs]
    for file in files:
        replace_file(file, json.dumps(predictions) + "\n")
