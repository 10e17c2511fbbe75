"""Genotypes: what the cells of a network compute, as data, with the published ones by name.

A genotype has two cells, `normal` and `reduce` (which halves the resolution). A cell is a list of nodes. Nodes
0 and 1 are the outputs of the two cells before it; those of the list are numbered from 2. Each node is the sum of
its edges, an edge being an operation on an earlier node, and the cell's output is the channels of the nodes in
`concat`, side by side. As JSON:

    {"normal": {"nodes": [[{"operation": "sep_conv_3x3", "input": 0}, {"operation": "null", "input": 1}], ...],
                "concat": [2, 3, 4, 5]},
     "reduce": {...}}

In JSON, `concat` may also be "all" (fully-concat: every node) or "loose-end" (the nodes that no other node reads,
be it through a null edge). An error names the place as a JSON path: `normal.nodes[2][0].operation` is the first
edge of the third entry of the list, which is node 4.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import UsageError
from ...files import parse_json
from ...naming import unknown
from ...operations import OPERATIONS

MOST_NODES = 100
"""Of a cell: those of the papers have up to 7, and what thousands cost nobody would wait for."""
MOST_EDGES = 100
"""Into a node: those of the papers have 2."""


@dataclass(frozen=True)
class CellEdge:
    """An operation on an earlier node of the cell."""

    operation: str
    input: int


@dataclass(frozen=True)
class CellGenotype:
    """A cell: the edges into each of its nodes (the first is node 2), and the nodes that make its output."""

    nodes: tuple[tuple[CellEdge, ...], ...]
    concat: tuple[int, ...]


@dataclass(frozen=True)
class Genotype:
    """The two cells of a network; see the module.

    Raises:
        ValueError: something that is not a genotype, with the JSON path of the place.

    >>> from dnat.networks.genotypes import published
    >>> genotype = published("darts_v2")
    >>> genotype.normal.nodes[0]
    (CellEdge(operation='sep_conv_3x3', input=0), CellEdge(operation='sep_conv_3x3', input=1))
    >>> Genotype.from_json(genotype.to_json()) == genotype
    True
    """

    normal: CellGenotype
    reduce: CellGenotype

    def __post_init__(self) -> None:
        for path, cell in (("normal", self.normal), ("reduce", self.reduce)):
            _check_cell(path, cell)

    @property
    def cells(self) -> tuple[CellGenotype, CellGenotype]:
        """Both cells, the normal one first."""
        return self.normal, self.reduce

    def to_json(self) -> str:
        """The genotype as JSON, which `from_json` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Read a genotype.

        Raises:
            ValueError: text that is not JSON, or not a genotype, with the JSON path of the place.

        >>> Genotype.from_json('{"normal": {"nodes": [[{"operation": "sep_conv_3x3"}]], "concat": "all"}}')
        Traceback (most recent call last):
        ...
        dnat.errors.UsageError: reduce is missing
        """
        try:
            data = parse_json(text)
        except ValueError as error:
            raise UsageError(f"a genotype must be JSON: {error}") from error
        normal, reduce = _fields(data, "", ("normal", "reduce"))
        return cls(_cell_from(normal, "normal"), _cell_from(reduce, "reduce"))


def _wrong(path: str, kind: str, value: object) -> UsageError:
    return UsageError(f"{path or 'the genotype'} must be {kind}, not {type(value).__name__} ({value!r:.40})")


def _check_node(path: str, value: object, least: int, end: int) -> None:
    """A node's number, from `least` to before `end`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise _wrong(path, "a node's number", value)
    if not least <= value < end:
        raise UsageError(f"{path}: there is no node {value} here, only {least} to {end - 1}")


def _check_edge(path: str, edge: CellEdge, node: int) -> None:
    if not isinstance(edge, CellEdge):
        raise _wrong(path, "a CellEdge", edge)
    if not isinstance(edge.operation, str):
        raise _wrong(f"{path}.operation", "a string", edge.operation)
    if edge.operation not in OPERATIONS:
        raise UsageError(f"{path}.operation: {unknown('operation', edge.operation, OPERATIONS)}")
    if isinstance(edge.input, int) and edge.input >= node:
        raise UsageError(
            f"{path}.input: node {node} cannot read node {edge.input}: only earlier nodes, or a cycle arises"
        )
    _check_node(f"{path}.input", edge.input, 0, node)


def _check_cell(path: str, cell: CellGenotype) -> None:
    if not isinstance(cell, CellGenotype):
        raise _wrong(path, "a CellGenotype", cell)
    for name, value in (("nodes", cell.nodes), ("concat", cell.concat)):
        if not isinstance(value, tuple):
            raise _wrong(f"{path}.{name}", "a tuple", value)
    if len(cell.nodes) > MOST_NODES:
        raise UsageError(f"{path}.nodes: {len(cell.nodes)} nodes, more than {MOST_NODES}")
    for i, node in enumerate(cell.nodes):
        if not isinstance(node, tuple):
            raise _wrong(f"{path}.nodes[{i}]", "a tuple", node)
        if not node:
            raise UsageError(f"{path}.nodes[{i}]: node {i + 2} has no edges")
        if len(node) > MOST_EDGES:
            raise UsageError(f"{path}.nodes[{i}]: node {i + 2} has {len(node)} edges, more than {MOST_EDGES}")
        for j, edge in enumerate(node):
            _check_edge(f"{path}.nodes[{i}][{j}]", edge, i + 2)
    _check_concat(f"{path}.concat", cell)


