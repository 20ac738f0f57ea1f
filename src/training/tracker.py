"""What a run says: to the terminal, train.log, metrics.jsonl and Weights & Biases.

Each of them is a sink. What only reports never ends what trains: a sink that fails is left out from there on.
"""

import json
import math
import netrc
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tqdm import tqdm

from common.files import replace_file

DEFAULT_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # before and since W&B moved
LOGIN_TIMEOUT = 20  # seconds; a network that does not answer must not hold up a training run

Values = Mapping[str, Any]  # by name: numbers, dictionaries of numbers, and paths of pictures


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
            self.say(f"One way of reporting is left out ({type(error).__name__}: {error}).")

    def say(self, text: str) -> None:
        """A text for people: above the progress bar and in train.log."""
        self.record({}, 0, text)

    def record(self, values: Values, step: int, text: str = "") -> None:
        """Numbers and pictures of an optimizer step, and what people read of them."""
        self._each(lambda sink: sink.write(text, values, step))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self.sinks):
            try:
                act(sink)
            except Exception as error:  # a sink may be anybody's code; the run is worth more than its report
                self.sinks.remove(sink)
                self.say(f"{type(sink).__name__} failed and is left out from here on: {error}")


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
    curves are kept offline, and `say` is told.
    """

    def __init__(self, folder: Path, config: Values, mode: str, say: Callable[[str], None]) -> None:
        # Imported here: it takes a second, and those who turn it off should not pay.
        import wandb

        if mode == "auto":
            mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        if mode == "offline":
            # Its error reports would go out all the same.
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        settings = wandb.Settings(silent=True, init_timeout=LOGIN_TIMEOUT, console="off")
        options = {
            "project": "lxmert-spottune",
            "name": folder.name,
            "id": _run_id(folder / "wandb_id"),
            "resume": "allow",
            "dir": str(folder),
            "config": dict(config),
            "settings": settings,
        }
        try:
            self._run = wandb.init(mode=mode, **options)
        except (wandb.errors.Error, OSError) as error:
            say(f"W&B did not answer ({error}); curves are kept offline in {folder / 'wandb'}.")
            self._run = wandb.init(mode="offline", **options)
        self._image = wandb.Image

    def write(self, text: str, values: Values, step: int) -> None:
        if values:
            shown = {k: self._image(str(v)) if isinstance(v, Path) else v for k, v in values.items()}
            self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()


def open_tracker(folder: Path, config: Values, wandb: str, curves: Curves) -> Tracker:
    """The sinks of a run in `folder` that goes on after `curves`; `wandb` is a mode of `Wandb`, or "off"."""
    tracker = Tracker([Terminal(), LogFile(folder / "train.log"), curves])
    tracker.add(lambda: JsonLines(folder / "metrics.jsonl", curves.lines))
    if wandb != "off":
        tracker.add(lambda: Wandb(folder, config, wandb, tracker.say))
    return tracker


def _line(values: Values, step: int) -> list[str]:
    """The line of an optimizer step; none without numbers. A number that is none becomes null."""
    numbers = {name: _json(value) for name, value in values.items() if not isinstance(value, Path)}
    return [json.dumps({"step": step, **numbers}, allow_nan=False) + "\n"] if numbers else []


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _run_id(file: Path) -> str:
    """The id of the run in W&B, kept from one call to the next."""
    name = file.read_text(encoding="utf-8").strip() if file.exists() else ""
    if not name.isalnum():
        name = uuid.uuid4().hex[:12]
        replace_file(file, name)
    return name


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
