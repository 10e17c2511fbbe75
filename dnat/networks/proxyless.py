"""ProxylessNAS's networks for a phone, a GPU and a CPU (Cai et al. 2019), for ImageNet and for small images.

A chain of inverted bottlenecks whose kernels and expansions were searched; blocks that the search removed are not
there. Source: the published configurations proxyless_{mobile,gpu,cpu}.config.

For small images the stem and the first stage with stride 2 keep the resolution, as in MobileNetV2's variant.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..naming import unknown
from .initial import kaiming

Block = tuple[int, int, int, int]
"""Kernel, expansion, stride, output channels."""


class Layout(NamedTuple):
    """One of the networks: channels of the stem, its blocks, channels of the last 1x1 convolution."""

    stem: int
    blocks: tuple[Block, ...]
    last: int


# fmt: off
LAYOUTS: dict[str, Layout] = {
    "mobile": Layout(32, (
        (3, 1, 1, 16), (5, 3, 2, 32), (3, 3, 1, 32),
        (7, 3, 2, 40), (3, 3, 1, 40), (5, 3, 1, 40), (5, 3, 1, 40),
        (7, 6, 2, 80), (5, 3, 1, 80), (5, 3, 1, 80), (5, 3, 1, 80),
        (5, 6, 1, 96), (5, 3, 1, 96), (5, 3, 1, 96), (5, 3, 1, 96),
        (7, 6, 2, 192), (7, 6, 1, 192), (7, 3, 1, 192), (7, 3, 1, 192), (7, 6, 1, 320)), 1280),
    "gpu": Layout(40, (
        (3, 1, 1, 24), (5, 3, 2, 32), (7, 3, 2, 56), (3, 3, 1, 56), (7, 6, 2, 112), (5, 3, 1, 112),
        (5, 6, 1, 128), (3, 3, 1, 128), (5, 3, 1, 128),
        (7, 6, 2, 256), (7, 6, 1, 256), (7, 6, 1, 256), (5, 6, 1, 256), (7, 6, 1, 432)), 1728),
    "cpu": Layout(40, (
        (3, 1, 1, 24), (3, 6, 2, 32), (3, 3, 1, 32), (3, 3, 1, 32), (3, 3, 1, 32),
        (3, 6, 2, 48), (3, 3, 1, 48), (3, 3, 1, 48), (5, 3, 1, 48), (3, 6, 2, 88), (3, 3, 1, 88),
        (5, 6, 1, 104), (3, 3, 1, 104), (3, 3, 1, 104), (3, 3, 1, 104),
        (5, 6, 2, 216), (5, 3, 1, 216), (5, 3, 1, 216), (3, 3, 1, 216), (5, 6, 1, 360)), 1432),
}
# fmt: on


def _norm(channels: int, eps: float = 1e-3) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps)


class MBConv(nn.Module):
    """Expansion (unless 1), depthwise convolution, projection; a shortcut where the shape is kept.

    Args:
        relu: class of the activation.
        eps: of the norms.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int,
        expansion: int,
        stride: int,
        relu: type[nn.Module] = nn.ReLU6,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [nn.Conv2d(channels_in, hidden, 1, bias=False), _norm(hidden, eps), relu()]
        depthwise = nn.Conv2d(hidden, hidden, kernel, stride, kernel // 2, groups=hidden, bias=False)
        layers += [depthwise, _norm(hidden, eps), relu()]
        layers += [nn.Conv2d(hidden, channels_out, 1, bias=False), _norm(channels_out, eps)]
        self.layers = nn.Sequential(*layers)
        self.same = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return x + self.layers(x) if self.same else self.layers(x)


class Proxyless(nn.Module):
    """One of ProxylessNAS's networks; see the module.

    Args:
        layout: "mobile", "gpu" or "cpu".
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        small: the variant for small images (CIFAR), else the one for ImageNet.
        width: every number of channels is multiplied by it and rounded, to at least 1.
        stem_stride: stride of the first convolution; by default 1 for small images and 2 for ImageNet's.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)

    Raises:
        ValueError: an unknown layout.
    """

    searched = True  # so that the preset "paper" takes cutout; see `Config.cutout`

    def __init__(
        self,
        layout: str,
        num_classes: int = 10,
        in_channels: int = 3,
        small: bool = True,
        width: float = 1.0,
        stem_stride: int | None = None,
    ) -> None:
        super().__init__()
        if layout not in LAYOUTS:
            raise unknown("layout of ProxylessNAS", layout, LAYOUTS)
        stem, blocks, mix = LAYOUTS[layout]
        channels, last = max(1, round(stem * width)), max(1, round(mix * width))
        self.stem = nn.Conv2d(in_channels, channels, 3, stem_stride or (1 if small else 2), 1, bias=False)
        self.bn1 = _norm(channels)
        self.blocks = nn.ModuleList()
        for i, (kernel, expansion, stride, size) in enumerate(blocks):
            out = max(1, round(size * width))
            keeps = small and i == 1  # the first block with stride 2
            self.blocks.append(MBConv(channels, out, kernel, expansion, 1 if keeps else stride))
            channels = out
        self.mix = nn.Conv2d(channels, last, 1, bias=False)
        self.bn2 = _norm(last)
        self.relu = nn.ReLU6()
        self.fc = nn.Linear(last, num_classes)
        kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.relu(self.bn1(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        x = self.relu(self.bn2(self.mix(x)))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
