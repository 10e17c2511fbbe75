"""Where the parts of a cell stand: layers from left to right, with few crossings, and no wire through a box.

A node stands in the layer behind the last of its inputs, with a box for each of its operations to its left. All
that a node feeds beyond the next layer shares one wire, which runs straight through the layers between, in a place
of its own. So wires bend in the gaps between the layers only, where no boxes are. The order in each layer is found
by moving single items as long as that saves crossings, or length; the heights keep that order and bend the wires
as little as it allows (a linear program). Nothing is random.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from scipy.optimize import linprog
from scipy.sparse import csr_array

from ...networks.genotypes import CellGenotype

BOX_HEIGHT = 0.23
NODE = 0.28
"""Diameter of a node, in inches as everything here."""
END = (0.46, 0.3)
"""Width and height of the boxes of the cell's inputs and its output."""

_PITCH = 0.29
_BETWEEN = 0.15
_PASS = 0.2
_SPOUT = 0.25
_APART = 0.3
_GAP = (0.36, 0.85)
_SLOPE = 0.14
_KINKS = (0.0, *(0.15 * k for k in range(1, 14)))
_PASSING, _STRAIGHT = 6.0, 3.0

Point = tuple[float, float]
Place = tuple[int, int]
"""An edge: the index of its node in the cell's list, and its own among the node's edges."""


@dataclass(frozen=True)
class Wire:
    """A piece of the wire from a node's output: a curve from `start` to `bend`, then straight on to `end`.

    Attributes:
        node: where it comes from.
        edges: those that what flows here reaches.
        concat: whether it also reaches the cell's output.
    """

    node: int
    start: Point
    bend: Point
    end: Point
    edges: tuple[Place, ...]
    concat: bool


@dataclass(frozen=True)
class Layout:
    """The places of a cell's parts; points are the middles of what stands there, y grows downwards."""

    width: float
    height: float
    box: float
    nodes: dict[int, Point]
    operations: dict[Place, Point]
    output: Point
    wires: tuple[Wire, ...]


class _Item(NamedTuple):
    """What takes up height in a layer: a node with its operations, or a wire from that node that passes.

    Attributes:
        node: the node.
        passes: the layer that its wire passes here; 0 for the node itself.
    """

    node: int
    passes: int = 0


class _Link(NamedTuple):
    """A piece of wire to the next layer: into an operation (`place`), a passing wire, or the cell's output."""

    left: _Item
    right: _Item
    place: Place | None = None


class _Graph:
    """The items of each layer in their order, and the links from each layer to the next."""

    def __init__(self, cell: CellGenotype) -> None:
        self.cell = cell
        self.output = _Item(len(cell.nodes) + 2)
        self.layer = {0: 0, 1: 0}
        for i, edges in enumerate(cell.nodes):
            self.layer[i + 2] = 1 + max(self.layer[edge.input] for edge in edges)
        self.last = 1 + max(self.layer.values())
        self.readers: defaultdict[int, list[Place]] = defaultdict(list)
        for i, edges in enumerate(cell.nodes):
            for j, edge in enumerate(edges):
                self.readers[edge.input].append((i, j))
        self.columns: list[list[_Item]] = [[] for _ in range(self.last)] + [[self.output]]
        self.links: list[list[_Link]] = [[] for _ in range(self.last)]
        for node, layer in self.layer.items():
            self.columns[layer].append(_Item(node))
        for node in self.layer:
            self._connect(node)

    def _connect(self, node: int) -> None:
        for layer in range(self.layer[node], self.last):
            left = _Item(node, layer if layer > self.layer[node] else 0)
            places = (place for place in self.readers[node] if self.layer[place[0] + 2] == layer + 1)
            self.links[layer] += [_Link(left, _Item(place[0] + 2), place) for place in places]
            right = self.output if layer + 1 == self.last else _Item(node, layer + 1)
            if not (node in self.cell.concat or self.beyond(node, layer + 2)):
                return
            self.links[layer].append(_Link(left, right))
            if right.passes:
                self.columns[layer + 1].append(right)

    def beyond(self, node: int, layer: int) -> tuple[Place, ...]:
        """The edges that read a node in some layer or later."""
        return tuple(place for place in self.readers[node] if self.layer[place[0] + 2] >= layer)

    def height(self, item: _Item) -> float:
        """What an item takes up, with the space to the next."""
        if item.passes:
            return _PASS
        if item == self.output:
            return END[1]
        if item.node < 2:  # the cell's inputs stand apart, so that what comes from them can be told apart
            most = max(sum(self.height(i) for i in column) for column in self.columns[1:])
            return max(END[1] + _BETWEEN, _APART * most)
        return _PITCH * len(self.cell.nodes[item.node - 2]) + _BETWEEN

    def ports(self) -> dict[Place, float]:
        """How far below the middle of its node each operation stands; sorted by where its input comes from."""
        found = {}
        for i, edges in enumerate(self.cell.nodes):
            rank = {item.node: n for n, item in enumerate(self.columns[self.layer[i + 2] - 1])}
            order = sorted(range(len(edges)), key=lambda j: (rank[edges[j].input], j))
            found.update({(i, j): _PITCH * (n - (len(edges) - 1) / 2) for n, j in enumerate(order)})
        return found


