"""LXMERT with an answer head, its policy, and the strategies that put them together.

Order is law: build, load the pre-trained weights, then adapt. Frozen copies are made from loaded weights, so
they are pre-trained on every road that loads any.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adaptive.adapt import Adaptive, adapt
from adaptive.policy import GateHead
from common.errors import UserError
from lxmert.modeling import AnswerHead, LxmertModel
from lxmert.units import Unit, list_units, unused_modules
from lxmert.weights import Origin, Pretrained, answer_rows, fill
from tasks.finetune.args import VqaArgs
from tasks.finetune.strategies import STRATEGIES
from vqadata.answers import convert_answer

# The columns of a batch that models and policies are called with.
INPUTS = ("input_ids", "attention_mask", "visual_feats", "visual_pos", "visual_attention_mask")


@dataclass(frozen=True)
class ModelSpec(Origin):
    """All that decides what is built; saved with every checkpoint, so that it can be built again."""

    strategy: str
    policy: str
    policy_llayers: int
    policy_xlayers: int
    policy_rlayers: int
    policy_start: float
    temperature: float
    frozen_dtype: str = "auto"  # BEST folders older than this field do not have it

    def __post_init__(self) -> None:
        if self.frozen_dtype == "bf16" and not STRATEGIES[self.strategy].adaptive:
            raise UserError(
                f"--frozen-dtype {self.frozen_dtype} is for the frozen copies of adaptive strategies; "
                f"--strategy {self.strategy} makes no copies, leave it out"
            )

    @classmethod
    def of(cls, args: VqaArgs) -> ModelSpec:
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})


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


class Borrowed(nn.Module):
    """The embeddings of another module, as they are now: without gradients, dropout or ownership of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)  # in a tuple, so that its parameters do not become this one's

    def forward(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self._module[0].embed(*inputs)


class LxmertPolicy(nn.Module):
    """A small LXMERT that reads the same input as the model and decides over its G gates.

    It has the given numbers of language, vision and cross layers and starts from the first ones of `lxmert`,
    without dropout: exploration is the gate noise's job. Its layers stand on the model's own embeddings.
    """

    def __init__(
        self, lxmert: LxmertModel, layers: tuple[int, int, int], gates: int, share: float = 0.5
    ) -> None:
        super().__init__()
        config = copy.deepcopy(lxmert.config)
        config.l_layers, config.r_layers, config.x_layers = layers
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        with torch.device("meta"):
            self.lxmert = LxmertModel(config)
        self.lxmert.embeddings = Borrowed(lxmert.embeddings)
        self.lxmert.encoder.visn_fc = Borrowed(lxmert.encoder.visn_fc)
        weights = lxmert.state_dict()
        own = {name: weights[name].clone() for name in self.lxmert.state_dict()}
        self.lxmert.load_state_dict(own, assign=True)
        for name in unused_modules(config):
            self.lxmert.get_submodule(name).requires_grad_(False)
        self.head = GateHead(config.hidden_size, gates, share=share)

    def forward(self, **inputs: Tensor) -> Tensor:
        """The inputs of `VqaModel` -> logits (B, G, 2)."""
        return self.head(self.lxmert(**inputs, pooled_only=True).pooled)


class LightPolicy(nn.Module):
    """Decides from the model's own embeddings of the mean word and of the mean region, through a small head.

    It reads them without gradients and without dropout, and owns nothing but the head.
    """

    def __init__(self, lxmert: LxmertModel, gates: int, share: float = 0.5) -> None:
        super().__init__()
        self.words = Borrowed(lxmert.embeddings)
        self.regions = Borrowed(lxmert.encoder.visn_fc)
        self.head = GateHead(2 * lxmert.config.hidden_size, gates, share=share)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        visual_attention_mask: Tensor,
    ) -> Tensor:
        """The inputs of `VqaModel` -> logits (B, G, 2)."""
        question = _masked_mean(self.words(input_ids), attention_mask)
        # The mean before the projection and not after it: one region to project instead of all.
        features, boxes = (_masked_mean(part, visual_attention_mask) for part in (visual_feats, visual_pos))
        return self.head(torch.cat([question, self.regions(features, boxes)], dim=-1))


