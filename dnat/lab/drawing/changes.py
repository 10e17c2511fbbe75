"""What a transformation changed in a genotype, edge by edge, and what pictures and tables call the operations."""

from dataclasses import dataclass

from ...errors import UsageError
from ...networks.genotypes import Genotype


@dataclass(frozen=True)
class Change:
    """An edge of a genotype and its operations before and after a transformation.

    Attributes:
        cell: normal or reduce.
        node: index in the cell's list of nodes.
        edge: index among the node's edges.
        input: the node that the edge reads; 0 and 1 are the outputs of the two cells before.
        before, after: the operations.
    """

    cell: str
    node: int
    edge: int
    input: int
    before: str
    after: str

    @property
    def key(self) -> str:
        """The edge's place, as the errors of genotypes name it.

        >>> Change("normal", 2, 0, 1, "conv_3x3", "null").key
        'normal.nodes[2][0]'
        """
        return f"{self.cell}.nodes[{self.node}][{self.edge}]"

    @property
    def state(self) -> str:
        """How the edge looks in a picture.

        One of identity (it is a skip connection now), none, added (it was null), other (another operation); of an
        edge that stays what it is, original or, if that is null, absent.
        """
        if self.before == self.after:
            return "absent" if self.after == "null" else "original"
        if self.before == "null":
            return "added"
        return {"null": "none", "skip_connect": "identity"}.get(self.after, "other")


def cell_edges(cell: str, before: Genotype, after: Genotype) -> tuple[Change, ...]:
    """Every edge of a cell ("normal" or "reduce"), also those that stay what they are.

    Raises:
        ValueError: genotypes that differ in more than their operations, with the JSON path of the place.

    >>> from dnat.networks.genotypes import published
    >>> for edge in cell_edges("normal", published("darts_v2"), published("nat_darts"))[1:3]:
    ...     print(edge.key, edge.before, edge.after)
    normal.nodes[0][1] sep_conv_3x3 sep_conv_3x3
    normal.nodes[1][0] sep_conv_3x3 skip_connect
    """
    first, second = (before.normal, after.normal) if cell == "normal" else (before.reduce, after.reduce)
    _check_same(f"{cell}.nodes", len(first.nodes), len(second.nodes), " nodes")
    found = []
    for i, (old, new) in enumerate(zip(first.nodes, second.nodes, strict=True)):
        _check_same(f"{cell}.nodes[{i}]", len(old), len(new), " edges")
        for j, (a, b) in enumerate(zip(old, new, strict=True)):
            _check_same(f"{cell}.nodes[{i}][{j}].input", a.input, b.input)
            found.append(Change(cell, i, j, a.input, a.operation, b.operation))
    _check_same(f"{cell}.concat", first.concat, second.concat)
    return tuple(found)


def _check_same(path: str, before: object, after: object, what: str = "") -> None:
    if before != after:
        words = f"{path}: {before}{what} before, {after}{what} after"
        raise UsageError(f"the genotypes differ in more than their operations: {words}")


def short_name(operation: str) -> str:
    """What pictures call an operation.

    >>> [short_name(name) for name in ("sep_conv_3x3", "max_pool_3x3", "conv_1x7_7x1", "skip_connect")]
    ['sep 3×3', 'max pool 3×3', 'conv 1×7 7×1', 'skip']
    """
    kind, *rest = operation.split("_")
    if kind in ("sep", "dil", "skip"):
        rest = rest[1:]
    return " ".join([kind, *(word.replace("x", "×") if word[0].isdigit() else word for word in rest)])
