"""What only reports cannot end or change what trains: however it is broken, the numbers are the same."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.cases import Case, Group
from tests.faults.place import Place, at_batch
from tests.faults.process import Hook

NOWHERE = "http://127.0.0.1:9"  # nobody listens at the port for discarding
NO_NETWORK = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), NOWHERE)
KEY = {"WANDB_API_KEY": "0" * 40}

BROKEN_WANDB = {
    "raises at its import": "raise RuntimeError('half installed')",
    "exits at its import": "import sys; sys.exit(3)",
    "is another package of that name": "VERSION = 1",
    "raises in init": "def init(**options): raise RuntimeError('no service')",
    "raises in log": """
class Run:
    def log(self, values, step=None): raise ValueError('bad value')
    def finish(self): pass
def init(**options): return Run()
""",
    "raises in finish": """
class Run:
    def log(self, values, step=None): pass
    def finish(self): raise OSError('no space')
def init(**options): return Run()
""",
    "is killed in log": """
import os
class Run:
    def log(self, values, step=None): os.kill(os.getpid(), 9)
    def finish(self): pass
def init(**options): return Run()
""",
    "hangs at its import": "import time; time.sleep(1000)",
    "hangs in init": "import time\ndef init(**options): time.sleep(1000)",
    "hangs in log": """
import time
class Run:
    def log(self, values, step=None): time.sleep(1000)
    def finish(self): pass
def init(**options): return Run()
""",
    "hangs in finish": """
import time
class Run:
    def log(self, values, step=None): pass
    def finish(self): time.sleep(1000)
def init(**options): return Run()
""",
    "is not installed": "raise ModuleNotFoundError(\"No module named 'wandb'\")",
    "prints and draws random numbers": """
import random, sys
class Run:
    def log(self, values, step=None):
        print("nonsense"); print("nonsense", file=sys.stderr); random.seed(5); random.random()
    def finish(self): pass
def init(**options): return Run()
""",
    "exits in log": """
class Run:
    def log(self, values, step=None): raise SystemExit(1)
    def finish(self): pass
def init(**options): return Run()
""",
}
REST_OF_WANDB = """
class Image:
    def __init__(self, path): pass
class Settings:
    def __init__(self, **options): pass
class errors:
    class Error(Exception): pass
"""


class Channel(NamedTuple):
    """A way of reporting, and how it is broken before the run or in it.

    hook: in the process of the run. fresh: an interpreter of its own, where imports decide. offline: whether
    W&B's curves are to be on the disk after it, complete.
    """

    name: str
    flags: Sequence[str] = ()
    env: dict[str, str] = {}  # noqa: RUF012 - never changed
    before: Callable[[Place], Any] = lambda place: None
    hook: Hook = lambda: None
    fresh: bool = False
    offline: bool = False
    shell: str = "{}"
    codes: tuple[int, ...] = (0,)
    quick: bool = False
    pictures: bool = False


def as_case(channel: Channel) -> Case:
    def fault(place: Place) -> str | None:
        channel.before(place.take("data"))
        if channel.fresh:
            outcome = place.train_fresh(*channel.flags, shell=channel.shell, **channel.env)
        else:
            hooks, pictures = [channel.hook], channel.pictures
            outcome = place.train(*channel.flags, hooks=hooks, pictures=pictures, **channel.env)
        if outcome.code in channel.codes:
            outcome = outcome._replace(code=0)
        wrong = place.equal(outcome)
        if channel.offline and not list(place.run.glob("wandb/offline-run-*/*.wandb")):
            return wrong or "the curves are not kept offline"
        if channel.offline and "left out" in outcome.out:
            return wrong or "the curves were left out before the end"
        return wrong

    return Case(channel.name, fault, channel.quick, limit=300 if NOWHERE in channel.env.values() else 240)


def stand_in(text: str) -> Hook:
    """A package wandb like this is the first to be found."""

    def hook() -> None:
        Path("packages").mkdir()
        rest = "" if "VERSION" in text else REST_OF_WANDB
        Path("packages/wandb.py").write_text(rest + text)
        sys.path.insert(0, str(Path("packages").resolve()))
        if "time.sleep" in text:  # else it is given a minute at the end of the run
            from training import tracker

            tracker.FINISH_TIMEOUT = 3

    return hook


def directory(path: str) -> Callable[[Place], None]:
    return lambda place: (place.root / path / "inside").mkdir(parents=True)


def file(path: str, content: bytes = b"") -> Callable[[Place], None]:
    def act(place: Place) -> None:
        target = place.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    return act


def link_to_full(path: str) -> Callable[[Place], None]:
    """What is written there finds a full disk."""

    def act(place: Place) -> None:
        target = place.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to("/dev/full")

    return act


def unwritable(path: str) -> Callable[[Place], None]:
    """Nothing can be made there, not even by root: it is a link to a place that cannot be."""

    def act(place: Place) -> None:
        (place.root / path).symlink_to("/proc/nowhere")

    return act


def closed(*descriptors: int) -> Hook:
    """As after `>&-`: Python then has None for the stream."""

    def hook() -> None:
        for descriptor in descriptors:
            os.close(descriptor)
            setattr(sys, {1: "stdout", 2: "stderr"}[descriptor], None)

    return hook


def full_output() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def reader_gone() -> None:
    """As `| head` does after its lines: stdout is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.dup2(writing, 1)
    os.close(reading)


