"""How many operations a GPU is asked for: what a step costs where it waits for launches, not for arithmetic.

Counted are the operators of PyTorch that a dispatch mode sees, forward and backward. Left out are those that
start no kernel: views, bare allocations and what stays on the host. Left out too are clipping and the
optimizer: over all parameters at once, they take a dozen or two, whatever the strategy.

Only the depth of a model and its strategy matter, so a narrow model is counted, and without a GPU its path
is taken on the CPU: see `as_on_a_gpu`. On the CPU's own path, with its dropout of several operations and its
attention step by step, a training step of standard at base depth has 2,323 operations instead of 1,331.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LxmertConfig

HEAD_SIZE, FEATURES, WORDS = 4, 16, 2000  # of a narrow model

# Beside views: an allocation, or a number on the host.
WITHOUT_A_KERNEL = {
    *("_unsafe_view", "detach", "empty", "empty_like", "new_empty", "promote_types", "scalar_tensor"),
    *("lift_fresh", "_local_scalar_dense"),
}


def count_operations(run: Callable[[], Any]) -> int:
    """How many kernels, roughly, `run` starts, backward passes within it included."""
    with _Counter() as counter:
        run()
    return counter.count


def narrow(config: LxmertConfig) -> LxmertConfig:
    """A config with the layers and heads of `config` and little else."""
    size = HEAD_SIZE * config.num_attention_heads
    layers = {name: getattr(config, name) for name in ("l_layers", "r_layers", "x_layers")}
    return LxmertConfig(
        hidden_size=size,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=2 * size,
        visual_feat_dim=FEATURES,
        vocab_size=WORDS,
        num_qa_labels=config.num_qa_labels,
        **layers,
    )


@contextmanager
def as_on_a_gpu(device: torch.device) -> Iterator[None]:
    """If `device` is a CPU: what chooses by device type chooses as for a GPU, and the CPU computes it.

    Fused attention and dropout are one operation each. In 16 bits the casts are those of a CPU's autocast.
    """
    if device.type != "cpu":
        yield
        return
    enabled = torch.is_autocast_enabled("cuda")
    torch.set_autocast_enabled("cuda", torch.is_autocast_enabled("cpu"))
    try:
        with _AsOnGpu():
            yield
    finally:
        torch.set_autocast_enabled("cuda", enabled)


class _Counter(TorchDispatchMode):
    """Counts the operators that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += not (func.is_view or func.overloadpacket.__name__ in WITHOUT_A_KERNEL)
        return func(*args, **kwargs or {})


class _AsOnGpu(TorchFunctionMode):
    """Tensors say that they are on a GPU; whatever is asked to be made there is made on the CPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda")
        func = {F.dropout: _dropout, F.scaled_dot_product_attention: _attention}.get(func, func)
        args = tuple(_on_cpu(value) for value in args)
        return func(*args, **{name: _on_cpu(value) for name, value in (kwargs or {}).items()})


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """One kernel, as a GPU has it."""
    return torch.native_dropout(input, p, training)[0] if training and p else input


def _attention(*args: Any, dropout_p: float = 0.0, **kwargs: Any) -> Tensor:
    """A CPU's fused kernel knows no dropout; a GPU's does."""
    return F.scaled_dot_product_attention(*args[:4], **kwargs)
