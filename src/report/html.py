"""The report of one run or several: one HTML file that needs nothing else, to be looked at in a browser.

What is drawn, and where, is decided here and in `report.charts`; how it looks, in the template and the style
sheet beside this file. The page may load nothing and run no script but its own, which its policy (CSP) names
by their digests.
"""

import base64
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from common.errors import RunError
from common.files import replace_file
from common.markdown import UNNAMED
from common.words import counted, duration
from report.charts import Chart, Line, line_chart
from report.examples import Answered, LookUp, choose_questions, describe_questions
from report.gates import Panel, panels_of
from report.pair import differing_arguments, pair_of_runs, parts_of, plain, sentences
from report.run import Run, Scores
from report.statistics import Interval, paired_interval

HERE = Path(__file__).parent
TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "report.css", "report.js"
MOST_BYTES = 3_000_000
MOST_QUESTIONS = (200, 100, 50, 20, 0)  # the first of them with which the page is no larger
MOST_EPOCHS = 50  # that the slider of gates has
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CELL_WIDTH, CELL_HEIGHT, LETTER_WIDTH = 30, 18, 6.4  # of a map of gates, in pixels
TYPES = "question type"

_Read = Callable[[], Any]


class Cell(NamedTuple):
    """What a table says of one run."""

    text: str = ""
    note: str = ""  # such as an interval


class Accuracies(NamedTuple):
    """Those of some questions, a run each; None where it is not known."""

    kind: str  # "answer type", ...; '' for all questions
    name: str
    questions: int
    of_runs: list[Interval | None]


class View:
    """A run as a report shows it: what its folder holds, and in `notes` what it does not."""

    def __init__(self, run: Run, number: int, alone: bool) -> None:
        self.run = run
        self.number = number
        self.letter = "" if alone else LETTERS[number]
        self.notes: list[str] = []
        self.epochs = run.epochs
        self.last = run.last
        self.best = max(self.epochs, key=lambda epoch: epoch["val_accuracy"])
        self.arguments = self._optional(lambda: run.arguments) or {}
        has_scores = self._optional(lambda: run.scores("last")) is not None
        self.scores = {
            at: self._optional(lambda at=at: run.scores(at)) for at in ("last", "best") if has_scores
        }
        self.examples = self._optional(run.examples) if has_scores else None
        self.usage = self._optional(lambda: run.usage) if run.adaptive else None

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def about(self) -> str:
        """What was run, in half a sentence."""
        label = self.last.get("label") or self.last.get("strategy") or self.arguments.get("strategy", "a run")
        dataset = self.arguments.get("dataset", self.last.get("dataset", "unknown data"))
        state = "" if self.run.finished else ", not finished"
        epochs = len(self.epochs)
        return f"{label} on {dataset}, {counted(epochs, 'epoch')}{state}"

    @cached_property
    def answered(self) -> Answered:
        live = self.usage["live"] if self.usage else np.zeros(0, bool)
        examples = self.examples
        if examples and examples.gates.shape[1] != len(live):
            gates = np.zeros((len(examples.question_id), 0), bool)
            examples = examples._replace(gates=gates, usual=np.zeros(0, bool))
        return Answered(self.scores.get("best"), examples, live)

    def _optional(self, read: _Read) -> Any:
        """What `read` returns; None, and a note, if the run has none."""
        try:
            return read()
        except RunError as fault:
            self.notes.append(str(fault))
            return None


def write_report(runs: Sequence[Run], file: Path, look_up: LookUp) -> None:
    """Write the report of one run, or of several side by side, as a whole.

    look_up: what the data set says of questions. RunError if a run has not ended an epoch, or if there are
    more runs than letters to call them by.
    """
    if len(runs) > len(LETTERS):
        raise RunError(f"a report of {len(runs)} runs would be unreadable: name at most {len(LETTERS)}.")
    views = [View(run, number, len(runs) == 1) for number, run in enumerate(runs)]
    context = context_of(views)
    for most in MOST_QUESTIONS:
        shown = context | {"data": {"maps": context["usage"], **questions_of(views, most, look_up)}}
        page = template().render(shown).encode("utf-8", "replace")
        if len(page) <= MOST_BYTES:
            break
    replace_file(file, page)


