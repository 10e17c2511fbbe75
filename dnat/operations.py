"""What an edge can compute: the operations that dnat adds to a network, and how existing ones are named.

Shapes: N images, C channels, H x W pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .naming import unknown
from .reductions import FactorizedReduce as FactorizedReduce


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
        if isinstance(self.op, nn.Identity):
            out = out.view_as(out)  # another tensor over the same memory: so the edge's two ends are told apart
        return out if self.drop_path is None else self.drop_path(out)

    def identity(self) -> nn.Module:
        """What stands in the operation's place when it becomes `skip_connect`."""
        return identity(self.channels, self.channels, self.stride)

    def extra_repr(self) -> str:
        """The edge's name and place, for `print(network)`."""
        return ", ".join(filter(None, (self.name, self.place)))


# NAT++'s thirteen (docs/methods.md B1) and those that its code and the published genotypes have beside them.
OPERATIONS: tuple[str, ...] = (
    "max_pool_2x2",
    "max_pool_3x3",
    "max_pool_5x5",
    "avg_pool_2x2",
    "avg_pool_3x3",
    "avg_pool_5x5",
    "skip_connect",
    "sep_conv_1x1",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "sep_conv_7x7",
    "dil_conv_1x1",
    "dil_conv_3x3",
    "dil_conv_5x5",
    "conv_1x1",
    "conv_3x3",
    "conv_5x5",
    "conv_1x3_3x1",
    "conv_1x7_7x1",
    "conv_7x1_1x7",
    "null",
)


class SeparableConv(nn.Sequential):
    """Twice: ReLU, depthwise convolution, 1x1 convolution, norm; the first carries the stride."""


class DilatedConv(nn.Sequential):
    """ReLU, depthwise convolution with dilation 2, 1x1 convolution, norm."""


class ReLUConv(nn.Sequential):
    """ReLU, one convolution or a pair (1xk and kx1), norm."""


class DropPath(nn.Dropout3d):
    """In train mode, zeros for some of the images; the others are scaled up so that the mean stays.

    It is torch's dropout of whole channels, where an image is one channel: it draws from torch's global generator.
    `set_drop_path` changes the probability in a whole network, for recipes that raise it from epoch to epoch.

    Shape:
        - Input and output: (N, C, H, W)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop, or pass on."""
        return super().forward(x.unsqueeze(1)).squeeze(1)


def set_drop_path(network: nn.Module, probability: float) -> None:
    """Set the probability of drop-path in a network of cells; one that was built with `drop_path=0` has none."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.p = probability


class EvenPool(nn.Module):
    """A 2x2 pool with stride 1 that keeps the size: windows reach right and down, and the border does not count.

    Shape:
        - Input and output: (N, C, H, W)
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.pool = _pool(kind, 2, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool with a border all around, and leave out the windows that reach left and up."""
        return self.pool(x)[:, :, 1:, 1:]


def _pool(kind: str, size: int, stride: int, padding: int) -> nn.Module:
    # Only a 2x2 pool of an odd size needs ceil_mode, to have as many rows and columns as all the other operations.
    ceil = size == 2 and stride > 1
    if kind == "max":
        return nn.MaxPool2d(size, stride, padding, ceil_mode=ceil)
    return nn.AvgPool2d(size, stride, padding, ceil_mode=ceil, count_include_pad=False)


def _depthwise(channels: int, size: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, size, stride, size // 2 * dilation, dilation, channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


def relu_conv(channels_in: int, channels_out: int, size: int = 1, stride: int = 1) -> ReLUConv:
    """ReLU, a convolution that keeps the size but for the stride, norm."""
    conv = nn.Conv2d(channels_in, channels_out, size, stride, size // 2, bias=False)
    return ReLUConv(nn.ReLU(), conv, nn.BatchNorm2d(channels_out))


def operation(name: str, channels: int, stride: int = 1) -> nn.Module:
    """An operation that a genotype may name, from `channels` channels to as many (docs/methods.md A2, B1).

    Of an input of H x W pixels the output has ceil(H / stride) x ceil(W / stride). Pools leave the border out of
    the mean. A pair like conv_1x7_7x1 has its stride along the long side of each. conv_7x1_1x7 is the same
    operation under its older name.

    Args:
        name: one of `OPERATIONS`.
        channels: of the input and the output.
        stride: 1 or 2.

    Raises:
        ValueError: an unknown name.

    >>> operation("sep_conv_3x3", 4, stride=2)(torch.zeros(1, 4, 9, 9)).shape
    torch.Size([1, 4, 5, 5])
    """
    if name not in OPERATIONS:
        raise unknown("operation", name, OPERATIONS)
    if name == "null":
        return NullEdge(channels, channels, stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, stride)
    kind, _, rest = name.partition("_")
    size = max(int(rest[rest.index("x") - 1]), int(rest[rest.index("x") + 1]))
    if kind in ("max", "avg"):
        even = size == 2 and stride == 1
        return EvenPool(kind) if even else _pool(kind, size, stride, padding=(size - 1) // 2)
    if kind == "sep":
        return SeparableConv(*_depthwise(channels, size, stride), *_depthwise(channels, size, 1))
    if kind == "dil":
        return DilatedConv(*_depthwise(channels, size, stride, dilation=2))
    if rest.count("x") == 1:
        return relu_conv(channels, channels, size, stride)
    pad = size // 2
    return ReLUConv(
        nn.ReLU(),
        nn.Conv2d(channels, channels, (1, size), (1, stride), (0, pad), bias=False),
        nn.Conv2d(channels, channels, (size, 1), (stride, 1), (pad, 0), bias=False),
        nn.BatchNorm2d(channels),
    )


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
