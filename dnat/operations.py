"""What an edge can compute: the operations that dnat adds to a network, and how existing ones are named.

Shapes: N images, C channels, H x W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


class FactorizedReduce(nn.Module):
    """The "identity" of an edge whose output has half the resolution or other channels.

    ReLU, then two 1x1 convolutions with the edge's stride, the second on the input shifted by one pixel so that
    no pixel is ignored, their outputs side by side, and a batch norm. It has weights and costs
    `C_out * C_in * H_out * W_out` multiply-adds. With stride 1 it is one plain 1x1 convolution.

    Source: DARTS's FactorizedReduce, which NAT uses for `skip_connect` on reducing edges (docs/methods.md A2).

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))

    >>> FactorizedReduce(4, 8, stride=2)(torch.zeros(1, 4, 8, 8)).shape
    torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.relu = nn.ReLU()
        shifted = channels_out // 2 if stride > 1 else 0
        self.conv1 = nn.Conv2d(channels_in, channels_out - shifted, 1, stride, bias=False)
        self.conv2 = nn.Conv2d(channels_in, shifted, 1, stride, bias=False) if shifted else None
        self.bn = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the reduction; see the class."""
        x = self.relu(x)
        out = self.conv1(x)
        if self.conv2 is not None:
            # Zeros stand in for the row and column that the shift leaves empty, so that any size works.
            shifted = nn.functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
            out = torch.cat([out, self.conv2(shifted)], dim=1)
        return self.bn(out)


class NullEdge(nn.Module):
    """A place in a network where nothing is connected yet, but a skip connection may grow.

    It has no weights and outputs zeros, so that a network with null edges computes what it computes without them.
    NAT's genotypes hold such edges (the `null` operations), and a transformation may turn one into an identity.

    Args:
        channels_in, channels_out, stride: of the way that the edge bridges.
        place: of an edge of a genotype's cell, where it stands in it; see `CellOperation`.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride)), all zero
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, place: str | None = None) -> None:
        super().__init__()
        self.channels_in, self.channels_out, self.stride = channels_in, channels_out, stride
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the output's shape."""
        n, _, height, width = x.shape
        # One zero, broadcast: nothing is written, and a sum takes the layout of its other operand.
        shape = (n, self.channels_out, -(-height // self.stride), -(-width // self.stride))
        return x.new_zeros(()).expand(shape)

    def identity(self) -> nn.Module:
        """What this edge becomes when it is connected: `nn.Identity` where the shape fits, else a reduction."""
        return identity(self.channels_in, self.channels_out, self.stride)

    def extra_repr(self) -> str:
        """The shape of the edge, for `print(network)`."""
        return f"{self.channels_in}, {self.channels_out}, stride={self.stride}"


def identity(channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """What `skip_connect` is on an edge: `nn.Identity` where the shape is kept, else a `FactorizedReduce`."""
    if channels_in == channels_out and stride == 1:
        return nn.Identity()
    return FactorizedReduce(channels_in, channels_out, stride)


class CellOperation(nn.Module):
    """An edge of a searched cell: one named operation, which changes as a whole or not at all.

    Args:
        name: the operation's name in the genotype, such as "sep_conv_3x3" or "skip_connect".
        op: what computes it.
        channels: of input and output.
        stride: 1, or 2 on the edges of a reducing cell that start at its inputs.
        place: "normal:2.1" is the second edge into the third node of the list, in normal cells; edges at one place
            share theta in Cell mode. None: the edge is alone.
        drop_path: what follows the operation in training; None where nothing does.

    Shape:
        - Input: (N, channels, H, W)
        - Output: (N, channels, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        name: str,
        op: nn.Module,
        channels: int,
        stride: int = 1,
        place: str | None = None,
        drop_path: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.name, self.channels, self.stride, self.place = name, channels, stride, place
        self.op, self.drop_path = op, drop_path

    def forward(self, x: Tensor) -> Tensor:
        """What the operation computes."""
        out = self.op(x)
        if out is x:
            out = x.view(x.shape)  # another tensor over the same memory: so the edge's two ends are told apart
        return out if self.drop_path is None else self.drop_path(out)

    def identity(self) -> nn.Module:
        """What stands in the operation's place when it becomes `skip_connect`."""
        return identity(self.channels, self.channels, self.stride)

    def extra_repr(self) -> str:
        """The edge's name and place, for `print(network)`."""
        return ", ".join(filter(None, (self.name, self.place)))


def copying_identity() -> nn.Module:
    """An identity whose output is a new tensor, as a plain torch layer (a padding of width 0 copies).

    Needed where the code behind an edge writes into the edge's output in place (`out += x`): an `nn.Identity`
    would hand it the tensor that others still read.

    >>> x = torch.ones(2, 3)
    >>> y = copying_identity()(x)
    >>> torch.equal(x, y), x.data_ptr() == y.data_ptr()
    (True, False)
    """
    return nn.ConstantPad1d(0, 0.0)


def forgiving_identity(*, copies: bool = False) -> nn.Module:
    """An identity that takes any further arguments and forgets them; `nn.Identity` takes none.

    Needed where a layer is called with a mask, a None or a switch beside its input. Plain torch: it loads
    without dnat.

    Args:
        copies: give a copy, as `copying_identity` does.

    >>> forgiving_identity()(torch.ones(2), None, head_mask=None)
    tensor([1., 1.])
    """
    graph = torch.fx.Graph()
    first = graph.placeholder("x")
    graph.placeholder("*args")
    graph.placeholder("**kwargs")
    graph.output(graph.call_method("clone", (first,)) if copies else first)
    return torch.fx.GraphModule({}, graph, class_name="Identity")


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalizes and does nothing else (timm's norms with a built-in activation may do more)."""
    extras = (getattr(module, name, None) for name in ("act", "drop"))
    return isinstance(module, NORMS) and all(extra is None or isinstance(extra, nn.Identity) for extra in extras)


@dataclass(frozen=True)
class Geometry:
    """What a convolution does to the shape of an image; see `geometry`.

    Attributes:
        channels_in, channels_out: of its input and output.
        size: side of its kernel, odd.
        stride, padding: along height and width.
        groups: into which the channels are split.
    """

    channels_in: int
    channels_out: int
    size: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    groups: int


def geometry(module: nn.Module) -> Geometry | None:
    """The geometry of a plain two-dimensional convolution with a square kernel of odd size, without dilation.

    None for every other module: also for a convolution that pads with anything but zeros, of complex numbers, or
    whose class computes something else than torch's (timm's, which pad by the size of the image).

    >>> geometry(nn.Conv2d(3, 8, 3, stride=2, padding=1))
    Geometry(channels_in=3, channels_out=8, size=3, stride=(2, 2), padding=(1, 1), groups=1)
    """
    own = (nn.Conv2d.forward, nn.Conv2d._conv_forward)
    if not isinstance(module, nn.Conv2d) or (type(module).forward, type(module)._conv_forward) != own:
        return None
    size = module.kernel_size[0]
    if set(module.kernel_size) != {size} or size % 2 == 0 or set(module.dilation) != {1}:
        return None
    if module.padding_mode != "zeros" or any(p.is_complex() for p in module.parameters()):
        return None
    padding = {"same": (size // 2, size // 2), "valid": (0, 0)}.get(str(module.padding)) or module.padding
    assert isinstance(padding, tuple)
    return Geometry(
        module.in_channels,
        module.out_channels,
        size,
        (module.stride[0], module.stride[1]),
        (int(padding[0]), int(padding[1])),
        module.groups,
    )


def operation_name(module: nn.Module) -> str:
    """The name by which the field knows an operation: `conv_3x3`, `dwconv_5x5`, `linear`, else the class.

    >>> operation_name(nn.Conv2d(4, 4, 3, groups=4)), operation_name(nn.Linear(2, 2))
    ('dwconv_3x3', 'linear')
    """
    if isinstance(module, CONVOLUTIONS):
        size = "x".join(map(str, module.kernel_size))
        depthwise = module.groups == module.in_channels
        prefix = "conv" if module.groups == 1 else "dwconv" if depthwise else "gconv"
        dilation = "" if set(module.dilation) == {1} else f"_d{max(module.dilation)}"
        return f"{prefix}_{size}{dilation}"
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, NullEdge):
        return "null"
    return module.name if isinstance(module, CellOperation) else type(module).__name__
