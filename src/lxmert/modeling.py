"""LXMERT (Tan & Bansal, EMNLP 2019, arXiv:1908.07490), once, without gating.

Parameter names are the published ones (those of the original code and of Hugging Face's `LxmertModel`), so
a checkpoint loads by name. Shapes: B batch, T word pieces, R regions, H hidden size, D region feature size.

Masks are boolean, true where there is something to attend to, and are given as (B, T) and (B, R).
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LxmertConfig

from kernels.attention import attention
from kernels.dropout import Dropout
from kernels.linear import Linear, linears

LAYER_NORM_EPS = 1e-12


class LxmertOutput(NamedTuple):
    """What the two streams end with."""

    language: Tensor  # (B, T, H); (B, 1, H), [CLS], if only the pooled output was asked for
    vision: Tensor | None  # (B, R, H); None if only the pooled output was asked for
    pooled: Tensor  # (B, H), from [CLS]


def layer_norm(size: int) -> nn.LayerNorm:
    return nn.LayerNorm(size, eps=LAYER_NORM_EPS)


class Embeddings(nn.Module):
    """Word + position + segment embeddings; index 0 of each table gets no gradient, as published."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, size, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, size, padding_idx=0)
        self.LayerNorm = layer_norm(size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) -> (B, T, H)."""
        return self.dropout(self.embed(input_ids))

    def embed(self, input_ids: Tensor) -> Tensor:
        """The same without dropout. A question is one segment, number 0."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        embedded = (
            self.word_embeddings(input_ids)
            + self.position_embeddings(positions)
            + self.token_type_embeddings(input_ids.new_zeros(1))
        )
        return self.LayerNorm(embedded)


