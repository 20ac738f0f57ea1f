"""From policy logits to gates: straight-through Gumbel-softmax in training, argmax in evaluation."""

import math

import torch
from torch import Tensor, nn

from adaptive.gates import FROZEN, TUNED


def sample_gates(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """Draw hard gates whose gradient is that of the soft ones (Jang et al. 2017, arXiv:1611.01144).

    logits (B, G, 2) -> gates (B, G), exactly 0 or 1, in float32. noise: numbers (B, G, 2) from the
    exponential distribution; without them they are drawn from the global generator.
    """
    logits = logits.float()
    gumbel = -(torch.empty_like(logits).exponential_() if noise is None else noise).log()
    soft = torch.softmax((logits + gumbel) / temperature, dim=-1)
    hard = (soft[..., TUNED] > soft[..., FROZEN]).to(soft.dtype)
    # soft - soft.detach() is exactly 0, so the sum is exactly 0 or 1; (hard - soft) + soft would not be.
    return hard + (soft[..., TUNED] - soft[..., TUNED].detach())


def choose_gates(logits: Tensor) -> Tensor:
    """The likelier copy of each gate: logits (B, G, 2) -> gates (B, G), 0 or 1, in float32."""
    return (logits[..., TUNED] > logits[..., FROZEN]).float()


class GateHead(nn.Module):
    """Policy logits from a feature vector: Linear, GELU, LayerNorm, Linear.

    `width` is how many values lie between the two, without it twice as many as come in.
    `spread` is the standard deviation of the last layer's weights. It sets how much the first gates differ
    between inputs and from each other: with 0 every gate would start as the same coin. `share` is how likely
    that coin says tuned, above 0 and below 1.
    """

    def __init__(
        self, size: int, gates: int, spread: float = 0.1, share: float = 0.5, width: int | None = None
    ) -> None:
        super().__init__()
        self.gates = gates
        width = width or 2 * size
        self.hidden = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.LayerNorm(width))
        self.logits = nn.Linear(width, 2 * gates)
        nn.init.normal_(self.logits.weight, 0.0, spread)
        odds = torch.zeros(gates, 2)
        odds[:, TUNED] = math.log(share / (1 - share))
        self.logits.bias.data = odds.flatten()

    def forward(self, features: Tensor) -> Tensor:
        """(B, size) -> logits (B, G, 2)."""
        return self.logits(self.hidden(features)).unflatten(-1, (self.gates, 2))
