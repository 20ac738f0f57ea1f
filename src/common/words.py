"""Numbers in sentences: what is counted, and how long something takes."""

import re

VERBS = {"has": "have", "is": "are", "was": "were", "does": "do", "takes": "take"}


def counted(number: int, thing: str, verb: str = "") -> str:
    """ "1 step", "0 steps", "1,000 steps": a number and what is counted, which is given in the singular.

    verb: one of VERBS, to follow: "1 step is", "2 steps are".
    """
    words = f"{number:,} {plural(number, thing)}"
    return f"{words} {verb if number == 1 else VERBS[verb]}" if verb else words


def plural(number: int, thing: str) -> str:
    """What is counted, by its number: "1" of it or several; its last word is regular."""
    if number == 1:
        return thing
    if re.search("[^aeiou]y$", thing):
        return thing[:-1] + "ies"
    return thing + ("es" if re.search("(s|x|[^o]ch|sh)$", thing) else "s")


def cut(text: str, most: int) -> str:
    """The text, or its beginning and an ellipsis: at most so many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """ "58 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
