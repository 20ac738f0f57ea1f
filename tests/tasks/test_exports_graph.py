"""An export as a graph: the logits of the run, with any number of examples, words and regions."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from functools import wraps
from pathlib import Path

import pytest
import torch
from tests.helpers.small import ANSWERS, random_inputs
from torch import Tensor

from adaptive.adapt import AdaptiveOutput
from common.errors import DataError, UserError
from tasks import vqa
from tasks.export import export, main
from tasks.exports import graph
from tasks.finetune.args import VqaArgs
from tasks.finetune.best import load_base_weights, load_best, read_best
from tasks.finetune.model import build

RUN, OUT = Path("snap/vqa/run"), Path("out")
SHAPES = ((1, 3, 1), (2, 6, 5), (9, 11, 4))  # examples, words, regions
KINDS = {
    "standard": {"strategy": "standard"},
    "block": {"strategy": "SpotTune_Block", "policy": "light"},
    "heads": {"strategy": "SpotTune", "policy": "light"},
    "a policy with layers": {"strategy": "SpotTune_Block"},
    "tied": {"strategy": "SpotTune_Res", "policy": "light", "decisions": "example"},
    "constant": {"strategy": "SpotTune_Block", "policy": "constant"},
    "merged": {"strategy": "standard", "tuned": "lora", "rank": 2},
    "low-rank block": {"strategy": "SpotTune_Block", "tuned": "lora", "rank": 2, "policy": "light"},
    "low-rank heads": {"strategy": "SpotTune", "tuned": "lora", "rank": 2, "policy": "light"},
}


@pytest.fixture
def args(args: VqaArgs) -> VqaArgs:
    return replace(args, strategy=None, epochs=1, lr=2e-2, policy_start=0.5)


def answer_as_the_run(inputs: dict[str, Tensor]) -> AdaptiveOutput:
    """With each example in the copies that it chose."""
    best = read_best(RUN / "BEST")
    pretrained = load_base_weights(best)
    model, _, _ = build(best.spec, pretrained, best.answers)
    load_best(best, model, pretrained)
    with torch.no_grad():
        return model.eval()(**inputs)


def difference(file: str) -> float:
    """What the export itself found."""
    return json.loads((OUT / "graph.json").read_text())["largest difference of logits"][file]


def require_equal(form: str) -> None:
    """The graph in the export is the run's model, whatever the sizes of its inputs are."""
    if form == "onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(str(OUT / "model.onnx"))
    else:
        module = torch.export.load(OUT / "model.pt2").module()
    chosen = []
    for examples, words, regions in SHAPES:
        inputs = random_inputs(examples, words, regions, seed=examples)
        if form == "onnx":
            found = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
            logits, *gates = map(torch.from_numpy, found)
        else:
            logits, *gates = module(**inputs)
        expected = answer_as_the_run(inputs)
        torch.testing.assert_close(logits, expected.outputs, rtol=1e-5, atol=1e-5)
        assert len(gates) == (expected.gates is not None)
        if gates:
            assert torch.equal(gates[0], expected.gates)
            chosen.append(gates[0])
    if chosen:
        assert 0 < torch.cat(chosen).mean() < 1  # both copies answer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["heads", "low-rank heads"])  # all where there is a runtime, below
def test_a_program_of_torch_export_gives_the_logits_of_the_run(args: VqaArgs, kind: str) -> None:
    vqa.main(replace(args, **KINDS[kind]))
    (said,) = export(RUN, OUT, graphs=["torch-export"])
    assert "on 60 validation questions" in said and difference("model.pt2") < 1e-5
    require_equal("torch-export")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_onnx_graph_gives_the_logits_of_the_run(args: VqaArgs, kind: str) -> None:
    for package in graph.PACKAGES["onnx"]:
        pytest.importorskip(package)
    vqa.main(replace(args, **KINDS[kind]))
    export(RUN, OUT, graphs=["onnx"])
    assert difference("model.onnx") < 1e-5
    require_equal("onnx")
    assert b"/src/tasks/" not in (OUT / "model.onnx").read_bytes()


def test_a_description_says_what_goes_in_and_out(args: VqaArgs) -> None:
    vqa.main(replace(args, **KINDS["block"]))
    export(RUN, OUT, graphs=["torch-export"])
    said = json.loads((OUT / "graph.json").read_text())
    for name, tensor in random_inputs(2, 3, 4).items():
        sizes = {"batch": 2, "words": 3, "regions": 4}
        entry = said["inputs"].pop(name)
        assert [sizes.get(size, size) for size in entry["shape"]] == list(tensor.shape)
        assert entry["dtype"] == str(tensor.dtype).removeprefix("torch.")
    assert not said["inputs"] and said["outputs"]["logits"]["shape"] == ["batch", len(ANSWERS)]
    assert (OUT / said["tokenizer"] / "config.json").is_file()


def test_a_graph_that_disagrees_is_refused_and_nothing_is_written(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqa.main(replace(args, strategy="standard"))
    right = graph.Dense.forward

    @wraps(right)  # its signature is that of the graph
    def wrong(*inputs: Tensor, **named: Tensor) -> tuple[Tensor, ...]:
        return tuple(logits + 0.01 for logits in right(*inputs, **named))

    monkeypatch.setattr(graph.Dense, "forward", wrong)
    with pytest.raises(UserError, match=r"off by 1\.0e-02, more than 0\.001"):
        main(["run", "--to", "out", "--torch-export"])
    assert not OUT.exists()


def test_what_cannot_be_a_graph_is_said_before_anything_is_written(
    args: VqaArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    vqa.main(replace(args, **KINDS["constant"], evaluate_gates="sample"))
    with pytest.raises(UserError, match=r"takes the likelier copy, .* --evaluate-gates sample"):
        export(RUN, OUT, graphs=["torch-export"])
    monkeypatch.setattr(graph, "find_spec", lambda package: package == "onnx" or None)
    with pytest.raises(UserError, match=r": pip install onnxruntime onnxscript$"):
        main(["run", "--to", "out", "--onnx"])
    vqa.main(replace(args, version="other", strategy="standard"))
    arguments = json.loads(Path("snap/vqa/other/args.json").read_text())
    Path("snap/vqa/other/args.json").write_text(json.dumps(arguments | {"data": "nowhere"}))
    with pytest.raises(DataError, match=r"nowhere/vqav2/minival\.json"):
        main(["other", "--to", "out", "--torch-export"])
    assert not OUT.exists()
