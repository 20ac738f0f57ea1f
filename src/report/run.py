"""The public reader of run folders: what a fine-tuning left in snap/vqa/<version>/, without importing torch.

A file is read when it is first needed; a missing, damaged or incomplete one is a RunError that names it.
"""

import zipfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

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
        return self.result["share_tuned"] is not None

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
    def metrics(self) -> list[dict[str, Any]]:
        """metrics.jsonl: one entry per logged step and per epoch, oldest first."""
        file = self.folder / "metrics.jsonl"
        lines = enumerate(read_text(file, RunError).splitlines(), 1)
        return [parse_json(line, f"line {number} of {file}", error=RunError) for number, line in lines]

    @cached_property
    def usage(self) -> dict[str, np.ndarray]:
        """usage.npz of an adaptive run that has ended an epoch: which gates ran tuned, how often.

        Of the G gates `stream`, `layer`, `component`, `live` (G,); shares tuned 0..1 of E epochs, `train` and
        `val` (E, G), and of K question types in the last one, `question_types` (K,) and `val_by_type` (K, G).
        """
        file = self.folder / "usage.npz"
        if not file.is_file():
            raise RunError(f"{file} is missing: only an adaptive run that has ended an epoch has one.")
        try:
            with np.load(file) as archive:
                usage = dict(archive)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as fault:
            raise RunError(f"{file} cannot be read ({fault}): run the fine-tuning again.") from None
        if missing := [name for name in USAGE if name not in usage]:
            raise RunError(f"{file} lacks {', '.join(missing)}: run the fine-tuning again.")
        if not len(usage["train"]) or not len(usage["val"]):
            raise RunError(f"{file} holds no epoch yet: wait until the first one has ended.")
        return usage

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