def _masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, S, H) and (B, S) -> (B, H)."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


def vqa_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy per answer, averaged over examples and summed over answers.

    logits, target (B, A), target in [0, 1]; the loss of the published recipe.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), target) * target.shape[1]


def score(logits: Tensor, target: Tensor) -> Tensor:
    """Soft-target accuracy of the likeliest answer, (B,): its target."""
    return target.gather(1, logits.argmax(1, keepdim=True)).squeeze(1)


def build(
    spec: ModelSpec, weights: Pretrained, answers: Sequence[str], precision: str = "no"
) -> tuple[Adaptive, list[Unit], list[str]]:
    """The model of a strategy with `weights` in it, its gateable units, and what was loaded, line by line.

    The weights of the encoder are moved into the model: `weights` serves for one model only. `precision` is
    that of the arithmetic, in accelerate's words (no, bf16, fp16): it decides what --frozen-dtype auto means.
    """
    # A parameter that the file replaces needs no memory and no random values before.
    all_replaced = not spec.from_scratch and not weights.initialised
    with torch.device("meta" if all_replaced else "cpu"):
        lxmert = LxmertModel(weights.config)
    model = VqaModel(lxmert, AnswerHead(weights.config, len(answers)))
    report = list(weights.report)
    if not spec.from_scratch:
        fill(lxmert, weights.encoder, weights.source, weights.initialised)
        report.append(_fill_head(model.answer_head, weights, answers))
    for name in unused_modules(weights.config):
        model.lxmert.get_submodule(name).requires_grad_(False)

    strategy = STRATEGIES[spec.strategy]
    if strategy.adaptive:
        units = list_units(weights.config, strategy.granularity)
        policy = POLICY_NETWORKS[spec.policy](spec, model.lxmert, sum(unit.width for unit in units))
        wanted = precision if spec.frozen_dtype == "auto" else spec.frozen_dtype
        frozen_dtype = torch.bfloat16 if wanted == "bf16" else None
        gates = adapt(model.lxmert, [(unit.modules, unit.width) for unit in units], frozen_dtype)
        return Adaptive(model, policy, gates, spec.temperature), units, report
    for name in strategy.keeps:
        freeze(model.lxmert.get_submodule(name))
    return Adaptive(model), [], report


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
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable = sum(size for size, requires_grad in sizes if requires_grad)
    total = sum(size for size, _ in sizes)
    return {"trainable": trainable, "frozen": total - trainable, "total": total}


def _lxmert_policy(spec: ModelSpec, lxmert: LxmertModel, gates: int) -> LxmertPolicy:
    config = lxmert.config
    for name, wanted, there in (
        ("policy_llayers", spec.policy_llayers, config.l_layers),
        ("policy_rlayers", spec.policy_rlayers, config.r_layers),
        ("policy_xlayers", spec.policy_xlayers, config.x_layers),
    ):
        if not 0 <= wanted <= there:
            raise UserError(
                f"--{name} {wanted}: the policy starts from the model's first layers, and it has {there}"
            )
    layers = spec.policy_llayers, spec.policy_rlayers, spec.policy_xlayers
    return LxmertPolicy(lxmert, layers, gates, spec.policy_start)


POLICY_NETWORKS: dict[str, Callable[[ModelSpec, LxmertModel, int], nn.Module]] = {
    "lxmert": _lxmert_policy,
    "light": lambda spec, lxmert, gates: LightPolicy(lxmert, gates, spec.policy_start),
}


def _fill_head(head: AnswerHead, weights: Pretrained, answers: Sequence[str]) -> str:
    """Fill the answer head as far as the checkpoint's answers go; say how far that was."""
    if weights.answer_head is None:
        return "answer head: initialised, as no pre-trained one is used"
    tensors, missing = answer_rows(weights.answer_head, weights.answers, answers, convert_answer)
    fill(head, tensors, f"the answer head of {weights.source}")
    weights.answer_head.clear()  # what was not moved would only take memory
    note = f", {len(missing)} not: {', '.join(map(repr, missing[:8]))}" if missing else ""
    return f"answer head: {len(answers) - len(missing)} answers loaded{note}"
