"""The memory layout of gradients: what a training loses where it is not that of the values."""

from collections.abc import Sequence

import torch
from torch import Tensor


def with_dense_gradients(joined: Tensor) -> Tensor:
    """What `torch.cat` gave, whose parts get gradients that are dense in memory.

    Along channels they would be slices of the whole, on which the backward passes of norms and convolutions take
    slow ways: a network of DARTS's cells trains 1.2 times as fast with it.
    """
    if not torch.compiler.is_compiling():
        with torch._C.DisableTorchFunction():  # no step of the forward for who records it
            if joined.grad_fn is not None:
                joined.grad_fn.register_hook(_dense)
    return joined


def _dense(parts: Sequence[Tensor | None], whole: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(None if part is None else part.clone(memory_format=_layout(part)) for part in parts)


def _layout(part: Tensor) -> torch.memory_format:
    """Channels last of a slice of what has its channels last."""
    last = part.dim() == 4 and part.stride(1) == 1 and part.stride(3) >= part.shape[1]
    return torch.channels_last if last else torch.contiguous_format
