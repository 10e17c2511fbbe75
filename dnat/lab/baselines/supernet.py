"""The supernet: one network with the weights of all genotypes (NAT, section 4.1; docs/methods.md A2, A6)."""

import functools
import operator
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ...networks.cells import operation, relu_conv
from ...networks.genotypes import CellGenotype, Genotype, pruned
from ...operations import FactorizedReduce


class SharedCell(nn.Module):
    """A cell with the weights of every operation between every pair of its nodes; one genotype's at a time runs.

    Two edges of a node that have the same input and operation share their weights. Norms have no weights of their
    own, and pools have norms.

    Args:
        nodes: that are no inputs.
        operations: their names.
        channels_in: channels of the outputs of the two cells before it.
        channels: channels of each node.
        reduces: whether edges from nodes 0 and 1 have stride 2.
        after_reduction: whether the output of the cell before the last has twice the last one's resolution.

    Shape:
        - Inputs: (N, channels_in[0], H_0, W_0), (N, channels_in[1], H, W)
        - Output: (N, channels * nodes, ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        nodes: int,
        operations: Sequence[str],
        channels_in: tuple[int, int],
        channels: int,
        *,
        reduces: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        first, second = channels_in
        self.channels, self.reduces = channels, reduces
        self.input0 = FactorizedReduce(first, channels, 2) if after_reduction else relu_conv(first, channels)
        self.input1 = relu_conv(second, channels)
        self.edges = nn.ModuleDict()
        for node in range(2, nodes + 2):
            for source in range(node):
                stride = 2 if reduces and source < 2 else 1
                made = {name: _shared(name, channels, stride) for name in operations if name != "null"}
                self.edges[f"{source}-{node}"] = nn.ModuleDict(made)
        _without_weights(self)

    def forward(self, cell: CellGenotype, previous: Tensor, x: Tensor) -> Tensor:
        """What a genotype's cell computes; nodes that are not in its output are zeros there."""
        second = self.input1(x)
        values: list[Tensor | None] = [self.input0(previous), second]
        n, _, height, width = second.shape
        if self.reduces:
            height, width = -(-height // 2), -(-width // 2)
        # A zero that nothing is written to; what only it feeds is not computed.
        zero = x.new_zeros(()).expand(n, self.channels, height, width)
        for number, node in enumerate(cell.nodes, 2):
            terms = [
                cast(nn.ModuleDict, self.edges[f"{edge.input}-{number}"])[edge.operation](source)
                for edge in node
                if edge.operation != "null" and (source := values[edge.input]) is not None
            ]
            values.append(functools.reduce(operator.add, terms) if terms else None)
        shown = (value if i in cell.concat else None for i, value in enumerate(values) if i >= 2)
        return torch.cat([zero if value is None else value for value in shown], 1)


class Supernet(nn.Module):
    """A network of shared cells, in DARTS's layout (docs/methods.md A6), that computes one genotype at a time.

    Args:
        genotype: which it computes at first; all that it will compute have as many nodes.
        operations: the operations that genotypes may have.
        channels: of each node in the first third of the cells.
        layers: number of cells.
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        stem_stride: stride of the first convolution: 2 for images of 64 x 64.

    Attributes:
        genotype: what it computes now. Set it with `choose`.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)
    """

    def __init__(
        self,
        genotype: Genotype,
        operations: Sequence[str],
        channels: int = 20,
        layers: int = 8,
        num_classes: int = 10,
        in_channels: int = 3,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        nodes, width = len(genotype.normal.nodes), 3 * channels
        conv = nn.Conv2d(in_channels, width, 3, stem_stride, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        before, last, reduced = width, width, False
        for i in range(layers):
            reduces = i in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduces else 1
            self.cells.append(
                SharedCell(nodes, operations, (before, last), channels, reduces=reduces, after_reduction=reduced)
            )
            before, last, reduced = last, channels * nodes, reduces
        self.fc = nn.Linear(last, num_classes)
        self.genotype, self._running = genotype, _running(genotype)

    def choose(self, genotype: Genotype) -> None:
        """Compute another genotype from now on."""
        self.genotype, self._running = genotype, _running(genotype)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        previous = x = self.stem(x)
        for cell in self.cells:
            previous, x = x, cell(self._running[int(cast(SharedCell, cell).reduces)], previous, x)
        scores: Tensor = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return scores


def _running(genotype: Genotype) -> tuple[CellGenotype, CellGenotype]:
    # What nothing reads is not computed.
    return pruned(genotype.normal), pruned(genotype.reduce)


def _shared(name: str, channels: int, stride: int) -> nn.Module:
    made = operation(name, channels, stride)
    return nn.Sequential(made, nn.BatchNorm2d(channels)) if "_pool_" in name else made


def _without_weights(module: nn.Module) -> None:
    """Take the weights of batch norms away: what follows a shared operation is not always the same (DARTS)."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.affine = False
            norm.register_parameter("weight", None)
            norm.register_parameter("bias", None)
