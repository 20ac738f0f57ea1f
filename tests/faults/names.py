"""Names that lead out of their folder, and characters that command a terminal: neither gets through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.cases import Case, Group, every
from tests.faults.changed import edit_json, records
from tests.faults.place import COMMAND, EVALUATION, Place, refused
from tests.faults.process import Outcome

ESCAPE = "\x1b[31m\x1b]0;owned\x07"
INSIDE = "inside"  # the working folder; what is beside it must stay as it is
ALLOWED = ("snap/vqa/", "visualizations/run/")  # where a run may write
# Places of files that are there, by names that are no names.
BAD_NAMES = {
    "absolute": "{root}/outside/train",
    "parent": "../../outside/train",
    "parent of the data": "../../../outside/new",
    "folder": "annotations/minival",
    "dots": "..",
    "hidden": ".lock",
    "escape": f"a{ESCAPE}b",
    "newline": "a\nb",
    "null": "a%00b",
    "too long": "a" * 300,
}

Act = Callable[[Place], Outcome]


def inside(place: Place, begun: str) -> Place:
    """A working folder with something beside it, to be left alone."""
    inner = Place(place.root / INSIDE, place.cache)
    inner.root.mkdir()
    inner.take(begun)
    outside = place.root / "outside"
    outside.mkdir()
    (outside / "train.json").write_text((inner.data / "train.json").read_text())
    return inner


def fingerprint(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(".output")
    }


def bears(
    begun: str, act: Act, *, must_refuse: bool, prepare: Callable[[Place], Any] = lambda place: None
) -> Callable:
    """Nothing is written outside, nothing that was there is changed, no escape reaches the terminal."""

    def fault(place: Place) -> str | None:
        inner = inside(place, begun)
        prepare(inner)
        before = fingerprint(place.root)
        outcome = act(inner)
        after = fingerprint(place.root)
        changed = [name for name in before if after.get(name) != before[name]]
        fresh = [name for name in after if name not in before]
        allowed = tuple(f"{INSIDE}/{path}" for path in ALLOWED)
        if strays := [name for name in changed + fresh if not name.startswith(allowed)]:
            return f"written outside: {', '.join(strays[:3])}"
        if raw := escapes_in(outcome):
            return raw
        if must_refuse:
            return refused(outcome)
        return f"traceback: {outcome.traceback}" if outcome.traceback else None

    return fault


def escapes_in(outcome: Outcome) -> str | None:
    text = outcome.out + outcome.err
    found = next((text[at : at + 12] for at in range(len(text)) if text[at] in "\x1b\x07\x9b\x08"), None)
    return found and f"the terminal is sent {found!r}"


def flag_case(flag: str, kind: str, template: str, command: Sequence[str], begun: str) -> Case:
    def act(place: Place) -> Outcome:
        value = template.format(root=place.root.parent)
        return place.call("tasks.vqa", *command, flag, value)

    return Case(f"{flag}: {kind}", bears(begun, act, must_refuse=True))


def preparing(flag: str, kind: str, template: str) -> Case:
    """Features are converted into a data set and a store of that name."""

    def act(place: Place) -> Outcome:
        from tests.helpers.feature_files import image, write_npz

        (place.root / "snap" / "vqa" / "photos").mkdir(parents=True, exist_ok=True)
        write_npz(place.root / "snap" / "vqa" / "photos", image(1, boxes=2, size=7))
        value = template.format(root=place.root.parent)
        return place.call("tasks.vqa_prepare", "features", "snap/vqa/photos", "--quiet", flag, value)

    return Case(f"features {flag}: {kind}", bears("data", act, must_refuse=True))


def owning(kind: str, template: str) -> Case:
    def act(place: Place) -> Outcome:
        value = template.format(root=place.root.parent)
        return place.call("tasks.vqa_prepare", "own", "--from", "data/vqav2", "--name", value)

    return Case(f"own --name: {kind}", bears("data", act, must_refuse=True))


def prepared_names(name: str) -> Case:
    """prepared.json says what the next preparation removes."""

    def prepare(place: Place) -> None:
        (place.data / "prepared.json").write_text(json.dumps([name.format(root=place.root.parent)]))

    def act(place: Place) -> Outcome:
        outcome = place.call("tasks.vqa_prepare", "own", "--from", "data/vqav2", "--name", "vqav2")
        return place.call("tasks.vqa_prepare", "check", "data/vqav2") if outcome.code == 0 else outcome

    def fault(place: Place) -> str | None:
        wrong = bears("data", act, must_refuse=False, prepare=prepare)(place)
        if not (place.root / "outside" / "train.json").exists():
            return "a file outside was removed"
        # What the preparation is for, it may write.
        return None if wrong and wrong.startswith(f"written outside: {INSIDE}/data/") else wrong

    return Case(f"prepared.json names {name}", fault)


def sent_best(what: str, edit: Callable[[dict[str, Any], Place], Any]) -> Case:
    """A BEST folder that somebody else made, evaluated."""

    def prepare(place: Place) -> None:
        file = place.run / "BEST" / "model.json"
        content = json.loads(file.read_text())
        edit(content, place)
        file.write_text(json.dumps(content))

    def act(place: Place) -> Outcome:
        return place.evaluate()

    return Case(f"a sent BEST: {what}", bears("finished", act, must_refuse=True, prepare=prepare))


def escaped(what: str, prepare: Callable[[Place], Any], *acts: Act) -> Case:
    """The data hold escapes; a run, an evaluation, a question or a check of them says something."""

    def fault(place: Place) -> str | None:
        inner = inside(place, "data")
        prepare(inner)
        for act in acts:
            outcome = act(inner)
            if outcome.traceback:
                return f"traceback: {outcome.traceback}"
            if raw := escapes_in(outcome):
                return raw
            for file in inner.root.rglob("train.log"):
                if "\x1b" in file.read_text():
                    return "train.log holds escapes, which `tail` would send to the terminal"
        return None

    return Case(f"escapes in {what}", fault)


def train(place: Place) -> Outcome:
    return place.train()


def evaluate(place: Place) -> Outcome:
    return place.evaluate()


def ask(place: Place) -> Outcome:
    flags = ("--version", "run", "--load", "snap/vqa/run/BEST", "--data", "data", "--wandb", "off")
    return place.call("tasks.vqa", *flags, "--question", "is it red ?", "--image-id", "minival_3")


def ask_in_escapes(place: Place) -> Outcome:
    flags = ("--version", "run", "--load", "snap/vqa/run/BEST", "--data", "data", "--wandb", "off")
    return place.call("tasks.vqa", *flags, "--question", f"is {ESCAPE} red ?", "--image-id", f"x{ESCAPE}")


def check(place: Place) -> Outcome:
    return place.call("tasks.vqa_prepare", "check", "data/vqav2")


def escaped_answers(place: Place) -> None:
    """One answer of the vocabulary everywhere."""
    for file in place.data.rglob("*.json"):
        if "features" not in file.parts:
            file.write_text(file.read_text().replace('"yes"', json.dumps(f"yes{ESCAPE}")))


def escaped_truth(place: Place) -> None:
    edit_json(
        "data/vqav2/annotations/minival.json",
        lambda t: (
            [a.update(question_type=f"x{ESCAPE}", answer_type=f"y{ESCAPE}") for a in t["annotations"]]
            and None
        ),
    )(place)


REFUSED = [
    *every(
        9,
        (
            flag_case(flag, kind, template, command, begun)
            for flag, command, begun in (
                ("--version", COMMAND, "data"),
                ("--train", COMMAND, "data"),
                ("--valid", COMMAND, "data"),
                ("--dataset", COMMAND, "data"),
                ("--test", EVALUATION, "finished"),
            )
            for kind, template in BAD_NAMES.items()
        ),
    ),
    *every(
        7,
        (
            case
            for kind, template in BAD_NAMES.items()
            for case in (
                preparing("--dataset", kind, template),
                preparing("--image-set", kind, template),
                owning(kind, template),
            )
        ),
    ),
]

REMOVED = ("../../../outside/train.json", "{root}/outside/train.json", "..", ESCAPE)

SENT: dict[str, Callable[[dict[str, Any], Place], Any]] = {
    "data set in the parent": lambda b, p: b.update(dataset="../../outside"),
    "data set absolute": lambda b, p: b.update(dataset=str(p.root.parent / "outside")),
    "data set with escapes": lambda b, p: b.update(dataset=f"vqav2{ESCAPE}"),
    "pre-trained model absolute": lambda b, p: b["spec"].update(pretrained=str(p.root.parent / "outside")),
    "pre-trained model in the parent": lambda b, p: b["spec"].update(pretrained="../outside"),
    "pre-trained model with escapes": lambda b, p: b["spec"].update(pretrained=f"unc-nlp/x{ESCAPE}"),
    "pre-trained model with a null": lambda b, p: b["spec"].update(pretrained="model\0"),
    "pre-trained model too long": lambda b, p: b["spec"].update(pretrained="a" * 300),
    "pre-trained model in a long path": lambda b, p: b["spec"].update(pretrained="a/" * 3000),
    "pre-trained file with a null": lambda b, p: b["spec"].update(pretrained=None, load_lxmert="model\0"),
    "data set too long": lambda b, p: b.update(dataset="a" * 300),
    "data set with a null": lambda b, p: b.update(dataset="vqav2\0"),
    "source with escapes": lambda b, p: b["pretrained"].update(source=f"x{ESCAPE}", sha256="0" * 64),
    "strategy with escapes": lambda b, p: b["spec"].update(strategy=f"x{ESCAPE}"),
}

# What the first training question says, if it is to have an escape somewhere.
FIRST: dict[str, dict[str, Any]] = {
    "questions": {"sent": f"is it {ESCAPE}"},
    "image ids without features": {"img_id": f"x{ESCAPE}"},
    "labels": {"label": {f"x{ESCAPE}": "no number"}},
    "question ids": {"question_id": f"x{ESCAPE}"},
    "names of fields": {f"x{ESCAPE}": 1, "label": ESCAPE},
}


# Paths that lead nowhere, in files that say where something else is, and in flags.
NOWHERE = {"too long": "a" * 300, "in a long path": "a/" * 3000, "a null": "a\0b", "escapes": ESCAPE}


def pointing(kind: str, path: str) -> Case:
    """features.json says where a data set's features are."""

    def prepare(place: Place) -> None:
        (place.data / "features.json").write_text(json.dumps({"folder": path}))

    return Case(f"features.json: {kind}", bears("data", train, must_refuse=True, prepare=prepare))


