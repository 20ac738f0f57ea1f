"""A frozen and a tuned copy of one module, and a gate that says which of the two an example gets.

Polarity, everywhere in this package: gate 1 = tuned, gate 0 = frozen.
Shapes: B examples, G gates of the whole model, w gates ("width") of one pair.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn


class Slots:
    """The gates of the forward pass under way, shared by all pairs of one model.

    Not a module: it holds no parameters and must not appear in a state dict.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.gates: Tensor | None = None

    def fill(self, gates: Tensor) -> None:
        """Set the gates (B, G) of the coming forward pass.

        They stay until the next call, because gradient checkpointing runs the pairs again in backward.
        """
        if gates.shape[1:] != (self.total,):
            raise ValueError(f"gates have the shape {tuple(gates.shape)}; expected (batch, {self.total})")
        self.gates = gates


class GatedPair(nn.Module):
    """Two copies of `module`, `tuned` and `frozen`, called on the same input.

    With width w, a gate decides over each of w equal slices of the output's last dimension. Tuple outputs are
    gated element by element; None stays None. The frozen copy is the module as it is now: without gradients
    and always in evaluation mode, so that its dropout is off.
    """

    def __init__(self, module: nn.Module, slots: Slots, start: int, width: int = 1) -> None:
        super().__init__()
        self.tuned = module
        self.frozen = copy.deepcopy(module).requires_grad_(False).eval()
        self.slots = slots
        self.start = start
        self.width = width

    def train(self, mode: bool = True) -> GatedPair:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.slots.gates is None:
            raise RuntimeError(
                "a gated pair was called before its gates were set; call Adaptive, not its model"
            )
        gate = self.slots.gates[:, self.start : self.start + self.width]
        return mix(gate, self.tuned(*args, **kwargs), self.frozen(*args, **kwargs))


def mix(gate: Tensor, tuned: Any, frozen: Any) -> Any:
    """gate * tuned + (1 - gate) * frozen, slice by slice.

    gate (B, w); the others (B, ..., w * n), or tuples of such tensors, or None.
    """
    if tuned is None:
        return None
    if isinstance(tuned, tuple):
        return tuple(mix(gate, *outputs) for outputs in zip(tuned, frozen, strict=True))
    values = gate.to(tuned.dtype).repeat_interleave(tuned.shape[-1] // gate.shape[1], dim=1)
    values = values.view(len(gate), *[1] * (tuned.dim() - 2), -1)
    return values * tuned + (1 - values) * frozen
