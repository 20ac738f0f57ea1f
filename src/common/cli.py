"""What every command has in common: how it reads its flags, how it ends, and with which exit code.

0    done
1    done, and the answer is no: a data set with faults, a comparison with failed runs
2    a mistake of the user's, in one sentence
128 + the number of a signal that asked to stop: the same command goes on where it was stopped
       130 SIGINT, which is Ctrl-C   143 SIGTERM   129 SIGHUP   138 SIGUSR1   140 SIGUSR2   152 SIGXCPU
     A run has saved all it did. One that had to stop twice, the second time at once, lost the steps since its
     last save; its code is that of the second signal.
"""

import argparse
import errno
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from common.errors import Interrupted, UserError
from common.terminal import printable, safe_streams

DONE, FOUND_WANTING, MISTAKE, INTERRUPTED = 0, 1, 2, 130

# The signals that ask a command to stop, where the system has them.
ASKING = [
    number
    for number in signal.Signals
    if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
]


STARTED_IN = "STARTED_IN"  # variable of the launchers, which go to the repository root: the folder before


def user_path(text: str, named: bool = False) -> str:
    """A path as its user means it, who may stand elsewhere than a command: as the command finds it.

    What is only in the command's own folder, the repository root, is found there. named: the text may be a
    name of something else, and is a path only if there is one.
    """
    stand = Path(os.environ.get(STARTED_IN) or ".").absolute()
    if stand == Path.cwd() or Path(text).is_absolute():
        return text
    with suppress(OSError, ValueError):  # no path at all: whoever opens it says so
        theirs = stand / text
        if theirs.exists() or not (named or Path(text).exists()):
            return str(theirs.relative_to(Path.cwd()) if theirs.is_relative_to(Path.cwd()) else theirs)
    return text


class Help(argparse.HelpFormatter):
    """One spelling a flag, the first; the others stand at the end, see `Parser`."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = [text for text in action.option_strings if text.startswith("--")]
        if not spellings:
            return super()._format_action_invocation(action)
        if isinstance(action, argparse.BooleanOptionalAction):
            return f"--[no-]{spellings[0][2:]}"
        values = "" if action.nargs == 0 else f" {self._format_args(action, action.dest.upper())}"
        return spellings[0] + values


class HelpInLines(Help, argparse.RawDescriptionHelpFormatter):
    """The same, for a description of several lines, which it keeps."""


class Parser(argparse.ArgumentParser):
    """A parser that says a mistake in one sentence, without the usage text, which can be a screen long.

    Flags have to be written out: an abbreviation would change its meaning with the next flag. A description
    of several lines keeps them. Flags of type Path are as the user means them, see `user_path`.
    """

    def __init__(self, **options: Any) -> None:
        lines = "\n" in (options.get("description") or "")
        options.setdefault("formatter_class", HelpInLines if lines else Help)
        super().__init__(**{"allow_abbrev": False, **options})
        self.register("type", Path, lambda text: Path(user_path(text)))

    def format_help(self) -> str:
        """The help, and at its end the spellings that are understood as well."""
        others = {
            (action.option_strings[0], text)
            for action in self._actions
            if not isinstance(action, argparse._HelpAction)
            for text in action.option_strings[1:]
            if not _is_no(text, action)
        }
        if not others:
            return super().format_help()
        old = sorted(f"{text} is {name}" for name, text in others if text.replace("_", "-") != name)
        text = f"Other spellings: {', '.join(['_ for - in every flag', *old])}."
        width = shutil.get_terminal_size().columns - 2
        return super().format_help() + "\n" + textwrap.fill(text, width, break_on_hyphens=False) + "\n"

    def _print_message(self, message: str, file: Any = None) -> None:
        """Help and mistakes, to a pipe perhaps that its reader closes early."""
        to_stdout = file is sys.stdout
        with safe_streams():
            (sys.stdout if to_stdout else sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {printable(message)}\n")


def _is_no(text: str, action: argparse.Action) -> bool:
    """Whether it is the spelling that turns a flag off."""
    return isinstance(action, argparse.BooleanOptionalAction) and text.startswith("--no-")


def run_command(command: Callable[[], int | None], interrupted: str) -> int:
    """Run a command and return its exit code; `interrupted` is what Ctrl-C says.

    What it prints is safe for a terminal, and where nobody can read it, the work is done all the same.
    """
    with safe_streams():
        try:
            return command() or DONE
        except UserError as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return MISTAKE
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            # Whoever looks first at a path of the user's meets it: no place can know what it was for.
            print(f"error: {printable(str(error.filename))[:60]}...: {error.strerror}.", file=sys.stderr)
            return MISTAKE
        except Interrupted as stop:
            if str(stop):
                print(f"\n{stop}", flush=True)
            return stop.exit_code
        except KeyboardInterrupt:
            print(f"\n{interrupted}", file=sys.stderr)
        return INTERRUPTED
