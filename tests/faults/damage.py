"""Every file gone, empty, cut or with a bit flipped: it is named or has no influence; never other numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.cases import Case, Group, every
from tests.faults.place import RUN, Place, evaluated_alike


def vanish(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(file: Path, share: float = 0.75) -> None:
    """One bit, at this share of the file: in numbers rather than in a header, nor in what is padding."""
    content = bytearray(file.read_bytes())
    place = int(len(content) * share)
    if file.suffix == ".npy":
        # The last byte of a number holds its exponent, and is zero where there is only padding.
        exponents = range(place // 4 * 4 + 3, len(content), 4)
        place = next((at for at in exponents if content[at]), place)
    content[place] ^= 0x10
    file.write_bytes(content)


def flip_early(file: Path) -> None:
    """One bit, in an array that of a training image: they come first."""
    flip(file, 0.33 if file.suffix == ".npy" else 0.75)


BREAKS: dict[str, Callable[[Path], None]] = {"gone": vanish, "empty": empty, "cut": cut}
IN_TRAINING, IN_EVALUATION = {**BREAKS, "bit flipped": flip_early}, {**BREAKS, "bit flipped": flip}


def resumed(file: Path, damage: Callable[[Path], None]) -> Callable[[Place], str | None]:
    def fault(place: Place) -> str | None:
        damage(place.take("stopped").root / file)
        return place.equal_or_refused(place.train(), *names_of(file))

    return fault


def evaluated(file: Path, damage: Callable[[Path], None]) -> Callable[[Place], str | None]:
    def fault(place: Place) -> str | None:
        damage(place.take("finished").root / file)
        return evaluated_alike(place, place.evaluate(), *names_of(file))

    return fault


def called_again(file: Path, damage: Callable[[Path], None]) -> Callable[[Place], str | None]:
    """The command of a complete run, which must not praise a BEST that is damaged."""

    def fault(place: Place) -> str | None:
        damage(place.take("finished").root / file)
        return place.equal_or_refused(place.train(), *names_of(file))

    return fault


def names_of(file: Path) -> list[str]:
    """How a sentence may call a file: by its name, or as part of what has to be got again as a whole."""
    whole = [] if file.parent in (RUN, Path("data/vqav2")) else [str(file.parent)]
    return [file.name, *whole, *(["other arguments"] if file.name == "args.json" else [])]


def files_of(folder: Path, *parts: str) -> Iterator[Path]:
    """The files below some folders, relative to `folder`."""
    for part in parts:
        for path in sorted((folder / part).rglob("*")):
            if path.is_file():
                yield path.relative_to(folder)


def cases(place: Place) -> list[Case]:
    stopped, finished = place.prepared("stopped"), place.prepared("finished")
    inputs = [*files_of(stopped, "data", "model")]
    run, best = [*files_of(stopped, str(RUN))], [*files_of(finished, f"{RUN}/BEST")]
    outputs = [file for file in files_of(finished, str(RUN)) if file.name not in (".lock", "train.log")]
    tried = [
        *(("resume", resumed, IN_TRAINING, file) for file in [*run, *inputs]),
        *(("evaluation", evaluated, IN_EVALUATION, file) for file in [*best, *inputs]),
        *(("complete run", called_again, IN_TRAINING, file) for file in outputs if "LAST" not in file.parts),
    ]
    found = [
        Case(f"{what}, {shown(file)} {name}", act(file, damage))
        for what, act, damages, file in tried
        for name, damage in damages.items()
        if not (what == "evaluation" and "annotations" in file.parts and damage is vanish)  # it needs none
    ]
    return list(every(13, found))


def shown(file: Path) -> str:
    """The path, without what all have in common."""
    return str(file.relative_to(RUN) if file.is_relative_to(RUN) else file)


GROUP = Group("damage", "gone, empty, cut, a bit flipped", cases)
