"""Residual networks for small images (He et al. 2016, section 4.2), plain or with NAT's null edges.

ResNet with n blocks a stage has 6n + 2 layers: three stages of widths w, 2w, 4w (w = 16) at full, half and
quarter resolution. Shortcuts carry no weights (option A): they take every second pixel and pad with zero channels.

With `skips=True` every block is a cell of NAT's ResBlock genotype (reference: NAT's genotypes, N = 4):

    node 0: input of the previous block      node 1: input of this block
    node 2 = skip(1) + null(0)               node 3 = conv(2) + null(0)
    node 4 = conv(3) + null(0)               node 5 = skip(2) + skip(4), the output

The three null edges compute nothing until a transformation connects them.
"""

import torch
from torch import Tensor, nn

from ..operations import NullEdge
from .initial import kaiming


class Shortcut(nn.Module):
    """Option A: every `stride`-th pixel, zeros for the channels that are missing; no weights.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = channels_out - channels_in
        self.padding = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Subsample and pad."""
        # A pool of single pixels takes every second one as a slice would; its gradient keeps the memory layout.
        if self.stride > 1:
            x = nn.functional.avg_pool2d(x, 1, self.stride)
        return nn.functional.pad(x, (0, 0, 0, 0, *self.padding))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = channels_in == channels_out and stride == 1
        self.shortcut = nn.Identity() if same else Shortcut(channels_in, channels_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out)) + self.shortcut(x)
        return self.relu(out)


class SkipBlock(BasicBlock):
    """A `BasicBlock` with the null edges of NAT's ResBlock genotype from the previous block's input.

    Args:
        previous: channels and stride of the way from node 0 to this block's input.

    Shape:
        - Inputs: (N, C_0, H_0, W_0) for node 0, (N, C_in, H, W) for node 1
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, previous: tuple[int, int]) -> None:
        super().__init__(channels_in, channels_out, stride)
        channels, past = previous
        self.skip2 = NullEdge(channels, channels_in, past)
        self.skip3 = NullEdge(channels, channels_out, past * stride)
        self.skip4 = NullEdge(channels, channels_out, past * stride)

    def forward(self, previous: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        """The block's output from the previous block's input and this one's."""
        x = x + self.skip2(previous)
        out = self.relu(self.bn1(self.conv1(x)) + self.skip3(previous))
        out = self.bn2(self.conv2(out)) + self.skip4(previous) + self.shortcut(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network for small images; see the module.

    Args:
        blocks: blocks in each of the three stages (3: ResNet20, 9: ResNet56).
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        width: channels of the first stage; the others have twice and four times as many. Where it is not whole,
            each stage has the nearest whole number.
        skips: whether the null edges of NAT's genotype are there.
        stem_stride: stride of the first convolution: 2 for images of 64 x 64.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 16,
        skips: bool = False,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        channels = max(1, round(width))
        previous = channels, 1
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        stages = []
        for stage in (1, 2, 3):
            layer = nn.ModuleList()
            for i in range(blocks):
                out, stride = max(1, round(width * 2 ** (stage - 1))), 2 if stage > 1 and i == 0 else 1
                if skips:
                    layer.append(SkipBlock(channels, out, stride, previous))
                else:
                    layer.append(BasicBlock(channels, out, stride))
                channels, previous = out, (channels, stride)
            stages.append(layer)
        self.layer1, self.layer2, self.layer3 = stages
        self.skips = skips
        self.fc = nn.Linear(channels, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.relu(self.bn1(self.conv1(x)))
        previous = x  # the first block has no block before it: both its input nodes are the stem
        for layer in (self.layer1, self.layer2, self.layer3):
            for block in layer:
                previous, x = x, block(previous, x) if self.skips else block(x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
