"""What a run says: to the terminal and train.log, to metrics.jsonl, and to Weights & Biases."""

from __future__ import annotations

import json
import netrc
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from tqdm import tqdm

DEFAULT_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # before and since W&B moved
LOGIN_TIMEOUT = 20  # seconds; a network that does not answer must not hold up a training run


class Tracker:
    """Speaks on the main process only; silent elsewhere.

    `wandb` is "auto" (online if logged in, else offline), "online", "offline" or "off".
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], *, wandb: str, speaks: bool = True) -> None:
        self.folder = folder
        self.speaks = speaks
        self._wandb = None
        if speaks and wandb != "off":
            self._wandb = self._start_wandb(wandb, config)

    def say(self, text: str = "") -> None:
        """A line for people: above the progress bar and in train.log."""
        if not self.speaks:
            return
        tqdm.write(text)
        with (self.folder / "train.log").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def record(self, metrics: Mapping[str, Any], step: int) -> None:
        """A line for programs; floats, with the optimizer step that they belong to."""
        if not self.speaks:
            return
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        """Hand a picture to W&B (its file is the caller's)."""
        if self._wandb:
            import wandb

            self._wandb.log({name: wandb.Image(str(path))}, step=step)

    def rewind(self, step: int) -> None:
        """Forget metrics after `step`: the run is taken up there and will record them again."""
        file = self.folder / "metrics.jsonl"
        if self.speaks and file.exists():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
            file.write_text("".join(kept), encoding="utf-8")

    def close(self) -> None:
        if self._wandb:
            self._wandb.finish()

    def _start_wandb(self, mode: str, config: Mapping[str, Any]) -> Any:
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
            "name": self.folder.name,
            "id": self._run_id(),  # a resumed run goes on with its curves
            "resume": "allow",
            "dir": str(self.folder),
        }
        try:
            return wandb.init(mode=mode, config=dict(config), settings=settings, **options)
        except (wandb.errors.Error, OSError) as error:
            self.say(f"W&B did not answer ({error}); curves are kept offline in {self.folder / 'wandb'}.")
            return wandb.init(mode="offline", config=dict(config), settings=settings, **options)

    def _run_id(self) -> str:
        file = self.folder / "wandb_id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
        return file.read_text(encoding="utf-8")


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
