"""What runs as it is where `torch.compile` compiles what is around it."""

from collections.abc import Callable
from typing import Any

import torch


@torch._disable_dynamo  # unlike `torch.compiler.disable`, it imports the compiler only where one is at work
def uncompiled(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`call(*args, **kwargs)`, at which graphs end, and between graphs.

    For what depends on the numbers in tensors. Ask `torch.compiler.is_compiling()` before: elsewhere this is
    an import of seconds for nothing.
    """
    return call(*args, **kwargs)
