"""What a convolution of any network may become, and how what takes its place begins: close to the original.

The moves are NAT++'s (`dnat.transitions`), on a convolution from C to D channels with its stride and groups:

conv_kxk      the same convolution with a smaller kernel; begins as the middle of the original's kernel.
sep_conv_kxk  two depthwise kernels of k x k on every channel, then a 1x1 convolution over the 2C channels: where
              C = D as many multiply-adds as NAT++'s separable convolution, which is a depthwise and a 1x1
              convolution twice over, but linear, so that it can begin as the best approximation of rank 2 of the
              kernel.
dil_conv_kxk  one depthwise kernel with dilation 2, then a 1x1 convolution; begins as the best approximation of
              rank 1 of the kernel, moved to the dilated grid.
dwconv_kxk    a depthwise convolution with a smaller kernel; begins as the middle.
pools         max or mean over k x k pixels, where C = D; the mean leaves the border out.

All windows have the original's middle, so that shapes agree and images do not move. Behind each stands a copy of
the original's norm, if it has one.
"""

from collections import OrderedDict
from copy import deepcopy

import torch
from torch import Tensor, nn

from .moves import Table
from .networks.initial import kaiming
from .operations import Geometry, geometry
from .tracing import in_mode


def moves(operation: str, shape: Geometry, table: Table, pixels: int) -> tuple[tuple[str, int], ...]:
    """What a convolution may become, with the multiply-adds of one image; pools cost nothing, as in `dnat.cost`.

    Only cheaper ones, that keep the shape; without skip_connect and null, which the other choices stand for.

    Args:
        operation: its name, "conv_3x3"; a grouped one ("gconv_3x3") has the choices of the dense one.
        shape: its geometry.
        table: what may become what.
        pixels: of its output, over all calls.
    """
    name = operation.removeprefix("g")
    targets = []
    for target in table.get(name, ())[1:]:
        if target not in ("skip_connect", "null") and _keeps_shape(target, shape):
            with torch.device("meta"):
                layers = _layers(target, shape, bias=False).values()
            weights = sum(m.weight.numel() for m in layers if isinstance(m, nn.Conv2d))
            targets.append((target, weights * pixels))
    own = shape.channels_out * shape.channels_in // shape.groups * shape.size**2 * pixels
    return tuple((target, madds) for target, madds in targets if madds < own)


def candidate(name: str, conv: nn.Module, norm: nn.Module | None = None, *, warm_start: bool = True) -> nn.Module:
    """A module that may take the place of a convolution and its norm; see the module.

    Args:
        name: one of `moves`.
        conv: the convolution; its device and type are taken over.
        norm: what follows it.
        warm_start: begin close to the original; otherwise with random weights from torch's global generator.
    """
    assert isinstance(conv, nn.Conv2d)
    shape = geometry(conv)
    assert shape is not None
    parts = _layers(name, shape, bias=conv.bias is not None)
    layers = nn.Sequential(parts)
    if not warm_start:
        kaiming(layers)
    # To read a weight may change it: torch's spectral norm takes a step whenever that happens in train mode.
    with in_mode(conv, False):
        layers.to(conv.weight)
        if warm_start:
            _begin(parts, conv)
    if norm is not None:
        layers.add_module("norm", deepcopy(norm))
    return layers


@torch.no_grad()
def begin(target: nn.Module, source: nn.Module) -> None:
    """Let an operation of a searched cell begin close to the one whose place it may take.

    Of the same layers with smaller kernels, as the middle of each (`cropped`). Otherwise its first convolutions
    begin as the best approximation of what the source would be without activations, one convolution, and its other
    ones hand on what they are given; the last norm is the source's. A pool has no weights to begin with.
    """
    if cropped(source, target):
        return
    kernel = _composed_kernel(source)
    convs = [m for m in target.modules() if isinstance(m, nn.Conv2d)]
    if kernel is None or not convs:
        return
    first, second = convs[0], convs[1] if len(convs) > 1 else None
    size, dilation = first.kernel_size[0], first.dilation[0]
    kernel = _middle(kernel, *first.kernel_size) if dilation == 1 else _on_grid(kernel, size)
    if first.groups == 1:
        first.weight.copy_(kernel)
    else:
        assert second is not None
        for conv, weight in zip((first, second), separable(kernel, 1, 1), strict=True):
            conv.weight.copy_(weight)
    for conv in convs[1 if first.groups == 1 else 2 :]:
        nn.init.dirac_(conv.weight, conv.groups)
    norms = [[m for m in each.modules() if isinstance(m, nn.BatchNorm2d)][-1:] for each in (source, target)]
    if all(norms):
        norms[1][0].load_state_dict(norms[0][0].state_dict())


