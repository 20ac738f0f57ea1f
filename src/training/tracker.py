"""What a run says: to the terminal, train.log, metrics.jsonl, Weights & Biases and TensorBoard.

Each of them is a sink. What only reports never ends what trains: a sink that fails is left out from there on.
"""

import functools
import importlib.util
import json
import math
import netrc
import os
import re
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlparse

import numpy as np
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.files import replace_file
from common.terminal import printable
from training.wandb_process import FINISH_TIMEOUT

DEFAULT_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # before and since W&B moved
MOST_WAITING = 1 << 24  # bytes that W&B may be behind

WANDB, TENSORBOARD, NONE = "wandb", "tensorboard", "none"  # where curves go, beside the run's own files

Values = Mapping[str, Any]  # by name: numbers, dictionaries of numbers, and paths of pictures


class Channels(NamedTuple):
    """Where else than into its own files a run's curves go."""

    names: tuple[str, ...] = (WANDB,)  # some of WANDB and TENSORBOARD
    mode: str = "auto"  # of W&B, see `Wandb`, or "off"
    place: Mapping[str, str] = {}  # its project, entity and group in W&B, as far as given


class Sink:
    """Somewhere that a run's words and numbers go."""

    def write(self, text: str, values: Values, step: int) -> None:
        """Take a text for people and values for programs; either may be empty. step: optimizer steps done."""

    def close(self) -> None:
        """The run has ended."""


class Tracker:
    """All sinks of a run; none on processes other than the main one, which are silent."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def add(self, make: Callable[[], Sink]) -> None:
        """Open one more sink; a broken installation of W&B, say, is no reason not to train."""
        try:
            self.sinks.append(make())
        except Exception as error:
            self.say(wrapped(f"One way of reporting is left out ({type(error).__name__}: {error})."))

    def say(self, text: str) -> None:
        """A text for people: above the progress bar and in train.log."""
        self.record({}, 0, text)

    def record(self, values: Values, step: int, text: str = "") -> None:
        """Numbers and pictures of an optimizer step, and what people read of them."""
        text = printable(text)  # the log, too, is for terminals
        self._each(lambda sink: sink.write(text, values, step))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                act(sink)
            except KeyboardInterrupt:
                raise
            except (
                BaseException
            ) as error:  # a sink may be anybody's code; the run is worth more than its report
                self.sinks.remove(sink)
                self.say(wrapped(f"{type(sink).__name__} failed and is left out from here on: {error}"))


class Terminal(Sink):
    """Text above the progress bar."""

    def write(self, text: str, values: Values, step: int) -> None:
        if text:
            tqdm.write(text)


class LogFile(Sink):
    """Text at the end of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str, values: Values, step: int) -> None:
        if text:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")


class Curves(Sink):
    """Numbers in memory, a line of JSON for each time, to be saved with the state of the run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str, values: Values, step: int) -> None:
        self.lines += _line(values, step)


class JsonLines(Sink):
    """The same at the end of a file, which begins with `lines`, whatever it held before."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        self.path = path
        if path.exists() or lines:
            replace_file(path, lines)

    def write(self, text: str, values: Values, step: int) -> None:
        if lines := _line(values, step):
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(lines)


class Wandb(Sink):
    """Curves and pictures in Weights & Biases; a resumed run goes on with its own curves.

    mode: "auto" (online if logged in, else offline), "online" or "offline". Where the server does not answer,
    curves are kept offline, and `say` is told. Project, entity and group come before W&B's own variables.
    All of it happens in another process, that of `training.wandb_process`, which nobody waits for before the
    run ends: W&B may hang, exit or be killed.
    """

    def __init__(self, folder: Path, config: Values, channels: Channels, say: Callable[[str], None]) -> None:
        options = {
            "project": os.environ.get("WANDB_PROJECT") or "lxmert-spottune",
            **channels.place,
            "name": folder.name,
            "id": _run_id(folder / "wandb_id"),
            "resume": "allow",
            "dir": str(folder),
            "config": dict(config),
            "mode": _mode(channels.mode),
        }
        # An empty variable is one that is not set, which W&B does not think.
        environment = {k: v for k, v in os.environ.items() if v or not k.startswith("WANDB_")}
        environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "WANDB_X_STATS_PID": str(os.getpid())}
        if options["mode"] == "offline":
            # Its error reports would go out all the same.
            environment.setdefault("WANDB_ERROR_REPORTING", "false")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "training.wandb_process", json.dumps(options, default=str)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a Ctrl-C is not for it
        )
        self._to, self._from = self._process.stdin, self._process.stdout
        for pipe in (self._to, self._from):
            os.set_blocking(pipe.fileno(), False)
        self._say, self._runs = say, folder / "wandb"
        self._waiting, self._heard = bytearray(), b""

    def write(self, text: str, values: Values, step: int) -> None:
        if values:
            pictures = {name: str(value) for name, value in values.items() if isinstance(value, Path)}
            numbers = {name: value for name, value in values.items() if name not in pictures}
            self._waiting += json.dumps([numbers, pictures, step], default=float).encode() + b"\n"
            self._exchange()

    def close(self) -> None:
        # Closing the pipe would say nothing: processes that read data have it open, too.
        self._waiting += b"null\n"
        deadline = time.monotonic() + FINISH_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            self._exchange()
            time.sleep(0.02)
        self._exchange()
        if self._process.poll() is None:
            self._fail(f"it did not end in {FINISH_TIMEOUT} s; its curves are in {self._runs}")

    def _exchange(self) -> None:
        """Hand over what can be taken now and pass on what was said; RuntimeError if W&B has given up."""
        code = self._process.poll()
        with suppress(BlockingIOError, BrokenPipeError):
            while self._waiting:
                del self._waiting[: os.write(self._to.fileno(), self._waiting)]
        with suppress(BlockingIOError):
            while piece := os.read(self._from.fileno(), 1 << 16):
                self._heard += piece
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            kind, text = json.loads(line)
            if kind == "fail":
                self._fail(text)
            self._say(wrapped(text))
        if code is not None and (code or self._waiting):
            self._fail(f"its process ended with exit code {code}")
        if len(self._waiting) > MOST_WAITING:
            self._fail("it does not take what is logged")

    def _fail(self, reason: str) -> NoReturn:
        self._process.kill()
        raise RuntimeError(reason)


