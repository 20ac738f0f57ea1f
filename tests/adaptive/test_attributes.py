"""What is set on a gated module reaches its copies, as if it were still the module that it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.adaptive.test_model import adaptive_bert, labelled
from torch import nn

from adaptive.low_rank import GatedDropout, LowRank
from adaptive.pair import GatedPair


def pair_of(model: nn.Module) -> GatedPair:
    pair = model.bert.encoder.layer[0]
    assert isinstance(pair, GatedPair)
    return pair


@pytest.mark.parametrize(
    ("name", "value"), [("chunk_size_feed_forward", 3), ("gradient_checkpointing", True), ("new_name", "x")]
)
def test_what_is_set_on_a_pair_is_set_in_both_copies(name: str, value: Any) -> None:
    pair = pair_of(adaptive_bert())
    setattr(pair, name, value)
    assert getattr(pair, name) == getattr(pair.tuned, name) == getattr(pair.frozen, name) == value
    assert name not in vars(pair)


def test_what_is_set_on_a_low_rank_linear_is_set_in_the_linear() -> None:
    layer = adaptive_bert(tuned="lora", rank=2).bert.encoder.layer[0].intermediate.dense
    assert isinstance(layer, LowRank)
    layer.some_flag, layer.bias = True, None
    assert layer.frozen.some_flag and layer.frozen.bias is None and layer.bias is None


def test_a_rate_that_is_set_on_a_gated_dropout_is_that_of_the_dropout() -> None:
    model = adaptive_bert(tuned="lora", rank=2)
    dropout = next(part for part in model.modules() if isinstance(part, GatedDropout))
    dropout.p = 0.25
    assert dropout.dropout.p == 0.25 and dropout.p == 0.0


@pytest.mark.parametrize("value", [nn.Linear(2, 2), torch.zeros(2), nn.Parameter(torch.zeros(2))])
def test_a_module_or_tensor_for_two_copies_is_refused_with_what_to_set(value: Any) -> None:
    pair = pair_of(adaptive_bert())
    with pytest.raises(AttributeError, match=r"set \.tuned\.output or \.frozen\.output"):
        pair.output = value
    pair.tuned.output = nn.Identity()
    assert isinstance(pair.output, nn.Identity) and not isinstance(pair.frozen.output, nn.Identity)


def test_training_is_that_of_the_tuned_copy_only() -> None:
    pair = pair_of(adaptive_bert().train())
    assert pair.training and pair.tuned.training and not pair.frozen.training
    assert not pair.eval().tuned.training


def test_gradient_checkpointing_of_the_model_reaches_copies_and_changes_no_gradient() -> None:
    found = []
    for checkpoints in (False, True):
        model = adaptive_bert().train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            pair = pair_of(model)
            assert pair.tuned.gradient_checkpointing and pair.frozen.gradient_checkpointing
        torch.manual_seed(1)
        model(**labelled()).loss.backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(*pair) for pair in zip(*found, strict=True))
