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
import signal
import sys
from collections.abc import Callable
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


class Parser(argparse.ArgumentParser):
    """A parser that says a mistake in one sentence, without the usage text, which can be a screen long.

    Flags have to be written out: an abbreviation would change its meaning with the next flag. A description
    of several lines keeps them.
    """

    def __init__(self, **options: Any) -> None:
        if "\n" in (options.get("description") or ""):
            options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {printable(message)}\n")


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
