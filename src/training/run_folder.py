"""The run folder, snap/vqa/<version>/: who works in it, with what, how far it is, and what came out.

    args.json      the arguments
    inputs.json    the identity of everything that decides the numbers
    env.json       commit, versions, device
    metrics.jsonl  the curves; LAST/ holds them too
    LAST/          the full state, and the arguments and inputs that it belongs to; a run goes on from here
    LAST-<steps>/  earlier ones, with --keep
    BEST/          the best epoch, written by the task
    scores/        how each validation question was answered
    usage.npz      which gates ran tuned
    result.json    the end
    .lock          who works in it now

It is opened last, when everything that can be refused was refused: a failed start leaves nothing behind.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from common.errors import RunError, UserError
from common.files import (
    aside_of,
    fault_of,
    latest_complete,
    lock_file,
    read_json,
    read_text,
    remove_leftovers,
    replace_file,
    replace_folder,
    write_errors_explained,
    write_json,
)
from training.machine import Machine, hardware_name
from training.record import ARGUMENTS, INPUTS, LAST, RECORD, Record, read_record
from training.state_files import load_tree, random_states, restore_random_states, save_tree
from training.tracker import Channels, Curves, Tracker, open_tracker

BEST, STATE, METRICS = "BEST", "state", "metrics.jsonl"
RECORDED = {"arguments": ARGUMENTS, "inputs": INPUTS}
GIT_PATIENCE = 10  # seconds
PROCESSES = "number of processes"  # among the inputs
PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
UNLOCKABLE = "cannot be locked on this disk: make sure yourself that no other run works in it"


class Stateful(Protocol):
    """What has a state: a model, an optimizer, a schedule, the counters of a run."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


class RunFolder:
    """A run folder that this process, and its siblings if there are several, have to themselves.

    `path` may be read by anybody; all writing goes through the methods, on the main process only.
    """

    def __init__(self, path: Path, record: Record, accelerator: Accelerator, keep: int = 1) -> None:
        self.path = path
        self.tracker = Tracker([])  # silent until it is started, and on other processes for good
        self._record = record
        self._accelerator = accelerator
        self._keep = keep
        self._notices: list[str] = []  # what the user should know about the folder
        self._updates: int | None = None  # optimizer steps of the state saved last
        self._state, fault = _latest_whole(path)
        if self._state and fault:
            self._notices.append(f"{fault}. Going on from {self._state}, the latest whole state.")
        self._curves = Curves()

    @classmethod
    @contextmanager
    def open(
        cls,
        path: Path,
        record: Record,
        accelerator: Accelerator,
        *,
        keep: int = 1,
        accept_changes: bool = False,
    ) -> Iterator[RunFolder]:
        """Begin the run of this record, or take it up; RunError if the folder is another run's or damaged.

        keep: how many states are kept. accept_changes: take the run up although its inputs changed. If the
        run fails before its state was first saved, the folder is as absent as it was: nothing blocks the
        corrected command.
        """
        if not accelerator.is_main_process:
            accelerator.wait_for_everyone()  # the main process may still be busy with the folder
            yield cls(path, record, accelerator, keep)
            return
        found = path.exists()
        with write_errors_explained(path, RunError):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+", encoding="utf-8")
        with lock:
            with write_errors_explained(path, RunError):
                unlockable = _take(lock, path)
                remove_leftovers(path)
            begun = (path / ARGUMENTS).exists()
            folder = None
            try:
                folder = cls(path, record, accelerator, keep)
                folder._notices += unlockable
                folder._require_same_run(accept_changes)
                for name, content in record.plain().items():
                    write_json(path / RECORDED[name], content)
                accelerator.wait_for_everyone()
                yield folder
            except BaseException:
                if folder:
                    folder.tracker.close()
                if not (begun or latest_complete(path / LAST) or (path / BEST).exists()):
                    for name in RECORDED.values():
                        (path / name).unlink(missing_ok=True)
                    if not found:
                        shutil.rmtree(path, ignore_errors=True)
                raise
            folder.tracker.close()

    def start_tracker(self, channels: Channels) -> Tracker:
        """Begin to report; see `training.tracker.open_tracker`."""
        if self._accelerator.is_main_process:
            self.tracker = open_tracker(self.path, self._record.arguments, channels, self._curves)
            for notice in self._notices:
                self.tracker.say(notice)
        return self.tracker

    @property
    def best(self) -> Path:
        """Where the best epoch is, or will be."""
        return self.path / BEST

    def save_state(self, parts: Mapping[str, Stateful], updates: int) -> None:
        """Save the state of each part, and the random states of every process, after so many `updates`.

        RunError if the disk is full: the state saved before is then as it was.
        """
        accelerator = self._accelerator
        states = gather_object([random_states()])
        if accelerator.is_main_process:
            last = self.path / LAST
            with replace_folder(last, self._earlier(updates)) as fresh:
                tree = {name: part.state_dict() for name, part in parts.items()}
                save_tree({**tree, "random": states}, fresh / STATE)
                write_json(fresh / RECORD, self._record.plain() | {"updates": updates})
                (fresh / METRICS).write_text("".join(self._curves.lines), encoding="utf-8")
            for path in _earlier_states(self.path)[self._keep - 1 :]:
                shutil.rmtree(path, ignore_errors=True)
        self._updates = updates
        accelerator.wait_for_everyone()

    def load_state(self, parts: Mapping[str, Stateful]) -> bool:
        """Load the latest whole state into each part; false if there is none.

        RunError if there are states and all of them are damaged, or of an older format.
        """
        if self._state is None:
            return False
        tree = load_tree(self._state / STATE)
        for name, part in parts.items():
            part.load_state_dict(tree[name])
        restore_random_states(tree["random"][self._accelerator.process_index])
        self._curves.lines = read_text(self._state / METRICS, RunError).splitlines(keepends=True)
        self._updates = read_record(self._state)["updates"]
        return True

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """One of its JSON files: env.json at the beginning, result.json at the end."""
        if self._accelerator.is_main_process:
            write_json(self.path / name, content)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """One of its .npz files."""
        if self._accelerator.is_main_process:
            write_arrays(self.path / name, arrays)

    def has(self, name: str) -> bool:
        """Whether one of its JSON files is there, and is one."""
        try:
            return bool(read_json(self.path / name))
        except UserError:
            return False

    def _require_same_run(self, accept_changes: bool) -> None:
        """RunError unless the folder is new or this run's."""
        self._record.require_same_arguments(self.path)
        if self._state is None:
            return
        changes = self._record.changed_inputs(read_record(self._state)["inputs"])
        if fixed := [change for change in changes if change.startswith(PROCESSES)]:
            raise RunError(
                f"{self.path}: {fixed[0]}, so that its batches would be others: go on with as many processes "
                "as before, or choose another version name."
            )
        if changes and not accept_changes:
            raise RunError(
                f"{self.path} was begun with other inputs: {'; '.join(changes)}. Its numbers would be "
                "neither those of the old ones nor of the new. Put the old ones back, choose another version "
                "name, or go on all the same with --accept-changes."
            )
        self._notices += [f"changed since the last save: {change}" for change in changes]

    def _earlier(self, updates: int) -> Path | None:
        """The name under which the state that is about to be replaced is kept; None if it is not."""
        if self._keep < 2 or self._updates in (None, updates):
            return None
        return self.path / f"{LAST}-{self._updates:08d}"


