"""Several processes that work together, as a launcher would start them.

They are forked from an interpreter that has imported everything, because imports take seconds, and that has
done nothing else, because threads do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tests.helpers.paths import ROOT, SRC

PATIENCE = 300  # seconds until processes that wait for each other are ended; a slow disk takes a minute


def run_ranks(processes: int, folder: Path, work: Callable[..., None], *arguments: Any) -> str:
    """Call `work` in so many processes in `folder`; what the first of them printed.

    AssertionError with what they printed if one of them fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tasks.vqa", "torch._dynamo"])
    os.environ.setdefault("PYTHONPATH", f"{SRC}:{ROOT}")  # what is preloaded is looked for there
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(processes)]
    ranks = [
        context.Process(target=_be_rank, args=(rank, processes, port, log, work, arguments), daemon=True)
        for rank, log in enumerate(logs)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(PATIENCE)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    texts = [log.read_text() for log in logs]
    assert codes == [0] * processes, f"exit codes {codes}\n" + "\n".join(texts)
    return texts[0]


def _be_rank(
    rank: int, processes: int, port: int, log: Path, work: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.chdir(log.parent)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    torch.set_num_threads(1)
    undrawn = ModuleType("report.policy_plot")  # pictures, and their library, take longer than so small a run
    undrawn.draw_policy = lambda *_: None
    sys.modules[undrawn.__name__] = undrawn
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        raise
