"""The power fails at any change of the disk: what is left is enough to go on exactly."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.cases import Case, Group, every
from tests.faults.disk import Disk
from tests.faults.mounts import image_disk, make_image
from tests.faults.place import RUN, Place, at_batch
from tests.faults.process import Hook, Start, start

FLAGS = ("--epochs", "2")
CUTS = 24  # moments, each with and without the renames that were on their way
OBSERVED = "observed.json"


def watching(stop_at: int = 0, *, undo_renames: bool = False, root: Path = RUN) -> Hook:
    """A disk below the run folder; what it saw is in a file at the end."""

    def hook() -> None:
        disk = Disk(root, stop_at, undo_renames=undo_renames)
        disk.watch()
        report = Path.cwd() / OBSERVED
        atexit.register(lambda: report.write_text(json.dumps([disk.changes, disk.complaints])))

    return hook


def observed(place: Place) -> tuple[int, list[str]]:
    changes, complaints = json.loads((place.root / OBSERVED).read_text())
    return changes, sorted(set(complaints))


def in_order(start_from: str, flags: tuple[str, ...] = ()) -> Callable[[Place], str | None]:
    """No name before its data, no predecessor removed before its successor has its name."""

    def fault(place: Place) -> str | None:
        outcome = place.take(start_from).train(*flags, hooks=[watching()])
        changes, complaints = observed(place)
        if complaints:
            return f"{len(complaints)} of {changes} changes: {'; '.join(complaints[:3])}"
        return place.equal(outcome, *flags)

    return fault


def predictions_in_order(place: Place) -> str | None:
    """The same of what an evaluation writes."""
    command = [*("--version", "run", "--load", "snap/vqa/run/BEST", "--test", "minival", "--data", "data")]
    place.take("finished")
    start(Start([*command, "--no-tqdm", "--wandb", "off"], place.root, hooks=[watching()])).wait()
    changes, complaints = observed(place)
    return "; ".join(complaints) or (None if changes else "nothing was written")


def cut(moment: int, *, undo_renames: bool) -> Case:
    """moment: of CUTS, spread over all changes that a run makes."""

    def fault(place: Place) -> str | None:
        place.undisturbed(*FLAGS)
        stop_at = 1 + moment * (number_of_changes(place) - 1) // (CUTS - 1)
        place.take("data").train(*FLAGS, hooks=[watching(stop_at, undo_renames=undo_renames)])
        wrong = place.equal_and_tidy(place.train(*FLAGS), *FLAGS)
        return wrong and f"cut at change {stop_at}: {wrong}"

    which = "renames undone" if undo_renames else "renames done"
    return Case(f"cut {moment + 1} of {CUTS}, {which}", fault)


def number_of_changes(place: Place) -> int:
    file = place.cache / "changes"
    if not file.exists():
        other = Place(place.root / "counted", place.cache)
        other.root.mkdir()
        other.take("data").train(*FLAGS, hooks=[watching()])
        file.write_text(str(observed(other)[0]))
    return int(file.read_text())


def on_ext4(seconds: float) -> Case:
    """A disk as it is so long after a save, without what the system has in memory: real and not modelled."""

    def fault(place: Place) -> str | None:
        flags = ("--epochs", "2", "--save_every", "1")
        disk, image, copy = (place.root / name for name in ("snap", "disk", "cut"))
        make_image(image)

        def cut_off() -> None:
            time.sleep(seconds)
            shutil.copyfile(image, copy)
            os.kill(os.getpid(), signal.SIGKILL)

        place.take("data")
        with image_disk(disk, image):
            place.train(*flags, hooks=[at_batch(7, cut_off)])
        with image_disk(disk, copy):
            if not (place.run / "LAST").is_dir():
                return "there is no LAST"
            return place.equal_and_tidy(place.train(*flags), *flags)

    return Case(f"an ext4 disk, {seconds} s after a save", fault)


def cases(place: Place) -> list[Case]:
    cuts = [cut(moment, undo_renames=undo) for moment in range(CUTS) for undo in (False, True)]
    return [
        Case("order of a new run", in_order("data"), quick=True),
        Case("order of a resumed run", in_order("stopped"), quick=True),
        Case("order of an evaluation", predictions_in_order),
        *every(11, cuts),
        *every(6, [on_ext4(seconds) for seconds in (0, 1, 3, 6, 12, 20)]),
    ]


GROUP = Group("power", "every write observed, the power cut", cases)