@cache
def template() -> Template:
    """The template, with the style sheet, the script and the policy that allows these two."""
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    digests = (hashlib.sha256(text.encode()).digest() for text in (style, script))
    style_digest, script_digest = (base64.b64encode(digest).decode() for digest in digests)
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style_digest}'; "
        f"script-src 'sha256-{script_digest}'; base-uri 'none'; form-action 'none'"
    )
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(HERE), **options)
    environment.globals.update(style=style, script=script, policy=policy)
    return environment.get_template(TEMPLATE)


def context_of(views: Sequence[View]) -> dict[str, Any]:
    """All that the template needs but for the questions."""
    runs = [view.run for view in views]
    notes = [f"{view.letter + ': ' if view.letter else ''}{note}" for view in views for note in view.notes]
    arguments = [view.arguments for view in views]
    return {
        "title": " and ".join(view.name for view in views),
        "views": views,
        "notes": notes,
        "figures": list(figures_of(views)),
        "accuracies": _by_kind(accuracies_of(views)),
        "comparisons": [compare(views[0], view) for view in views[1:]],
        "charts": list(charts_of(views)),
        "maps": [map_of(view) for view in views if view.usage],
        "usage": [usage_of(view) for view in views if view.usage],
        "shares": list(shares_of(views)),
        "differing": differing_arguments(runs) if all(arguments) else {},
        "setup": {
            "Arguments": side_by_side(arguments),
            "Environment": side_by_side([_content(lambda run=run: run.environment) for run in runs]),
            "Inputs": side_by_side([_content(lambda run=run: run.inputs) for run in runs]),
        },
    }


# ---------------------------------------------------------------------------------------------------- scores


def figures_of(views: Sequence[View]) -> Iterator[tuple[str, list[Cell]]]:
    """Names and values of the rows of the table of figures; a row that no run has is left out."""
    rows: dict[str, Callable[[View], Cell]] = {
        "validation accuracy, last epoch (%)": lambda view: _accuracy(view, "last", view.epochs[-1]),
        "validation accuracy, best epoch (%)": lambda view: _accuracy(view, "best", view.best),
        "official VQA accuracy, last epoch (%)": lambda view: _part(view, "val_official", "overall", ".2f"),
        "train accuracy, running (%)": lambda view: _number(view.last.get("train_accuracy"), ".2f"),
        "train accuracy, without dropout (%)": lambda view: _number(
            view.last.get("own_train_accuracy"), ".2f"
        ),
        "gap, to the running one (points)": lambda view: _number(view.last.get("gap"), "+.2f"),
        "gap, to that without dropout (points)": lambda view: _number(view.last.get("own_gap"), "+.2f"),
        "share tuned in validation": lambda view: _number(view.last.get("share_tuned"), ".3f"),
        "departures from the usual choice of a gate": lambda view: _number(
            view.last.get("gate_variation"), ".3f"
        ),
        "worth of the choice per input (points)": _worth,
        "gates that can reach the answer": lambda view: _part(view, "gates", "live", ",d"),
        "trainable parameters": lambda view: _part(view, "parameters", "trainable", ",d"),
        "training time": lambda view: Cell(duration(sum(epoch["seconds"] for epoch in view.epochs))),
        "training speed (examples/s)": lambda view: _number(view.last.get("examples_per_second"), ",.0f"),
    }
    for name, cell in rows.items():
        cells = [cell(view) for view in views]
        if any(cells_text.text for cells_text in cells):
            yield name, cells


def accuracies_of(views: Sequence[View]) -> Iterator[Accuracies]:
    """Those of the last epoch with intervals, of each kind of type its names, and all questions last."""
    scores = [view.scores.get("last") for view in views]
    known = [each for each in scores if each]
    for kind in dict.fromkeys(kind for each in known for kind in each.types):
        names = {name for each in known if kind in each.types for name in each.types[kind].tolist()}
        for name in sorted(names, key=lambda name: (not name, name)):
            chosen = [each and kind in each.types and each.types[kind] == name for each in scores]
            yield _accuracies(kind, name or UNNAMED, scores, chosen)
    if known:
        yield _accuracies("", "all", scores, [each and np.ones(len(each.score), bool) for each in scores])


def compare(first: View, other: View) -> dict[str, Any]:
    """Two runs at their last epoch, on the same questions: `parts`, and what is to be said of them."""
    try:
        pair = pair_of_runs([first.run, other.run])
    except RunError as fault:
        return {"parts": [], "sentences": [str(fault)]}
    said = sentences(pair, first.letter + other.letter)
    return {"parts": _by_kind(parts_of(pair)), "sentences": list(said)}