def _composed_kernel(source: nn.Module) -> Tensor | None:
    """The kernel of all of an operation's convolutions in one, as if nothing but norms stood between them.

    Norms scale by what they have recorded; the last one is left out. None where there are no convolutions.
    """
    layers = [m for m in source.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    layers = layers[:-1] if layers and isinstance(layers[-1], nn.BatchNorm2d) else layers
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    if not convs:
        return None
    reach = sum(max(m.kernel_size) // 2 * m.dilation[0] for m in convs)
    # What comes out of a single 1 in the middle of each channel, is the kernel turned round.
    answer = torch.eye(convs[0].in_channels)[:, :, None, None].to(convs[0].weight)
    answer = nn.functional.pad(answer, (reach,) * 4)
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            answer = nn.functional.conv2d(answer, layer.weight, None, 1, "same", layer.dilation, layer.groups)
        elif layer.running_var is not None:
            scale = (layer.running_var + layer.eps).rsqrt()
            scale = scale if layer.weight is None else scale * layer.weight
            answer = answer * scale[:, None, None]
    return answer.transpose(0, 1).flip(2, 3)


def cropped(source: nn.Module, target: nn.Module) -> bool:
    """Give one operation another's weights, of larger kernels the middle; whether their layers allow it.

    A kernel that grows has zeros around it, so that it computes the same.

    Both must be made of the same layers in the same order, but for the size of kernels: such as sep_conv_3x3 and
    sep_conv_5x5.
    """
    pairs = list(zip(source.modules(), target.modules(), strict=False))
    if len(list(source.modules())) != len(list(target.modules())):
        return False
    for a, b in pairs:
        convs = isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d)
        if type(a) is not type(b) or (convs and (a.groups, a.dilation) != (b.groups, b.dilation)):
            return False
    for a, b in pairs:
        if isinstance(a, nn.Conv2d) and isinstance(b, nn.Conv2d):
            with torch.no_grad():
                b.weight.copy_(_middle(a.weight, *b.kernel_size))
        elif next(a.children(), None) is None:
            b.load_state_dict(a.state_dict())
    return True


def _reach(name: str) -> tuple[int, int]:
    """Kernel size and dilation of an operation."""
    return int(name.rpartition("x")[2]), 2 if name.startswith("dil") else 1


def _padding(name: str, shape: Geometry) -> list[int]:
    """So much that its window has the middle of the original's."""
    size, dilation = _reach(name)
    return [p - shape.size // 2 + size // 2 * dilation for p in shape.padding]


def _keeps_shape(name: str, shape: Geometry) -> bool:
    size, _ = _reach(name)
    if size % 2 == 0 or not name.endswith(f"_{size}x{size}"):
        return False  # it has no middle, or is a pair such as conv_1x3_3x1
    if name.startswith("dwconv") and shape.groups != shape.channels_in:
        return False
    padding = _padding(name, shape)
    if min(padding) < 0:
        return False  # the window would begin inside of the image
    if "pool" in name:
        return shape.channels_in == shape.channels_out and max(padding) <= size // 2
    return True


def _layers(name: str, shape: Geometry, *, bias: bool) -> "OrderedDict[str, nn.Module]":
    """The layers of an operation, with torch's initial weights."""
    (size, dilation), (up, left) = _reach(name), _padding(name, shape)
    c, d, groups = shape.channels_in, shape.channels_out, shape.groups
    if name.startswith("max_pool"):
        return OrderedDict(pool=nn.MaxPool2d(size, shape.stride, (up, left)))
    if name.startswith("avg_pool"):
        return OrderedDict(pool=nn.AvgPool2d(size, shape.stride, (up, left), count_include_pad=False))
    if not name.startswith(("sep_conv", "dil_conv")):
        conv = nn.Conv2d(c, d, size, shape.stride, (up, left), groups=groups, bias=bias)
        return OrderedDict(conv=conv)
    kernels = c * (2 if name.startswith("sep") else 1)
    depthwise = nn.Conv2d(c, kernels, size, shape.stride, (up, left), dilation, c, bias=False)
    return OrderedDict(depthwise=depthwise, pointwise=nn.Conv2d(kernels, d, 1, groups=groups, bias=bias))


@torch.no_grad()
def _begin(parts: "OrderedDict[str, nn.Module]", conv: nn.Conv2d) -> None:
    """Give an operation's layers weights with which it computes nearly what the convolution does."""
    last = next(reversed(parts.values()))
    if not isinstance(last, nn.Conv2d):
        return
    if last.bias is not None:
        assert conv.bias is not None
        last.bias.copy_(conv.bias)
    depthwise = parts.get("depthwise")
    if depthwise is None:
        last.weight.copy_(_middle(conv.weight, *last.kernel_size))
        return
    assert isinstance(depthwise, nn.Conv2d)
    size, dilation = depthwise.kernel_size[0], depthwise.dilation[0]
    kernel = _middle(conv.weight, size, size) if dilation == 1 else _on_grid(conv.weight, size)
    rank = depthwise.out_channels // depthwise.in_channels
    first, second = separable(kernel, conv.groups, rank)
    # A kernel that the approximation has no use for keeps its random weights behind zeros: if it were zero itself,
    # neither would ever get a gradient.
    unused = (first == 0).flatten(1).all(1)[:, None, None, None]
    depthwise.weight.copy_(torch.where(unused, depthwise.weight, first))
    last.weight.copy_(second)


def _middle(kernel: Tensor, height: int, width: int) -> Tensor:
    """The middle of a kernel; where it is too small, with zeros around it."""
    above, left = (height - kernel.shape[-2]) // 2, (width - kernel.shape[-1]) // 2
    return nn.functional.pad(kernel, (left, left, above, above))


def _on_grid(kernel: Tensor, size: int) -> Tensor:
    """A kernel of `size` x `size` with dilation 2 that does nearly what a dense one does.

    A weight between two points of the grid is shared out to both (neighbours in an image are alike); one beyond
    its end goes to the last.
    """
    reach, half = kernel.shape[-1] // 2, size // 2
    spread = kernel.new_zeros(2 * half + 1, 2 * reach + 1)
    for offset in range(-reach, reach + 1):
        for point in (offset // 2, (offset + 1) // 2):  # the same one where the offset is even
            spread[min(max(point, -half), half) + half, offset + reach] += 0.5
    return spread @ kernel @ spread.T


def separable(kernel: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor]:
    """The nearest kernels of depthwise convolutions and a 1x1 convolution behind them, by singular values.

    For each input channel the weights that read it are a matrix (outputs, pixels); its best approximation of a
    given rank is known in closed form (Eckart and Young 1936), and the channels do not interact.

    Args:
        kernel: (D, C / groups, k, k).
        groups: of the convolution.
        rank: depthwise kernels for each channel.

    Returns:
        Weights (rank * C, 1, k, k) of the depthwise and (D, rank * C / groups, 1, 1) of the 1x1 convolution.
    """
    outputs, inputs, *size = kernel.shape
    each = outputs // groups
    # One matrix (outputs, pixels) for each group and each of its channels.
    matrices = kernel.reshape(groups, each, inputs, -1).transpose(1, 2)
    wide = matrices.to(torch.promote_types(kernel.dtype, torch.float32))
    u, s, v = torch.linalg.svd(wide, full_matrices=False)
    missing = max(rank - s.shape[-1], 0)  # a kernel of one pixel has rank 1
    root = nn.functional.pad(s[..., :rank].sqrt(), (0, missing))
    u = nn.functional.pad(u[..., :rank], (0, missing)) * root[..., None, :]
    v = nn.functional.pad(v[..., :rank, :], (0, 0, 0, missing)) * root[..., None]
    first = v.reshape(groups * inputs * rank, 1, *size)
    second = u.permute(0, 2, 1, 3).reshape(outputs, inputs * rank, 1, 1)
    return first.to(kernel.dtype), second.to(kernel.dtype)