def full_errors() -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), 2)


def no_drawing_library() -> None:
    """A matplotlib that is there and cannot be imported."""
    sys.modules["report.policy_plot"] = None


def programs(**scripts: str) -> Callable[[Place], None]:
    """Programs of these names come first on the PATH, which the case has to begin with `programs`."""

    def act(place: Place) -> None:
        (place.root / "programs").mkdir()
        for name, script in scripts.items():
            program = place.root / "programs" / name
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)

    return act


def failing_pictures() -> None:
    from report import policy_plot

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug of the drawing library")

    policy_plot.draw_policy = fail


def log_lost() -> None:
    """train.log is in a folder of a network disk that goes away in mid-run."""

    def break_log() -> None:
        log = Path("snap/vqa/run/train.log")
        log.unlink(missing_ok=True)
        log.symlink_to("/dev/full")

    at_batch(6, break_log)()


def metrics_lost() -> None:
    """The disk fails under metrics.jsonl in mid-run: the lines are in LAST, too."""
    opened = Path.open

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == "train.log":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *arguments, **options)

    Path.open = failing


ONLINE, AUTO = ("--wandb", "online"), ("--wandb", "auto")
RUN = "snap/vqa/run"
PROGRAMS = {"PATH": f"programs:{os.environ['PATH']}"}
CHANNELS = [
    Channel("W&B: a key but no network", AUTO, KEY | NO_NETWORK, offline=True, pictures=True, quick=True),
    Channel("W&B: --wandb online, no network", ONLINE, KEY | NO_NETWORK, offline=True, pictures=True),
    Channel("W&B: --wandb online, no key", ONLINE, NO_NETWORK, offline=True, pictures=True),
    Channel(
        "W&B: a key that is none",
        AUTO,
        {"WANDB_API_KEY": "nonsense"} | NO_NETWORK,
        offline=True,
        pictures=True,
    ),
    Channel("W&B: WANDB_MODE empty", AUTO, {"WANDB_MODE": ""} | NO_NETWORK, offline=True, pictures=True),
    Channel(
        "W&B: WANDB_MODE misspelt",
        AUTO,
        {"WANDB_MODE": "ofline"} | NO_NETWORK,
        offline=True,
        pictures=True,
        quick=True,
    ),
    Channel("W&B: WANDB_MODE disabled", AUTO, {"WANDB_MODE": "disabled"}),
    Channel("W&B: WANDB_DIR unwritable", AUTO, {"WANDB_MODE": "offline", "WANDB_DIR": "/proc/nowhere"}),
    *(
        Channel(f"W&B {name}", ("--wandb", "offline"), hook=stand_in(text), quick="log" in name)
        for name, text in BROKEN_WANDB.items()
    ),
    Channel(
        "wandb_id is binary",
        ("--wandb", "offline"),
        before=file(f"{RUN}/wandb_id", b"\xff\xfe\x00"),
        offline=True,
        pictures=True,
        quick=True,
    ),
    Channel(
        "wandb_id is empty",
        ("--wandb", "offline"),
        before=file(f"{RUN}/wandb_id"),
        offline=True,
        pictures=True,
    ),
    Channel(
        "wandb_id is a directory", ("--wandb", "offline"), before=directory(f"{RUN}/wandb_id"), pictures=True
    ),
    Channel(
        "W&B: odd settings in the environment",
        AUTO,
        {
            "WANDB_SILENT": "perhaps",
            "WANDB_INIT_TIMEOUT": "soon",
            "WANDB_ENTITY": "nobody",
            "WANDB_PROJECT": "p",
        },
        offline=True,
        pictures=True,
        quick=True,
    ),
    Channel(
        "W&B: a broken settings file",
        AUTO,
        {"WANDB_CONFIG_DIR": "config"},
        before=file("config/settings", b"[default\n\xff\xfe\x00"),
        offline=True,
        pictures=True,
    ),
    Channel("W&B: its folder is a file", AUTO, before=file(f"{RUN}/wandb"), pictures=True),
    Channel("git: hangs", env=PROGRAMS, before=programs(git="sleep 300"), fresh=True),
    Channel("git: says nonsense", env=PROGRAMS, before=programs(git="printf '\\377\\376'"), fresh=True),
    Channel("stderr: on a full disk", ("--tqdm",), hook=full_errors, quick=True),
    Channel("stderr: its reader has gone", ("--tqdm",), shell="{} 2> >(true)", fresh=True),
    Channel(
        "stdout and stderr: | head -1, in one pipe",
        ("--tqdm",),
        env={"PYTHONUNBUFFERED": "1"},
        shell="{} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}",
        fresh=True,
    ),
    Channel("stdout: closed", hook=closed(1), fresh=False),
    Channel("stdout: its reader has gone", hook=reader_gone, quick=True),
    Channel(
        "stdout: | head -1",
        env={"PYTHONUNBUFFERED": "1"},
        shell="{} | head -1; exit ${{PIPESTATUS[0]}}",
        fresh=True,
    ),
    Channel("stdout: on a full disk", hook=full_output),
    Channel("stdout and stderr: closed", hook=closed(1, 2)),
    Channel("stdin, stdout and stderr: closed", shell="{} <&- >&- 2>&-", fresh=True),
    Channel("train.log is a directory", before=directory(f"{RUN}/train.log")),
    Channel("train.log is on a full disk", before=link_to_full(f"{RUN}/train.log"), quick=True),
    Channel("train.log: the disk is full from mid-run on", hook=log_lost),
    Channel("train.log: I/O errors", hook=metrics_lost),
    Channel("visualizations is a file", before=file("visualizations"), pictures=True, quick=True),
    Channel("visualizations is unwritable", before=unwritable("visualizations"), pictures=True),
    Channel("visualizations/run is a file", before=file("visualizations/run"), pictures=True),
    Channel("the drawing library cannot be imported", hook=no_drawing_library, pictures=True),
    Channel("drawing raises", hook=failing_pictures, pictures=True, quick=True),
    Channel(
        "MPLBACKEND of a notebook",
        env={"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        fresh=True,
    ),
    Channel("MPLBACKEND nonsense", env={"MPLBACKEND": "nonsense"}, fresh=True, quick=True),
    Channel("MPLCONFIGDIR unwritable", env={"MPLCONFIGDIR": "/proc/nowhere"}, fresh=True),
    Channel("usage.npz is a directory", before=directory(f"{RUN}/usage.npz"), quick=True),
    Channel("HOME unset and unwritable", env={"HOME": "/proc/nowhere"}, fresh=True),
    Channel("a C locale", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, fresh=True),
    Channel("a terminal of no columns", ("--tqdm",), env={"COLUMNS": "0", "LINES": "0", "TERM": ""}),
]


def metrics_is_a_directory(place: Place) -> str | None:
    """Nobody can write there, so the lines are left out: all else is the same."""
    directory(f"{RUN}/metrics.jsonl")(place.take("data"))
    outcome = place.train()
    wrong = place.equal(outcome)
    if outcome.code == 0 and wrong and "metrics.jsonl" in wrong:
        return None
    return wrong


def resumed_with_broken_pictures(place: Place) -> str | None:
    """What failed after an epoch does not fail there for ever."""
    file("visualizations")(place.take("stopped"))
    return place.equal(place.train(pictures=True))


def cases(place: Place) -> list[Case]:
    return [
        *map(as_case, CHANNELS),
        Case("metrics.jsonl is a directory", metrics_is_a_directory),
        Case("visualizations is a file, resumed", resumed_with_broken_pictures),
    ]


GROUP = Group("channels", "what only reports is broken", cases)
