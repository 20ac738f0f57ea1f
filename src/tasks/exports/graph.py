"""The model of an export as one graph without this code: ONNX, or a program of torch.export.

Both copies are computed for all examples, and the likelier gate mixes them; batches, questions and images may
have any size. Each graph is held against the model, routed as always, on real questions.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from adaptive.adapt import Adaptive
from adaptive.gates import FROZEN, TUNED
from common.errors import UserError
from common.files import write_json
from lxmert.loading import Pretrained
from report.run import Run
from tasks.finetune.best import INSIDE, Best, load_base_weights, load_best, load_same_tokenizer, read_best
from tasks.finetune.data import load_splits, require_data
from tasks.finetune.model import build
from tasks.finetune.spec import ORACLE, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.dataset import VqaDataset
from vqadata.folder import ANSWERS, DataFolder

PACKAGES = {"onnx": ("onnx", "onnxruntime", "onnxscript")}  # that are no requirement of this project
TOLERANCE = 1e-3  # of logits: a probability, then, is at most 0.00025 away
SIZES, QUESTIONS = (32, 7, 1), 256  # of the batches that graphs are checked with, in turn, and all of them
TRACED = {"batch": 3, "words": 5, "regions": 7}  # while tracing; a graph keeps none of these sizes
Call = Callable[[dict[str, Tensor]], Sequence[Tensor]]  # inputs by name -> logits (B, A), gates (B, G) if any


def require_graphable(graphs: Sequence[str], spec: ModelSpec) -> None:
    """UserError if packages are missing, or if a graph cannot do what the gates of a spec do."""
    for name in graphs:
        if missing := [package for package in PACKAGES.get(name, ()) if not find_spec(package)]:
            raise UserError(f"--{name} needs what is not installed: pip install {' '.join(missing)}")
        if spec.evaluate_gates != "argmax" or spec.policy.startswith(ORACLE):
            raise UserError(
                f"--{name} takes the likelier copy, as a policy says of question and image, and not --policy "
                f"{spec.policy} --evaluate-gates {spec.evaluate_gates}"
            )


def questions_of(run: Run, best: Best, pretrained: Pretrained) -> VqaDataset:
    """The validation questions of a run."""
    folder = DataFolder(Path(run.arguments["data"]), best.dataset)
    splits, tokenizer = {"valid": run.arguments["valid"]}, load_same_tokenizer(best, pretrained)
    require_data(folder, splits)
    return load_splits(folder, splits, tokenizer, best.answers, None, skip_missing=True)[0]


@torch.no_grad()
def write_graphs(folder: Path, graphs: Sequence[str], questions: VqaDataset) -> list[str]:
    """Write the model of an export as graphs into its folder, with graph.json, which says how to use them.

    Returns how well each agrees with the model. UserError if one, read again, does not give its logits.
    """
    best = read_best(folder)
    # What is stored in 16 bits to save memory is in fp32 here: runtimes on a CPU multiply nothing else.
    spec, base = replace(best.spec, frozen_dtype="auto"), load_base_weights(best)
    model, units, _ = build(spec, base, best.answers, dense=True)
    load_best(best, model, base)
    dense = Dense(model.eval(), STRATEGIES[spec.strategy].adaptive)
    program, differences = trace(dense, best.features), {}
    if len(dense.outputs) > 1:
        model.gates.dense = False
    for name in graphs:
        file, write = GRAPHS[name]
        with catch_warnings():
            simplefilter("ignore")  # of what exporters are about to change in themselves
            call = write(program, folder / file, dense.outputs)
            difference = differences[file] = largest_difference(model, call, questions)
        if not difference <= TOLERANCE:
            raise UserError(
                f"{file} gives logits that are off by {difference:.1e}, more than {TOLERANCE:g}, so nothing "
                f"was written: leave --{name} out"
            )
    widths = zip(dense.outputs, (len(best.answers), sum(unit.width for unit in units)), strict=False)
    described = {
        "inputs": {
            name: {"dtype": str(dtype).removeprefix("torch."), "shape": shape}
            for name, (dtype, shape) in inputs_of(best.features).items()
        },
        "outputs": {name: {"dtype": "float32", "shape": ["batch", width]} for name, width in widths},
        "answers": f"logits[:, i] is of answer i in {ANSWERS}; its sigmoid is the answer's own probability",
        "tokenizer": "." if best.is_whole else INSIDE,
        "largest difference of logits": differences,
    }
    write_json(folder / "graph.json", described)
    where = f"(on {min(QUESTIONS, len(questions))} validation questions, in batches of {SIZES})"
    return [f"{file}: logits are off by at most {off:.1e}\n  {where}" for file, off in differences.items()]


def inputs_of(features: int) -> dict[str, tuple[torch.dtype, list[Any]]]:
    """Type and shape of what a model gets, by name."""
    words, regions = ["batch", "words"], ["batch", "regions"]
    return {
        "input_ids": (torch.int64, words),
        "attention_mask": (torch.bool, words),
        "visual_feats": (torch.float32, [*regions, features]),
        "visual_pos": (torch.float32, [*regions, 4]),
        "visual_attention_mask": (torch.bool, regions),
    }


class Dense(nn.Module):
    """A model as a function to be traced: -> logits (B, A) and, of an adaptive one, gates (B, G)."""

    def __init__(self, model: Adaptive, adaptive: bool) -> None:
        super().__init__()
        self.model = model
        self.outputs = ("logits", "gates") if adaptive else ("logits",)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        visual_attention_mask: Tensor,
    ) -> tuple[Tensor, ...]:
        inputs = (input_ids, attention_mask, visual_feats, visual_pos, visual_attention_mask)
        return self.model(**dict(zip(inputs_of(0), inputs, strict=True)))[: len(self.outputs)]


def trace(dense: Dense, features: int) -> ExportedProgram:
    """A model in evaluation mode as a program, which keeps no example and no path of this machine."""
    sizes, inputs = {name: torch.export.Dim(name) for name in TRACED}, inputs_of(features).items()
    example = {name: torch.ones([TRACED.get(n, n) for n in shape], dtype=d) for name, (d, shape) in inputs}
    open_sizes = {
        name: [sizes.get(size, torch.export.Dim.STATIC) for size in shape] for name, (_, shape) in inputs
    }
    program = torch.export.export(dense.eval(), (), example, dynamic_shapes=open_sizes, strict=False)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


def largest_difference(model: Adaptive, call: Call, questions: VqaDataset) -> float:
    """How far the logits of a graph are from those of a model with the same gates, for questions.

    A gate that differs between the two counts by how far the policy is from that choice: a coin that stands
    on its edge is no fault.
    """
    found = []
    for rows in batches(len(questions)):
        columns = questions.__getitems__(rows)["inputs"]
        inputs = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
        logits, *chosen = call(inputs)
        given = {}
        for gates in chosen:
            given = {"gates": gates}
            policy = model(**inputs).policy_logits.float()
            margin = (policy[..., TUNED] - policy[..., FROZEN]).expand_as(gates)
            found.append(margin[(margin > 0) != gates.bool()].abs().flatten())
        found.append((model(**inputs, **given).outputs - logits).abs().flatten())
    return float(torch.cat(found).max())


def batches(count: int) -> list[np.ndarray]:
    """The places of up to QUESTIONS of so many questions, in batches of SIZES."""
    places = np.unique(np.linspace(0, count - 1, min(count, QUESTIONS)).astype(int))
    parts = np.split(places, np.cumsum(np.resize(SIZES, len(places))))
    return [part for part in parts if len(part)]


def write_onnx(program: ExportedProgram, file: Path, outputs: Sequence[str]) -> Call:
    """Write a program, whose outputs get these names, and return what was written as a function."""
    import onnxruntime

    names = {"input_names": [*inputs_of(0)], "output_names": [*outputs]}
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    registration.setLevel(logging.ERROR)  # else it tells of packages that no model here needs
    torch.onnx.export(program, (), dynamo=True, verbose=False, **names).save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def call(inputs: dict[str, Tensor]) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
        return [torch.from_numpy(array) for array in session.run(None, arrays)]

    return call


def write_program(program: ExportedProgram, file: Path, outputs: Sequence[str]) -> Call:
    """The same for `torch.export.load`; its outputs have no names."""
    torch.export.save(program, file)
    module = torch.export.load(file).module()
    return lambda inputs: module(**inputs)


GRAPHS = {"onnx": ("model.onnx", write_onnx), "torch-export": ("model.pt2", write_program)}
