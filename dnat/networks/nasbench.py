"""Networks of NAS-Bench-201 (Dong & Yang 2020) and NAS-Bench-Macro (Su et al. 2021), for small images.

NAS-Bench-201: three stages of N equal cells with C, 2C, 4C channels, a residual block between stages. A cell has
four nodes, each the sum of an operation on every node before it: six edges. `parse_cell` reads both forms:

    "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"
    "301420"     one digit for each of those edges, the operation's place in `OPERATIONS`

As in networks of genotypes, the edges of such a network are those of its cell alone, and in Cell mode an edge
shares theta with the same edge of every other cell, in all stages. They bear the names of genotypes (`NAMES`).

NAS-Bench-Macro: eight layers, each the identity, MBConv 3x3 with expansion 3, or MBConv 5x5 with expansion 6;
a code such as "01201210". Its first stage has two layers and the others three; the first layer of each stage
halves the resolution and doubles the channels, from 32 on. Source: xiusu/NAS-Bench-Macro, train/model.py.
"""

import re

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..naming import unknown
from ..operations import CellOperation, NullEdge
from .cells import operation
from .proxyless import MBConv

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""NAS-Bench-201's operations in the order of its search space."""
NAMES = dict(zip(OPERATIONS, ("null", "skip_connect", "conv_1x1", "conv_3x3", "avg_pool_3x3"), strict=True))
"""What genotypes call them."""
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""From and to of a cell's six edges, in the order of its string."""
LAYERS = ((64, 2), (64, 1), (128, 2), (128, 1), (128, 1), (256, 2), (256, 1), (256, 1))
"""Channels and stride of NAS-Bench-Macro's eight layers"""


def parse_cell(text: str) -> tuple[str, ...]:
    """The six operations of a NAS-Bench-201 cell, in the order of `EDGES`, from either form.

    Raises:
        ValueError: the text is no such cell; the message says at which position.

    >>> parse_cell("301420")
    ('nor_conv_3x3', 'none', 'skip_connect', 'avg_pool_3x3', 'nor_conv_1x1', 'none')
    """
    if not text.startswith("|"):
        return tuple(OPERATIONS[i] for i in _digits(text, len(EDGES), len(OPERATIONS)))
    found, position = [], 0
    for i, (source, target) in enumerate(EDGES):
        if source == 0:
            position = _expect(text, "|" if i == 0 else "+|", position)
        match = re.compile(r"([a-z0-9_]+)~").match(text, position)
        if match is None:
            raise _malformed(text, position, f"an operation and '~' for the edge {source} -> {target}")
        if match[1] not in OPERATIONS:
            error = unknown("operation of NAS-Bench-201", match[1], OPERATIONS)
            raise UsageError(f"cell {text!r}, position {position}: {error}")
        found.append(match[1])
        position = _expect(text, f"{source}|", match.end())
    if position < len(text):
        raise _malformed(text, position, "the end")
    return tuple(found)


def parse_layers(code: str) -> tuple[int, ...]:
    """The eight layers of a NAS-Bench-Macro network, each 0, 1 or 2; see the module.

    Raises:
        ValueError: the code cannot be read; the message says at which position.

    >>> parse_layers("01201210")
    (0, 1, 2, 0, 1, 2, 1, 0)
    """
    return tuple(_digits(code, len(LAYERS), 3))


def _expect(text: str, wanted: str, position: int) -> int:
    if not text.startswith(wanted, position):
        raise _malformed(text, position, repr(wanted))
    return position + len(wanted)


def _malformed(text: str, position: int, wanted: str) -> ValueError:
    return UsageError(f"cell {text!r}, position {position}: expected {wanted}, not {text[position:][:8]!r}")


def _digits(text: str, length: int, kinds: int) -> list[int]:
    for position, digit in enumerate(text):
        if digit not in "0123456789"[:kinds]:
            raise UsageError(f"code {text!r}, position {position}: {digit!r} is not a digit from 0 to {kinds - 1}")
    if len(text) != length:
        raise UsageError(f"code {text!r} has {len(text)} digits; {length} are needed")
    return [int(digit) for digit in text]


def _unit(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Module:
    conv = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(channels_out))


