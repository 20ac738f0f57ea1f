"""A run folder belongs to one process tree: a second is refused, and no part of the first outlives it."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, Group
from tests.faults.place import COMMAND, TRAINING, VALIDATION, Place, at_batch, refused
from tests.faults.process import Hook, Outcome
from tests.helpers.paths import ROOT, SRC

GO_ON = "go-on"  # the first run waits until there is this file
PATIENCE = 15  # seconds in which the ranks of a killed launcher must have ended


def wait_for_go() -> None:
    Path("waiting").touch()
    while not Path(GO_ON).exists():
        time.sleep(0.01)


def appears(path: Path, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def second_is_refused(hook: Hook, begun: str = "data", flags: tuple[str, ...] = ()) -> Case | None:
    """flags: of the second run."""

    def fault(place: Place) -> str | None:
        first = place.take(begun).start(hooks=[hook])
        if not appears(place.root / "waiting"):
            return f"the first run did not begin: {first.wait().sentence}"
        second = place.train(*flags)
        (place.root / GO_ON).touch()
        return said_who(second, first.pid) or place.equal(first.wait())

    return fault


def said_who(outcome: Outcome, pid: int) -> str | None:
    """The refusal names the host, the process, and since when it has been at work.

    Where the command is another one, that may be what is said.
    """
    if "other arguments" in outcome.sentence:
        return refused(outcome)
    if wrong := refused(outcome, "in use"):
        return wrong
    for what, text in (("host", socket.gethostname()), ("process", str(pid)), ("since", "since")):
        if text not in outcome.sentence:
            return f"the sentence does not name the {what}: {outcome.sentence}"
    return None


def at_once(place: Place) -> str | None:
    """Both are started in the same instant: one comes to the end, the other is refused."""
    runs = [place.take("data").start()]
    runs.append(place.start())
    outcomes = sorted((run.wait() for run in runs), key=lambda outcome: outcome.code)
    if [outcome.code for outcome in outcomes] != [0, 2]:
        # One may be done before the other looks: it then finds a complete run.
        if [outcome.code for outcome in outcomes] != [0, 0]:
            return f"exit codes {outcomes[0].code} and {outcomes[1].code}: {outcomes[1].sentence}"
        if not any("complete" in outcome.out for outcome in outcomes):
            return "both ran"
    return place.equal(outcomes[0])


def other_name(place: Place) -> str | None:
    """The same folder by another name is the same folder."""
    first = place.take("data").start(hooks=[at_batch(6, wait_for_go)])
    if not appears(place.root / "waiting"):
        return "the first run did not begin"
    (place.root / "snap" / "vqa" / "alias").symlink_to("run")
    second = place.train("--version", "alias")
    (place.root / GO_ON).touch()
    return said_who(second, first.pid) or place.equal(first.wait())


def lock_of_the_dead(place: Place) -> str | None:
    """What a killed run wrote of itself does not keep others out."""
    place.take("data").train(hooks=[at_batch(6, lambda: os.kill(os.getpid(), signal.SIGKILL))])
    return place.equal(place.train())


def without_locks(code: int) -> Callable[[Place], str | None]:
    """On a disk that has none, the run says so, once, and trains."""

    def no_locks() -> None:
        def refuse(*_: Any) -> None:
            raise OSError(code, os.strerror(code))

        fcntl.flock = fcntl.lockf = refuse

    def fault(place: Place) -> str | None:
        outcome = place.take("data").train(hooks=[no_locks])
        times = len(re.findall(r"\block(?:s|ed)?\b", outcome.out + outcome.err))
        if outcome.code == 0 and times != 1:
            return f"it speaks {times} times of locks"
        return place.equal(outcome)

    return fault


# ---------------------------------------------------------------------- several processes


class Launched:
    """A run of two processes, under torch's launcher."""

    def __init__(self, place: Place, *flags: str) -> None:
        self.log = place.root / "launched.log"
        with self.log.open("wb") as log:
            self.launcher = subprocess.Popen(
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
                    *(str(SRC / "tasks" / "vqa.py"), *COMMAND, *flags),
                ],
                cwd=place.root,
                env={**os.environ, "PYTHONPATH": f"{SRC}:{ROOT}"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def ranks(self) -> list[int]:
        """The processes that train."""
        return [pid for pid in descendants(self.launcher.pid) if b"vqa.py" in command_line(pid)]

    def said(self) -> str:
        text = " ".join(self.log.read_text(errors="replace").split())
        errors = re.findall(r"error: .{0,300}|Error: .{0,300}", text)
        return errors[0] if errors else text[-300:]


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


def command_line(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def orphans_end(place: Place) -> str | None:
    """kill -9 of the launcher: its ranks end, and the same command goes on in the folder."""
    run = Launched(place.take("data"), "--epochs", "300")
    if not appears(place.run / "LAST", 90):
        return f"it did not train: {run.said()}"
    ranks = run.ranks()
    run.launcher.kill()
    run.launcher.wait()
    deadline = time.monotonic() + PATIENCE
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in ranks if is_alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    if len(ranks) != 2:
        return f"{len(ranks)} ranks and not 2"
    return f"{len(left)} of 2 ranks trained on for {PATIENCE} s" if left else None


def launcher_goes_on(place: Place) -> str | None:
    """Two processes, stopped by SIGTERM to the launcher, come to what two undisturbed ones come to."""
    whole = Launched(place.take("data"), "--version", "whole")
    if whole.launcher.wait(120):
        return f"the undisturbed run fails: {whole.said()}"
    first = Launched(place, "--epochs", "3")
    if not appears(place.run / "LAST", 90):
        return f"it did not train: {first.said()}"
    first.launcher.terminate()
    first.launcher.wait(60)
    second = Launched(place)
    if second.launcher.wait(120):
        return f"it does not go on: {second.said()}"
    from tests.faults.equal import first_difference, numbers

    def named(run: str) -> dict[str, object]:
        found = numbers(place.root / "snap" / "vqa" / run)
        return {name: value for name, value in found.items() if not name.endswith("version")}

    different = first_difference(named("run"), named("whole"))
    return different and f"other numbers: {different}"


def cases(place: Place) -> list[Case]:
    training, validation = at_batch(6, wait_for_go, TRAINING), at_batch(1, wait_for_go, VALIDATION)
    return [
        Case("second while the first trains", second_is_refused(training), quick=True),
        Case("second while the first evaluates", second_is_refused(validation)),
        Case("second while the first goes on", second_is_refused(at_batch(1, wait_for_go), "stopped")),
        Case("second with other arguments", second_is_refused(training, flags=("--seed", "2"))),
        Case("both at once", at_once),
        Case("second by another name of the folder", other_name),
        Case("the lock of a killed run", lock_of_the_dead),
        Case("a disk that does not know locks", without_locks(errno.ENOSYS)),
        Case("a disk whose locks are out of order", without_locks(errno.ENOLCK)),
        Case("kill -9 of the launcher of two processes", orphans_end, quick=True, limit=300),
        Case("two processes stopped and resumed", launcher_goes_on, limit=400),
    ]


GROUP = Group("doubled", "two runs in a folder, orphans", cases)