def _take(lock: IO[str], path: Path) -> list[str]:
    """Lock the folder until the file is closed; the system does that even for a killed process.

    Returns what the user should know about it.
    """
    locked = lock_file(lock)
    if locked is False:
        lock.seek(0)
        raise RunError(f"{path} is in use by another run ({lock.read().strip()}). Wait for it or stop it.")
    lock.truncate(0)
    who = f"{socket.gethostname()}, process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M}\n"
    os.write(lock.fileno(), who.encode())  # at once: on a full disk, a buffer would fail again when closed
    return [f"{path} {UNLOCKABLE}."] if locked is None else []


def _earlier_states(path: Path) -> list[Path]:
    """The states that a run folder keeps beside LAST, the latest first."""
    return sorted(path.glob(f"{LAST}-*"), reverse=True)


def _latest_whole(path: Path) -> tuple[Path | None, str]:
    """The latest state that is as it was saved, None before the first, and what is wrong with later ones.

    RunError if none of those there is whole, or if they are of the format of accelerate, which can run code.
    """
    last = path / LAST
    states = [state for state in (last, aside_of(last, "old"), *_earlier_states(path)) if state.is_dir()]
    advice = f"Delete it to begin the run again; {path / BEST}, if there is one, can still be evaluated."
    faults = []
    for state in states:
        if any(state.glob("custom_checkpoint_*.pkl")) and not (state / RECORD).exists():
            raise RunError(
                f"{state} is of an older format, which could run code when it is read. Finish the run with "
                f"the version that began it. {advice}"
            )
        if not (fault := fault_of(state)):
            return state, "; ".join(faults)
        faults.append(fault)
    if faults:
        raise RunError(f"{'; '.join(faults)}. {advice}")
    return None, ""


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    replace_file(path, content.getvalue())


def describe_environment(machine: Machine) -> dict[str, Any]:
    """Commit, versions, and what the run is on."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        # torch names its build itself; the metadata of its packages may leave it out.
        "packages": {name: version(name) for name in PACKAGES} | {"torch": str(torch.__version__)},
        "device": str(machine.device),
        "processor": hardware_name(machine.device),
        "precision": machine.precision,
        "processes": machine.processes,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
    }


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), *arguments]
        done = subprocess.run(command, capture_output=True, check=True, timeout=GIT_PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return None  # a copy without its history, or no git, or one that hangs
    return done.stdout.decode(errors="replace").strip()