def _accuracy(view: View, at: str, epoch: Mapping[str, Any]) -> Cell:
    scores = view.scores.get(at)
    interval = _interval(scores, np.ones(len(scores.score), bool)) if scores else None
    parts = [_between(interval)] if interval and math.isfinite(interval.low) else []
    parts += [f"epoch {epoch['epoch']}"] if at == "best" else []
    return _number(epoch["val_accuracy"], ".2f")._replace(note=", ".join(parts))


def _worth(view: View) -> Cell:
    if "worth" not in view.last:
        return Cell()
    low, high = (view.last[f"worth_{end}"] for end in ("low", "high"))
    return Cell(f"{view.last['worth']:+.2f}", f"[{low:+.2f}, {high:+.2f}]")


def _by_kind(rows: Iterable[Any]) -> list[tuple[str, list[Any]]]:
    return [(kind, list(of_kind)) for kind, of_kind in itertools.groupby(rows, lambda row: row.kind)]


def _part(view: View, whole: str, name: str, style: str) -> Cell:
    """A number that a figure of the run holds; none for 0, which says that the run has no such thing."""
    parts = view.last.get(whole)
    return _number(parts.get(name) or None, style) if isinstance(parts, Mapping) else Cell()


def _number(value: float | None, style: str) -> Cell:
    return Cell() if value is None else Cell(format(value, style))


def _between(interval: Interval) -> str:
    return f"[{interval.low:.2f}, {interval.high:.2f}]"


def _accuracies(kind: str, name: str, scores: Sequence[Scores | None], chosen: Sequence[Any]) -> Accuracies:
    """chosen: of each run its questions, bool (N,), or something false if it has none."""
    pairs = [(each, rows) for each, rows in zip(scores, chosen, strict=True)]
    intervals = [_interval(each, rows) if each and np.any(rows) else None for each, rows in pairs]
    questions = max(int(np.sum(rows)) for each, rows in pairs if each and np.any(rows))
    return Accuracies(kind, name, questions, intervals)


def _interval(scores: Scores, chosen: np.ndarray) -> Interval | None:
    """The accuracy of some questions in per cent; low and high are NaN for questions about one image."""
    values, images = 100 * scores.score[chosen].astype(np.float64), scores.image[chosen]
    if len(np.unique(images)) > 1:
        return paired_interval(values, images)
    return Interval(float(values.mean()), *[float("nan")] * 4)


# ---------------------------------------------------------------------------------------------------- curves


def charts_of(views: Sequence[View]) -> Iterator[Chart]:
    """Accuracy, loss and share tuned as training went on, all runs in each picture."""
    accuracy, loss, tuned = [], [], []
    for view in views:
        epochs = [epoch["epoch"] for epoch in view.epochs]
        for field, name, dashed in (("val_accuracy", "validation", False), ("train_accuracy", "train", True)):
            values = [epoch.get(field) for epoch in view.epochs]
            accuracy.append(Line(_line_name(view, name), view.number, dashed, epochs, values))
        steps = [entry for entry in view.run.metrics if "train/loss" in entry]
        x, y = [entry["step"] for entry in steps], [entry["train/loss"] for entry in steps]
        loss.append(Line(view.letter, view.number, False, x, y))
        if view.usage:
            live = view.usage["live"]
            for split, name, dashed in (("val", "validation", False), ("train", "train", True)):
                values = view.usage[split][:, live].mean(1).tolist() if live.any() else []
                numbers = list(range(1, len(values) + 1))
                tuned.append(Line(_line_name(view, name), view.number, dashed, numbers, values))
    charts = [
        line_chart("Accuracy (%)", "epoch", accuracy),
        line_chart("Training loss, running mean of an epoch", "optimizer step", loss),
        line_chart("Share of examples that ran the tuned copy", "epoch", tuned),
    ]
    yield from filter(None, charts)


def _line_name(view: View, name: str) -> str:
    """Of several runs only lines of validation are named, by the run's letter."""
    return (view.letter if name == "validation" else "") if view.letter else name


# ----------------------------------------------------------------------------------------------------- gates


def map_of(view: View) -> dict[str, Any]:
    """A run's gates, a picture for each stream: layers from left to right, their parts from top to bottom."""
    panels = [_drawn(panel, view.usage["live"]) for panel in panels_of(view.usage)]
    shares = _whole(view.usage["val"][-1])
    return {"view": view, "panels": panels, "shares": shares, "epochs": len(_kept_epochs(view))}


