"""Which modules a picture shows as such: those around a part of the graph, and large ones that it shows apart."""

import re
from collections.abc import Callable, Collection, Hashable, Sequence
from itertools import groupby, takewhile
from typing import Literal

from .flow import Part, parts_of
from .graphs import Graph, Node

LARGE, FEW = 40, 4
"""A part of more nodes is shown in short: modules of so many in it, or more, are one box and drawn apart."""


def modules_of(graph: Graph) -> frozenset[str]:
    """The modules that get a frame.

    They are the outermost numbered ones (`layer1.0`, `encoder_layer_3`) that hold whole parts and have several
    operations, but not those that are themselves no more than a row of such modules.
    """
    weights: dict[str, int] = {}
    for part in parts_of(graph):
        for name in _numbered(_place(graph, part)):
            weights[name] = weights.get(name, 0) + sum(graph.nodes[n].kind == "operation" for n in part.nodes)
    large = [name for name, weight in weights.items() if weight > 1]
    within: dict[str, list[str]] = {}
    for name in large:
        within.setdefault(max((o for o in large if name.startswith(f"{o}.")), key=len, default=""), []).append(
            name
        )
    rows = {o for o, names in within.items() if o and (len(names) > 1 or weights[names[0]] == weights[o])}
    return frozenset(large) - rows


def block_of(graph: Graph, part: Part, modules: Collection[str]) -> str:
    """The module that a part is shown in, of those that get a frame; empty for none."""
    return next((name for name in _numbered(_place(graph, part)) if name in modules), "")


def _place(graph: Graph, part: Part) -> str:
    return _common([graph.nodes[n].path for n in part.nodes if graph.nodes[n].kind not in _ENDS])


_ENDS = ("input", "output", "module")


def _common(paths: Sequence[str]) -> str:
    """The innermost module that all are in."""
    columns = zip(*(path.split(".") for path in paths), strict=False)
    return ".".join(names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns))


def _numbered(path: str) -> list[str]:
    """The modules around a path, and itself, whose names end in a number, outermost first."""
    names = path.split(".")
    return [".".join(names[: i + 1]) for i, name in enumerate(names) if re.search(r"\d[a-z]?$", name)]


def runs_of(graph: Graph) -> dict[range, str]:
    """The large modules within parts that are too large to be seen at once: {their nodes: the module}.

    Such are the cells of networks in which each reads the two before it, so that no node ends a part.
    """
    found: dict[range, str] = {}
    for part in parts_of(graph):
        if len(part.nodes) > LARGE:
            outermost = ((next(iter(_numbered(graph.nodes[n].path)), ""), n) for n in part.nodes)
            for name, pairs in groupby(outermost, key=lambda pair: pair[0]):
                nodes = [n for _, n in pairs]
                if name and len(nodes) >= FEW and name not in found.values():
                    found[range(nodes[0], nodes[-1] + 1)] = name
    return found


def condensed(
    graph: Graph, runs: dict[range, str], looks: Callable[[int], Hashable]
) -> tuple[Graph, list[int], dict[str, list[str]]]:
    """A graph in which some modules are one node each, and behind it, by itself, each of these; equal ones once.

    Args:
        graph: the graph.
        runs: the modules' nodes, and names (`runs_of`).
        looks: all that is shown of a node.

    Returns:
        The graph, for each of its nodes the one that it was (-1: none), and for each module that is drawn all that
        are like it, itself first.
    """
    of = {node: run for run in runs for node in run}
    insides = {run: _inside(graph, run) for run in runs}
    alike: dict[Hashable, list[range]] = {}
    for run, (within, came) in insides.items():
        signature = tuple(looks(i) if i >= 0 else within.nodes[n].label for n, i in enumerate(came)), within.arrows
        alike.setdefault(signature, []).append(run)
    likes = {run: same[0] for same in alike.values() for run in same}
    place: dict[int, int] = {}
    nodes: list[Node] = []
    origins: list[int] = []
    for i, node in enumerate(graph.nodes):
        around = of.get(i)
        if around is None or i == around[0]:
            nodes.append(node if around is None else _module(graph, around, runs[around], runs[likes[around]]))
            origins.append(i if around is None else -1)
        place[i] = len(nodes) - 1
    seen: set[tuple[int, int]] = set()
    arrows: list[tuple[int, int]] = []
    for a, b in graph.arrows:
        if b in of and (a, place[b]) in seen:
            continue  # read twice within a module
        seen.add((a, place[b]))
        if place[a] != place[b]:
            arrows.append((place[a], place[b]))
    for same in alike.values():
        within, from_ = insides[same[0]]
        arrows += [(a + len(nodes), b + len(nodes)) for a, b in within.arrows]
        nodes += within.nodes
        origins += from_
    return (
        Graph(tuple(nodes), tuple(arrows)),
        origins,
        {runs[same[0]]: [runs[r] for r in same] for same in alike.values()},
    )


def _module(graph: Graph, run: range, name: str, like: str) -> Node:
    inside = [graph.nodes[i] for i in run]
    fate: Literal["goes", "stays"] = "goes" if all(node.fate == "goes" for node in inside) else "stays"
    shape, madds = inside[-1].shape, sum(node.madds for node in inside)
    sizes = f": {shape[0]}" + (f" @{shape[-1]}" if len(shape) == 3 else "")
    label = "shown apart" if name == like else f"like {like}"
    return Node("module", f"{name}{sizes}\n{label}", "", "", inside[-1].value, shape, madds, fate)


def _inside(graph: Graph, run: range) -> tuple[Graph, list[int]]:
    """The inside of a module by itself, with what it is given and gives; and of each node the one that it was."""
    given = list(dict.fromkeys(a for a, b in graph.arrows if b in run and a not in run))
    gives = sorted({a for a, b in graph.arrows if a in run and b not in run})
    one = {place: f"input {n + 1}" for n, place in enumerate(sorted(given))}
    nodes: list[Node] = []
    came: list[int] = []
    place: dict[int, int] = {}
    for i in run:
        for a in sorted({a for a, b in graph.arrows if b == i and a not in run} - place.keys()):
            place[a] = len(nodes)
            nodes.append(Node("input", one[a] if len(given) > 1 else "input", "", graph.nodes[i].path, -1, ()))
            came.append(-1)
        place[i] = len(nodes)
        nodes.append(graph.nodes[i])
        came.append(i)
    arrows = [(place[a], place[b]) for a, b in graph.arrows if b in run]
    for a in gives:
        arrows.append((place[a], len(nodes)))
        nodes.append(Node("output", "output", "", graph.nodes[a].path, -1, ()))
        came.append(-1)
    return Graph(tuple(nodes), tuple(arrows)), came
