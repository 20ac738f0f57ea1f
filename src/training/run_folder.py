"""The run folder, snap/vqa/<version>/: who works in it, with what, how far it is, and what came out.

    args.json    the arguments; a run made with others is refused
    env.json     commit, versions, device, checksums of what was read
    LAST/        the full state; the same command goes on from here
    BEST/        the best epoch, written by the task
    result.json  the end
    .lock        who works in it now

It is opened last, when everything that can be refused was refused: a failed start leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import Accelerator

from common.errors import RunError
from common.files import (
    aside_of,
    latest_complete,
    lock_file,
    read_json,
    replace_folder,
    sha256_of,
    write_errors_explained,
    write_json,
)
from training.machine import Machine
from training.tracker import Tracker, open_tracker

PACKAGES = ("torch", "transformers", "accelerate", "safetensors", "numpy")
UNLOCKABLE = "cannot be locked on this disk: make sure yourself that no other run works in it"


class RunFolder:
    """A run folder that this process, and its siblings if there are several, have to themselves.

    `path` may be read by anybody; all writing goes through the methods, on the main process only.
    """

    def __init__(self, path: Path, accelerator: Accelerator) -> None:
        self.path = path
        self.tracker = Tracker([])  # silent until it is started, and on other processes for good
        self._notice = ""  # what the user should know about the folder
        self._accelerator = accelerator

    @classmethod
    @contextmanager
    def open(
        cls, path: Path, arguments: Mapping[str, Any], free: frozenset[str], accelerator: Accelerator
    ) -> Iterator[RunFolder]:
        """Begin the run of these arguments, or take it up; RunError if the folder is not for them.

        Arguments named in `free` do not influence the result and may differ. If the run fails before its
        state was first saved, the folder is as absent as it was: nothing blocks the corrected command.
        """
        folder = cls(path, accelerator)
        if not accelerator.is_main_process:
            accelerator.wait_for_everyone()
            yield folder
            return
        found = path.exists()
        with write_errors_explained(path, RunError):
            path.mkdir(parents=True, exist_ok=True)
            lock = (path / ".lock").open("a+", encoding="utf-8")
        with lock:
            folder._take(lock)
            begun = (path / "args.json").exists()
            try:
                require_same_arguments(path, arguments, free)
                write_json(path / "args.json", _plain(arguments))
                accelerator.wait_for_everyone()
                yield folder
            except BaseException:
                folder.tracker.close()
                if not (begun or folder.last or folder.best.exists()):
                    (path / "args.json").unlink(missing_ok=True)
                    if not found:
                        shutil.rmtree(path, ignore_errors=True)
                raise
            folder.tracker.close()

    def start_tracker(self, config: Mapping[str, Any], wandb: str, resumed_at: int) -> Tracker:
        """Begin to report; see `training.tracker.open_tracker`."""
        if self._accelerator.is_main_process:
            self.tracker = open_tracker(self.path, config, wandb, resumed_at)
            if self._notice:
                self.tracker.say(self._notice)
        return self.tracker

    @property
    def best(self) -> Path:
        """Where the best epoch is, or will be."""
        return self.path / "BEST"

    @property
    def last(self) -> Path | None:
        """The latest whole state, or None before the first."""
        return latest_complete(self.path / "LAST")

    def save_state(self) -> None:
        """Save everything prepared or registered, and the random states of every process, as one folder."""
        folder, accelerator = self.path / "LAST", self._accelerator
        with ExitStack() as stack:
            if accelerator.is_main_process:
                stack.enter_context(replace_folder(folder))
            accelerator.wait_for_everyone()
            accelerator.save_state(str(aside_of(folder)))
            accelerator.wait_for_everyone()
        accelerator.wait_for_everyone()

    def load_state(self) -> bool:
        """Load the latest state into everything prepared or registered; false if there is none."""
        last = self.last
        if last is None:
            return False
        self._accelerator.load_state(str(last))
        return True

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """One of its JSON files: env.json at the beginning, result.json at the end."""
        if self._accelerator.is_main_process:
            write_json(self.path / name, content)

    def _take(self, lock: IO[str]) -> None:
        """Lock the folder until the file is closed; the system does that even for a killed process."""
        locked = lock_file(lock)
        if locked is False:
            lock.seek(0)
            raise RunError(
                f"{self.path} is in use by another run ({lock.read().strip()}). Wait for it or stop it."
            )
        if locked is None:
            self._notice = f"{self.path} {UNLOCKABLE}."
        lock.truncate(0)
        lock.write(f"{socket.gethostname()}, process {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M}\n")
        lock.flush()


def recorded_arguments(path: Path) -> dict[str, Any] | None:
    """The arguments that a run folder was made with, None without such a folder; RunError if damaged."""
    file = path / "args.json"
    if not file.is_file():
        return None
    advice = f"Delete {path} or choose another version name."
    try:
        arguments = read_json(file, RunError)
    except RunError as error:
        raise RunError(f"{error} {advice}") from None
    if not isinstance(arguments, dict):
        raise RunError(f"{file} is damaged. {advice}")
    return arguments


def require_same_arguments(path: Path, arguments: Mapping[str, Any], free: frozenset[str]) -> None:
    """RunError, naming every difference, if the folder holds a run with other arguments; `free` ones may."""
    old, new = recorded_arguments(path), _plain(arguments)
    if old is None:
        return
    differing = [
        f"{name} was {old.get(name)!r} and is now {new.get(name)!r}"
        for name in sorted({*old, *new} - free)
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise RunError(
            f"{path} holds a run made with other arguments ({'; '.join(differing)}). "
            "Choose another version name, repeat the earlier arguments to go on, or delete the folder."
        )


def describe_environment(machine: Machine, read: Iterable[Path]) -> dict[str, Any]:
    """Commit, versions, what the run is on, and a sha256 of each file that it read."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "device": str(machine.device),
        "precision": machine.precision,
        "processes": machine.processes,
        "threads": torch.get_num_threads(),
        "command": sys.argv,
        "data_sha256": {str(path): sha256_of(path) for path in read},
    }


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as they come back from JSON."""
    return json.loads(json.dumps(arguments))


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None  # a copy without its history, or no git
    return done.stdout.strip()