class VisualFeatureEncoder(nn.Module):
    """Region embedding: the mean of the normalised projections of features and box."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.visn_fc = Linear(config.visual_feat_dim, config.hidden_size)
        self.visn_layer_norm = layer_norm(config.hidden_size)
        self.box_fc = Linear(config.visual_pos_dim, config.hidden_size)
        self.box_layer_norm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, visual_feats: Tensor, visual_pos: Tensor) -> Tensor:
        """(B, R, D), (B, R, 4) -> (B, R, H)."""
        return self.dropout(self.embed(visual_feats, visual_pos))

    def embed(self, visual_feats: Tensor, visual_pos: Tensor) -> Tensor:
        """The same without dropout."""
        features = self.visn_layer_norm(self.visn_fc(visual_feats))
        boxes = self.box_layer_norm(self.box_fc(visual_pos))
        return (features + boxes) / 2


class Attention(nn.Module):
    """Multi-head attention up to the context; heads lie side by side in its last dimension."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        size = config.hidden_size
        if size % config.num_attention_heads:
            raise ValueError(f"hidden size {size} is no multiple of {config.num_attention_heads} heads")
        self.heads = config.num_attention_heads
        self.query = Linear(size, size)
        self.key = Linear(size, size)
        self.value = Linear(size, size)
        self.dropout = Dropout(config.attention_probs_dropout_prob)

    def forward(self, hidden: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """(B, S, H) attends to (B, C, H) where mask (B, C) is true -> (B, S, H)."""
        return self.combine(self.project(hidden, context, mask), None, hidden, context, mask)

    # The two halves of the forward pass, apart: whoever gates single heads chooses between them.

    def project(self, hidden: Tensor, context: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, S, H), keys and values (B, C, H)."""
        if hidden is context:
            return linears(hidden, self.query, self.key, self.value)
        return (self.query(hidden), *linears(context, self.key, self.value))

    def combine(
        self,
        projected: tuple[Tensor, Tensor, Tensor],
        tuned: Tensor | None,
        hidden: Tensor,
        context: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Attend. tuned (B, heads): the heads of the tuned copy, which get dropout in training; None: all."""
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        rate = self.dropout.p if self.training else 0.0
        return attention(query, key, value, mask, rate, tuned).transpose(1, 2).flatten(2)


class AddAndNorm(nn.Module):
    """Projection, dropout, residual, layer norm: how every sub-layer ends."""

    def __init__(self, config: LxmertConfig, input_size: int) -> None:
        super().__init__()
        self.dense = Linear(input_size, config.hidden_size)
        self.LayerNorm = layer_norm(config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """(B, S, input size), (B, S, H) -> (B, S, H)."""
        return self.LayerNorm(self.dropout(self.dense(hidden)) + residual)


class Intermediate(nn.Module):
    """The first half of the feed-forward network."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, S, H) -> (B, S, intermediate size), with the exact (erf) GELU."""
        return F.gelu(self.dense(hidden))


class SelfAttentionLayer(nn.Module):
    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.self = Attention(config)
        self.output = AddAndNorm(config, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor, first_only: bool = False) -> Tensor:
        """(B, S, H), (B, S) -> (B, S, H), or only its first position, (B, 1, H)."""
        queries = hidden[:, :1].contiguous() if first_only else hidden
        return self.output(self.self(queries, hidden, mask), queries)


class CrossAttentionLayer(nn.Module):
    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.att = Attention(config)
        self.output = AddAndNorm(config, config.hidden_size)

    def forward(self, hidden: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """(B, S, H) attends to (B, C, H) where the mask (B, C) is true -> (B, S, H)."""
        return self.output(self.att(hidden, context, context_mask), hidden)


class Layer(nn.Module):
    """A transformer layer of one stream (language or vision)."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.attention = SelfAttentionLayer(config)
        self.intermediate = Intermediate(config)
        self.output = AddAndNorm(config, config.intermediate_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, S, H), (B, S) -> (B, S, H)."""
        attended = self.attention(hidden, mask)
        return self.output(self.intermediate(attended), attended)


class CrossLayer(nn.Module):
    """Each stream attends to the other, then to itself, then passes its feed-forward network.

    The cross-attention has one set of weights, used in both directions.
    """

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.visual_attention = CrossAttentionLayer(config)
        self.lang_self_att = SelfAttentionLayer(config)
        self.visn_self_att = SelfAttentionLayer(config)
        self.lang_inter = Intermediate(config)
        self.lang_output = AddAndNorm(config, config.intermediate_size)
        self.visn_inter = Intermediate(config)
        self.visn_output = AddAndNorm(config, config.intermediate_size)

    def forward(
        self, language: Tensor, language_mask: Tensor, vision: Tensor, vision_mask: Tensor, cls_only: bool
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, H), (B, T), (B, R, H), (B, R) -> the same two streams, or [CLS] (B, 1, H) and None."""
        attended = self.visual_attention(language, vision, vision_mask)
        attended = self.lang_self_att(attended, language_mask, cls_only)
        language_out = self.lang_output(self.lang_inter(attended), attended)
        if cls_only:
            return language_out, None
        attended = self.visual_attention(vision, language, language_mask)
        attended = self.visn_self_att(attended, vision_mask)
        return language_out, self.visn_output(self.visn_inter(attended), attended)


class Encoder(nn.Module):
    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.visn_fc = VisualFeatureEncoder(config)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.l_layers))
        self.x_layers = nn.ModuleList(CrossLayer(config) for _ in range(config.x_layers))
        self.r_layers = nn.ModuleList(Layer(config) for _ in range(config.r_layers))
        self.gradient_checkpointing = False

    def forward(
        self,
        language: Tensor,
        language_mask: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        vision_mask: Tensor,
        pooled_only: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, H), (B, T), (B, R, D), (B, R, 4), (B, R) -> the two streams, as in `LxmertOutput`."""
        vision = self.visn_fc(visual_feats, visual_pos)
        for layer in self.layer:
            language = self._run(layer, language, language_mask)
        for layer in self.r_layers:
            vision = self._run(layer, vision, vision_mask)
        last = len(self.x_layers) - 1
        for index, layer in enumerate(self.x_layers):
            # In the last layer [CLS] looks at the other words once more, and nothing looks at anything else.
            cls_only = pooled_only and index == last
            language, vision = self._run(layer, language, language_mask, vision, vision_mask, cls_only)
        return language, vision

    def _run(self, layer: nn.Module, *args: Any) -> Any:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(layer, *args, use_reentrant=False)
        return layer(*args)


class Pooler(nn.Module):
    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size)

    def forward(self, language: Tensor) -> Tensor:
        """(B, T, H) -> (B, H), from [CLS] at position 0."""
        return torch.tanh(self.dense(language[:, 0]))


class LxmertModel(nn.Module):
    """Question and regions in, two streams and a pooled vector out."""

    def __init__(self, config: LxmertConfig) -> None:
        super().__init__()
        if config.hidden_act != "gelu":
            raise ValueError(f"LXMERT uses the exact GELU; this config says hidden_act={config.hidden_act!r}")
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)
        initialise(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        visual_feats: Tensor,
        visual_pos: Tensor,
        visual_attention_mask: Tensor,
        pooled_only: bool = False,
    ) -> LxmertOutput:
        """Run the model.

        input_ids (B, T), attention_mask (B, T), visual_feats (B, R, D), visual_pos (B, R, 4) in [0, 1],
        visual_attention_mask (B, R). With `pooled_only` the last cross layer computes only what the pooled
        output depends on: not its vision half, and of its language half's end only [CLS].
        """
        language, regions = self.embeddings(input_ids), visual_attention_mask.bool()
        language, vision = self.encoder(
            language, attention_mask.bool(), visual_feats, visual_pos, regions, pooled_only
        )
        return LxmertOutput(language, vision, self.pooler(language))


class AnswerHead(nn.Module):
    """Linear(H, 2H), GELU, LayerNorm, Linear(2H, answers)."""

    def __init__(self, config: LxmertConfig, answers: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.logit_fc = nn.Sequential(
            Linear(size, 2 * size), nn.GELU(), layer_norm(2 * size), Linear(2 * size, answers)
        )
        initialise(self, config.initializer_range)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, H) -> logits (B, answers)."""
        return self.logit_fc(pooled)


def initialise(model: nn.Module, std: float) -> None:
    """BERT's initialisation: normal weights, zero biases, unit layer norms (their defaults)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
            elif module.padding_idx is not None:
                nn.init.zeros_(module.weight.data[module.padding_idx])