def _drawn(panel: Panel, live: np.ndarray) -> dict[str, Any]:
    rows = [f"{part.group} {part.name} {part.number}".strip() for part in panel.parts]
    left = round(max(map(len, rows)) * LETTER_WIDTH) + 8
    cells = [
        {
            "gate": int(panel.gate[column, row]),
            "x": left + column * CELL_WIDTH,
            "y": row * CELL_HEIGHT,
            "name": f"{panel.stream} layer {layer}" + f", {name}" * (name != "layer"),
            "live": bool(live[panel.gate[column, row]]),
        }
        for column, layer in enumerate(panel.layers)
        for row, name in enumerate(rows)
        if panel.gate[column, row] >= 0
    ]
    return {
        "stream": panel.stream,
        "left": left,
        "width": left + len(panel.layers) * CELL_WIDTH + 2,
        "height": len(rows) * CELL_HEIGHT,
        "rows": rows,
        "layers": panel.layers,
        "cells": cells,
    }


def usage_of(view: View) -> dict[str, Any]:
    """Shares of a run's gates in whole per cent, for the script: by epoch, and of the last one by type."""
    usage, kept = view.usage, _kept_epochs(view)
    types = zip(usage["question_types"].tolist(), usage["val_by_type"], strict=True)
    return {
        "epochs": [int(epoch) + 1 for epoch in kept],
        "val": [_whole(usage["val"][epoch]) for epoch in kept],
        "train": [_whole(usage["train"][epoch]) for epoch in kept],
        "types": [[name or UNNAMED, _whole(share)] for name, share in types if not np.isnan(share).all()],
    }


def shares_of(views: Sequence[View]) -> Iterator[tuple[str, list[float | None]]]:
    """The mean share tuned of each question type in the last epoch, a number a run, and of all last."""
    tables = []
    for view in views:
        usage, table = view.usage, {}
        if usage and usage["live"].any():
            for name, share in zip(usage["question_types"].tolist(), usage["val_by_type"], strict=True):
                if not np.isnan(share).all():
                    table[name or UNNAMED] = float(share[usage["live"]].mean())
            table = dict(sorted(table.items(), key=lambda item: -item[1]))
            table["all"] = float(usage["val"][-1][usage["live"]].mean())
        tables.append(table)
    names = dict.fromkeys(name for table in tables for name in table if name != "all")
    for name in [*names, *(["all"] if any(tables) else [])]:
        yield name, [table.get(name) for table in tables]


def _kept_epochs(view: View) -> list[int]:
    """Up to `MOST_EPOCHS` of a run's epochs, from 0, the first and the last among them."""
    count = min(len(view.usage["val"]), len(view.usage["train"]))
    return np.unique(np.linspace(0, count - 1, min(count, MOST_EPOCHS)).round().astype(int)).tolist()


def _whole(shares: np.ndarray) -> list[int]:
    return np.rint(100 * np.nan_to_num(shares)).astype(int).tolist()


# ------------------------------------------------------------------------------------------ questions, set-up


def questions_of(views: Sequence[View], most: int, look_up: LookUp) -> dict[str, Any]:
    """Up to `most` questions for the script, and a sentence on what of them is not there, or ''."""
    answered, missing = [view.answered for view in views], ""
    if len({(view.arguments.get("dataset"), view.arguments.get("valid")) for view in views}) > 1:
        missing = "The runs are on different data, so that there are no questions to be shown side by side."
        answered = []
    found = describe_questions(answered, choose_questions(answered, most), look_up)
    if faults := found.pop("faults"):
        missing = f"Of the questions not all can be shown. {' '.join(dict.fromkeys(faults))}"
    return found | {"missing": missing, "letters": [view.letter for view in views]}


def side_by_side(contents: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Names, and the value in each run as text; what is nested gets a name with a dot in it."""
    tables = [dict(_flat(content)) for content in contents]
    names = dict.fromkeys(name for table in tables for name in table)
    return [(name, [table.get(name, "") for table in tables]) for name in names]


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        elif isinstance(value, list):
            yield before + name, " ".join(map(str, value))
        else:
            yield before + name, plain(value)


def _content(read: _Read) -> Mapping[str, Any]:
    """What a file of a run holds; nothing if an older run has none."""
    try:
        return read()
    except RunError:
        return {}
