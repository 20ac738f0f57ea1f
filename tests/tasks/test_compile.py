"""--compile: the same training without a graph break, in a few shapes, and an evaluation as ever."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers.stop import stop_after

from common.errors import Interrupted, UserError
from tasks import vqa
from tasks.finetune import model
from tasks.finetune.args import VqaArgs

RUN = Path("snap/vqa/run")
LOW_RANK = {"tuned": "lora", "rank": 2}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the questions for which a graph was captured, by a compiler that runs it as it is."""
    captured: list[tuple[int, ...]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        captured.extend({tuple(i.shape) for i in inputs if i.dtype == torch.int64 and i.dim() == 2})
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(model, "COMPILER", compiler)
    return captured


def losses(folder: Path = RUN) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    """As few layers as there can be: each takes seconds to trace."""
    return replace(args, from_scratch=True, llayers=1, xlayers=1, rlayers=1, epochs=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "copies"),
    [("standard", {}), ("Frozen", {}), ("SpotTune", LOW_RANK)],
)
def test_a_compiled_run_is_the_run_that_it_would_have_been(
    args: VqaArgs, graphs: list[tuple[int, ...]], strategy: str, copies: dict[str, Any]
) -> None:
    """Without dropout, whose numbers a CPU draws in another way where it does not compile."""
    plain = replace(args, strategy=strategy, dropout=0.0, **copies)
    vqa.main(plain)
    expected = losses()
    assert not graphs
    vqa.main(replace(plain, version="compiled", compile=True))
    assert losses(RUN.with_name("compiled")) == pytest.approx(expected, rel=1e-4)
    lengths = {shape[1] for shape in graphs}
    whole = all(length % model.LENGTH_STEP == 0 for length in lengths - {max(lengths)})  # or all there is
    assert whole
    results = [json.loads((RUN.with_name(n) / "result.json").read_text()) for n in ("run", "compiled")]
    assert results[0]["val_accuracy"] == results[1]["val_accuracy"]


@pytest.mark.slow
def test_a_compiled_run_is_resumed_to_the_same_numbers(
    args: VqaArgs, graphs: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = replace(args, strategy="standard", epochs=2, compile=True)
    vqa.main(replace(compiled, version="whole"))
    with monkeypatch.context() as stopping, pytest.raises(Interrupted):
        stop_after(3, stopping)
        vqa.main(compiled)
    vqa.main(compiled)
    assert losses() == losses(RUN.with_name("whole"))


def test_questions_and_images_may_have_many_sizes(graphs: list[tuple[int, ...]]) -> None:
    """PyTorch stops at eight shapes, with an error of its own, unless it is told how many there may be."""

    class Words(torch.nn.Embedding):
        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids)

    embedding = Words(50, 2)
    model.compile_model(embedding)
    for length in range(1, 13):
        assert embedding(torch.ones(1, length, dtype=torch.int64)).shape == (1, length, 2)
    assert len(graphs) == 12


@pytest.mark.parametrize("strategy", ["SpotTune", "SpotTune_Res", "SpotTune_Block"])
def test_routed_copies_are_refused_in_a_sentence(args: VqaArgs, strategy: str) -> None:
    with pytest.raises(UserError, match="--compile needs shapes that do not depend on the gates"):
        vqa.main(replace(args, strategy=strategy, compile=True))
    assert not RUN.exists()
