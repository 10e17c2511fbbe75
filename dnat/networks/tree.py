"""ProxylessNAS's network for small images (Cai et al. 2019): residual blocks with a searched tree inside.

54 blocks in three stages, widening by eight channels a block or not at all (as PyramidNet does). A block is its
shortcut (2x2 mean where the resolution is halved, zeros for the channels that are missing) beside

    BN, 1x1 conv to M channels; BN, ReLU, 3x3 conv in two groups to 2M channels (it has the stride), shuffle;
    the tree, back to M channels; BN, ReLU, 1x1 conv to 4M channels; BN

The tree splits its input into halves a and b of M channels and gives `a + A(a) + b + B(b)`; A is the BN of a sum
of two twigs. A twig is an operation whose result goes through two more operations, its leaves, and is the sum of
these: twelve searched operations a block. Each keeps shape and channels. They are the edges of this network.

    dw3, dw5, dw7    BN, ReLU, depthwise convolution, 1x1 convolution
    dw3d2            the same with dilation 2
    max3, avg3       3x3 pools with stride 1; the mean leaves the border out
    id               the identity

Source: the published configuration proxyless_cifar.config, and the authors' cifar_modules.py for what it means.
Where the norms are, that halves are added, and that the 3x3 convolution has the stride is in the configuration;
of the readings that were counted only this one gives both known sizes, 5.732 M parameters and 1213 M
multiply-adds.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..operations import CellOperation
from .initial import kaiming

# fmt: off
STAGES = (
    (
        "18 dw7(dw3d2,id) max3(dw7,max3) dw5(dw5,dw5) dw3d2(dw7,dw7)",
        "18 avg3(avg3,avg3) id(dw3,id) max3(dw3d2,id) dw7(dw3d2,dw3d2)",
        "20 dw7(dw3,avg3) id(dw5,avg3) dw3(dw3,avg3) dw3d2(dw3d2,dw5)",
        "22 avg3(dw5,dw3d2) dw5(dw3,dw3d2) dw3d2(dw7,dw3) dw7(id,dw7)",
        "24 avg3(dw5,dw3d2) id(dw3d2,dw5) dw7(dw7,avg3) max3(id,max3)",
        "24 dw7(dw7,max3) max3(dw3,dw5) avg3(dw3d2,dw3) dw7(id,id)",
        "26 dw3d2(id,max3) max3(dw7,dw7) dw7(dw5,dw3) dw7(id,id)",
        "28 dw3d2(dw5,dw7) dw3d2(dw5,dw7) max3(avg3,avg3) dw5(dw3,dw7)",
        "30 dw7(dw5,max3) dw3d2(id,id) max3(dw3,avg3) max3(avg3,dw3d2)",
        "32 dw5(dw3,id) id(dw3,dw7) dw3(dw5,dw7) id(dw5,dw7)",
        "32 dw7(dw7,dw5) avg3(dw3,dw5) dw3d2(avg3,dw3d2) id(dw3d2,dw3)",
        "34 dw5(avg3,dw5) dw3d2(dw3,dw3) avg3(dw7,dw7) dw5(dw3d2,dw3)",
        "36 max3(dw7,dw3) max3(dw7,dw3d2) dw3(avg3,dw5) max3(dw7,id)",
        "38 dw3(max3,dw3d2) dw7(dw7,dw3d2) dw5(id,dw3) dw3d2(dw7,dw3)",
        "38 dw3d2(max3,dw3) avg3(dw3d2,dw3d2) avg3(dw5,id) id(dw5,id)",
        "40 dw5(dw3d2,dw5) id(avg3,avg3) dw3d2(dw5,dw5) dw5(dw7,dw3)",
        "42 dw7(dw5,dw5) dw5(dw3d2,dw3) id(max3,dw7) dw3d2(dw3,dw7)",
        "44 max3(id,id) dw3d2(dw3,id) dw7(dw5,dw7) max3(id,dw3d2)",
    ),
    (
        "46 dw3d2(dw5,avg3) max3(avg3,dw7) dw5(dw7,dw3) avg3(avg3,max3)",
        "46 dw7(id,dw7) dw3d2(id,dw7) dw3d2(dw3,dw7) max3(max3,dw5)",
        "48 max3(avg3,dw3) dw3d2(id,dw3d2) max3(max3,dw5) max3(id,avg3)",
        "50 dw3d2(dw7,dw3) avg3(avg3,dw3) dw3(dw7,id) avg3(dw3d2,dw3d2)",
        "52 dw3d2(max3,avg3) max3(dw7,id) dw7(dw3d2,id) dw3d2(avg3,max3)",
        "52 dw7(max3,dw7) dw5(max3,id) max3(avg3,dw3d2) id(max3,dw7)",
        "54 id(avg3,dw5) dw5(max3,dw5) dw3d2(dw7,avg3) dw3d2(dw3d2,max3)",
        "56 dw3(avg3,dw3d2) id(dw3d2,dw3d2) dw3d2(avg3,avg3) dw3(avg3,dw3)",
        "58 dw3d2(max3,dw7) dw7(id,max3) max3(dw5,dw5) max3(dw5,dw3d2)",
        "60 dw3(dw7,dw3) dw7(avg3,id) max3(dw3,dw7) dw7(max3,max3)",
        "60 dw7(dw7,dw7) dw5(avg3,dw3) dw3(id,dw3d2) dw3(avg3,dw3)",
        "62 dw5(avg3,id) id(avg3,dw5) avg3(dw3,avg3) dw7(avg3,max3)",
        "64 id(avg3,dw3d2) dw3(id,dw7) id(dw7,max3) avg3(id,dw3d2)",
        "66 dw7(dw5,id) max3(dw7,dw3d2) max3(dw3d2,max3) dw7(dw7,dw7)",
        "66 dw3(max3,dw3) dw7(id,dw3) dw5(id,dw3) dw3(dw5,id)",
        "68 dw3d2(dw3d2,dw3) dw7(dw3d2,dw7) dw3(dw3,dw3d2) id(max3,id)",
        "70 max3(id,dw5) id(dw5,avg3) dw3(avg3,id) dw7(avg3,dw3d2)",
        "72 dw7(dw7,dw5) max3(dw3d2,avg3) dw7(dw7,dw5) dw3(dw5,dw5)",
    ),
    (
        "74 avg3(avg3,avg3) avg3(dw3d2,avg3) dw7(dw5,id) id(id,avg3)",
        "74 max3(id,avg3) dw7(dw5,id) id(avg3,id) id(dw7,id)",
        "76 dw3d2(dw7,max3) dw3(id,dw5) avg3(dw3,id) id(max3,avg3)",
        "78 dw7(avg3,dw5) dw7(avg3,dw3) max3(avg3,dw3) id(max3,max3)",
        "80 id(avg3,dw7) id(id,dw7) id(avg3,dw5) max3(avg3,dw7)",
        "80 dw3d2(dw5,id) id(max3,dw5) dw7(dw3d2,dw7) dw5(id,dw3d2)",
        "82 max3(id,avg3) max3(avg3,max3) dw3d2(id,dw5) avg3(dw3,id)",
        "84 dw7(dw5,dw7) dw7(dw7,avg3) dw3d2(dw3,max3) dw7(dw7,avg3)",
        "86 dw3d2(dw3d2,max3) avg3(dw3d2,dw3) dw7(id,dw3d2) dw3d2(max3,dw5)",
        "88 avg3(avg3,max3) dw3d2(dw3,max3) dw3d2(dw7,dw3d2) id(avg3,id)",
        "88 max3(avg3,dw7) max3(dw3,dw3) dw5(avg3,id) dw3d2(id,dw3)",
        "90 dw5(dw7,dw3d2) dw3d2(id,max3) max3(dw3,dw5) dw7(max3,id)",
        "92 dw7(dw3,max3) dw7(dw3d2,avg3) max3(max3,max3) dw5(dw5,max3)",
        "94 max3(id,avg3) dw5(dw3d2,dw3) dw5(dw7,dw3) dw3(dw7,dw7)",
        "94 id(avg3,dw5) dw3(dw7,dw7) id(dw7,dw7) dw7(dw3,avg3)",
        "96 dw5(dw5,dw3) max3(avg3,id) dw5(avg3,max3) dw5(dw5,id)",
        "98 dw3(dw3d2,dw3) max3(max3,avg3) id(max3,dw3d2) dw7(dw3,dw3)",
        "100 dw7(dw3,max3) dw7(dw5,id) dw5(max3,dw3) max3(dw3,dw7)",
    ),
)
"""For each block M, then the twigs of A and those of B: an operation and in parentheses its leaves."""
# fmt: on


class DepthConv(nn.Sequential):
    """BN, ReLU, depthwise convolution, 1x1 convolution; the shape stays."""

    def __init__(self, channels: int, kernel: int, dilation: int = 1) -> None:
        reach = kernel // 2 * dilation
        depthwise = nn.Conv2d(channels, channels, kernel, 1, reach, dilation, channels, bias=False)
        super().__init__(
            OrderedDict(
                norm=nn.BatchNorm2d(channels),
                relu=nn.ReLU(),
                depthwise=depthwise,
                pointwise=nn.Conv2d(channels, channels, 1, bias=False),
            )
        )


def _operation(name: str, channels: int) -> CellOperation:
    """A searched operation: an edge of the network."""
    if name == "id":
        return CellOperation("skip_connect", nn.Identity(), channels)
    if name == "max3":
        return CellOperation("max_pool_3x3", nn.MaxPool2d(3, 1, 1), channels)
    if name == "avg3":
        return CellOperation("avg_pool_3x3", nn.AvgPool2d(3, 1, 1, count_include_pad=False), channels)
    kernel, _, dilation = name.removeprefix("dw").partition("d")
    size = f"{kernel}x{kernel}" + (f"_d{dilation}" if dilation else "")
    return CellOperation(f"dw_conv_{size}", DepthConv(channels, int(kernel), int(dilation or 1)), channels)


class Twig(nn.Module):
    """An operation, then the sum of two more on its result.

    Args:
        text: as in `STAGES`, such as "dw7(dw3d2,id)".
        channels: of the input and the output.

    Shape:
        - Input and output: (N, C, H, W)
    """

    def __init__(self, text: str, channels: int) -> None:
        super().__init__()
        name, _, leaves = text.rstrip(")").partition("(")
        self.operation = _operation(name, channels)
        self.leaves = nn.ModuleList(_operation(leaf, channels) for leaf in leaves.split(","))

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the leaves."""
        x = self.operation(x)
        return self.leaves[0](x) + self.leaves[1](x)


