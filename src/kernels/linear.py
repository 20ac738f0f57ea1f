"""A linear layer for a CPU in fp32: the same numbers from the faster of the two libraries PyTorch brings.

In fp32 PyTorch multiplies through its BLAS. On CPUs that are not Intel's its oneDNN, which it uses for bf16
anyway, is faster above all on matrices with few rows, and routing makes those: half of a batch of questions
is some 150 rows. On Intel's the BLAS, Intel's own, is the faster one, in backward by up to a half.
"""

from functools import cache
from pathlib import Path

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

    # For whoever adds something to these products.

    def fuses_sums(self, input: Tensor) -> bool:
        """Whether `onto` takes one pass less over the output than adding to it would."""
        return self.bias is not None and self._is_plain(input) and not self._through_one_dnn(input)

    def onto(self, total: Tensor, input: Tensor) -> Tensor:
        """total (N, out features) + input (N, in features) @ weight.T, in place.

        With the bias in every row of `total` that is `forward`, bit for bit, where `fuses_sums`.
        """
        return total.addmm_(input, self.weight.t())

    def input_gradient(self, grad: Tensor, total: Tensor | None = None) -> Tensor:
        """grad (N, out features) @ weight: (N, in features), added in place to `total` if there is one."""
        if not self._through_one_dnn(grad):
            weight = self.weight.to(grad.dtype)
            return grad @ weight if total is None else total.addmm_(grad, weight)
        product = _multiply(grad, self.weight.t(), None)
        return product if total is None else total.add_(product)

    def _is_plain(self, input: Tensor) -> bool:
        """Whether this is about numbers in fp32 on a CPU."""
        return (
            not torch.compiler.is_compiling()
            and input.device.type == "cpu"
            and input.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
        )

    def _through_one_dnn(self, input: Tensor) -> bool:
        return (
            self._is_plain(input)
            and _one_dnn is not None
            and not _has_fast_blas()
            and self.weight.numel() >= WORTHWHILE
            and input.numel() > 0
        )


@cache
def _has_fast_blas() -> bool:
    """Whether this is an Intel CPU with Intel's BLAS."""
    cpus = Path("/proc/cpuinfo")
    return torch.backends.mkl.is_available() and cpus.is_file() and "GenuineIntel" in cpus.read_text()


def linears(input: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """The outputs of several layers of one kind for the same input; a kind that can share work does so.

    It shares work in a `together(input, layers)`.
    """
    together = getattr(layers[0], "together", None)
    return together(input, layers) if together else tuple(layer(input) for layer in layers)


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
            None if input is None else _multiply(rows.t(), input.reshape(-1, input.shape[-1]).t(), None),
            rows.sum(0) if ctx.needs_input_grad[2] else None,
        )