class TensorBoard(Sink):
    """Curves and pictures as event files below `folder`; a resumed run goes on behind `curves`.

    What was written at or after the last step of `curves` is no longer shown; its numbers are written again.
    """

    def __init__(self, folder: Path, curves: Curves) -> None:
        from torch.utils.tensorboard import SummaryWriter

        lines = [json.loads(line) for line in curves.lines]
        last = lines[-1]["step"] if lines else 0
        self._writer = SummaryWriter(str(folder), purge_step=last)
        for line in lines:
            if line["step"] == last:
                self.write("", {name: value for name, value in line.items() if name != "step"}, last)

    def write(self, text: str, values: Values, step: int) -> None:
        for name, value in values.items():
            if isinstance(value, Path):
                pixels = np.asarray(Image.open(value).convert("RGB"))
                self._writer.add_image(name, pixels, step, dataformats="HWC")
                continue
            parts = {f"{name}/{part}": n for part, n in value.items()} if isinstance(value, Mapping) else {}
            for curve, number in (parts or {name: value}).items():
                if isinstance(number, int | float):
                    self._writer.add_scalar(curve, number, step)
        if values:
            self._writer.flush()  # as far as metrics.jsonl, should the run be killed

    def close(self) -> None:
        self._writer.close()


def require_trackers(names: str) -> tuple[str, ...]:
    """Those of a comma-separated list; UserError if one is unknown or not installed."""
    chosen = tuple(dict.fromkeys(name.strip() for name in names.split(",")))
    unknown = [name for name in chosen if name not in (WANDB, TENSORBOARD, NONE)]
    if unknown or (NONE in chosen and len(chosen) > 1):
        raise UserError(
            f"--tracker takes {WANDB}, {TENSORBOARD}, both with a comma, or {NONE}, not {names!r}"
        )
    if TENSORBOARD in chosen and not importlib.util.find_spec(TENSORBOARD):
        raise UserError(f"--tracker {TENSORBOARD} needs a package that is missing: pip install {TENSORBOARD}")
    return tuple(name for name in chosen if name != NONE)


def open_tracker(folder: Path, config: Values, channels: Channels, curves: Curves) -> Tracker:
    """The sinks of a run in `folder` that goes on after `curves`."""
    tracker = Tracker([Terminal(), LogFile(folder / "train.log"), curves])
    tracker.add(lambda: JsonLines(folder / "metrics.jsonl", curves.lines))
    if WANDB in channels.names and channels.mode != "off":
        tracker.add(lambda: Wandb(folder, config, channels, tracker.say))
    if TENSORBOARD in channels.names:
        tracker.add(lambda: TensorBoard(folder / TENSORBOARD, curves))
    return tracker


def _line(values: Values, step: int) -> list[str]:
    """The line of an optimizer step; none without numbers. A number that is none becomes null."""
    numbers = {name: _json(value) for name, value in values.items() if not isinstance(value, Path)}
    return [json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"] if numbers else []


def wrapped(text: str) -> str:
    """The text in lines that fit a terminal; paths stay whole."""
    fill = functools.partial(textwrap.fill, width=80, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if line.startswith(" ") else fill(line) for line in text.split("\n"))


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run_id(file: Path) -> str:
    """The id of the run in W&B, kept from one call to the next if the disk allows it."""
    with suppress(OSError):
        name = file.read_text(encoding="ascii", errors="replace").strip()
        if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
            return name
    name = uuid.uuid4().hex[:12]
    with suppress(UserError):
        replace_file(file, name)
    return name


def _mode(requested: str) -> str:
    """What "auto" means here."""
    if requested != "auto":
        return requested
    return os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")


def _logged_in() -> bool:
    """Whether W&B would find a key without asking: in the environment or in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = [urlparse(server).netloc] if server else DEFAULT_HOSTS
    try:
        entries = netrc.netrc(os.environ.get("NETRC"))
        return any(entries.authenticators(host) for host in hosts)
    except (OSError, netrc.NetrcParseError):
        return False
