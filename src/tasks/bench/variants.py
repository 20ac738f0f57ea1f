"""The variants that the benchmark compares: which there are, and how the model of each is built."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import LxmertConfig, LxmertForQuestionAnswering

from adaptive import both
from adaptive.routing import per_slice
from kernels.dropout import Dropout
from kernels.linear import Linear
from lxmert.loading import Pretrained
from lxmert.modeling import Attention
from tasks.finetune.args import VqaArgs
from tasks.finetune.model import LENGTH_STEP, VqaModel, build, compile_model
from tasks.finetune.policies import NETWORKS
from tasks.finetune.spec import LORA, ModelSpec
from tasks.finetune.strategies import STRATEGIES

ANSWERS = 3129  # of the published VQA v2 vocabulary


class Variant(NamedTuple):
    """One row of the table."""

    name: str
    strategy: str  # of STRATEGIES, or "huggingface"
    precision: str = "fp32"
    dense: bool = False  # as the earlier implementation computed it
    policy: str = ModelSpec.policy
    share: float = 0.5
    policy_every: int = 1
    tuned: str = ModelSpec.tuned
    embeddings: str | None = None  # as `tuned` has it
    compiled: bool = False  # for training, as --compile does
    against: tuple[str, ...] = ()  # the rows that its ratios refer to

    @property
    def adaptive(self) -> bool:
        return self.strategy in STRATEGIES and STRATEGIES[self.strategy].adaptive

    @property
    def length_step(self) -> int | None:
        """Its batches are cut to their longest question, and up to a multiple of this; None: not cut."""
        if self.dense or self.strategy == "huggingface":
            return None
        return LENGTH_STEP if self.compiled else 1


def list_variants(default_policy: str, compiled: bool = False) -> list[Variant]:
    """All rows, references first: every strategy with every policy network in both precisions.

    compiled: what --compile takes once more, each against itself without; low-rank copies with frozen
    embeddings only.
    """
    hugging_face = Variant("Hugging Face standard", "huggingface")
    dense = Variant("dense SpotTune", "SpotTune", dense=True)
    dense_block = Variant("dense SpotTune_Block", "SpotTune_Block", dense=True)
    variants = [hugging_face, dense, dense_block]
    policies = sorted(NETWORKS, key=lambda policy: policy != default_policy)
    for precision in ("fp32", "bf16"):
        standard = f"standard, {precision}"
        for strategy in STRATEGIES.values():
            if not strategy.adaptive:
                name, against = f"{strategy.name}, {precision}", (hugging_face.name,)
                variants.append(Variant(name, strategy.name, precision, against=against))
                continue
            reference = dense if strategy.granularity == "component" else dense_block
            for policy in policies:
                name, against = f"{strategy.name}, {policy} policy, {precision}", (reference.name, standard)
                variants.append(Variant(name, strategy.name, precision, policy=policy, against=against))
        variants += low_rank_variants(precision, standard)
        rare = Variant("", "SpotTune_Block", precision, policy="light", policy_every=4, against=(standard,))
        variants.append(rare._replace(name=f"SpotTune_Block, light policy every 4th step, {precision}"))
    block = Variant("", "SpotTune_Block", policy=default_policy, against=(dense_block.name,))
    for share in (0.25, 0.75):
        name = f"SpotTune_Block, {default_policy} policy, fp32, {share:.0%} tuned"
        variants.append(block._replace(name=name, share=share))
    if compiled:
        for row in variants.copy():
            low = row.tuned == LORA
            if (low and row.embeddings) or (not low and row.strategy in STRATEGIES and not row.adaptive):
                name = f"{row.name}, compiled"
                variants.append(row._replace(name=name, compiled=True, against=(row.name,)))
    return variants


def low_rank_variants(precision: str, standard: str) -> list[Variant]:
    """Low-rank copies of rank 8 and the light policy, with and without frozen embeddings."""
    rows = [
        ("standard + LoRA", "standard"),
        ("SpotTune_Block + LoRA", "SpotTune_Block"),
        ("SpotTune + LoRA", "SpotTune"),
    ]
    variants = []
    for embeddings, note in (("frozen", ", embeddings frozen"), (None, "")):
        for name, strategy in rows:
            row = Variant(f"{name}{note}, {precision}", strategy, precision, policy="light", tuned=LORA)
            variants.append(row._replace(embeddings=embeddings, against=(standard,)))
    return variants


def build_variant(variant: Variant, config: LxmertConfig) -> nn.Module:
    """A model with random weights: speed does not depend on them."""
    if variant.strategy == "huggingface":
        return HuggingFace(config)
    chosen = {name: getattr(variant, name) for name in ("strategy", "policy", "tuned", "embeddings")}
    spec = ModelSpec.of(VqaArgs(from_scratch=True, **chosen))
    if variant.dense:
        spec = dataclasses.replace(spec, policy_llayers=min(2, config.l_layers))
    weights = Pretrained(config, {}, None, None, "", "random weights", "", [])
    model = build(spec, weights, [""] * ANSWERS, variant.precision)[0]
    if variant.adaptive:
        model.policy = FixedShare(model.policy, variant.share)
        model.gates.dense = variant.dense
    if variant.dense:
        model.model.__class__ = WholeModel
        encoder, policy = model.model.lxmert.encoder, model.policy.policy.lxmert
        policy.embeddings = copy.deepcopy(model.model.lxmert.embeddings)
        policy.encoder.visn_fc = copy.deepcopy(encoder.visn_fc)
        for module in model.modules():
            for faster, plain in ((Linear, nn.Linear), (Dropout, nn.Dropout)):
                if isinstance(module, faster):
                    module.__class__ = plain
    if variant.compiled:
        torch.compiler.reset()  # functions of models that are gone
        compile_model(model.model)
    return model


class HuggingFace(nn.Module):
    """transformers' model behind our signature."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.model = LxmertForQuestionAnswering(config)

    def forward(self, **inputs: Tensor) -> tuple[Tensor, None]:
        inputs = {name: t.float() if name.endswith("mask") else t for name, t in inputs.items()}
        return self.model(**inputs).question_answering_score, None


class WholeModel(VqaModel):
    """Computes the vision half of the last layer too."""

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.answer_head(self.lxmert(**inputs).pooled)


class FixedShare(nn.Module):
    """Runs a policy and lets it learn, but sees to it that a given share of random gates is tuned."""

    def __init__(self, policy: nn.Module, share: float) -> None:
        super().__init__()
        self.policy = policy
        self.share = share

    def forward(self, **inputs: Tensor) -> Tensor:
        logits = self.policy(**inputs)
        tuned = torch.rand(logits.shape[:2], device=logits.device) < self.share
        return logits + 1000.0 * torch.stack([~tuned, tuned], -1)


@contextmanager
def earlier_arithmetic(active: bool) -> Iterator[None]:
    """If `active`, attention and mixing as the earlier implementation had them: step by step."""

    def combine(self: Attention, projected: Any, tuned: Any, *args: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        scores = scores + (~args[-1])[:, None, None, :] * -10000.0
        return (self.dropout(scores.softmax(-1)) @ value).transpose(1, 2).flatten(2)

    def blend(gate: Tensor, tuned: Tensor, frozen: Tensor) -> Tensor:
        weight = per_slice(gate.to(tuned.dtype), tuned)
        return weight * tuned + (1 - weight) * frozen

    if not active:
        yield
        return
    with patch.object(Attention, "combine", combine), patch.object(both, "mix_tensors", blend):
        yield
