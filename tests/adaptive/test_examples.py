"""The examples run offline, and the policy learns to tell what needs the tuned copy."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
from tests.helpers.paths import SRC


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SRC / "adaptive" / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_bert_with_trainer_learns_and_is_saved_and_loaded_to_the_bit() -> None:
    result = load("bert_trainer").main()
    assert result["accuracy"] > 0.9 and result["same"] == 1.0
    assert result["share tuned with not"] > result["share tuned without"]


@pytest.mark.slow
def test_vit_with_accelerate_learns() -> None:
    result = load("vit_accelerate").main()
    assert result["after"] > result["before tuning"] + 0.1
    assert result["share tuned of negatives"] > result["share tuned of the others"]
