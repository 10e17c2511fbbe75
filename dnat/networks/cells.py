"""Networks of cells, from a genotype: the layout that DARTS trains, for small images and for ImageNet's.

A stem, then `layers` cells, each of which reads the outputs of the two before it; the cells at one and two thirds
of the depth reduce: they halve the resolution and double the channels. Then the mean over all pixels, and a linear
classifier. Source: quark0/darts, cnn/model.py, and NAT's evaluation network, which is the same.
"""

import copy
import functools
import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..layouts import with_dense_gradients
from ..operations import (
    CellOperation,
    DropPath,
    FactorizedReduce,
    NullEdge,
    operation,
    relu_conv,
)
from ..seeds import Stream, torch_seed
from .genotypes import CellEdge, CellGenotype, Genotype, pruned, read_genotype


def _edge(name: str, channels: int, stride: int, place: str, drop_path: float) -> nn.Module:
    """An operation at its place, with drop-path behind it where it has a say: not behind an identity."""
    if name == "null":
        return NullEdge(channels, channels, stride, place)
    module = operation(name, channels, stride)
    drops = drop_path > 0 and not isinstance(module, nn.Identity)
    return CellOperation(name, module, channels, stride, place, DropPath(drop_path) if drops else None)


def _present(node: tuple[CellEdge, ...], skips: bool) -> list[int]:
    """The edges of a node that are built: without its null edges if they are not wanted, but never none at all."""
    real = [i for i, edge in enumerate(node) if edge.operation != "null"]
    return list(range(len(node))) if skips else real or [0]


class Cell(nn.Module):
    """A cell of a genotype.

    Args:
        cell: what it computes.
        kind: what its places are called, "normal" or "reduce"; see `operations.CellOperation`.
        channels_in: channels of the outputs of the two cells before it.
        channels: channels of each node.
        reduces: whether the edges from nodes 0 and 1 have stride 2.
        after_reduction: whether the output of the cell before the last has twice the last one's resolution.
        drop_path: the probability of drop-path on every edge that computes something; 0: no such modules.
        skips: whether null edges are there, so that they may be connected; they compute nothing.

    Shape:
        - Inputs: (N, channels_in[0], H_0, W_0), (N, channels_in[1], H, W)
        - Output: (N, channels * len(cell.concat), ceil(H / stride), ceil(W / stride))
    """

    def __init__(
        self,
        cell: CellGenotype,
        kind: str,
        channels_in: tuple[int, int],
        channels: int,
        *,
        reduces: bool = False,
        after_reduction: bool = False,
        drop_path: float = 0.0,
        skips: bool = True,
    ) -> None:
        super().__init__()
        self.kind, self.channels_in, self.channels = kind, channels_in, channels
        self.reduces, self.after_reduction, self.drop_path = reduces, after_reduction, drop_path
        first, second = channels_in
        reduction = FactorizedReduce(first, channels, 2) if after_reduction else relu_conv(first, channels)
        self.input0: nn.Module = reduction
        self.input1: nn.Module = relu_conv(second, channels)
        self.nodes = nn.ModuleList()
        for i, node in enumerate(cell.nodes):
            edges = (self.edge(i, j, node[j]) for j in _present(node, skips))
            self.nodes.append(nn.ModuleList(edges))
        self.inputs = tuple(tuple(node[j].input for j in _present(node, skips)) for node in cell.nodes)
        self.concat = cell.concat

    def edge(self, node: int, place: int, edge: CellEdge) -> nn.Module:
        """A new module for an edge of this cell, with fresh weights."""
        where = f"{self.kind}:{node}.{place}"
        return _edge(edge.operation, self.channels, self.stride(edge), where, self.drop_path)

    def stride(self, edge: CellEdge) -> int:
        """What an edge divides the resolution by."""
        return 2 if self.reduces and edge.input < 2 else 1

    def forward(self, previous: Tensor, x: Tensor) -> Tensor:
        """The cell's output from the outputs of the two cells before it, the last one second."""
        values = [self.input0(previous), self.input1(x)]
        for edges, inputs in zip(self.nodes, self.inputs, strict=True):
            pairs = zip(cast(nn.ModuleList, edges), inputs, strict=True)
            terms = [edge(values[i]) for edge, i in pairs]
            values.append(functools.reduce(operator.add, terms))
        return with_dense_gradients(torch.cat([values[i] for i in self.concat], dim=1))


