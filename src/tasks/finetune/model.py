"""LXMERT with an answer head, adapted as a strategy says.

Build, load the pre-trained weights, then adapt: frozen copies are made from loaded weights, so they are
pre-trained whatever format the weights came in.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LxmertConfig

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import full_copy, low_rank
from common.errors import UserError
from common.words import counted
from lxmert.loading import Pretrained, answer_rows, fill
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import Unit, lies_in, list_units, select_modules, unused_modules
from tasks.finetune.policies import Borrowed, make_policy
from tasks.finetune.spec import LORA, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.answers import convert_answer

COMPILER = "inductor"
SHAPES = 256  # that a model may be compiled for: lengths of questions, and a last batch that is smaller
LENGTH_STEP = 4  # of compiled models: word pieces by which the lengths of batches differ


class VqaModel(nn.Module):
    """LXMERT and an answer head. B examples, T word pieces, R regions, D features, A answers."""

    def __init__(self, lxmert: LxmertModel, answer_head: AnswerHead) -> None:
        super().__init__()
        self.lxmert = lxmert
        self.answer_head = answer_head

    def forward(self, **inputs: Tensor) -> Tensor:
        """input_ids, attention_mask (B, T); visual_feats (B, R, D); visual_pos (B, R, 4);
        visual_attention_mask (B, R) -> logits (B, A)."""
        return self.answer_head(self.lxmert(**inputs, pooled_only=True).pooled)


def vqa_loss(logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """Binary cross-entropy per answer, averaged over examples and summed over answers.

    logits, target (B, A), target in [0, 1]; the loss of the published recipe. With reduction "none" it is
    that of each example, (B,).
    """
    if reduction == "none":
        return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none").sum(1)
    return F.binary_cross_entropy_with_logits(logits.float(), target) * target.shape[1]


def score(logits: Tensor, target: Tensor) -> Tensor:
    """Soft-target accuracy of the likeliest answer, (B,): its target."""
    return target.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)


def build(
    spec: ModelSpec, weights: Pretrained, answers: Sequence[str], precision: str = "no", dense: bool = False
) -> tuple[Adaptive, list[Unit], list[str]]:
    """The model of a strategy with `weights` in it, its gateable units, and messages on what was loaded.

    The weights of the encoder are moved into the model: `weights` serves for one model only. `precision` is
    that of the arithmetic; it decides what --frozen-dtype auto means. dense: compute both copies always.
    UserError for names of layers in the spec that the model does not have.
    """
    # A parameter that the file replaces needs no memory and no random values before.
    all_replaced = not spec.from_scratch and not weights.initialised
    with torch.device("meta" if all_replaced else "cpu"):
        lxmert = LxmertModel(weights.config)
    model = VqaModel(lxmert, AnswerHead(weights.config, len(answers)))
    messages = list(weights.messages)
    if not spec.from_scratch:
        fill(lxmert, weights.encoder, weights.source, weights.initialised)
        messages.append(_fill_head(model.answer_head, weights, answers))
    held_in = precision if spec.frozen_dtype == "auto" else spec.frozen_dtype
    frozen_dtype = torch.bfloat16 if held_in == "bf16" else None
    freeze_parts(lxmert, spec)
    if not STRATEGIES[spec.strategy].adaptive:
        if spec.tuned == LORA:
            add_low_rank(lxmert, spec, frozen_dtype)
        return Adaptive(model), [], messages
    units = gated_units(spec, weights.config)
    policy = make_policy(spec, lxmert, sum(unit.width for unit in units))
    low = spec.tuned == LORA
    copies = low_rank(spec.rank, spec.alpha, frozen_dtype) if low else full_copy(frozen_dtype)
    gates = adapt(lxmert, [(unit.modules, unit.width) for unit in units], copies)
    gates.dense = dense
    adaptive = Adaptive(model, policy, gates, spec.temperature, spec.estimator)
    if spec.refit:
        fix_policy(adaptive)
    return adaptive, units, messages


def compile_model(model: nn.Module) -> None:
    """Compile a model for training: one function for each shape of a batch, which has to be without a break.

    Batches are cut to multiples of LENGTH_STEP, so that there are few shapes. Evaluation, which has others,
    sets the stance `force_eager` and runs without.
    """
    torch._dynamo.config.recompile_limit = SHAPES  # by default 8, and then an error
    model.compile(backend=COMPILER, fullgraph=True, dynamic=False)


def freeze_parts(lxmert: LxmertModel, spec: ModelSpec) -> None:
    """Freeze what a spec leaves as pre-trained, before copies are made of the rest.

    UserError for names of layers that the model does not have.
    """
    config = lxmert.config
    for name in unused_modules(config):
        lxmert.get_submodule(name).requires_grad_(False)
    frozen = [*STRATEGIES[spec.strategy].keeps]
    if spec.embeddings == "frozen":
        frozen += ["embeddings", "encoder.visn_fc"]
    if spec.tune:
        tuned = select_modules(config, spec.tune)
        parts = [name for unit in list_units(config, "component") for name in unit.modules]
        frozen += [name for name in parts if not lies_in(name, tuned)]
    for name in frozen:
        freeze(lxmert.get_submodule(name))


def gated_units(spec: ModelSpec, config: LxmertConfig) -> list[Unit]:
    """The units over which the gates of a spec decide, in the order of their gates; without gates none.

    UserError if --tune names only a part of a unit.
    """
    strategy = STRATEGIES[spec.strategy]
    if not strategy.adaptive:
        return []
    units = list_units(config, strategy.granularity)
    if not spec.tune:
        return units
    tuned = select_modules(config, spec.tune)
    units = [unit for unit in units if all(lies_in(name, tuned) for name in unit.modules)]
    gated = {name for unit in units for name in unit.modules}
    parts = [name for unit in list_units(config, "component") for name in unit.modules]
    if any(lies_in(name, tuned) and not lies_in(name, gated) for name in parts):
        raise UserError(
            f"--tune {spec.tune} names parts of what a gate of --strategy {spec.strategy} decides over: name "
            "whole ones, or choose a strategy with finer gates"
        )
    return units


def add_low_rank(lxmert: LxmertModel, spec: ModelSpec, frozen_dtype: torch.dtype | None = None) -> None:
    """Put low-rank updates without gates into all layers; what was frozen before stays without one."""
    copies = low_rank(spec.rank, spec.alpha, frozen_dtype)
    for (name,), *_ in list_units(lxmert.config, "layer"):
        copies(lxmert.get_submodule(name), None, 0, 1)


def layer_parameters(lxmert: LxmertModel) -> Iterator[nn.Parameter]:
    """The parameters of all layers, their copies included: embeddings, pooler and answer head are others."""
    for (name,), *_ in list_units(lxmert.config, "layer"):
        yield from lxmert.get_submodule(name).parameters()


def fix_policy(model: Adaptive) -> None:
    """Let a policy decide as it does now, for good: it learns no more, and nothing that it reads moves.

    Gates are then those of evaluation in training too.
    """
    for part in model.policy.modules():
        if isinstance(part, Borrowed):
            part.own()
    model.policy.requires_grad_(False)
    model.explores = False


def freeze(module: nn.Module) -> None:
    """Keep a module as the function it is: no gradients into its parameters and no dropout.

    With its layers frozen like this a model is the adaptive one with all gates at 0.
    """
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


@contextmanager
def standing_still(module: nn.Module) -> Iterator[None]:
    """A block in which a module that trains is a function: no dropout, and no gradients for its weights.

    Gradients pass through it all the same.
    """
    training = [parameter for parameter in module.parameters() if parameter.requires_grad]
    module.eval()
    for parameter in training:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in training:
            parameter.requires_grad_(True)
        module.train()


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Trainable, frozen and total."""
    total = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"trainable": trainable, "frozen": total - trainable, "total": total}


def _fill_head(head: AnswerHead, weights: Pretrained, answers: Sequence[str]) -> str:
    """Fill the answer head as far as the checkpoint's answers go; say how far that was."""
    if weights.answer_head is None:
        return "answer head: initialised, as no pre-trained one is used"
    tensors, missing = answer_rows(weights.answer_head, weights.answers, answers, convert_answer)
    fill(head, tensors, f"the answer head of {weights.source}")
    weights.answer_head.clear()  # what was not moved would only take memory
    note = f", {len(missing)} not: {', '.join(map(repr, missing[:8]))}" if missing else ""
    return f"answer head: {counted(len(answers) - len(missing), 'answer')} loaded{note}"
