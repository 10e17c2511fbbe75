"""Branches are dropped from a network: module by module, those together that change the same steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..edges import NONE, ORIGINAL, Edge, EdgeSet
from ..edges.edge import prefixes
from ..tracing.steps import Body
from .bodies import CannotRewriteError
from .branches import without_branches
from .graphs import graph_module
from .modules import replaced, submodule
from .ways import enclosing, way_of


@dataclass(frozen=True)
class Area:
    """A module that is written anew, the modules in it that are opened, and the edges that it loses."""

    place: str
    opened: frozenset[str]
    edges: tuple[Edge, ...]

    def meets(self, other: "Area") -> bool:
        """Whether the steps of one are among those of the other."""
        return self.place == other.place or self.place in other.opened or other.place in self.opened

    def joined(self, other: "Area") -> "Area":
        """Both in one."""
        place = min(self.place, other.place, key=len)
        return Area(place, self.opened | other.opened, self.edges + other.edges)


def area_of(edge: Edge, choices: Mapping[Edge, str]) -> Area:
    """What none at an edge changes when these choices are made."""
    way = way_of(edge, choices)
    place = enclosing(edge.program, way.zeros | way.dead)
    modules = edge.program.modules  # the zeros of a null edge take their shape from its input
    opened = {p for p in way.opened if place in around(p) and modules[p].kind != "null"}
    return Area(place, frozenset(opened), (edge,))


def around(path: str) -> list[str]:
    """The paths of the modules around a module, the network's first."""
    return ["", *prefixes(path)[:-1]] if path else []


def drop_branches(network: nn.Module, choices: Mapping[Edge, str]) -> tuple[nn.Module, dict[str, str]]:
    """Drop the branches whose choice is none, and null edges, which give zeros.

    Args:
        network: is changed, and returned (or what takes its place); other choices are made in it already.
        choices: of all edges.

    Returns:
        The network, and {edge key: why} of branches that are still there.
    """
    dropped = [e for e, c in choices.items() if c == NONE or (e.kind == "skip" and c == ORIGINAL)]
    passed = {path for e, c in choices.items() if c in e.passes for path in (e.entry, e.exit)}
    gone = passed | {e.exit for e in dropped if e.entry == e.exit}
    edges = [e for e in dropped if gone.isdisjoint(around(e.exit))]
    undone: dict[str, str] = {}
    for area in _areas(edges, choices):
        opened = frozenset(p for p in area.opened if gone.isdisjoint([p, *around(p)]))
        network = _dropped(network, Area(area.place, opened, area.edges), passed, undone)
    return network, undone


def _areas(edges: Iterable[Edge], choices: Mapping[Edge, str]) -> list[Area]:
    """The areas of edges, joined where they meet."""
    areas: list[Area] = []
    for edge in edges:
        area = area_of(edge, choices)
        while met := next((other for other in areas if area.meets(other)), None):
            areas.remove(met)
            area = area.joined(met)
        areas.append(area)
    return areas


def _dropped(network: nn.Module, area: Area, passed: set[str], undone: dict[str, str]) -> nn.Module:
    """The network without an area's branches: all of them, or as many as can go together."""
    root = submodule(network, area.place)
    if root is None:
        return network  # gone with a block around it
    program, kept = EdgeSet(area.edges).program, list(area.edges)

    def without(edges: Iterable[Edge]) -> Body:
        return without_branches(program, area.place, area.opened, [edge.exit for edge in edges], passed)

    try:
        body = without(kept)
    except CannotRewriteError:
        body, kept = None, []
        for edge in area.edges:
            try:
                body = without([*kept, edge])
                kept.append(edge)
            except CannotRewriteError as error:
                if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
                    undone[edge.key] = str(error)
    return replaced(network, program, area.place, graph_module(root, body)) if body else network
