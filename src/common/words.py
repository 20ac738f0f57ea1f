"""Numbers in sentences: what is counted, and how long something takes."""

import re


def counted(number: int, thing: str) -> str:
    """ "1 step", "0 steps", "1,000 steps": a number and what is counted, which is given in the singular."""
    return f"{number:,} {plural(number, thing)}"


def plural(number: int, thing: str) -> str:
    """What is counted, by its number: "1" of it or several; its last word is regular."""
    if number == 1:
        return thing
    if re.search("[^aeiou]y$", thing):
        return thing[:-1] + "ies"
    return thing + ("es" if re.search("(s|x|ch|sh)$", thing) else "s")


def duration(seconds: float) -> str:
    """ "58 s", "12 min", "3.4 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
