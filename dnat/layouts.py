"""The memory layout of gradients: what a training loses where it is not that of the values."""

from collections.abc import Sequence
from typing import Any

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


class _Subsampling(torch.autograd.Function):
    """See `subsampled`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        layout = _layout(x)
        return x[:, :, ::2, ::2].clone(memory_format=layout), x[:, :, 1::2, 1::2].clone(memory_format=layout)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        """Nothing is kept: gradients tell the shape and the layout."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        first, second = gradients
        n, channels, height, width = first.shape
        size, layout = (n, channels, 2 * height, 2 * width), _layout(first)
        whole = torch.empty(size, dtype=first.dtype, device=first.device, memory_format=layout).zero_()
        whole[:, :, ::2, ::2] = first
        whole[:, :, 1::2, 1::2] = second
        return whole

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, Tensor]:
        return subsampled(tangent)


def subsampled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Every second row and column, from the first and from the second on.

    What two strided 1x1 convolutions read of x, the second of them shifted by a pixel. Each of those gives x a
    gradient of full size, most of it zeros, and the two are added; here it is written once.

    Args:
        x: (N, C, H, W), H and W even.

    Returns:
        Two of (N, C, H / 2, W / 2), which lie in memory as x does.
    """
    return _Subsampling.apply(x)


def _dense(parts: Sequence[Tensor | None], whole: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(None if part is None else part.clone(memory_format=_layout(part)) for part in parts)


def _layout(part: Tensor) -> torch.memory_format:
    """Channels last of a slice of what has its channels last."""
    last = part.dim() == 4 and part.stride(1) == 1 and part.stride(3) >= part.shape[1]
    return torch.channels_last if last else torch.contiguous_format
