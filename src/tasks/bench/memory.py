"""Memory of a piece of code: what its tensors took, what the process grew by, or all of a fresh process.

On a GPU the first two are the GPU's: what PyTorch's allocator handed out, and what it took from the driver.
"""

import ctypes
import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Peak = Callable[[], float | None]  # GB, to be asked for after the block; None where it is not known


@contextmanager
def tensor_peak(device: torch.device) -> Iterator[Peak]:
    """What PyTorch's allocator had handed out at its highest, less what it had at the start.

    On a CPU this takes a profile, which is slow and needs memory of its own: not for code that is timed.
    """
    peak = float("nan")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: peak
        peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9
        return
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield lambda: peak
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event["args"] for event in events if event["name"] == "[memory]"]
    # What an earlier profile saw come and did not see go is still in the total.
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    peak = (max(change["Total Allocated"] for change in changes) - before) / 1e9


@contextmanager
def process_peak(device: torch.device) -> Iterator[Peak]:
    """Growth of the process: the tensors and the holes between them. On a CPU None off Linux.

    On a CPU it is that of the resident set, on a GPU that of what the allocator holds.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_reserved(device)
        yield lambda: (torch.cuda.max_memory_reserved(device) - before) / 1e9
        return
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that growth is the block's own
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back
        before = resident("VmRSS")
        yield lambda: (resident("VmHWM") - before) / 1e9
    except OSError:
        yield lambda: None


def resident(field: str) -> float:
    """A figure of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a fresh process."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
