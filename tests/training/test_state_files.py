"""State files hold data, bring it back to the bit, and hold nothing else."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import RunError
from training.state_files import load_tree, random_states, restore_random_states, save_tree


def assert_same(one: object, other: object) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    else:
        assert one == other


def test_everything_that_states_are_made_of_comes_back_as_it_was(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    tree = {
        "optimizer": optimizer.state_dict(),
        "halves": torch.tensor([1.5, -0.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(7),
        "mixed": [1, 0.1 + 0.2, True, None, "é\n", (2, (3.5,)), {}, []],
        "keys": {1: "a", (2, "b"): "c"},
        "kind": {"kind": "tensor", "name": "none"},
        "large": 2**70,
        "infinite": [math.inf, -math.inf],
    }
    save_tree(tree, tmp_path / "state")
    assert_same(load_tree(tmp_path / "state"), tree)


@pytest.mark.parametrize("thing", [object(), {1, 2}, np.float32(1), print, b"bytes"])
def test_what_is_no_data_is_not_written(tmp_path: Path, thing: object) -> None:
    with pytest.raises(TypeError, match="part"):
        save_tree({"part": thing}, tmp_path / "state")


@pytest.mark.parametrize("text", ["", "[", '{"kind": "tensor"}', '{"kind": "code", "text": "x"}', "null\0"])
def test_a_damaged_description_is_one_sentence(tmp_path: Path, text: str) -> None:
    save_tree({"w": torch.ones(2)}, tmp_path / "state")
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(RunError, match=r"state\.json"):
        load_tree(tmp_path / "state")


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", bytes(1000)])
def test_damaged_tensors_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    save_tree({"w": torch.ones(2)}, tmp_path / "state")
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"state\.safetensors"):
        load_tree(tmp_path / "state")


def test_no_number_that_json_lacks_gets_into_the_description(tmp_path: Path) -> None:
    save_tree({"a": math.nan, "b": math.inf}, tmp_path / "state")
    json.loads((tmp_path / "state.json").read_text(), parse_constant=pytest.fail)


def draw() -> tuple[float, ...]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    random.gauss(0, 1)  # which leaves a second number for later
    np.random.randn()  # noqa: NPY002
    save_tree(random_states(), tmp_path / "random")
    expected = (draw(), random.gauss(0, 1), float(np.random.randn()))  # noqa: NPY002
    draw()
    restore_random_states(load_tree(tmp_path / "random"))
    assert (draw(), random.gauss(0, 1), float(np.random.randn())) == expected  # noqa: NPY002