def long_path(flag: str, begun: str, *command: str) -> Case:
    """A path that is longer than the disk allows, wherever a command takes one."""

    def act(place: Place) -> Outcome:
        module, *flags = command
        return place.call(module, *flags, *([flag] if flag != "argument" else []), "a" * 300)

    name = " ".join((command[0].removeprefix("tasks."), *command[1:2], flag))
    return Case(f"{name}: too long a path", bears(begun, act, must_refuse=True))


LONG_PATHS = (
    *(long_path(flag, "data", "tasks.vqa", *COMMAND) for flag in ("--data", "--output", "--pretrained")),
    long_path("--load", "finished", "tasks.vqa", *EVALUATION),
    long_path("--loadLXMERT", "data", "tasks.vqa", "--data", "data", "--wandb", "off"),
    long_path("argument", "data", "tasks.vqa_prepare", "check"),
    long_path("--from", "data", "tasks.vqa_prepare", "own", "--name", "x"),
    long_path("--data", "data", "tasks.vqa_prepare", "own", "--name", "x", "--from", "data/vqav2"),
    long_path("argument", "finished", "tasks.vqa_report", "policy"),
    long_path("argument", "finished", "tasks.vqa_report", "results"),
    long_path("--to", "finished", "tasks.export", "run"),
    long_path("--run", "finished", "tasks.export", "--to", "x"),
)


def cases(place: Place) -> list[Case]:
    types = records("minival", lambda r: [x | {"question_type": f"x{ESCAPE}"} for x in r])
    terminal = [
        escaped("answers.json", escaped_answers, train, evaluate, ask, check),
        escaped("question types", types, train, evaluate),
        escaped("the types of human answers", escaped_truth, train, evaluate),
        escaped("a question and an image id of the user's", train, ask_in_escapes),
        *(
            escaped(what, records("train", lambda r, values=values: r[0].update(values)), train, check)
            for what, values in FIRST.items()
        ),
    ]
    return [
        *REFUSED,
        *every(3, map(prepared_names, REMOVED)),
        *every(4, (pointing(kind, path) for kind, path in NOWHERE.items())),
        *every(4, LONG_PATHS),
        *every(4, (sent_best(what, edit) for what, edit in SENT.items())),
        *every(3, terminal),
    ]


GROUP = Group("names", "out of the folder, into the terminal", cases)