class AuxiliaryHead(nn.Module):
    """A second classifier, on the second reducing cell's output, which helps deep networks to train.

    It is there for training only: what a network costs is counted without it.

    Args:
        channels: of the input.
        num_classes: classes to tell apart.
        imagenet: DARTS's head for ImageNet: a pool with stride 2 instead of 3, and no norm at the end.

    Shape:
        - Input: (N, channels, H, W), H and W at least 8 (for ImageNet 7)
        - Output: (N, num_classes)
    """

    training_only = True

    def __init__(self, channels: int, num_classes: int, *, imagenet: bool = False) -> None:
        super().__init__()
        layers = [
            nn.ReLU(),
            nn.AvgPool2d(5, 2 if imagenet else 3, count_include_pad=False),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([] if imagenet else [nn.BatchNorm2d(768)]),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        ]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.fc(torch.flatten(self.features(x), 1))


class Scores(NamedTuple):
    """What a network with an auxiliary head returns in train mode: its class scores, and the head's."""

    logits: Tensor
    auxiliary: Tensor


class CellNetwork(nn.Module):
    """A network of cells; see the module. By default it has the size that DARTS trains on CIFAR.

    Args:
        genotype: its cells: a `Genotype`, its JSON, or the name of a published one (`genotypes.GENOTYPES`).
        channels: of each node in the first third of the cells.
        layers: number of cells.
        num_classes: classes to tell apart.
        in_channels: channels of the images.
        auxiliary: whether there is an auxiliary head; the output in train mode is then `Scores`.
        drop_path: the probability of drop-path; see `DropPath`. Of 0, there are no such modules.
        skips: whether the genotype's null edges are there, so that they may be connected.
        stem_stride: what the stem divides the resolution by: 1; 2, for images of 64 x 64; or 8, for ImageNet's,
            with the auxiliary head that goes with it.

    Shape:
        - Input: (N, in_channels, H, W)
        - Output: (N, num_classes)

    >>> network = CellNetwork("darts_v2", channels=4, layers=3)
    >>> network(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    searched = True  # so that the preset "paper" takes cutout; see `Config.cutout`

    def __init__(
        self,
        genotype: Genotype | str,
        channels: int = 36,
        layers: int = 20,
        num_classes: int = 10,
        *,
        in_channels: int = 3,
        auxiliary: bool = False,
        drop_path: float = 0.0,
        skips: bool = True,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(channels, layers, drop_path)
        genotype = read_genotype(genotype) if isinstance(genotype, str) else genotype
        self.genotype = genotype
        self.stem0, self.stem1, width = _stems(in_channels, channels, stem_stride)
        tied = genotype.normal == genotype.reduce  # one cell, so its edges share theta wherever it stands
        before, last, reduced = width, width, stem_stride == 8
        self.cells = nn.ModuleList()
        for i in range(layers):
            reduces = i in (layers // 3, 2 * layers // 3)
            channels *= 2 if reduces else 1
            cell = genotype.reduce if reduces else genotype.normal
            self.cells.append(
                Cell(
                    cell,
                    "cell" if tied else "reduce" if reduces else "normal",
                    (before, last),
                    channels,
                    reduces=reduces,
                    after_reduction=reduced,
                    drop_path=drop_path,
                    skips=skips,
                )
            )
            before, last, reduced = last, channels * len(cell.concat), reduces
            if i == 2 * layers // 3:
                width = last
        self.auxiliary = AuxiliaryHead(width, num_classes, imagenet=stem_stride == 8) if auxiliary else None
        self.fc = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor | Scores:
        """Class scores; with an auxiliary head and in train mode, its scores too."""
        previous = self.stem0(x)
        x = previous if self.stem1 is None else self.stem1(previous)
        auxiliary = None
        for i, cell in enumerate(self.cells):
            previous, x = x, cell(previous, x)
            if self.auxiliary is not None and self.training and i == 2 * len(self.cells) // 3:
                auxiliary = self.auxiliary(x)
        logits = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return logits if auxiliary is None else Scores(logits, auxiliary)


def regrown(network: CellNetwork, genotype: Genotype, seed: int) -> CellNetwork:
    """A copy of a network with other cells. Operations that stay where they are keep their weights.

    Null edges and what nothing reads are left out, so that they cost nothing.

    Args:
        network: left as it is.
        genotype: the cells, with as many nodes as the network's, and the same nodes in the output.
        seed: of the run: new operations draw their weights from it, each from a stream of its own.

    Raises:
        ValueError: a genotype of another size.
    """
    for kind, old, new in zip(("normal", "reduce"), network.genotype.cells, genotype.cells, strict=True):
        if (len(old.nodes), old.concat) != (len(new.nodes), new.concat):
            raise UsageError(f"{kind}: the genotype must have {len(old.nodes)} nodes and the output {old.concat}")
    twin = copy.deepcopy(network)
    twin.genotype = genotype
    for i, cell in enumerate(cast(list[Cell], twin.cells)):
        which = int(cell.reduces)
        _regrow(cell, network.genotype.cells[which], pruned(genotype.cells[which]), seed, i)
    return twin


def _regrow(cell: Cell, before: CellGenotype, after: CellGenotype, seed: int, number: int) -> None:
    like = next(cell.parameters())
    nodes, inputs = nn.ModuleList(), []
    for i, (old, new) in enumerate(zip(before.nodes, after.nodes, strict=True)):
        skips = len(cast(nn.ModuleList, cell.nodes[i])) == len(old)
        standing = dict(zip(_present(old, skips), cast(nn.ModuleList, cell.nodes[i]), strict=True))
        edges = nn.ModuleList()
        for j in _present(new, skips=False):
            known = standing.get(j)
            stays = isinstance(known, CellOperation) and old[j].operation == new[j].operation
            if isinstance(known, CellOperation) and stays and known.stride == cell.stride(new[j]):
                edges.append(known)
            else:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(torch_seed(seed, Stream.CANDIDATES, "cell", number, i, j))
                    edges.append(cell.edge(i, j, new[j]).to(like))
        nodes.append(edges)
        inputs.append(tuple(new[j].input for j in _present(new, skips=False)))
    cell.nodes, cell.inputs = nodes.train(cell.training), tuple(inputs)
    read = {edge.input for node in after.nodes for edge in node if edge.operation != "null"}
    # What no edge reads need not be computed; there are null edges enough to read its zeros.
    if 0 not in read:
        cell.input0 = NullEdge(cell.channels_in[0], cell.channels, 2 if cell.after_reduction else 1)
    if 1 not in read:
        cell.input1 = NullEdge(cell.channels_in[1], cell.channels, 1)


def _check_sizes(channels: int, layers: int, drop_path: float) -> None:
    if channels < 2 or layers < 1:
        raise UsageError(f"a network of cells needs channels >= 2 and layers >= 1, not {channels} and {layers}")
    if not 0 <= drop_path < 1:
        raise UsageError(f"drop_path must be from 0 to below 1, not {drop_path}")


def _stems(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, nn.Module | None, int]:
    """The layers before the cells (the second stem is what cell 0 reads as node 1), and their channels."""
    if stride not in (1, 2, 8):
        raise UsageError(f"stem_stride must be 1, 2 or 8, not {stride}")
    if stride < 8:
        width = 3 * channels
        conv = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width)), None, width
    half = channels // 2
    stem0 = nn.Sequential(
        nn.Conv2d(in_channels, half, 3, 2, 1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, channels, 3, 2, 1, bias=False),
        nn.BatchNorm2d(channels),
    )
    return stem0, relu_conv(channels, channels, 3, 2), channels


IMAGENET: Mapping[str, Any] = MappingProxyType(
    {"channels": 48, "layers": 14, "num_classes": 1000, "stem_stride": 8}
)
"""Arguments of `CellNetwork` for the size that DARTS trains on ImageNet, images of 224 x 224."""
