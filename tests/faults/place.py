"""Where a case happens: a folder of its own with a small data set, a model and, if need be, a run.

The run has three epochs of four steps. It is SpotTune's, which has all kinds of state there are: two
optimizers, gate noise, counts of gates.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.equal import difference
from tests.faults.process import Hook, Outcome, Running, Start, run_fresh, start
from tests.helpers.small import write_dataset, write_pretrained

COMMAND = (
    *("--version", "run", "--strategy", "SpotTune_Block", "--dataset", "vqav2", "--data", "data"),
    *("--train", "train,nominival", "--valid", "minival", "--pretrained", "model", "--epochs", "3"),
    *("--batch_size", "28", "--lr", "3e-3", "--seed", "1", "--log_every", "1", "--save_every", "3"),
    *("--no-tqdm", "--wandb", "off"),
)
EVALUATION = (
    *("--version", "run", "--load", "snap/vqa/run/BEST", "--test", "minival", "--data", "data"),
    *("--no-tqdm", "--wandb", "off"),
)
TRAINING, VALIDATION = 100, 60  # questions
EPOCH = 4  # steps
STOP = 6  # the batch that is read when the run of `stopped` is asked to stop: in the second epoch
RUN = Path("snap/vqa/run")


@dataclass(frozen=True)
class Place:
    """The folder `root`, and the `cache` of finished preparations that all cases share."""

    root: Path
    cache: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.root / RUN

    @property
    def data(self) -> Path:
        return self.root / "data" / "vqav2"

    @property
    def store(self) -> Path:
        return self.data / "features" / "all"

    @property
    def model(self) -> Path:
        return self.root / "model"

    # ------------------------------------------------------------------ running

    def start(self, *flags: str, hooks: Sequence[Hook] = (), pictures: bool = False, **env: str) -> Running:
        """The training command, with more flags; those count that come last."""
        hooks = hooks if pictures else (*hooks, draw_nothing)
        return start(Start([*COMMAND, *flags], self.root, env=env, hooks=hooks))

    def train(self, *flags: str, hooks: Sequence[Hook] = (), pictures: bool = False, **env: str) -> Outcome:
        return self.start(*flags, hooks=hooks, pictures=pictures, **env).wait()

    def train_fresh(self, *flags: str, shell: str = "{}", **env: str) -> Outcome:
        """The same in an interpreter of its own."""
        return run_fresh(Start([*COMMAND, *flags], self.root, env=env), shell=shell)

    def evaluate(self, *flags: str) -> Outcome:
        return self.call("tasks.vqa", *EVALUATION, *flags)

    def call(self, module: str, *argv: str, **env: str) -> Outcome:
        """Another command."""
        return start(Start(argv, self.root, module, env)).wait()

    # ------------------------------------------------------------------ what is there before the fault

    def take(self, name: str) -> Place:
        """Fill the place with what was prepared under this name: data, stopped, finished or evaluated."""
        shutil.copytree(self.prepared(name), self.root, dirs_exist_ok=True)
        return self

    def prepared(self, name: str) -> Path:
        """The folder of a preparation, made if need be; others read it, and none writes there."""
        return self._once(name, PREPARATIONS[name])

    def undisturbed(self, *flags: str) -> Path:
        """The run folder that the training command with more flags leaves behind, undisturbed."""
        if not flags:
            return self.prepared("finished") / RUN

        def prepare(place: Place) -> None:
            _expect(place.take("data").train(*flags), 0)

        return self._once("run" + "".join(flags).replace("/", "_"), prepare) / RUN

    def _once(self, name: str, prepare: Callable[[Place], None]) -> Path:
        folder = self.cache / name
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                fresh = self.cache / f"{name}.new"
                shutil.rmtree(fresh, ignore_errors=True)
                fresh.mkdir()
                prepare(Place(fresh, self.cache))
                fresh.rename(folder)
        return folder

    # ------------------------------------------------------------------ judging

    def equal(self, outcome: Outcome, *flags: str) -> str | None:
        """What is wrong with a run that had to end well, with the numbers of an undisturbed one."""
        if outcome.traceback:
            return f"traceback: {outcome.traceback}"
        if outcome.code:
            return f"exit code {outcome.code}: {outcome.sentence}"
        different = difference(self.run, self.undisturbed(*flags))
        return different and f"other numbers: {different}"

    def equal_and_tidy(self, outcome: Outcome, *flags: str) -> str | None:
        """The same of a run that was cut off before: what that left unfinished must be gone, too."""
        left = [path.name for path in self.run.rglob("*") if path.suffix in (".new", ".old")]
        return self.equal(outcome, *flags) or (f"left for ever: {', '.join(left)}" if left else None)

    def equal_or_refused(self, outcome: Outcome, *names: str) -> str | None:
        """What is wrong with a run that had to come to equal numbers or to name one of `names`."""
        return refused(outcome, *names) if outcome.code else self.equal(outcome)


def refused(outcome: Outcome, *names: str) -> str | None:
    """What is wrong with a command that had to refuse in a sentence with one of `names`, if there are any."""
    if outcome.traceback:
        return f"traceback: {outcome.traceback}"
    if outcome.code == 0:
        return "it ended as if all were well"
    if outcome.code != 2:
        return f"exit code {outcome.code} and not 2: {outcome.sentence}"
    if "error: " not in outcome.err:
        return f"no sentence, but {outcome.sentence}"
    if names and not any(name in outcome.sentence for name in names):
        return f"the sentence names no {' or '.join(names)}: {outcome.sentence}"
    return None


def evaluated_alike(place: Place, outcome: Outcome, *names: str) -> str | None:
    """What is wrong with an evaluation that had to give the usual answers or name one of `names`."""
    if outcome.code:
        return refused(outcome, *names)
    if outcome.traceback:
        return f"traceback: {outcome.traceback}"
    usual = place.prepared("evaluated")
    file = RUN / "predictions" / "minival.json"
    if (place.root / file).read_bytes() != (usual / file).read_bytes():
        return "other predictions"
    ours, theirs = (
        {line for line in text.splitlines() if "%" in line} for text in (outcome.out, said(usual))
    )
    return f"other scores: {sorted(ours ^ theirs)[:2]}" if ours ^ theirs else None


def said(folder: Path) -> str:
    """What the last command in a folder printed."""
    return max(folder.glob(".output*.out"), key=lambda path: path.stat().st_mtime_ns).read_text()


# ---------------------------------------------------------------------- hooks: done in the run's process


def at_batch(number: int, act: Callable[[], Any], examples: int = TRAINING) -> Hook:
    """Do something when the n-th batch is read of the data set with so many examples."""

    def hook() -> None:
        from vqadata.dataset import VqaDataset

        read, count = VqaDataset.__getitems__, 0

        def watched(dataset: VqaDataset, indices: Sequence[int]) -> dict[str, Any]:
            nonlocal count
            if len(dataset) == examples:
                count += 1
                if count == number:
                    act()
            return read(dataset, indices)

        VqaDataset.__getitems__ = watched

    return hook


def send_self(number: int) -> Callable[[], None]:
    """An act: a signal to the own process."""
    return lambda: os.kill(os.getpid(), number)


def draw_nothing() -> None:
    """Leave out the pictures, which take half of the time of so small a run."""
    from report import policy_plot

    policy_plot.draw_policy = lambda *_, **__: None


# ---------------------------------------------------------------------- preparations


def _expect(outcome: Outcome, *codes: int) -> None:
    if outcome.code not in codes or outcome.traceback:
        raise RuntimeError(f"preparing failed with exit code {outcome.code}: {outcome.err or outcome.out}")


def _data(place: Place) -> None:
    write_dataset(place.data)
    write_pretrained(place.model)


def _stopped(place: Place) -> None:
    stop = at_batch(STOP, send_self(signal.SIGTERM))
    _expect(place.take("data").train(hooks=[stop]), 130, 128 + signal.SIGTERM)


def _finished(place: Place) -> None:
    _expect(place.take("data").train(), 0)


def _evaluated(place: Place) -> None:
    _expect(place.take("finished").evaluate(), 0)


PREPARATIONS: dict[str, Callable[[Place], None]] = {
    "data": _data,
    "stopped": _stopped,
    "finished": _finished,
    "evaluated": _evaluated,
}