def lay_out(cell: CellGenotype, box: float) -> Layout:
    """Place the parts of a cell.

    Which operations the cell has does not matter, so that a cell looks the same before and after their change.

    Args:
        cell: what to place.
        box: the width of the operations' boxes.
    """
    graph = _Graph(cell)
    _reorder(graph)
    return _places(graph, _middles(graph), box)


def _stacked(graph: _Graph, column: Iterable[_Item]) -> dict[_Item, float]:
    """The middles of items that stand close together, around 0."""
    found, y = {}, 0.0
    for item in column:
        found[item] = y + graph.height(item) / 2
        y += graph.height(item)
    return {item: middle - y / 2 for item, middle in found.items()}


def _cost(graph: _Graph, columns: list[list[_Item]], gaps: Iterable[int]) -> tuple[int, float]:
    """What orders of the layers cost in some gaps: crossings, then length."""
    crossings, length = 0, 0.0
    for gap in gaps:
        left, right = (_stacked(graph, column) for column in columns[gap : gap + 2])
        ends = [(left[link.left], right[link.right]) for link in graph.links[gap]]
        length += sum(abs(a - b) for a, b in ends)
        crossings += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(ends) for c, d in ends[:n])
    return crossings, round(length, 3)


def _reorder(graph: _Graph) -> None:
    """Put the items of each layer in a better order: the best that is found from some beginnings."""
    gaps = range(graph.last)
    beginnings: list[Callable[[_Item], tuple[bool, int]]] = [
        lambda item: (item.passes > 0, item.node),
        lambda item: (item.passes == 0, item.node),
        lambda item: (item.passes > 0 and item.node > 0, item.node),  # the wire of the first input above
    ]
    found = [_improved(graph, [sorted(column, key=key) for column in graph.columns]) for key in beginnings]
    graph.columns = min(found, key=lambda columns: _cost(graph, columns, gaps))


def _improved(graph: _Graph, columns: list[list[_Item]]) -> list[list[_Item]]:
    """Make the one move of an item within its layer that improves the picture most, as long as there is one."""
    while True:
        gain, best = (0, 0.0), columns
        for layer in range(1, graph.last):
            gaps = (layer - 1, layer)
            crossings, length = _cost(graph, columns, gaps)
            for order in _moves(columns[layer]):
                tried = [*columns[:layer], order, *columns[layer + 1 :]]
                fewer, shorter = _cost(graph, tried, gaps)
                gain, best = min(
                    (gain, best), ((fewer - crossings, shorter - length), tried), key=lambda move: move[0]
                )
        if best is columns:
            return columns
        columns = best


def _moves(column: list[_Item]) -> Iterator[list[_Item]]:
    """A layer with one item in another place."""
    for item in column:
        rest = [other for other in column if other != item]
        yield from ([*rest[:i], item, *rest[i:]] for i in range(len(column)))


