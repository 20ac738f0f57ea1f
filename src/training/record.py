"""What a run is: its arguments, and the identity of everything that decides its numbers.

A run that is taken up again must be the same run. LAST/ holds the record with which its state was made; the
arguments and inputs beside it in the run folder are for people and reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import RunError
from common.files import latest_complete, read_json

ARGUMENTS, INPUTS = "args.json", "inputs.json"
LAST, RECORD = "LAST", "record.json"
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Record:
    """What a run was asked for, and what it found.

    deciding: of all arguments, those that decide numbers, as they are to be compared. inputs: by name, the
    digest of what was read, or a value such as the number of processes.
    """

    arguments: Mapping[str, Any]
    inputs: Mapping[str, Any]
    deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    def plain(self) -> dict[str, Any]:
        """The record as it comes back from JSON."""
        return json.loads(json.dumps({"arguments": dict(self.arguments), "inputs": dict(self.inputs)}))

    def require_same_arguments(self, path: Path) -> None:
        """RunError, naming every difference, if the folder `path` holds a run with other arguments."""
        old = recorded_arguments(path)
        if old is None:
            return
        changes = list(_changes(self.deciding(old), self.deciding(self.plain()["arguments"])))
        if changes:
            raise RunError(
                f"{path} holds a run made with other arguments ({'; '.join(changes)}). "
                "Choose another version name, repeat the earlier arguments to go on, or delete the folder."
            )

    def changed_inputs(self, old: Mapping[str, Any]) -> list[str]:
        """Every difference to the inputs `old`, in words."""
        return list(_changes(old, self.plain()["inputs"]))


def recorded_arguments(path: Path) -> dict[str, Any] | None:
    """The arguments that a run folder was made with, None if nothing says; RunError if that is damaged."""
    last = latest_complete(path / LAST)
    if last and (last / RECORD).is_file():
        return read_record(last)["arguments"]
    if not (path / ARGUMENTS).is_file():
        return None
    advice = f"Delete {path} or choose another version name."
    try:
        arguments = read_json(path / ARGUMENTS, RunError)
    except RunError as error:
        raise RunError(f"{error} {advice}") from None
    if not isinstance(arguments, dict):
        raise RunError(f"{path / ARGUMENTS} is damaged. {advice}")
    return arguments


def read_record(state: Path) -> dict[str, Any]:
    """The record in a folder with a state: "arguments" and "inputs"; RunError if it is damaged."""
    record = read_json(state / RECORD, RunError)
    parts = [record.get(name) for name in ("arguments", "inputs")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise RunError(f"{state / RECORD} is damaged: it holds no record of a run.")
    return record


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if before == now:
            continue
        if any(isinstance(value, str) and DIGEST.fullmatch(value) for value in (before, now)):
            verb = "is missing" if now is None else "is new" if before is None else "is another one"
            yield f"{name} {verb}"
        else:
            yield f"{name} was {before!r} and is now {now!r}"