def _check_concat(path: str, cell: CellGenotype) -> None:
    if not cell.concat:
        raise UsageError(f"{path}: a cell's output needs at least one node")
    for i, node in enumerate(cell.concat):
        _check_node(f"{path}[{i}]", node, 2, len(cell.nodes) + 2)
        if node in cell.concat[:i]:
            raise UsageError(f"{path}[{i}]: node {node} is there already")


def _fields(data: Any, path: str, names: tuple[str, ...]) -> list[Any]:
    """The values of an object that must have these keys and no others."""
    if not isinstance(data, dict):
        raise _wrong(path, f"an object with {' and '.join(names)}", data)
    prefix = f"{path}." if path else ""
    for name in data:
        if name not in names:
            raise UsageError(f"{prefix}{name}: {unknown('key', name, names)}")
    for name in names:
        if name not in data:
            raise UsageError(f"{prefix}{name} is missing")
    return [data[name] for name in names]


def _list(data: Any, path: str) -> list[Any]:
    if not isinstance(data, list):
        raise _wrong(path, "a list", data)
    return data


def _cell_from(data: Any, path: str) -> CellGenotype:
    lists, concat = _fields(data, path, ("nodes", "concat"))
    nodes = []
    for i, node in enumerate(_list(lists, f"{path}.nodes")):
        places = ((f"{path}.nodes[{i}][{j}]", edge) for j, edge in enumerate(_list(node, f"{path}.nodes[{i}]")))
        nodes.append(tuple(CellEdge(*_fields(edge, place, ("operation", "input"))) for place, edge in places))
    if isinstance(concat, str):
        return CellGenotype(tuple(nodes), concat_nodes(nodes, concat, f"{path}.concat"))
    return CellGenotype(tuple(nodes), tuple(_list(concat, f"{path}.concat")))


def concat_nodes(nodes: Iterable[tuple[CellEdge, ...]], rule: str, path: str = "concat") -> tuple[int, ...]:
    """The nodes of a cell's output by rule (docs/methods.md A1).

    Args:
        nodes: the edges into each node, from node 2 on.
        rule: "all" or "loose-end", the nodes that no other reads (a null edge reads, too).
        path: what to call the place in an error.

    Raises:
        ValueError: an unknown rule.
    """
    if rule not in ("all", "loose-end"):
        raise UsageError(f"{path}: {unknown('rule', rule, ('all', 'loose-end'))}")
    nodes = tuple(nodes)
    read = {edge.input for node in nodes for edge in node} if rule == "loose-end" else set()
    return tuple(i for i in range(2, len(nodes) + 2) if i not in read)


def pruned(cell: CellGenotype) -> CellGenotype:
    """A cell that computes the same, in which every edge into a node that nothing reads is null.

    >>> edges = tuple((CellEdge("conv_3x3", 0), CellEdge("null", 1)) for _ in range(2))
    >>> [node[0].operation for node in pruned(CellGenotype(edges, (3,))).nodes]
    ['null', 'conv_3x3']
    """
    read, nodes = set(cell.concat), []
    for number, node in reversed(list(enumerate(cell.nodes, 2))):
        if number not in read:
            node = tuple(CellEdge("null", edge.input) for edge in node)
        read |= {edge.input for edge in node if edge.operation != "null"}
        nodes.append(node)
    return CellGenotype(tuple(reversed(nodes)), cell.concat)


def is_alive(genotype: Genotype) -> bool:
    """Whether something comes through both cells: the output reads an input, over edges that are not null.

    A network whose cells let nothing through gives every image the same answer: of NAT's published runs, those
    with 10 % accuracy on CIFAR-10.

    >>> from dnat.networks.genotypes import published
    >>> is_alive(published("nat_darts"))
    True
    """
    return all(map(_lets_through, genotype.cells))


def _lets_through(cell: CellGenotype) -> bool:
    reached = {0, 1}
    for number, node in enumerate(cell.nodes, 2):
        if any(edge.operation != "null" and edge.input in reached for edge in node):
            reached.add(number)
    return bool(reached & set(cell.concat))


def transformed(genotype: Genotype, choices: Mapping[tuple[str, int, int], str]) -> Genotype:
    """A genotype with other choices on some of its edges.

    Args:
        genotype: what to start from.
        choices: for edges (normal or reduce, the node's index in the cell's list, the edge's index in the node)
            original, identity (skip_connect), none (null), or an operation. All others stay what they are.

    Raises:
        ValueError: an edge that is not there, or an unknown choice.

    >>> from dnat.networks.genotypes import published
    >>> changed = transformed(published("darts_v2"), {("normal", 1, 0): "identity", ("reduce", 0, 1): "none"})
    >>> changed.normal.nodes[1][0], changed.reduce.nodes[0][1]
    (CellEdge(operation='skip_connect', input=0), CellEdge(operation='null', input=1))
    """
    operations = {"original": None, "identity": "skip_connect", "none": "null"} | {o: o for o in OPERATIONS}
    cells = {name: [list(node) for node in cell.nodes] for name, cell in vars(genotype).items()}
    for (cell, node, edge), choice in choices.items():
        if choice not in operations:
            raise unknown("choice", choice, operations)
        if not (cell in cells and 0 <= node < len(cells[cell]) and 0 <= edge < len(cells[cell][node])):
            raise UsageError(f"the genotype has no edge {cell}.nodes[{node}][{edge}]")
        operation = operations[choice] or cells[cell][node][edge].operation
        cells[cell][node][edge] = CellEdge(operation, cells[cell][node][edge].input)
    nodes = {name: tuple(map(tuple, edges)) for name, edges in cells.items()}
    return Genotype(
        CellGenotype(nodes["normal"], genotype.normal.concat),
        CellGenotype(nodes["reduce"], genotype.reduce.concat),
    )