def _middles(graph: _Graph) -> dict[_Item, float]:
    """The height of each item: wires as straight as the order of the items allows, by linear programming.

    What a piece of wire costs grows with what it climbs: steeply at first, so that it is straight where it can be,
    then faster and faster, so that all the others are balanced. Wires that pass layers cost most.
    """
    ports = graph.ports()
    links = [link for links in graph.links for link in links]
    column = {item: n for n, item in enumerate(item for items in graph.columns for item in items)}
    pieces = len(_KINKS)
    costs = [0.0] * len(column)
    rows: list[dict[int, float]] = []
    limits: list[float] = []
    for n, link in enumerate(links):
        left, right, climbs = column[link.left], column[link.right], len(column) + n * pieces
        port = ports[link.place] if link.place else 0.0
        for k, kink in enumerate(_KINKS):  # variables of what the piece climbs beyond each kink, up or down
            rows += [{right: 1, left: -1, climbs + k: -1}, {right: -1, left: 1, climbs + k: -1}]
            limits += [kink - port, kink + port]
        weight = _PASSING if link.left.passes and link.right.passes else 1.0
        costs += [weight * _STRAIGHT, *[weight] * (pieces - 1)]
    for items in graph.columns:
        for upper, lower in itertools.pairwise(items):
            rows.append({column[upper]: 1, column[lower]: -1})
            limits.append(-(graph.height(upper) + graph.height(lower)) / 2)
    entries = [(i, j, value) for i, row in enumerate(rows) for j, value in row.items()]
    i, j, values = zip(*entries, strict=True)
    matrix = csr_array((values, (i, j)), shape=(len(rows), len(costs)))
    bounds = [(0.0, 0.0)] + [(None, None)] * (len(column) - 1) + [(0.0, None)] * (len(links) * pieces)
    solution = linprog(costs, A_ub=matrix, b_ub=limits, bounds=bounds, method="highs")
    assert solution.success, solution.message
    return {item: round(float(solution.x[n]), 4) for item, n in column.items()}


def _places(graph: _Graph, middles: dict[_Item, float], box: float) -> Layout:
    ports = graph.ports()
    extents = {item: (_PASS if item.passes else graph.height(item) - _BETWEEN) / 2 for item in middles}
    extents |= {item: END[1] / 2 for item in (_Item(0), _Item(1), graph.output)}
    top = min(middles[item] - extents[item] for item in middles)
    y = {item: middle - top for item, middle in middles.items()}
    block = box + _SPOUT + NODE
    lefts, x = [0.0], END[0]
    for links in graph.links:
        steepest = max((abs(y[link.left] - y[link.right]) for link in links), default=0.0)
        lefts.append(x + min(_GAP[0] + _SLOPE * steepest, _GAP[1]))
        x = lefts[-1] + block
    rights = [END[0], *(left + block for left in lefts[1:])]
    wires = []
    for layer, links in enumerate(graph.links):
        for left, right, place in links:
            start = (rights[layer], y[left])
            bend = (lefts[layer + 1], y[right] + (ports[place] if place else 0.0))
            end = (rights[layer + 1], bend[1]) if right.passes else bend
            edges = (place,) if place else graph.beyond(left.node, layer + 2)
            concat = place is None and left.node in graph.cell.concat
            wires.append(Wire(left.node, start, bend, end, edges, concat))
    nodes = {0: (END[0] / 2, y[_Item(0)]), 1: (END[0] / 2, y[_Item(1)])}
    nodes |= {n: (rights[graph.layer[n]] - NODE / 2, y[_Item(n)]) for n in graph.layer if n > 1}
    operations = {
        (i, j): (lefts[graph.layer[i + 2]] + box / 2, y[_Item(i + 2)] + port) for (i, j), port in ports.items()
    }
    output = (lefts[-1] + END[0] / 2, y[graph.output])
    height = max(y[item] + extents[item] for item in y)
    return Layout(lefts[-1] + END[0], height, box, nodes, operations, output, tuple(wires))
