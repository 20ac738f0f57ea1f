"""LXMERT with an answer head, adapted as a strategy says.

Build, load the pre-trained weights, then adapt: frozen copies are made from loaded weights, so they are
pre-trained whatever format the weights came in.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive.adapt import Adaptive, adapt
from adaptive.copies import full_copy, low_rank
from lxmert.loading import Pretrained, answer_rows, fill
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import Unit, list_units, unused_modules
from tasks.finetune.policies import make_policy
from tasks.finetune.spec import LORA, ModelSpec
from tasks.finetune.strategies import STRATEGIES
from vqadata.answers import convert_answer


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


def vqa_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy per answer, averaged over examples and summed over answers.

    logits, target (B, A), target in [0, 1]; the loss of the published recipe.
    """
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
    for name in unused_modules(weights.config):
        model.lxmert.get_submodule(name).requires_grad_(False)

    if spec.embeddings == "frozen":
        freeze(lxmert.embeddings)
        freeze(lxmert.encoder.visn_fc)

    strategy = STRATEGIES[spec.strategy]
    held_in = precision if spec.frozen_dtype == "auto" else spec.frozen_dtype
    frozen_dtype = torch.bfloat16 if held_in == "bf16" else None
    low = spec.tuned == LORA
    copies = low_rank(spec.rank, spec.alpha, frozen_dtype) if low else full_copy(frozen_dtype)
    if strategy.adaptive:
        units = list_units(weights.config, strategy.granularity)
        policy = make_policy(spec, lxmert, sum(unit.width for unit in units))
        gates = adapt(lxmert, [(unit.modules, unit.width) for unit in units], copies)
        gates.dense = dense
        return Adaptive(model, policy, gates, spec.temperature, spec.estimator), units, messages
    for name in strategy.keeps:
        freeze(lxmert.get_submodule(name))
    if low:
        for (name,), *_ in list_units(weights.config, "layer"):
            copies(lxmert.get_submodule(name), None, 0, 1)
    return Adaptive(model), [], messages


def freeze(module: nn.Module) -> None:
    """Keep a module as the function it is: no gradients into its parameters and no dropout.

    With its layers frozen like this a model is the adaptive one with all gates at 0.
    """
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


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
    return f"answer head: {len(answers) - len(missing)} answers loaded{note}"
