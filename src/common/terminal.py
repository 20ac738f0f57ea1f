"""What reaches a terminal: text that commands nothing there, and no error where nobody reads it."""

import errno
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What a terminal obeys instead of showing it: control codes (C0, DEL, C1; newline and tab may pass), marks
# that turn the direction of reading, separators of lines; and halves of characters, which have no encoding.
OBEYED = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
BACK = r"\r|\x1b\[A"  # how progress bars go back to where they began: one of them, and several
NOTHING = r"(?!)"


def printable(text: str, allowed: str = NOTHING) -> str:
    r"""The text with what a terminal would obey made visible: an escape becomes `\x1b`, four characters.

    allowed: a pattern of what may pass nevertheless.
    """
    escape = str.encode
    return re.sub(f"({allowed})|{OBEYED}", lambda m: m[1] or escape(m[0], "unicode_escape").decode(), text)


class SafeStream:
    """A stream to print to that shows data and does not obey them, and that never fails.

    Where the reader has gone (`| head`) or the disk is full, words are lost and the work goes on.
    """

    def __init__(self, stream: IO[str], allowed: str = NOTHING) -> None:
        self._stream = stream
        self._allowed = allowed
        self.refusal: Exception | None = None  # the first of the system's

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        safe = printable(text, self._allowed).encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._stream.write(safe))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def end(self) -> None:
        """Write what is waiting; if that fails, nowhere: else Python would fail at it when it ends."""
        refused = self.refusal
        self.refusal = None
        self.flush()
        if self.refusal:
            with suppress(OSError, ValueError):
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, self._stream.fileno())
                os.close(descriptor)
                self._stream.flush()
        self.refusal = refused or self.refusal

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except (OSError, ValueError) as refusal:  # ValueError: it is closed
            self.refusal = self.refusal or refusal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def safe_streams() -> Iterator[None]:
    """A block in which stdout and stderr are safe to print to, whatever is printed and wherever it goes."""
    # The next file to be opened would get the number of a closed one, and the words meant for people with it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    before = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        out = SafeStream(before[0] or nowhere)
        err = SafeStream(before[1] or nowhere, BACK)
        sys.stdout, sys.stderr = out, err
        try:
            yield
        finally:
            out.end()
            if out.refusal and not _left(out.refusal):
                err.write(f"Some of the output is lost: it cannot be written ({out.refusal}).\n")
            err.end()
            sys.stdout, sys.stderr = before


def _left(refusal: Exception) -> bool:
    """Whether the reader of a pipe has gone, as `head` does: it has read what it wanted."""
    return isinstance(refusal, OSError) and refusal.errno == errno.EPIPE
