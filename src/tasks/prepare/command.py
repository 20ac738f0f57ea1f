"""What the sub-commands of vqa_prepare have in common."""

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Command(NamedTuple):
    """A sub-command: what it runs, what `--help` says of it, and its flags as `add_argument` takes them."""

    run: Callable[[argparse.Namespace], int]  # returns the exit code
    help: str
    description: str
    flags: Mapping[str, Mapping[str, Any]]
    aliases: Sequence[str] = ()


def flag(text: str, **options: Any) -> dict[str, Any]:
    """A flag as `add_argument` takes it; `text` is what `--help` says of it."""
    return {"help": text, **options}


def path_flag(text: str, metavar: str = "FOLDER", **options: Any) -> dict[str, Any]:
    """A flag that takes a path."""
    return {"help": text, "type": Path, "metavar": metavar, **options}


DATA = {"--data": flag("folder of the data sets (data)", type=Path, default=Path("data"))}


def say(text: str, indent: int = 0) -> None:
    """Print a sentence in lines that fit a terminal; file names stay whole."""
    margin = " " * indent
    options = {"break_long_words": False, "break_on_hyphens": False}
    print(textwrap.fill(text, 79, initial_indent=margin, subsequent_indent=margin, **options))


def whole_number(text: str, least: int = 0) -> int:
    """A flag's whole number of at least `least`."""
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


def share(text: str) -> float:
    """A flag's share of something, not all of it."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of at least 0 and below 1")
    return value
