"""Filling models and moving answers: complete, strict, and nothing changed on failure."""

from __future__ import annotations

import pytest
import torch
from tests.helpers.checkpoints import ANSWERS, assert_same, small_config
from torch import Tensor, nn

from common.errors import CheckpointError
from lxmert.loading import answer_rows, fill
from lxmert.modeling import AnswerHead


def test_fill_moves_every_tensor_and_changes_nothing_on_failure() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for bad, message in (
        ({"weight": other.weight.data}, "the head does not fit: missing bias; unexpected none"),
        ({**other.state_dict(), "more": torch.ones(1)}, "missing none; unexpected more"),
        ({**other.state_dict(), "bias": torch.ones(5)}, r"bias is \(5,\) there and \(2,\) in the model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            fill(module, bad, "the head")
        assert_same(dict(module.state_dict()), before)
    tensors = dict(other.state_dict())
    fill(module, tensors, "the head")
    assert_same(dict(module.state_dict()), dict(other.state_dict()))
    assert module.weight.data_ptr() == other.weight.data_ptr()
    assert tensors == {}
    assert module.weight.requires_grad and not module.bias.requires_grad


def test_fill_leaves_as_it_is_what_is_optional() -> None:
    torch.manual_seed(0)
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    bias = module.bias.detach().clone()
    fill(module, {"weight": other.weight.data}, "the head", optional=("bi",))
    assert torch.equal(module.weight, other.weight) and torch.equal(module.bias, bias)
    with pytest.raises(CheckpointError, match="missing weight; unexpected none"):
        fill(module, {}, "the head", optional=("bi",))


def test_long_lists_of_names_are_shortened() -> None:
    with pytest.raises(CheckpointError, match=r"unexpected t0, t1, t2, t3, t4, t5 and 3 more"):
        fill(nn.Identity(), {f"t{i}": torch.ones(1) for i in range(9)}, "it")


def convert(answer: str) -> str:
    return {"two": "2", "grey": "gray"}.get(answer.lower(), answer.lower())


def make_head() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(AnswerHead(small_config(), len(ANSWERS)).state_dict())


def test_answer_rows_move_by_string() -> None:
    head = make_head()
    new, unmatched = answer_rows(head, ANSWERS, ["Grey", "dog", "no", "two", "yes"], convert)
    assert unmatched == ["dog"]
    for kind in ("weight", "bias"):
        old_rows, new_rows = head[f"logit_fc.3.{kind}"], new[f"logit_fc.3.{kind}"]
        assert torch.equal(new_rows[[0, 2, 3, 4]], old_rows[[3, 1, 2, 0]])
        assert not new_rows[1].any()
    rest = {"logit_fc.0.weight", "logit_fc.0.bias", "logit_fc.2.weight", "logit_fc.2.bias"}
    assert_same({n: new[n] for n in rest}, {n: head[n] for n in rest})


def test_the_same_answers_keep_the_head_as_it_is() -> None:
    head = make_head()
    new, unmatched = answer_rows(head, ANSWERS, ANSWERS, convert)
    assert unmatched == []
    assert_same(new, head)


def test_an_exact_answer_goes_before_a_converted_one() -> None:
    head = make_head()
    old = ["two", "2", "Yes", "yes", "cat"]
    new, _ = answer_rows(head, old, ["2", "two", "YES"], convert)
    assert torch.equal(new["logit_fc.3.weight"], head["logit_fc.3.weight"][[1, 0, 3]])


def test_surgery_does_not_touch_the_old_head() -> None:
    head = make_head()
    before = {name: tensor.clone() for name, tensor in head.items()}
    answer_rows(head, ANSWERS, ["dog"] * 5, convert)[0]["logit_fc.3.weight"].fill_(7)
    assert_same(head, before)


def test_a_list_of_another_length_than_the_head_is_refused() -> None:
    with pytest.raises(CheckpointError, match="5 rows and 4 answers"):
        answer_rows(make_head(), ANSWERS[:4], ANSWERS, convert)
