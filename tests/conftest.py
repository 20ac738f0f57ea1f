"""Fixtures of all tests; what they hold is made by `tests.helpers.small`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.helpers.small import random_inputs, write_dataset, write_pretrained


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "model")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds a small data set under the name vqav2."""
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "vqav2")
    return root


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return random_inputs(6)
