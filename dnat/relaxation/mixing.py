"""Sums of tensors weighed by gates, and how far two tensors are from each other."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


class _Mix(torch.autograd.Function):
    """The sum of `scale * tensor` over pairs of tensors and 0-dim scales; a scale of 0 also silences inf and NaN.

    Arguments: what stands in the first scale's place in the backward pass, or None; the tensors; their scales.
    Keeps only the scales for the backward pass, and the tensors whose scales learn. The operation's output comes
    first, so that the sum takes its memory layout: with the input first later kernels see other strides and round
    differently.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor | None, *terms: Tensor) -> Tensor:
        n = len(terms) // 2
        out = None
        for x, scale in zip(terms[:n], terms[n:], strict=True):
            number = value_of(scale)
            if number is None or out is None:
                part = _scaled(x, scale, number)
                out = part if out is None else out + part
            elif number != 0:
                out.add_(x, alpha=number)
        assert out is not None
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        slope, *terms = inputs
        n = len(terms) // 2
        learns = ctx.needs_input_grad[1 + n :]
        kept = [x if needed else None for x, needed in zip(terms[:n], learns, strict=True)]
        ctx.save_for_backward(slope, *kept, *terms[n:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slope, *terms = ctx.saved_tensors
        n, (gradient,) = len(terms) // 2, gradients
        tensors, scales = terms[:n], terms[n:]
        slopes = [scales[0] if slope is None else slope, *scales[1:]]
        needs = ctx.needs_input_grad[1:]
        results: list[Tensor | None] = [None]
        for scale, needed in zip(slopes, needs[:n], strict=True):
            # A second derivative depends on the scale even where its value does not matter to the first.
            number = None if needed and torch.is_grad_enabled() else value_of(scale) if needed else 0
            results.append(gradient if number == 1 else gradient * scale if number != 0 else None)
        for x, scale, needed in zip(tensors, scales, needs[n:], strict=True):
            results.append(_inner(gradient, x, scale) if needed else None)
        return tuple(results)


class _Addition(torch.autograd.Function):
    """`y + gate * x`, written into y; a gate of 0 also silences inf and NaN. Keeps x where the gate learns."""

    @staticmethod
    def forward(y: Tensor, x: Tensor, gate: Tensor) -> Tensor:
        number = value_of(gate)
        assert number is not None
        return y.add_(x, alpha=number) if number != 0 else y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        y, x, gate = inputs
        ctx.mark_dirty(y)
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, gate)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, gate) = gradients, ctx.saved_tensors
        of_y, of_x, of_gate = ctx.needs_input_grad
        return (
            gradient if of_y else None,
            gradient * gate if of_x and (torch.is_grad_enabled() or value_of(gate) != 0) else None,
            _inner(gradient, x, gate) if of_gate else None,
        )


def added(y: Tensor, x: Tensor, gate: Tensor, *, in_place: bool) -> Tensor:
    """A relaxed edge whose operation's output is weighed already: `y + gate * x`, on a CPU.

    Args:
        y: the weighed output, whose type and memory layout the sum has.
        x: of its shape.
        gate: 0-dim.
        in_place: whether the sum may be written into y, which nobody else holds then.
    """
    if value_of(gate) == 0 and not (gate.requires_grad and torch.is_grad_enabled()):
        return y
    return _Addition.apply(y if in_place else y.clone(), x.to(y.dtype), gate.to(y.dtype))


def value_of(scale: Tensor) -> float | None:
    """The value of a scale where it costs nothing to know it; None where a device would have to be waited for, and
    for a compiler, which would compile one function for each value."""
    if scale.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    try:
        return float(scale.detach())
    except RuntimeError:  # under vmap it has no one value
        return None


def _scaled(x: Tensor, scale: Tensor, number: float | None) -> Tensor:
    if number is not None:
        return x * scale if number != 0 else torch.zeros_like(x)
    # 0 * inf would be NaN, and where(scale == 0, 0, x) alone would not stop it: the product is masked.
    return torch.where(scale == 0, torch.zeros((), dtype=x.dtype, device=x.device), x * scale)


def _inner(gradient: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """The gradient of a scale: the inner product over finite elements, summed in at least float32."""
    wide = torch.promote_types(scale.dtype, torch.float32)
    total = _dot(gradient, x) if x.dtype == wide and x.device.type == "cpu" else None
    if total is None:
        total = (gradient * x).to(wide).sum()
    number = value_of(total)
    if number is None or not math.isfinite(number):
        product = (gradient * x).to(wide)
        total = torch.where(torch.isfinite(x), product, torch.zeros_like(product)).sum()
    return total.to(scale.dtype)


def _dot(gradient: Tensor, x: Tensor) -> Tensor | None:
    """The inner product in one pass; None where the two do not lie alike in memory, or it is derived again."""
    if torch.is_grad_enabled() or gradient.stride() != x.stride() or gradient.shape != x.shape:
        return None
    strides = x.stride()
    order = sorted(range(x.dim()), key=lambda d: (-strides[d], x.shape[d] == 1))
    flat = [t.permute(order) for t in (gradient, x)]
    return torch.dot(*(t.view(-1) for t in flat)) if all(t.is_contiguous() for t in flat) else None


def mix(terms: Sequence[tuple[Tensor, Tensor]], slope: Tensor | None = None) -> Tensor:
    """The relaxed edge: the sum of `gate * x` over terms (x, gate).

    Args:
        terms: tensors of one shape, the operation's output first, each with its gate, 0-dim. The sum has the first
            one's type and memory layout.
        slope: in the backward pass, the first one's gate.
    """
    like = terms[0][0].dtype
    if not torch.is_grad_enabled() and [value_of(gate) for _, gate in terms] == [1.0] + [0.0] * (len(terms) - 1):
        return terms[0][0]  # as it is in the network itself
    slope = None if slope is None else slope.detach().to(like)
    return _Mix.apply(slope, *(x.to(like) for x, _ in terms), *(gate.to(like) for _, gate in terms))


def distance(output: Tensor, target: Tensor) -> Tensor:
    """How far an operation's output is from what it was to be; see `ForwardPasses.taught`."""
    wide = torch.promote_types(output.dtype, torch.float32)
    output, target = output.to(wide), target.to(wide)
    size = _variance(output.detach()) + _variance(target)
    return mse_loss(output, target) / (size + 1e-6)


def _variance(x: Tensor) -> Tensor:
    """The mean over channels of the variance over all else, 0-dim."""
    means = x.mean([d for d in range(x.dim()) if d != 1])
    # Two plain sums: torch.var takes ten times as long on a CPU.
    return (torch.linalg.vector_norm(x).square() / x.numel() - means.square().mean()).clamp(min=0)
