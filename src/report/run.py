"""The public reader of run folders: what a fine-tuning left in snap/vqa/<version>/, without importing torch.

A file is read when it is first needed; a missing, damaged or incomplete one is a RunError that names it.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import RunError
from common.files import parse_json, read_json, read_text

RUNS = Path("snap/vqa")  # where run folders are, unless a run says otherwise

NUMBER = (int, float)
RESULT = {
    **dict.fromkeys(("dataset", "strategy"), str),
    **dict.fromkeys(("seed", "epochs"), int),
    **dict.fromkeys(("train_accuracy", "val_accuracy", "gap", "seconds"), NUMBER),
    **{"from_scratch": bool, "best": dict, "share_tuned": (*NUMBER, type(None))},
}
USAGE = ("stream", "layer", "component", "live", "train", "val", "question_types", "val_by_type")
TYPES = ("answer_type", "question_type", "group")  # of questions, where they are known


class Scores(NamedTuple):
    """How N questions were answered, in the order of their data set: a file in scores/."""

    epoch: np.ndarray  # (), from 1
    question_id: np.ndarray  # (N,) int64
    image: np.ndarray  # (N,) str
    score: np.ndarray  # (N,) soft target of the answer, 0..1
    answer: np.ndarray  # (N,) str
    probability: np.ndarray  # (N,) of the answer: its own, they need not sum to 1
    types: dict[str, np.ndarray]  # (N,) str by kind: "answer type", "question type", "group"; as far as known


class Examples(NamedTuple):
    """A sample of n questions as the best epoch answered them: scores/<split>-examples.npz.

    Of G gates none, G = 0, where no copy was chosen.
    """

    epoch: np.ndarray  # (), from 1
    question_id: np.ndarray  # (n,) int64, in the order of their data set
    why: np.ndarray  # (n,) str: how it came into the sample
    answers: np.ndarray  # (n, K) str, the likeliest first
    probabilities: np.ndarray  # (n, K) of these: each its own, they need not sum to 1
    gates: np.ndarray  # (n, G) bool, true for tuned, in the order of usage.npz
    usual: np.ndarray  # (G,) bool: what most of all validation questions had


SCORES = Scores._fields[:-1]
TESTED = "-tested"  # behind a split's name in scores/: answered by vqa_test.bash


class Run:
    """One run folder, finished or not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder.resolve().name

    @property
    def finished(self) -> bool:
        return (self.folder / "result.json").is_file()

    @property
    def adaptive(self) -> bool:
        """Whether gates decided which copy ran: only then is there a share tuned."""
        return self.last.get("share_tuned") is not None

    @property
    def last(self) -> dict[str, Any]:
        """Figures of a finished run, or those of the last epoch of one that goes on; see `result`."""
        return self.result if self.finished else self.epochs[-1]

    @property
    def refits(self) -> bool:
        """Whether it trained under what another run had found, which may have gates or none."""
        return (self.folder / "args.json").is_file() and bool(self.arguments.get("refit"))

    @property
    def label(self) -> str:
        """The way of fine-tuning, as rows of tables name it."""
        return self.result.get("label", self.result["strategy"])  # older runs have no label

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json: accuracies in %, gap in points, seconds, share tuned 0..1 or None without gates."""
        result = self._json("result.json", RESULT)
        self._require("result.json", result["best"], {"val_accuracy": NUMBER})
        return result

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """args.json: what the run was asked for."""
        return self._json("args.json")

    @cached_property
    def environment(self) -> dict[str, Any]:
        """env.json: commit, versions, device."""
        return self._json("env.json")

    @cached_property
    def inputs(self) -> dict[str, Any]:
        """inputs.json: the identity of everything that decides the numbers."""
        return self._json("inputs.json")

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: one entry per logged step and per epoch, oldest first."""
        file = self.folder / "metrics.jsonl"
        lines = enumerate(read_text(file, RunError).splitlines(), 1)
        return [parse_json(line, f"line {number} of {file}", error=RunError) for number, line in lines]

    @property
    def epochs(self) -> list[dict[str, Any]]:
        """The entries of `metrics` that are of an epoch; RunError if none has ended."""
        if not (entries := [entry for entry in self.metrics if "epoch" in entry]):
            raise RunError(f"{self.folder / 'metrics.jsonl'} holds no epoch yet: wait until one has ended.")
        return entries

    @cached_property
    def usage(self) -> dict[str, np.ndarray]:
        """usage.npz of an adaptive run that has ended an epoch: which gates ran tuned, how often.

        Of the G gates `stream`, `layer`, `component`, `live` (G,); shares tuned 0..1 of E epochs, `train` and
        `val` (E, G), and of K question types in the last one, `question_types` (K,) and `val_by_type` (K, G).
        """
        file = self.folder / "usage.npz"
        if not file.is_file():
            raise RunError(f"{file} is missing: only an adaptive run that has ended an epoch has one.")
        usage = self._arrays(file, USAGE)
        if not len(usage["train"]) or not len(usage["val"]):
            raise RunError(f"{file} holds no epoch yet: wait until the first one has ended.")
        return usage

    def scores(self, at: str = "last", split: str | None = None) -> Scores:
        """How the validation questions were answered, `at` the "last" epoch or the "best" one.

        split: instead, those of another split, as `vqa_test.bash --test` did with the best epoch. RunError if
        the run has not ended an epoch, is older than these files, or was not tested on the split.
        """
        if split is not None:
            file = self.folder / "scores" / f"{split}{TESTED}.npz"
            if not file.is_file():
                command = f"bash run/vqa_test.bash 0 {self.name} --test {split}"
                raise RunError(f"{file} is missing: {command} writes it, if the split has answers.")
            return self._scores(file)
        splits = self.arguments.get("valid")
        file = self.folder / "scores" / f"{splits}{'-last' * (at == 'last')}.npz"
        if not file.is_file():
            raise RunError(
                f"{file} is missing: a run has it after its first epoch, unless it is of an earlier version "
                "of this repository; run the fine-tuning again under another version name."
            )
        return self._scores(file)

    def _scores(self, file: Path) -> Scores:
        arrays = self._arrays(file, SCORES)
        types = {name.replace("_", " "): arrays[name] for name in TYPES if any(arrays.get(name, ()))}
        return Scores(*(arrays[name] for name in SCORES), types)

    def examples(self) -> Examples:
        """Questions of the best epoch, one by one; RunError as of `scores`."""
        file = self.folder / "scores" / f"{self.arguments.get('valid')}-examples.npz"
        if not file.is_file():
            raise RunError(f"{file} is missing: runs of earlier versions of this repository have none.")
        arrays = self._arrays(file, Examples._fields)
        return Examples(*(arrays[name] for name in Examples._fields))

    @property
    def has_scores(self) -> bool:
        """Whether there is what `scores` reads; runs of earlier versions have none."""
        return any((self.folder / "scores").glob("*-last.npz"))

    @staticmethod
    def _arrays(file: Path, fields: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            with np.load(file) as archive:
                arrays = dict(archive)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as fault:
            raise RunError(f"{file} cannot be read ({fault}): run the fine-tuning again.") from None
        if missing := [name for name in fields if name not in arrays]:
            raise RunError(f"{file} lacks {', '.join(missing)}: run the fine-tuning again.")
        return arrays

    def _json(self, name: str, fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
        content = read_json(self.folder / name, RunError)
        self._require(name, content, fields or {})
        return content

    def _require(self, name: str, content: Any, fields: Mapping[str, Any]) -> None:
        """RunError unless `content` is an object that has every field, of its type."""
        if not isinstance(content, dict):
            raise RunError(f"{self.folder / name} holds no JSON object: run the fine-tuning again.")
        if wrong := [f for f, kind in fields.items() if f not in content or not isinstance(content[f], kind)]:
            raise RunError(f"{self.folder / name} lacks a usable {wrong[0]}: run the fine-tuning again.")


def find_run(text: str) -> Run:
    """The run of a version name or a folder."""
    folder = Path(text)
    return Run(folder if folder.is_dir() or len(folder.parts) > 1 else RUNS / text)
