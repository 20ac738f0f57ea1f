"""How often each gate chose the tuned copy: a running sum that stays on the device; and what that tells."""

import math

import torch
from torch import Tensor


class Usage:
    """Counts per gate and per group of examples (kinds of input, say).

    `tuned` (K, G) and `examples` (K,) hold whole numbers, so that sums do not depend on their order.
    """

    def __init__(self, gates: int, groups: int, device: torch.device) -> None:
        self.tuned = torch.zeros(groups, gates, device=device)
        self.examples = torch.zeros(groups, device=device)

    def update(self, gates: Tensor, group: Tensor) -> None:
        """Count gates (B, G) of examples of the given group numbers (B,)."""
        self.tuned.index_add_(0, group, gates.detach().to(self.tuned.dtype))
        self.examples.index_add_(0, group, torch.ones_like(group, dtype=self.examples.dtype))

    def share(self) -> Tensor:
        """Share of examples that ran the tuned copy, (G,)."""
        return self.tuned.sum(0) / self.examples.sum().clamp(min=1)

    def share_by_group(self) -> Tensor:
        """The same for each group, (K, G); NaN for a group without examples."""
        return self.tuned / self.examples[:, None]


def variation(share: Tensor) -> Tensor:
    """How often an example departs from a gate's usual choice: min(p, 1 - p), 0 (a fixed mask) to 0.5.

    Meaningful for gates that are a function of the input, as in evaluation; of sampled gates it would mostly
    measure the noise.
    """
    return torch.minimum(share, 1 - share)


def information(tuned: Tensor, examples: Tensor) -> Tensor:
    """Bits that each gate tells about the group of its example: plug-in mutual information, (G,).

    tuned (K, G), examples (K,): counts, as `Usage` has them. The sum over groups k and values v of a gate of
    p(k, v) log2(p(k, v) / (p(k) p(v))), with frequencies for probabilities (Cover and Thomas 2006, 2.28).
    """
    counts = torch.stack([examples[:, None] - tuned, tuned]).double()  # (2, K, G)
    joint = counts / examples.sum().double()
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return (torch.xlogy(joint, joint) - torch.xlogy(joint, independent)).sum((0, 1)) / math.log(2)
