"""Files that would run code when unpickled, in the place of every file that is read: none of them does."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tests.faults.cases import Case, Group, every
from tests.faults.damage import files_of, shown
from tests.faults.place import RUN, VALIDATION, Place, evaluated_alike, refused
from tests.faults.process import Outcome
from tests.helpers.feature_files import image, write_npz
from tests.helpers.paths import ASSETS

MARKER = "payload-ran"


class Payload:
    """Makes a folder in the working folder, wherever it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (MARKER,)


def pickled() -> bytes:
    return pickle.dumps({"state": Payload()})


def torch_file() -> bytes:
    """As torch.save writes it: a zip file with a pickle in it."""
    content = io.BytesIO()
    torch.save({"state": Payload()}, content)
    return content.getvalue()


def npy() -> bytes:
    content = io.BytesIO()
    np.save(content, np.array([Payload()], dtype=object), allow_pickle=True)
    return content.getvalue()


def npz() -> bytes:
    content = io.BytesIO()
    np.savez(content, *[np.array([Payload()], dtype=object)] * 2)
    return content.getvalue()


POISONS = {"pickle": pickled, "torch.save": torch_file, ".npy": npy, ".npz": npz}


def poisons_for(file: Path) -> list[str]:
    """Those that the reader of such a file could fall for."""
    if file.suffix in (".npy", ".npz"):
        return [file.suffix, "pickle"]
    return ["pickle", "torch.save"] if file.suffix in (".pkl", ".bin", ".pth", ".pt") else ["pickle"]


def harmless(place: Place, wrong: str | None) -> str | None:
    """Before anything else: whether the payload ran."""
    return "THE PAYLOAD RAN" if (place.root / MARKER).exists() else wrong


def resumed(place: Place) -> str | None:
    return place.equal_or_refused(place.train())


def evaluated(place: Place) -> str | None:
    return evaluated_alike(place, place.evaluate())


def over(
    file: Path, kind: str, begun: str, use: Callable[[Place], str | None]
) -> Callable[[Place], str | None]:
    """The payload in the place of a file."""

    def fault(place: Place) -> str | None:
        (place.take(begun).root / file).write_bytes(POISONS[kind]())
        return harmless(place, use(place))

    return fault


def beside(name: str, kind: str) -> Case:
    """A file that an older format of LAST/ had, among those of a whole state."""

    def fault(place: Place) -> str | None:
        (place.take("stopped").run / "LAST" / name).write_bytes(POISONS[kind]())
        return harmless(place, resumed(place))

    return Case(f"LAST/{name} planted beside, {kind}", fault)


def pretrained(name: str, kind: str, *flags: str) -> Case:
    """In the one file of weights that the model has."""

    def fault(place: Place) -> str | None:
        (place.take("data").model / "model.safetensors").unlink()
        (place.root / name).write_bytes(POISONS[kind]())
        wrong = refused(place.train(*flags), Path(name).name)
        return harmless(place, wrong)

    return Case(f"pre-trained {name}, {kind}", fault)


def reported(command: str) -> Case:
    """usage.npz, read by the reports."""

    def fault(place: Place) -> str | None:
        (place.take("finished").run / "usage.npz").write_bytes(npz())
        outcome = place.call("tasks.vqa_report", command, str(RUN))
        wrong = outcome.traceback and f"traceback: {outcome.traceback}"
        if not wrong and command == "policy":
            wrong = refused(outcome, "usage.npz")
        return harmless(place, wrong)

    return Case(f"usage.npz, report {command}", fault)


def converted(place: Place) -> str | None:
    """An .npz of region features that somebody sent."""
    (place.root / "mine").mkdir()
    write_npz(place.root / "mine", image(1, boxes=2, size=7))
    (place.root / "mine" / "photo2.npz").write_bytes(npz())
    outcome = place.call("tasks.vqa_prepare", "features", "mine", "--dataset", "own", "--quiet")
    wrong = outcome.traceback and f"traceback: {outcome.traceback}"
    return harmless(place, wrong or (None if outcome.code in (1, 2) else f"exit code {outcome.code}"))


