"""Where the host waits for the device: on a GPU as torch notices it, elsewhere what would make it wait."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.helpers.paths import SRC
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2")


class Waits(TorchDispatchMode):
    """Collects the operations for whose outcome the host has to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket.__name__ in WAITING:
            self.seen.append(f"{func} from {_place()}")
        return func(*args, **(kwargs or {}))


@contextmanager
def waits_for(device: torch.device) -> Iterator[list[str]]:
    """The waits in the block so far, a line each.

    Without a GPU tensors of the host's own, as the order of the examples, cannot be told from the device's.
    """
    if device.type != "cuda":
        with pytest.MonkeyPatch.context() as patch, Waits() as waits:
            read = Tensor.tolist

            def tolist(self: Tensor) -> Any:  # the dispatcher never sees it on a CPU
                waits.seen.append(f"tolist from {_place()}")
                return read(self)

            patch.setattr(Tensor, "tolist", tolist)
            yield waits.seen
        return
    seen: list[str] = []

    def note(message: Warning | str, category: type[Warning], file: str, line: int, *rest: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            seen.append(f"{file}:{line}, from {_place()}")

    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("always")
        patch.setattr(warnings, "showwarning", note)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield seen
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _place() -> str:
    """The innermost line of the project's own that is being run."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(str(SRC))]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "no line of src/"
