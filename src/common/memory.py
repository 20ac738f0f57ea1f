"""How much memory a process has used."""

import resource
import sys


def peak_resident() -> int:
    """The most memory that this process has had resident so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
