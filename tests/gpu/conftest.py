"""What only a GPU can show. Each test gets the `device`, and is skipped where there is none.

bash run/test.bash -m gpu
SPOTTUNE_TEST_DEVICE=cpu python -m pytest tests/gpu     a rehearsal: the same tests, on the CPU
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture
def device() -> Iterator[torch.device]:
    """The device that the trainer chooses too; in fp32 it multiplies in fp32 and not in TF32."""
    name = os.environ.get("SPOTTUNE_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device is here or asked for: bash run/test.bash -m gpu on a machine with one")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield torch.device(name)
    torch.set_float32_matmul_precision(before)
