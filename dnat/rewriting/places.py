"""Branches are dropped from a network: module by module, those together that change the same steps."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..edges import NONE, ORIGINAL, Edge, EdgeSet
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
    opened = {p for p in way.opened if p != place and _inside(p, place) and modules[p].kind != "null"}
    return Area(place, frozenset(opened), (edge,))


def _inside(path: str, place: str) -> bool:
    return not place or path == place or path.startswith(f"{place}.")


def drop_branches(network: nn.Module, choices: Mapping[Edge, str]) -> tuple[nn.Module, dict[str, str]]:
    """Drop the branches whose choice is none, and null edges, which give zeros.

    Args:
        network: is changed, and returned (or what takes its place); other choices are made in it already.
        choices: of all edges.

    Returns:
        The network, and {edge key: why} of branches that are still there.
    """
    dropped = [e for e, c in choices.items() if c == NONE or (e.kind == "skip" and c == ORIGINAL)]
    passed = {e.entry for e, c in choices.items() if c in e.passes} | {
        e.exit for e, c in choices.items() if c in e.passes
    }
    gone = passed | {e.exit for e in dropped if e.entry == e.exit}
    edges = [e for e in dropped if not any(e.exit != path and _inside(e.exit, path) for path in gone)]
    undone: dict[str, str] = {}
    for area in _areas(edges, choices):
        opened = frozenset(p for p in area.opened if not any(_inside(p, path) for path in gone))
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
    while kept:
        ends = [edge.exit for edge in kept]
        try:
            body = without_branches(program, area.place, area.opened, ends, passed)
            return replaced(network, program, area.place, graph_module(root, body))
        except CannotRewriteError as error:
            edge = kept.pop()
            if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
                undone[edge.key] = str(error)
    return network
