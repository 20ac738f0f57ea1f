"""The tests for a GPU are skipped with a sentence where there is none, and can be rehearsed there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.helpers.paths import ROOT


def run_gpu_tests(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """pytest of tests/gpu in a process of its own, which sees no GPU."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *flags],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_without_a_gpu_they_are_skipped_with_one_sentence() -> None:
    done = run_gpu_tests("-m", "gpu", "tests/gpu/test_memory.py", "tests/test_rehearsal.py")
    *reasons, summary = done.stdout.splitlines()
    assert done.returncode == 0 and "skipped" in summary and "passed" not in summary
    assert any("no CUDA device is here or asked for: bash run/test.bash -m gpu" in line for line in reasons)


@pytest.mark.slow
def test_they_pass_on_the_cpu_so_that_they_do_not_rot_where_there_is_no_gpu() -> None:
    done = run_gpu_tests("tests/gpu", "-k", "Block and not bf16", SPOTTUNE_TEST_DEVICE="cpu")
    assert done.returncode == 0 and "skipped" not in done.stdout, done.stdout