class Half(nn.Module):
    """Two twigs and a norm: what is added to one half of the tree's input.

    Shape:
        - Input and output: (N, C, H, W)
    """

    def __init__(self, twigs: list[str], channels: int) -> None:
        super().__init__()
        self.twigs = nn.ModuleList(Twig(text, channels) for text in twigs)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """The norm of the twigs' sum."""
        return self.norm(self.twigs[0](x) + self.twigs[1](x))


class Tree(nn.Module):
    """The searched part of a block; see the module.

    Shape:
        - Input: (N, 2C, H, W)
        - Output: (N, C, H, W)
    """

    def __init__(self, twigs: list[str], channels: int) -> None:
        super().__init__()
        self.first = Half(twigs[:2], channels)
        self.second = Half(twigs[2:], channels)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both halves and of what is added to them."""
        a, b = x.chunk(2, dim=1)
        return a + self.first(a) + b + self.second(b)


class Shortcut(nn.Module):
    """The mean of 2x2 pixels where the stride is 2, zeros behind the channels that are there.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        # A window at an odd edge has only the pixels that are there, so that any size works.
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()
        self.missing = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """Average and pad."""
        return nn.functional.pad(self.pool(x), (0, 0, 0, 0, 0, self.missing))


class TreeBlock(nn.Module):
    """A residual block with a tree inside; see the module.

    Args:
        twigs: those of A and B, as in `STAGES`.
        inner: channels of the tree, M.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels_in: int, channels_out: int, inner: int, stride: int, twigs: list[str]) -> None:
        super().__init__()
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else Shortcut(channels_in, channels_out, stride)
        self.branch = nn.Sequential(
            OrderedDict(
                norm1=nn.BatchNorm2d(channels_in),
                conv1=nn.Conv2d(channels_in, inner, 1, bias=False),
                norm2=nn.BatchNorm2d(inner),
                relu2=nn.ReLU(),
                conv2=nn.Conv2d(inner, 2 * inner, 3, stride, 1, groups=2, bias=False),
                shuffle=nn.ChannelShuffle(2),
                tree=Tree(twigs, inner),
                norm3=nn.BatchNorm2d(inner),
                relu3=nn.ReLU(),
                conv3=nn.Conv2d(inner, channels_out, 1, bias=False),
                norm4=nn.BatchNorm2d(channels_out),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return self.shortcut(x) + self.branch(x)


class ProxylessTree(nn.Module):
    """ProxylessNAS's network for small images; see the module.

    Args:
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        width: M of every block is multiplied by it and rounded to an even number, at least 2.
        depth: how many of each stage's 18 blocks there are; the first ones are taken.
        stem_stride: stride of the first convolution, for larger images.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)

    Raises:
        ValueError: a depth that the stages do not have.
    """

    searched = True  # so that the preset "paper" takes cutout; see `Config.cutout`

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        depth: int = 18,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if not 1 <= depth <= len(STAGES[0]):
            raise UsageError(f"depth is the number of blocks a stage, from 1 to {len(STAGES[0])}, not {depth}")
        channels = max(1, round(16 * width))
        self.stem = nn.Conv2d(in_channels, channels, 3, stem_stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.blocks = nn.ModuleList()
        for stage, texts in enumerate(STAGES):
            for i, text in enumerate(texts[:depth]):
                size, *twigs = text.split()
                inner = 2 * max(1, round(int(size) * width / 2))  # even: the convolution has two groups
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(TreeBlock(channels, 4 * inner, inner, stride, twigs))
                channels = 4 * inner
        self.norm2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.norm1(self.stem(x))
        for block in self.blocks:
            x = block(x)
        x = self.relu(self.norm2(x))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
