"""A linear layer for a CPU in fp32: the same numbers from the faster of the two libraries PyTorch brings.

In fp32 PyTorch multiplies through its BLAS. Its oneDNN, which it uses for bf16 anyway, is faster above all on
matrices with few rows, and routing makes those: half of a batch of questions is some 150 rows.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# Below this many weights a call costs more than the faster product saves.
WORTHWHILE = 2**18

# Not a documented operator, but the one `torch.compile` emits. Where it is missing, all is as in nn.Linear.
_one_dnn = None
if torch.backends.mkldnn.is_available():
    _one_dnn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


class Linear(nn.Linear):
    """`nn.Linear`; large ones multiply through oneDNN where input and weight are fp32 and on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., in features) -> (..., out features)."""
        if not self._through_one_dnn(input):
            return super().forward(input)
        if torch.is_grad_enabled():
            return _Product.apply(input, self.weight, self.bias)
        return _multiply(input, self.weight, self.bias)

    def _through_one_dnn(self, input: Tensor) -> bool:
        return (
            _one_dnn is not None
            and input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and self.weight.numel() >= WORTHWHILE
            and input.numel() > 0
            and not torch.is_autocast_enabled("cpu")
        )


def _multiply(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(..., K), (N, K), (N,) -> (..., N): input @ weight.T + bias. No gradients."""
    return _one_dnn(input, weight, bias, "none", [], "")


class _Product(torch.autograd.Function):
    """The product with its gradients. What no gradient needs is not saved, as in PyTorch's own."""

    @staticmethod
    def forward(ctx: FunctionCtx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input_needs, weight_needs, _ = ctx.needs_input_grad
        ctx.save_for_backward(input if weight_needs else None, weight if input_needs else None)
        return _multiply(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            None if weight is None else _multiply(grad, weight.t(), None),
            None if input is None else rows.t() @ input.reshape(-1, input.shape[-1]),
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )
