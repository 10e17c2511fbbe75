"""What the methods search in: architectures with shared weights, and the legal moves from each.

`GenotypeSpace` is NAT's: the genotypes of a network of cells, on a supernet. `EdgeSpace` is ours and takes any
network: the choices on its edges, on its own weights, so that NAT works on networks that have no cells.

    space.given                       the architecture of the network that was given
    space.sample(random)              one to train the shared weights with
    space.asked(random)               one that a policy is asked to improve
    space.graph(architecture)         what the policy sees, with the legal moves
    space.moved(architecture, moves)  the architecture after moves
    space.choose(architecture)        what `space.network` computes from now on

An architecture is a plain value: a `Genotype`, or the tuple of the choices on the groups of edges.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from ...edges import ORIGINAL, Edge, EdgeSet
from ...errors import UsageError
from ...moves import PRIMITIVES, Table, mask_of
from ...networks.cells import CellNetwork
from ...networks.genotypes import CellEdge, CellGenotype, Genotype, concat_nodes, is_alive
from ...planning import Plan
from ...relaxation import RelaxedNetwork, relax
from ...seeds import Stream, torch_seed
from ...selection import decide
from ...settings import Amount, Config
from .graphs import Graph
from .supernet import Supernet

NAT = ("null", "same", "skip_connect")
"""The moves of NAT (docs/methods.md A4)."""

# What NAT's random inputs are made of, by the rule of the cell's output (docs/methods.md A1).
FULLY_CONCAT = (
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("dil_conv_3x3", "dil_conv_5x5", "conv_3x3", "null"),
)
LOOSE_END = (
    *("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5"),
    *("conv_1x1", "conv_3x3", "conv_5x5", "null"),
)

A = TypeVar("A")


class Space(Protocol[A]):
    """What is searched in; see the module."""

    @property
    def network(self) -> nn.Module:
        """The shared weights; computes the architecture that was chosen."""

    @property
    def given(self) -> A:
        """The architecture of the network that was given."""

    @property
    def operations(self) -> int:
        """How many operations there are: the numbers in `Graph.operations` are below."""

    @property
    def tokens(self) -> Tensor:
        """(T, V) booleans: which of V tokens may stand at each place of an architecture's sequence."""

    def sample(self, random: np.random.Generator) -> A:
        """A random architecture, to train the shared weights."""

    def asked(self, random: np.random.Generator) -> A:
        """An architecture that a policy is to improve."""

    def graph(self, architecture: A) -> Graph:
        """What a policy sees."""

    def moved(self, architecture: A, moves: Tensor) -> A:
        """The architecture after moves (B, R), as `Graph.mask` numbers them."""

    def choose(self, architecture: A) -> None:
        """Let `network` compute this architecture."""

    def legal(self, architecture: A, worths: Tensor | None) -> A | None:
        """The nearest architecture that may be kept, or None; `worths` (B, R, K) says what each move is worth."""

    def sequence(self, architecture: A) -> list[int]:
        """An architecture as tokens, for methods that read sequences."""

    def architecture(self, sequence: Sequence[int]) -> A:
        """The inverse of `sequence`."""

    def to_json(self, architecture: A) -> Any:
        """An architecture for a file."""

    def from_json(self, value: Any) -> A:
        """The inverse of `to_json`."""


class GenotypeSpace:
    """NAT's space: the genotypes of a network of cells, on a supernet.

    The two cells of a genotype are two graphs, whose roots are the outputs of the two cells before
    (docs/methods.md A3).

    Args:
        network: a network of cells.
        table: which operation may become which; None for NAT's three moves.
        config: the run's settings.
        image_shape: (C, H, W) of the images.
        classes: to tell apart.

    Raises:
        ValueError: a genotype that NAT's policy cannot read: every node must have two edges.
    """

    def __init__(
        self, network: CellNetwork, table: Table | None, config: Config, image_shape: Sequence[int], classes: int
    ) -> None:
        self.given, self.table, self.official = network.genotype, table, config.search.official
        cells = self.given.cells
        for kind, cell in zip(("normal", "reduce"), cells, strict=True):
            for number, node in enumerate(cell.nodes, 2):
                if len(node) != 2:
                    raise UsageError(
                        f"{kind} cell, node {number}: NAT's policy reads two edges a node, not {len(node)}; "
                        "write null edges into the genotype for those that are missing"
                    )
        # One rule for both cells: ENAS's normal cell has all nodes in its output, because it happens to read none.
        self.rule = "all" if all(len(cell.concat) == len(cell.nodes) for cell in cells) else "loose-end"
        known = PRIMITIVES if table is not None else FULLY_CONCAT if self.rule == "all" else LOOSE_END
        own = {edge.operation for cell in cells for node in cell.nodes for edge in node}
        self.names = (*known, *sorted(own - set(known)))
        self.operations = len(self.names)
        self.moves = NAT if table is None else self.names
        # Null edges that the network was built without cannot be connected.
        built = cast(Any, network.cells[0]).nodes
        self.fixed_nulls = any(len(a) < len(b) for a, b in zip(built, cells[0].nodes, strict=True))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed(config.seed, Stream.WEIGHTS, "supernet"))
            self.network: Supernet = Supernet(
                self.given,
                self.names,
                config.search.channels,
                config.search.layers,
                classes,
                image_shape[0],
                2 if min(image_shape[1:]) >= 64 else 1,
            )
        self.tokens = self._tokens()

    def sample(self, random: np.random.Generator) -> Genotype:
        """Two edges from uniform earlier nodes, with uniform operations, into each node (docs/methods.md A5).

        The released code leaves null out, though the inputs that are to be transformed have such edges.
        """
        names = [name for name in self.names if name != "null" or not self.official]
        return Genotype(*(self._sample_cell(len(cell.nodes), names, random) for cell in self.given.cells))

    def asked(self, random: np.random.Generator) -> Genotype:
        """A random genotype, as in `sample`: the policy learns to transform any."""
        return self.sample(random)

    def _sample_cell(self, count: int, names: Sequence[str], random: np.random.Generator) -> CellGenotype:
        nodes = tuple(
            tuple(
                CellEdge(names[int(random.integers(len(names)))], int(random.integers(number))) for _ in range(2)
            )
            for number in range(2, count + 2)
        )
        return CellGenotype(nodes, concat_nodes(nodes, self.rule))

    def graph(self, architecture: Genotype) -> Graph:
        """Both cells; node t's edges are the rows 2 (t - 2) and 2 (t - 2) + 1."""
        cells = architecture.cells
        edges = [[edge for node in cell.nodes for edge in node] for cell in cells]
        names = [[edge.operation for edge in row] for row in edges]
        targets = torch.arange(len(edges[0])).div(2, rounding_mode="floor").add(2).expand(2, -1)
        sources = torch.tensor([[edge.input for edge in row] for row in edges])
        nodes = len(cells[0].nodes) + 2
        adjacency = torch.zeros(2, nodes, nodes)
        cell = torch.arange(2)[:, None].expand_as(sources)
        adjacency.index_put_((cell, targets, sources), torch.ones(sources.shape), accumulate=True)
        return Graph(
            operations=torch.tensor([[self.names.index(name) for name in row] for row in names]),
            sources=sources,
            targets=targets,
            adjacency=adjacency,
            mask=torch.stack([self._mask(row) for row in names]),
            roots=2,
            features=torch.zeros(*sources.shape, 0),
        )

    def _mask(self, names: Sequence[str]) -> Tensor:
        """Which moves are legal on edges with these operations: (R, K)."""
        if self.table is not None:
            mask = mask_of(names, self.table, self.moves)
        elif self.official:
            mask = torch.ones(len(names), len(self.moves), dtype=torch.bool)
        else:
            # A move that is another name for staying would only double its probability (docs/methods.md A4).
            mask = torch.tensor([[move != name for move in self.moves] for name in names])
        if self.fixed_nulls and not self.official:  # the released code connects any
            stays = "same" if self.table is None else "null"
            for row, name in zip(mask, names, strict=True):
                if name == "null":
                    row.copy_(torch.tensor([move == stays for move in self.moves]))
        return mask

    def moved(self, architecture: Genotype, moves: Tensor) -> Genotype:
        """The genotype after moves (2, 2 nodes)."""
        names = (iter(self.moves[i] for i in row) for row in moves.tolist())
        return Genotype(*(_renamed(cell, name) for cell, name in zip(architecture.cells, names, strict=True)))

    def choose(self, architecture: Genotype) -> None:
        """Let the supernet compute this genotype."""
        self.network.choose(architecture)

    def legal(self, architecture: Genotype, worths: Tensor | None = None) -> Genotype | None:
        """The genotype itself, if it lets anything through; the released code does not ask."""
        return architecture if self.official or is_alive(architecture) else None

    def sequence(self, architecture: Genotype) -> list[int]:
        """For each edge its input and its operation; inputs come first among the tokens."""
        nodes = len(self.given.normal.nodes) + 1
        edges = (edge for cell in architecture.cells for node in cell.nodes for edge in node)
        return [token for e in edges for token in (e.input, nodes + self.names.index(e.operation))]

    def architecture(self, sequence: Sequence[int]) -> Genotype:
        """The inverse of `sequence`; the output has the nodes that the given genotype's has."""
        found, nodes = iter(sequence), len(self.given.normal.nodes) + 1
        cells = []
        for like in self.given.cells:
            built = []
            for _ in like.nodes:
                pairs = [(next(found), next(found) - nodes) for _ in range(2)]
                built.append(tuple(CellEdge(self.names[name], source) for source, name in pairs))
            cells.append(CellGenotype(tuple(built), like.concat))
        return Genotype(*cells)

    def _tokens(self) -> Tensor:
        nodes = len(self.given.normal.nodes)
        inputs = nodes + 1
        one = torch.zeros(nodes * 4, inputs + len(self.names), dtype=torch.bool)
        for i in range(nodes):
            one[4 * i : 4 * i + 4 : 2, : i + 2] = True
        one[1::2, inputs:] = True
        return torch.cat([one, one])

    def to_json(self, architecture: Genotype) -> Any:
        """The genotype's JSON."""
        return architecture.to_json()

    def from_json(self, value: Any) -> Genotype:
        """The inverse of `to_json`."""
        return Genotype.from_json(value)


class EdgeSpace:
    """Ours: the choices on the edges of any network, on its own weights.

    The states of the graph are the groups of edges: each sees those whose outputs it reads. There is one graph,
    with one root, the images. The policy is always asked about the network that was given.

    Args:
        network: any network.
        plan: what may change in it, and what it may cost.
        config: the run's settings.
    """

    def __init__(self, network: nn.Module, plan: Plan, config: Config) -> None:
        self.plan, self.seed = plan, config.seed
        self.network: RelaxedNetwork = relax(
            network, plan.edges, config.relaxation.mode, "raw", config.seed, warm_start=False
        )
        self.network.architecture.theta.requires_grad_(False)
        self.columns = self.network.columns
        self.groups = self.network.by_group()
        self.mask = torch.tensor(
            [[c in self.network.choices_of(group) for c in self.columns] for group in self.groups]
        )
        self.given = (ORIGINAL,) * len(self.groups)
        names = [members[0].operation for members in self.groups.values()]
        known = sorted(set(names))
        self.operations = len(known)
        self._graph = self._make_graph([known.index(name) for name in names])
        self.tokens = self.mask

    def sample(self, random: np.random.Generator) -> tuple[str, ...]:
        """The original with probability 1/2 on each group, else any other choice: half of the network stays."""
        found = []
        for group in self.groups:
            others = [c for c in self.network.choices_of(group) if c != ORIGINAL]
            stays, place = random.random() < 0.5, int(random.integers(max(len(others), 1)))
            found.append(ORIGINAL if stays or not others else others[place])
        return tuple(found)

    def asked(self, random: np.random.Generator) -> tuple[str, ...]:
        """The network that was given: the policy learns to transform this one."""
        return self.given

    def graph(self, architecture: tuple[str, ...]) -> Graph:
        """The edges of the network that was given, whatever the architecture."""
        return self._graph

    def _make_graph(self, operations: list[int]) -> Graph:
        rows = {edge: row for row, members in enumerate(self.groups.values()) for edge in members}
        count = len(self.groups)
        adjacency = torch.zeros(1, count + 1, count + 1)
        last = [0] * count
        for edge, sources in _sources(self.network.edges).items():
            for node in [rows[source] + 1 for source in sources] or [0]:
                adjacency[0, rows[edge] + 1, node] += 1
                last[rows[edge]] = node
        members = list(self.groups.values())
        total = max(sum(e.madds for e in self.network.edges), 1)
        features = [
            [
                row / count,
                sum(e.madds for e in edges) / total,
                math.log10(1 + edges[0].madds) / 10,
                math.log2(edges[0].shape_out[0]) / 10,
                math.log2(edges[0].shape_out[-1]) / 10,
            ]
            for row, edges in enumerate(members)
        ]
        return Graph(
            operations=torch.tensor([operations]),
            sources=torch.tensor([last]),
            targets=torch.arange(1, count + 1)[None],
            adjacency=adjacency,
            mask=self.mask[None],
            roots=1,
            features=torch.tensor([features]),
        )

    def moved(self, architecture: tuple[str, ...], moves: Tensor) -> tuple[str, ...]:
        """The choices of all groups: moves (1, groups) say which."""
        return tuple(self.columns[i] for i in moves[0].tolist())

    def choose(self, architecture: tuple[str, ...]) -> None:
        """Open the gates of these choices, and close the others."""
        pairs = zip(self.groups.values(), architecture, strict=True)
        self.network.sample_chosen({edge.key: choice for members, choice in pairs for edge in members})

    def legal(self, architecture: tuple[str, ...], worths: Tensor | None = None) -> tuple[str, ...]:
        """The nearest choices that can be made together, within the budget: as `selection` makes them.

        Choices of the architecture are worth 1 more than others.
        """
        wanted = torch.tensor([[float(c == choice) for c in self.columns] for choice in architecture])
        values = wanted if worths is None else wanted + worths[0]
        limit = None if self.plan.limit is None else Amount(self.plan.limit, relative=False)
        decisions = decide(self.network, limit=limit, costs=self.plan.costs, worths=values.tolist())
        chosen = {self.network.groups[self.network.row(d.edge)]: d.choice for d in decisions}
        return tuple(chosen[group] for group in self.groups)

    def choices(self, architecture: tuple[str, ...]) -> dict[str, str]:
        """{edge key: choice}."""
        pairs = zip(self.groups.values(), architecture, strict=True)
        return {edge.key: choice for members, choice in pairs for edge in members}

    def sequence(self, architecture: tuple[str, ...]) -> list[int]:
        """The columns of the choices."""
        return [self.columns.index(choice) for choice in architecture]

    def architecture(self, sequence: Sequence[int]) -> tuple[str, ...]:
        """The inverse of `sequence`."""
        return tuple(self.columns[i] for i in sequence)

    def to_json(self, architecture: tuple[str, ...]) -> Any:
        """A list."""
        return list(architecture)

    def from_json(self, value: Any) -> tuple[str, ...]:
        """The inverse of `to_json`."""
        return tuple(value)


def _renamed(cell: CellGenotype, names: Any) -> CellGenotype:
    """The cell with other operations, in order; "same" keeps one."""

    def renamed(edge: CellEdge) -> CellEdge:
        name = next(names)
        return edge if name == "same" else CellEdge(name, edge.input)

    return CellGenotype(tuple(tuple(renamed(edge) for edge in node) for node in cell.nodes), cell.concat)


def _sources(edges: EdgeSet) -> Mapping[Edge, list[Edge]]:
    """Of each edge, those whose outputs it reads, without another edge between."""
    trace = edges.trace
    ends: dict[int, list[Edge]] = {}
    begins: dict[Edge, list[int]] = {}
    for edge in edges:
        for start, end in edge.values(trace):
            begins.setdefault(edge, []).append(start)
            ends.setdefault(end, []).append(edge)
    reached: dict[int, dict[Edge, None]] = {value: {} for value in trace.inputs}
    for value, found in ends.items():
        reached[value] = dict.fromkeys(found)
    for operation in trace.operations:
        sources = {edge: None for value in operation.inputs for edge in reached.get(value, {})}
        for value in operation.outputs:
            if value not in ends:
                reached[value] = sources
    return {
        edge: list(dict.fromkeys(e for v in begins.get(edge, ()) for e in reached.get(v, {}))) for edge in edges
    }