def _edge(name: str, channels: int, place: str) -> nn.Module:
    """An operation of NAS-Bench-201 as an edge of a searched cell; they are those of genotypes, to the bit."""
    if name == "none":
        return NullEdge(channels, channels, 1, place)
    return CellOperation(NAMES[name], operation(NAMES[name], channels), channels, 1, place)


class Cell201(nn.Module):
    """A cell of NAS-Bench-201; an edge "none" is a null edge.

    Edge number i is at `edges.i`, in the order of `EDGES`. Its place is "cell:2.1" for the edge from node 1 to
    node 3, which is the third that has edges, as in genotypes.

    Shape:
        - Input: (N, C, H, W)
        - Output: (N, C, H, W)
    """

    def __init__(self, operations: tuple[str, ...], channels: int) -> None:
        super().__init__()
        places = (f"cell:{target - 1}.{source}" for source, target in EDGES)
        pairs = zip(operations, places, strict=True)
        self.edges = nn.ModuleList(_edge(name, channels, place) for name, place in pairs)

    def forward(self, x: Tensor) -> Tensor:
        """The last node."""
        e = self.edges
        first = e[0](x)
        second = e[1](x) + e[2](first)
        return e[3](x) + e[4](first) + e[5](second)


class Reduction201(nn.Module):
    """The residual block between stages: half the resolution, other channels.

    Shape:
        - Input: (N, C_in, H, W)
        - Output: (N, C_out, H / 2, W / 2)
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.a = _unit(channels_in, channels_out, 3, 2)
        self.b = _unit(channels_out, channels_out, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        return self.shortcut(x) + self.b(self.a(x))


class NASBench201(nn.Module):
    """A network of NAS-Bench-201; see the module.

    Args:
        cell: the cell in either form.
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        width: channels of the first stage.
        cells: cells in each of the three stages.
        stem_stride: stride of the first convolution: 2 for images of 64 x 64.

    Shape:
        - Input: (N, in_channels, H, W), H and W divisible by 4
        - Output: (N, num_classes)

    Raises:
        ValueError: the cell cannot be read.
    """

    def __init__(
        self,
        cell: str,
        num_classes: int = 10,
        in_channels: int = 3,
        width: int = 16,
        cells: int = 5,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        operations = parse_cell(cell)
        conv = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.layers = nn.ModuleList()
        for stage in range(3):
            if stage:
                self.layers.append(Reduction201(width * 2 ** (stage - 1), width * 2**stage))
            self.layers.extend(Cell201(operations, width * 2**stage) for _ in range(cells))
        self.bn = nn.BatchNorm2d(width * 4)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(width * 4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        x = self.relu(self.bn(x))
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


class NASBenchMacro(nn.Module):
    """A network of NAS-Bench-Macro; see the module. An identity that must change the shape is a 1x1 convolution.

    Args:
        code: eight digits: 0 identity, 1 MBConv 3x3 with expansion 3, 2 MBConv 5x5 with expansion 6.
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        width: every number of channels is multiplied by it and rounded, to at least 1.
        stem_stride: stride of the first convolution: 2 for images of 64 x 64.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)

    Raises:
        ValueError: the code cannot be read.
    """

    def __init__(
        self,
        code: str,
        num_classes: int = 10,
        in_channels: int = 3,
        width: float = 1.0,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        kinds = parse_layers(code)
        channels, last = max(1, round(32 * width)), max(1, round(1280 * width))
        conv = nn.Conv2d(in_channels, channels, 3, stem_stride, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())
        self.layers = nn.ModuleList()
        for kind, (size, stride) in zip(kinds, LAYERS, strict=True):
            out = max(1, round(size * width))
            if kind:
                layer: nn.Module = MBConv(channels, out, 1 + 2 * kind, 3 * kind, stride, nn.ReLU, 1e-5)
            elif stride == 1 and channels == out:
                layer = nn.Identity()
            else:
                shape = nn.Conv2d(channels, out, 1, stride, bias=False)
                layer = nn.Sequential(shape, nn.BatchNorm2d(out))
            self.layers.append(layer)
            channels = out
        mix = nn.Conv2d(channels, last, 1, bias=False)
        self.mix = nn.Sequential(mix, nn.BatchNorm2d(last), nn.ReLU())
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.mix(x), 1), 1))
