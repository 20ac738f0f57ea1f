"""Whether two runs came to the same: every number and tensor of theirs, but not their times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

TIMES = re.compile(r"second|time|memory")
DAMAGED = "damaged"
HASHES = "sha256"  # of files that hold times
RECORD = "record.json"


def difference(ours: Path, theirs: Path) -> str | None:
    """The first thing in which two run folders differ, or None if they are equal."""
    return first_difference(numbers(ours), numbers(theirs))


def first_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    for name, value in ours.items():
        if isinstance(value, str) and value == DAMAGED:
            return f"{name} is damaged"
    for name in [*theirs, *(name for name in ours if name not in theirs)]:
        if name not in ours:
            return f"{name} is missing"
        if name not in theirs:
            return f"{name} is too many"
        if not _same(ours[name], theirs[name]):
            values = (ours[name], theirs[name])
            shown = (
                "" if isinstance(values[0], torch.Tensor) else f": {values[0]!r:.40}, not {values[1]!r:.40}"
            )
            return f"{name} differs{shown}"
    return None


def numbers(folder: Path) -> dict[str, Any]:
    """What a run folder holds that a resumed run must come to again, by where it is."""
    found: dict[str, Any] = {}
    for name in ("result.json", "metrics.jsonl"):
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            try:
                for number, part in enumerate(text.splitlines() if name.endswith("l") else [text], start=1):
                    found |= dict(_flatten(f"{name} {number}", json.loads(part)))
            except ValueError:
                found[name] = DAMAGED
    for part in ("BEST", "LAST"):
        found |= state(folder / part)
    return found


def state(folder: Path) -> dict[str, Any]:
    """The tensors and numbers in a folder of safetensors and JSON, by file and name."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = f"{folder.name}/{path.relative_to(folder)}"
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt") as tensors:
                    found |= {f"{name}: {key}": tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
            elif path.suffix == ".json":
                content = json.loads(path.read_text(encoding="utf-8"))
                if path.name == RECORD:
                    content.pop("arguments", None)  # paths and flags that decide no number
                found |= dict(_flatten(name, content))
        except (SafetensorError, ValueError):
            found[name] = DAMAGED
    return found


def _flatten(where: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, part in value.items():
            if not TIMES.search(name) and not (name == HASHES and isinstance(part, dict)):
                yield from _flatten(f"{where}: {name}", part)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _flatten(f"{where}[{number}]", part)
    else:
        yield where, value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
