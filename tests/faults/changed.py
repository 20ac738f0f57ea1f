"""Inputs that changed between a stop and the resume: named and refused, or without any influence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.faults.cases import Case, Group, every
from tests.faults.doubled import Launched
from tests.faults.equal import first_difference, numbers
from tests.faults.place import Place
from tests.faults.process import Hook
from tests.faults.sealed import reseal

Change = Callable[[Place], Any]


def noticed(name: str, change: Change, names: Sequence[str], *flags: str, hook: Hook | None = None) -> Case:
    """The resumed run names one of `names`, or comes to equal numbers."""

    def fault(place: Place) -> str | None:
        change(place.take("stopped"))
        return place.equal_or_refused(place.train(*flags, hooks=[hook] if hook else []), *names)

    return Case(name, fault)


def borne(name: str, change: Change = lambda place: None, *flags: str, **env: str) -> Case:
    """It is nothing that decides numbers, and must not be refused."""

    def fault(place: Place) -> str | None:
        change(place.take("stopped"))
        return place.equal(place.train(*flags, **env))

    return Case(name, fault)


# ---------------------------------------------------------------------- changes


def records(split: str, edit: Callable[[list[dict]], Any]) -> Change:
    """The questions of a split, edited in place or replaced by what `edit` returns."""

    def change(place: Place) -> None:
        file = place.data / f"{split}.json"
        content = json.loads(file.read_text())
        content = edit(content) or content
        file.write_text(json.dumps(content))

    return change


def edit_json(path: str, edit: Callable[[Any], Any]) -> Change:
    def change(place: Place) -> None:
        file = place.root / path
        content = json.loads(file.read_text())
        content = edit(content) or content
        file.write_text(json.dumps(content))

    return change


def exchange(one: str, other: str) -> Change:
    def change(place: Place) -> None:
        first, second = place.root / one, place.root / other
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)

    return change


def relabel(content: list[dict]) -> None:
    label = content[3]["label"]
    content[3]["label"] = {"blue" if "red" in label else "red": 1.0}


def swap_labels(content: list[dict]) -> None:
    """Two questions exchange their answers: as many of each as before."""
    first = content[0]
    second = next(record for record in content if record["label"] != first["label"])
    first["label"], second["label"] = second["label"], first["label"]


def array(name: str, edit: Callable[[np.ndarray], Any]) -> Change:
    """Other numbers in the store, which is whole."""

    def change(place: Place) -> None:
        values = np.load(place.store / f"{name}.npy")
        edit(values)
        np.save(place.store / f"{name}.npy", values)
        reseal(place.store)

    return change


def halve(values: np.ndarray) -> None:
    values *= 0.5


def exchange_ids(place: Place) -> None:
    """Two images exchange their ids, and so their features."""
    edit_json("data/vqav2/features/all/image_ids.json", lambda ids: [ids[1], ids[0], *ids[2:]])(place)
    reseal(place.store)


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Change:
    def change(place: Place) -> None:
        file = place.model / "model.safetensors"
        content = load_file(file)
        edit(content)
        save_file(content, file)

    return change


def scale_one(content: dict[str, torch.Tensor]) -> None:
    content[sorted(content)[5]] *= 1.01


def text(path: str, edit: Callable[[str], str]) -> Change:
    def change(place: Place) -> None:
        file = place.root / path
        file.write_text(edit(file.read_text()))

    return change


def gone(*paths: str) -> Change:
    return lambda place: [(place.root / path).unlink() for path in paths]


def bf16_for_auto() -> None:
    """The machine has become one on which `auto` means bf16."""
    from training.machine import Machine

    begin = Machine.__init__

    def begin_elsewhere(machine: Machine, *arguments: Any, **options: Any) -> None:
        is_available, is_supported = torch.cuda.is_available, torch.cuda.is_bf16_supported
        torch.cuda.is_available = lambda: True
        torch.cuda.is_bf16_supported = lambda *_, **__: True
        try:
            begin(machine, *arguments, **options)
        finally:
            torch.cuda.is_available, torch.cuda.is_bf16_supported = is_available, is_supported

    Machine.__init__ = begin_elsewhere


def two_processes(place: Place) -> str | None:
    run = Launched(place.take("stopped"))
    code = run.launcher.wait(120)
    if code == 0:
        return place.equal(place.train())
    return None if "process" in run.said().lower() and "error: " in run.said() else f"it says {run.said()}"


def other_log_every(place: Place) -> str | None:
    """The lines inside epochs are others, of course; nothing else is."""
    outcome = place.take("stopped").train("--log_every", "2")
    if outcome.code:
        return place.equal(outcome)
    ours, theirs = (
        {name: value for name, value in numbers(run).items() if not name.startswith("metrics.jsonl")}
        for run in (place.run, place.undisturbed())
    )
    return first_difference(ours, theirs)


def moved(place: Place) -> str | None:
    """All of it, to another folder."""
    other = Place(place.root / "elsewhere", place.cache)
    shutil.copytree(place.prepared("stopped"), other.root)
    return other.equal(other.train())


def absolute(flag: str, path: str) -> Case:
    def fault(place: Place) -> str | None:
        place.take("stopped")
        return place.equal(place.train(flag, str(place.root / path)))

    return Case(f"{flag} by its absolute path", fault)


def through_a_link(place: Place) -> str | None:
    (place.take("stopped").root / "link").symlink_to("data")
    return place.equal(place.train("--data", "link"))


# ---------------------------------------------------------------------- the cases

TRAIN, VALID = "data/vqav2/train.json", "data/vqav2/minival.json"
TRUTH = "data/vqav2/annotations/minival.json"

INPUTS = [
    noticed("train: an edited answer", records("train", relabel), ["train.json"]),
    noticed("train: exchanged answers", records("train", swap_labels), ["train.json"]),
    noticed(
        "train: a label of 0.3 and not 1",
        records("train", lambda r: r[0].update(label={"red": 0.3})),
        ["train.json"],
    ),
    noticed(
        "train: an edited question",
        records("train", lambda r: r[0].update(sent="is it blue ?")),
        ["train.json"],
    ),
    noticed("train: fewer questions", records("train", lambda r: r[:-8]), ["train.json"]),
    noticed("train: one question fewer", records("train", lambda r: r[1:]), ["train.json"]),
    noticed(
        "train: a question more", records("train", lambda r: [*r, r[0] | {"question_id": 7}]), ["train.json"]
    ),
    noticed("train: reordered", records("train", lambda r: r[::-1]), ["train.json"]),
    noticed(
        "train: other ids",
        records("train", lambda r: [x | {"question_id": x["question_id"] + 5000} for x in r]),
        ["train.json"],
    ),
    noticed(
        "train: another image",
        records("train", lambda r: r[0].update(img_id=r[-1]["img_id"])),
        ["train.json"],
    ),
    noticed(
        "train: another question type",
        records("train", lambda r: r[0].update(question_type="x")),
        ["train.json"],
    ),
    noticed(
        "train and nominival exchanged",
        exchange(TRAIN, "data/vqav2/nominival.json"),
        ["train.json", "nominival.json"],
    ),
    noticed("valid: an edited answer", records("minival", relabel), ["minival"]),
    noticed("valid: fewer questions", records("minival", lambda r: r[:-8]), ["minival"]),
    noticed("valid: reordered", records("minival", lambda r: r[::-1]), ["minival"]),
    noticed(
        "valid: exchanged with train", exchange(TRAIN, VALID), ["train.json", "minival.json", "annotation"]
    ),
    noticed(
        "human answers: edited",
        edit_json(TRUTH, lambda t: t["annotations"][0]["answers"][0].update(answer="no")),
        ["annotations"],
    ),
    noticed(
        "human answers: all by others",
        edit_json(
            TRUTH,
            lambda t: (
                [a["answers"][i].update(answer="no") for a in t["annotations"] for i in range(9)] and None
            ),
        ),
        ["annotations"],
    ),
    noticed("human answers: gone", gone(TRUTH), ["annotations"]),
    noticed("answers: reordered", edit_json("data/vqav2/answers.json", lambda a: a[::-1]), ["answers.json"]),
    noticed(
        "answers: two exchanged",
        edit_json("data/vqav2/answers.json", lambda a: [a[1], a[0], *a[2:]]),
        ["answers.json"],
    ),
    noticed(
        "answers: one more", edit_json("data/vqav2/answers.json", lambda a: [*a, "green"]), ["answers.json"]
    ),
    noticed("features: others of the same images", array("features", halve), ["features"]),
    noticed("features: of one image", array("features", lambda v: v[3].fill(0.1)), ["features"]),
    noticed("features: boxes", array("boxes", halve), ["features", "boxes"]),
    noticed(
        "features: a region fewer",
        array("num_regions", lambda v: v.__setitem__(slice(None), np.maximum(v - 1, 1))),
        ["features"],
    ),
    noticed("features: ids exchanged", exchange_ids, ["features"]),
    noticed(
        "model: config.json, dropout",
        edit_json("model/config.json", lambda c: c.update(hidden_dropout_prob=0.3)),
        ["config"],
    ),
    noticed(
        "model: config.json, heads",
        edit_json("model/config.json", lambda c: c.update(num_attention_heads=4)),
        ["config"],
    ),
    noticed(
        "model: config.json, activation",
        edit_json("model/config.json", lambda c: c.update(hidden_act="relu")),
        ["config"],
    ),
    noticed("model: weights", tensors(scale_one), ["model.safetensors"]),
    noticed(
        "model: vocabulary reordered",
        text("model/vocab.txt", lambda t: t.replace("red\nblue", "blue\nred")),
        ["vocab.txt", "tokenizer"],
    ),
    noticed(
        "model: tokenizer_config.json",
        edit_json("model/tokenizer_config.json", lambda c: c.update(do_lower_case=False, model_max_length=5)),
        ["tokenizer"],
    ),
    noticed("args.json: lost", gone("snap/vqa/run/args.json"), ["args.json"]),
    noticed(
        "args.json: edited",
        edit_json("snap/vqa/run/args.json", lambda a: a.update(lr=1e-5)),
        ["args.json", "lr"],
    ),
    noticed(
        "args.json: edited, and the flag, too",
        edit_json("snap/vqa/run/args.json", lambda a: a.update(lr=1e-5)),
        ["args.json", "lr"],
        "--lr",
        "1e-5",
    ),
    noticed("args.json: a list", lambda p: (p.run / "args.json").write_text("[]"), ["args.json"]),
    noticed("env.json: lost", gone("snap/vqa/run/env.json"), ["env.json"]),
    noticed("precision: auto means bf16 now", lambda p: None, ["precision"], hook=bf16_for_auto),
    Case("processes: two and not one", two_processes),
]

FLAGS = {
    "--seed": "2", "--strategy": "SpotTune_Res", "--lr": "1e-3", "--epochs": "2", "--batch_size": "20",
    "--optim": "sgd", "--weight_decay": "0.1", "--warmup": "0.5", "--clip": "0.5", "--dropout": "0.3",
    "--accumulate": "2", "--no-group_by_length": "", "--policy": "linear", "--policy_every": "2",
    "--policy_lr": "1e-2", "--policy_optim": "sgd", "--policy_start": "0.9", "--temperature": "1.5",
    "--temperature_end": "0.5", "--routing": "dense", "--precision": "bf16", "--gradient_checkpointing": "",
    "--frozen_dtype": "bf16", "--llayers": "1", "--train": "train", "--valid": "nominival", "--tiny": "",
    "--dataset": "vqacpv2", "--from_scratch": "", "--load": "snap/vqa/run/BEST", "--pretrained": "other",
}  # fmt: skip


def with_flag(flag: str, value: str) -> Case:
    words = [name for name in (flag.removeprefix("--").removeprefix("no-"), value) if name]
    return noticed(f"{flag} {value}".strip(), lambda place: None, words, flag, *([value] if value else []))


def raised_epochs(place: Place) -> str | None:
    """Where the schedule allows it, the run is that of so many epochs; else a sentence says why not."""
    outcome = place.take("stopped").train("--epochs", "5")
    return (
        place.equal(outcome, "--epochs", "5")
        if outcome.code == 0
        else place.equal_or_refused(outcome, "epochs")
    )


BORNE = [
    borne("--data ./data", lambda p: None, "--data", "./data"),
    borne("--data data/", lambda p: None, "--data", "data/"),
    borne("--pretrained ./model/", lambda p: None, "--pretrained", "./model/"),
    absolute("--data", "data"),
    absolute("--pretrained", "model"),
    absolute("--output", "snap/vqa/run"),
    Case("--data through a link", through_a_link),
    Case("moved to another folder", moved),
    Case("--log_every 2", other_log_every),
    borne("--save_every 1", lambda p: None, "--save_every", "1"),
    borne("--num_workers 2", lambda p: None, "--num_workers", "2"),
    borne("--tqdm", lambda p: None, "--tqdm"),
    borne("--wandb offline", lambda p: None, "--wandb", "offline"),
    borne("--precision auto, the default", lambda p: None, "--precision", "auto"),
    borne("a data set beside it", lambda p: shutil.copytree(p.data, p.data.parent / "another")),
    borne("a split beside it", lambda p: shutil.copy(p.data / "train.json", p.data / "extra.json")),
    borne("files touched", lambda p: [path.touch() for path in p.root.rglob("*") if path.is_file()]),
    borne("train.log gone", gone("snap/vqa/run/train.log")),
]  # fmt: skip


ENVIRONMENT = {
    "ACCELERATE_MIXED_PRECISION": ("bf16", "nonsense"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("2",),
    "ACCELERATE_DYNAMO_BACKEND": ("EAGER",),
}


def from_outside(name: str, value: str) -> Case:
    """A variable that accelerate heeds: it is named, or has no influence."""

    def fault(place: Place) -> str | None:
        return place.equal_or_refused(place.take("stopped").train(**{name: value}), name)

    return Case(f"{name}={value}", fault)


def cases(place: Place) -> list[Case]:
    variables = [from_outside(name, value) for name, values in ENVIRONMENT.items() for value in values]
    flags = [with_flag(flag, value) for flag, value in FLAGS.items()]
    return [
        *every(6, INPUTS),
        *every(8, flags),
        Case("--epochs 5", raised_epochs),
        *every(5, BORNE),
        *every(2, variables),
    ]


GROUP = Group("changed", "inputs changed before a resume", cases)
