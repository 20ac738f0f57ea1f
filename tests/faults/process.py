"""Small runs as processes: forked from one that has imported everything, because imports take seconds.

A forked run is a process like any other, with its own memory, signal handlers, process group and exit code,
but starts in no time. What imports decide themselves (MPLBACKEND, say) needs a fresh interpreter: `fresh`.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT, SRC

from common.cli import ASKING, run_command

TRACEBACK = "Traceback (most recent call last)"
Hook = Callable[[], None]  # done in the process of a run, before it begins


class Outcome(NamedTuple):
    """How a process ended. code: as a shell's $?, but minus the number of a signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def traceback(self) -> str | None:
        """The last line of a traceback that the user saw, if there was one."""
        if TRACEBACK not in self.out + self.err:
            return None
        *_, last = (self.err if TRACEBACK in self.err else self.out).strip().splitlines()
        return last

    @property
    def sentence(self) -> str:
        """What the error said, or the last words."""
        said = self.err.strip()
        start = said.rfind("error: ")
        return " ".join(said[max(start, 0) :].split()) or " ".join(self.out.split())[-80:]


@dataclass(frozen=True)
class Start:
    """How to start a command. module: one with `cli` or `main`. env: what differs, None where it is unset."""

    argv: Sequence[str]
    cwd: Path
    module: str = "tasks.vqa"
    env: Mapping[str, str | None] = field(default_factory=dict)
    hooks: Sequence[Hook] = ()


class Running:
    """A process that was started; the leader of a process group of its own."""

    def __init__(self, pid: int, logs: tuple[Path, Path]) -> None:
        self.pid = pid
        self._logs = logs
        self._begin = time.monotonic()

    def send(self, number: int, *, group: bool = False) -> None:
        """A signal to the process, or to all of its group; none if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, timeout: float = 120) -> Outcome:
        """Wait for its end; TimeoutError, and the end of it, if it does not come."""
        deadline = time.monotonic() + timeout
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL, group=True)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"the run did not end within {timeout:.0f} s")
            time.sleep(0.005)
        out, err = (log.read_text(encoding="utf-8", errors="replace") for log in self._logs)
        return Outcome(os.waitstatus_to_exitcode(status), out, err, time.monotonic() - self._begin)


_serial = 0


def start(what: Start) -> Running:
    """Fork a process that runs a command."""
    global _serial
    _serial += 1
    stem = what.cwd / f".output-{os.getpid()}-{_serial}"
    logs = stem.with_suffix(".out"), stem.with_suffix(".err")
    for log in logs:
        log.touch()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # whoever of the two comes first
            os.setpgid(pid, pid)
        return Running(pid, logs)
    code = 70
    try:
        _redirect(logs)
        code = _call(what)
    finally:
        os._exit(code)


def run_fresh(what: Start, python: Sequence[str] = (), shell: str = "{}") -> Outcome:
    """Run a script in an interpreter of its own. shell: a command line in which {} is that of the script."""
    script = SRC / f"{what.module.replace('.', '/')}.py"
    line = " ".join(f"'{word}'" for word in (sys.executable, *python, str(script), *what.argv))
    begin = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": f"{SRC}:{ROOT}", **what.env}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell.format(line)],
        cwd=what.cwd,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


def _redirect(logs: tuple[Path, Path]) -> None:
    os.setpgid(0, 0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, log in enumerate(logs, start=1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND), descriptor)
    # Opened anew: the parent's may be a terminal's, or hold what the parent has yet to write.
    sys.stdout, sys.stderr = (open(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115


def _call(what: Start) -> int:
    """The exit code that an interpreter would end with."""
    os.chdir(what.cwd)
    for name, value in what.env.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    sys.argv = [what.module, *what.argv]
    for number in ASKING:  # whoever started the driver may ignore some, as nohup does
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for hook in what.hooks:
            hook()
        module = importlib.import_module(what.module)
        command = getattr(module, "cli", None) or module.main
        code = run_command(lambda: command(list(what.argv)), "Interrupted.")
        atexit._run_exitfuncs()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        code = 120  # as Python does
    return code


def warm(what: Start) -> None:
    """Import here what a run imports as it goes, so that the runs forked later find it imported."""
    listing = what.cwd / "modules.json"

    def list_modules() -> None:
        atexit.register(lambda: listing.write_text(json.dumps(list(sys.modules))))

    outcome = start(Start(what.argv, what.cwd, what.module, what.env, [*what.hooks, list_modules])).wait()
    if outcome.code or outcome.traceback:
        raise RuntimeError(f"an undisturbed run fails: {outcome.err or outcome.out}")
    for name in json.loads(listing.read_text()):
        if name not in sys.modules:
            with contextlib.suppress(Exception):  # some are names of something else
                importlib.import_module(name)
