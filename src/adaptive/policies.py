"""Ready policies: what decides, for each example, which copy runs at each gate.

A policy is a module that is called with the inputs of the model and returns logits (B, G, 2), frozen and
tuned.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from adaptive.gates import TUNED
from adaptive.policy import GateHead

# In which inputs the number of examples is looked up first; else in any tensor.
MAIN = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


class PooledPolicy(nn.Module):
    """A small head on the mean of what reaches the first gated module (B, ..., size), padding left out.

    It reads the model and owns nothing of it: what it reads comes as `pooled` (B, size), without a gradient,
    see `adaptive.model`. share: how likely tuned is at the start.
    """

    def __init__(self, size: int, gates: int, share: float = 0.5, width: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.LayerNorm(size)
        self.head = GateHead(size, gates, share=share, width=width)

    def forward(self, pooled: Tensor, **inputs: Any) -> Tensor:
        if pooled.shape[-1] != self.size:
            raise ValueError(
                f"the policy was made for {self.size} features, and what it reads has {pooled.shape[-1]}: "
                f"set "
                "AdaptiveConfig(policy_size=...)"
            )
        return self.head(self.norm(pooled.to(self.norm.weight.dtype)))


class ConstantPolicy(nn.Module):
    """One logit a gate, learned: the same for all inputs."""

    def __init__(self, gates: int, share: float = 0.5) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.full((gates,), logit_of(share)))

    def forward(self, **inputs: Any) -> Tensor:
        logits = torch.stack([torch.zeros_like(self.logit), self.logit], dim=-1)  # frozen, tuned
        return logits.expand(batch_size(inputs), -1, -1)


class RandomPolicy(nn.Module):
    """Gates drawn for each example and gate with a share tuned; nothing is learned.

    No gate needs a gradient, so only the chosen copies run.
    """

    def __init__(self, gates: int, share: float = 0.5) -> None:
        super().__init__()
        logits = torch.zeros(gates, 2)
        logits[:, TUNED] = logit_of(share)
        self.register_buffer("logits", logits, persistent=False)

    def forward(self, **inputs: Any) -> Tensor:
        return self.logits.expand(batch_size(inputs), -1, -1)


class HeldShare(nn.Module):
    """A policy whose share tuned a bias holds at a target, and no loss: all gates have the same one.

    After each batch of training the bias takes a step of a fixed size, up if the mean probability of tuned is
    below the target and down if it is above (Wang et al. 2024, arXiv:2408.15664). So the share has no
    gradient, and the policy is free in which gates and for which examples it spends it.
    """

    STEP = 0.01

    def __init__(self, policy: nn.Module, target: float) -> None:
        super().__init__()
        self.policy = policy
        self.target = target
        self.register_buffer("bias", torch.zeros(()))

    def forward(self, **inputs: Any) -> Tensor:
        logits = self.policy(**inputs)
        logits = logits + torch.stack([torch.zeros_like(self.bias), self.bias])  # frozen, tuned
        if self.training and torch.is_grad_enabled():
            share = logits.detach().float().softmax(-1)[..., TUNED].mean()
            # What is not finite is left out, as the step will be.
            self.bias += self.STEP * torch.sign(self.target - share).nan_to_num(0.0)
        return logits


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, S, H) and (B, S) -> (B, H)."""
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


def batch_size(inputs: dict[str, Any], main: str | None = None) -> int:
    """The number of examples in the inputs of a model; `main` names the input to look at first."""
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.dim()}
    found = [name for name in (main, *MAIN, *tensors) if name in tensors]
    if not found:
        raise ValueError("none of the inputs is a tensor of examples")
    return tensors[found[0]].shape[0]


def logit_of(share: float) -> float:
    return math.log(share / (1 - share))
