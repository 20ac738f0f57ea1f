"""The machine that a process is on, as far as the operating system tells."""

import platform
import re
import resource
import sys
from pathlib import Path


def processor() -> str:
    """The name of the CPU."""
    cpus = Path("/proc/cpuinfo")
    if not cpus.is_file():
        return platform.processor()
    found = re.search(r"^model name\s*:\s*(.+?)\s*$", cpus.read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def peak_resident() -> int:
    """The most memory that this process has had resident so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