# ---------------------------------------------------------------------- states of an older format

OLD_STATE: dict[str, Callable[[], bytes]] = {
    "custom_checkpoint_0.pkl": lambda: _saved({"last_epoch": 6}),
    "custom_checkpoint_1.pkl": lambda: _saved({"epoch": 1, "step": 2}),
    "optimizer.bin": lambda: _saved({"state": {}, "param_groups": []}),
    "random_states_0.pkl": lambda: _saved({"step": 6, "random_state": (3, (1, 2), None)}),
}


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def old_state(poisoned: str = "") -> Callable[[Place], str | None]:
    """LAST/ as accelerate wrote it: refused, with what to do, and not read."""

    def fault(place: Place) -> str | None:
        last = place.take("stopped").run / "LAST"
        shutil.rmtree(last)
        last.mkdir()
        shutil.copy(place.run / "BEST" / "model.safetensors", last)
        for name, content in OLD_STATE.items():
            (last / name).write_bytes(torch_file() if name == poisoned else content())
        outcome = place.train()
        wrong = refused(outcome, "LAST")
        if not wrong and not any(word in outcome.sentence for word in ("format", "older", "earlier")):
            wrong = f"the sentence does not say that it is old: {outcome.sentence}"
        return harmless(place, wrong)

    return fault


def old_best(place: Place) -> str | None:
    """BEST/ of a run that is older than the format of LAST/ gives the answers that it gave then."""
    place.take("data")
    old = ASSETS / "run_format_1"
    shutil.copytree(old / "pretrained", place.root / "pretrained")
    shutil.copytree(old / "run", place.root / "snap" / "vqa" / "old")
    predictions = place.root / "snap" / "vqa" / "old" / "predictions" / "minival.json"
    recorded = json.loads(predictions.read_text())
    predictions.unlink()
    flags = (
        "--version",
        "old",
        "--load",
        "snap/vqa/old/BEST",
        "--test",
        "minival",
        "--no-tqdm",
        "--wandb",
        "off",
    )
    outcome: Outcome = place.call("tasks.vqa", *flags)
    if outcome.code or outcome.traceback:
        return f"exit code {outcome.code}: {outcome.sentence}"
    answers = json.loads(predictions.read_text())
    return None if len(answers) == VALIDATION and answers == recorded else "other predictions"


def cases(place: Place) -> list[Case]:
    stopped, finished = place.prepared("stopped"), place.prepared("finished")
    inputs = list(files_of(stopped, "data", "model"))
    planted = [
        *(("resume", resumed, "stopped", file) for file in [*files_of(stopped, str(RUN)), *inputs]),
        *(
            ("evaluation", evaluated, "finished", file)
            for file in [*files_of(finished, f"{RUN}/BEST"), *inputs]
        ),
    ]
    found = [
        Case(f"{what}, {shown(file)}, {kind}", over(file, kind, begun, use))
        for what, use, begun, file in planted
        for kind in poisons_for(file)
    ]
    weights = [
        pretrained(name, kind, *flags)
        for name, flags in (
            ("model/pytorch_model.bin", ()),
            ("my_LXRT.pth", ("--load_lxmert", "my", "--pretrained", "")),
        )
        for kind in ("pickle", "torch.save")
    ]
    return [
        *every(10, found),
        *every(4, [beside(name, kind) for name in OLD_STATE for kind in ("pickle", "torch.save")]),
        *weights,
        *(reported(command) for command in ("policy", "results")),
        Case("features from an .npz", converted, quick=True),
        Case("LAST of accelerate's format", old_state(), quick=True),
        *(Case(f"LAST of accelerate's format, {name} poisoned", old_state(name)) for name in OLD_STATE),
        Case("BEST of format 1 is still read", old_best, quick=True),
    ]


GROUP = Group("poison", "payloads in every file that is read", cases)
