"""What each edge may become: choices that are exact, and which edges share theta."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from ..candidates import moves
from ..errors import UsageError
from ..moves import Table, cost_of, read_transitions, transitions
from ..naming import unknown
from ..operations import OPERATIONS
from ..tracing import Program, State, Trace, change_of
from .edge import IDENTITY, NONE, ORIGINAL, Edge, in_order, prefixes, problems
from .places import candidate_edges
from .widths import ENDING, width_edges

Space = str | Mapping[str, Sequence[str]] | Sequence[str | Mapping[str, Sequence[str]]]
"""What edges may become: "dnat", "nat++", "width", several of them ("dnat,width"), or a table in nat++'s place."""


def parts_of(space: Space) -> tuple[Table | None, bool, bool]:
    """What a space offers: a table of other operations, if any; whether operations may go; whether widths shrink.

    Raises:
        ValueError: an unknown space, or no table.

    >>> parts_of("dnat,width"), parts_of("width")
    ((None, True, True), (None, False, True))
    """
    parts = space.split(",") if isinstance(space, str) else [space] if isinstance(space, Mapping) else list(space)
    names = [part.strip() for part in parts if isinstance(part, str)]
    tables = [read_transitions(part) for part in parts if not isinstance(part, str)]
    for name in names:
        if name not in SPACES:
            raise unknown("space", name, SPACES)
    if "nat++" in names:
        tables.append(transitions("nat++"))
    if not parts or len(tables) + ("dnat" in names) > 1 or len(set(names)) < len(names):
        raise UsageError(f"a space is one of dnat and nat++, or a table, with width or without it, not {space!r}")
    return tables[0] if tables else None, bool(tables) or "dnat" in names, "width" in names


SPACES = ("dnat", "nat++", "width")


def legal_edges(
    program: Program,
    space: Space = "dnat",
    *,
    only: Collection[str] | None = None,
) -> tuple[Edge, ...]:
    """Every operation and block of a network, with the choices that would be exact, in order of execution.

    Those without a choice but "original" say why in `Edge.refused`. See `planning.find_edges`, which offers what
    can also be made.
    """
    table, goes, shrinks = parts_of(space)
    places = _distinct(candidate_edges(program))
    edges = _without_wrappers(map(_with_choices, places)) if goes else [_fixed_operation(e) for e in places]
    edges += width_edges(program) if shrinks else ()
    free = {e.key for e in edges if only is None or any(fnmatchcase(e.key, pattern) for pattern in only)}
    edges = [e if e.key in free else _without_choices(e) for e in edges]
    if table is not None:
        edges = [_with_others(edge, table) if edge.key in free and not edge.place else edge for edge in edges]
    return in_order(edges) if shrinks else tuple(edges)


def possible_edges(program: Program, names: Mapping[str, str]) -> tuple[Edge, ...]:
    """Every place of a network with all that could be made of it, offered or not.

    Args:
        program: from `dnat.trace`.
        names: {edge key: choice} that edges are to become.
    """
    edges = [_with_choices(edge) for edge in candidate_edges(program)]
    edges += width_edges(program) if any(key.endswith(ENDING) for key in names) else ()
    # A grouped convolution has the choices of the dense one.
    named = [e for e in edges if names.get(e.key, ORIGINAL) not in (ORIGINAL, IDENTITY, NONE) and not e.place]
    tables = {e.key: {e.operation.removeprefix("g"): (e.operation, names[e.key])} for e in named}
    return in_order(_with_others(e, tables[e.key]) if e.key in tables else e for e in edges)


def _distinct(edges: Iterable[Edge]) -> list[Edge]:
    """Of modules that wrap each other and do the same, the unit if there is one, else the outermost."""
    outermost: dict[tuple[tuple[int, int], ...], Edge] = {}
    for edge in edges:
        place = tuple(edge.values(edge.program.traces[0]))
        if place not in outermost or edge.kind in ("unit", "operation"):
            outermost[place] = edge
    return list(outermost.values())


def _without_wrappers(edges: Iterable[Edge]) -> list[Edge]:
    """Without blocks around a single unit (and its activation) that may become no more than the unit may."""
    edges = list(edges)
    inside: defaultdict[str, list[Edge]] = defaultdict(list)
    for edge in {edge.entry: edge for edge in edges if edge.kind == "unit"}.values():
        for path in prefixes(edge.entry)[:-1]:
            inside[path].append(edge)

    def wraps(edge: Edge) -> bool:
        units = inside.get(edge.entry, ())
        return len(units) == 1 and set(edge.choices) <= set(units[0].choices)

    return [e for e in edges if e.kind not in ("block", "branch") or not wraps(e)]


def _with_choices(edge: Edge) -> Edge:
    if edge.kind == "skip":
        return edge
    choices, refused = [ORIGINAL], []
    fixed = _why_not_trained(edge)
    none = fixed or _why_not_missed(edge) or next(iter(problems({edge: NONE})), "")
    for choice, why in ((IDENTITY, fixed or _why_no_identity(edge)), (NONE, none)):
        if why:
            refused.append((choice, why))
        else:
            choices.append(choice)
    kind = "branch" if edge.kind == "block" and NONE in choices else edge.kind
    return replace(edge, choices=tuple(choices), refused=tuple(refused), kind=kind)


def _fixed_operation(edge: Edge) -> Edge:
    """The edge as it is where nothing but widths may change."""
    why = "the space has widths alone"
    return replace(edge, choices=(ORIGINAL,), refused=((IDENTITY, why), (NONE, why)))


def _without_choices(edge: Edge) -> Edge:
    """The edge without the choices that it has, since a setting keeps it as it is."""
    for choice in edge.choices[1:]:
        edge = edge.without(choice, "not among the edges that may change (setting edges)")
    return edge


def _with_others(edge: Edge, table: Mapping[str, tuple[str, ...]]) -> Edge:
    """The edge with the other operations that a table lets it become."""
    shape = edge.program.modules[edge.entry].geometry
    # A checkpoint's first run would teach other operations nothing.
    if _why_not_trained(edge) or _why_not_missed(edge) or edge.reentrant:
        return edge
    trace = edge.program.traces[0]
    if edge.kind == "unit" and shape and edge.lone:
        # Of all rows that it is given: a network may split a batch, or put a clip's images into one.
        elements = sum(math.prod(trace.values[out].shape) for _, out in edge.values(trace))
        others = moves(edge.operation, shape, table, elements // shape.channels_out // max(trace.batch, 1))
    elif edge.kind == "operation" and len(edge.choices) > 1 and edge.operation in table:
        fixed = (edge.operation, "skip_connect", "null")
        names = [n for n in table[edge.operation] if n in OPERATIONS and n not in fixed]
        height, width = edge.shape_out[1:]
        stride = round(edge.shape_in[1] / height)
        # Pools are free here, as in `dnat.cost`.
        costs = (cost_of(n, edge.shape_in[0], height, width, stride=stride).madds for n in names)
        others = tuple((n, 0 if "pool" in n else c) for n, c in zip(names, costs, strict=True))
    else:
        return edge
    names = [name for name, _ in others]
    return replace(edge, choices=(ORIGINAL, *names, *edge.choices[1:]), others=others)


def _why_no_identity(edge: Edge) -> str:
    """Why the edge cannot become an identity; empty if it can."""
    if edge.part is not None:
        return "it is given or gives several tensors"
    if edge.kind != "operation":
        return _why_unlike(edge)
    return "it is one" if edge.operation == "skip_connect" else ""


def _why_unlike(edge: Edge) -> str:
    """How the edge's output differs from its input in shape or type; empty if it does not."""
    for trace in edge.program.traces:
        for a, b in ((trace.values[a], trace.values[b]) for a, b in edge.values(trace)):
            if a.shape != b.shape:
                return (
                    f"its input is {'x'.join(map(str, a.shape[1:]))}, its output {'x'.join(map(str, b.shape[1:]))}"
                )
            if a.dtype != b.dtype:
                return f"its input is {a.dtype}, its output {b.dtype}"
    return ""


def _why_not_trained(edge: Edge) -> str:
    """Whether the edge runs where the network switches gradients off: its theta could not be trained."""
    calls = (t.calls[i] for t in edge.program.traces for i in t.calls_of(edge.entry))
    return "" if all(call.learns for call in calls) else "the network runs it without gradients (under no_grad)"


def _why_not_missed(edge: Edge) -> str:
    """Why the edge's output could not be missed; empty if it depends on the input and is read."""
    for trace in edge.program.traces:
        for _, out in edge.values(trace):
            if trace.states[out] is not State.DATA:
                return "its output does not depend on the network's input"
            if not (trace.users[out] or out in trace.outputs):
                return "its output is not used"
    return ""


def nones_once(edges: Iterable[Edge]) -> list[Edge]:
    """Takes none from edges where another edge's none does the same and more."""
    edges = list(edges)
    changes = {p: [_change(e, t) for t in e.program.traces] for p, e in enumerate(edges) if NONE in e.choices}
    ends: defaultdict[int, list[int]] = defaultdict(list)
    for place, (first, *_) in changes.items():
        for out in first[0]:
            ends[out].append(place)
    once = []
    for place, edge in enumerate(edges):
        zeros = changes[place][0][1] if place in changes else ()
        for other in sorted({other for value in zeros for other in ends.get(value, ())} - {place}):
            covered = _covers(changes[other], changes[place])
            mutual = covered and _covers(changes[place], changes[other])
            if covered and not (mutual and place < other):
                edge = edge.without(NONE, f"the same as none at {edges[other].key}")
                break
        once.append(edge)
    return once


def _change(edge: Edge, trace: Trace) -> tuple[set[int], set[int], frozenset[int]]:
    """What none at an edge does: the edge's outputs, the values that become zero, the operations that go."""
    outs = {out for _, out in edge.values(trace)}
    change = change_of(trace, outs)
    return outs, {i for i, state in change.states.items() if state is State.ZERO}, change.dead


def _covers(
    outer: list[tuple[set[int], set[int], frozenset[int]]], inner: list[tuple[set[int], set[int], frozenset[int]]]
) -> bool:
    """Whether one none makes the other's output zero, and lets nothing live that the other would remove."""
    pairs = zip(outer, inner, strict=True)
    return all(outs <= zeros and dead <= dead_outer for (outs, _, dead_outer), (_, zeros, dead) in pairs)


def groups_of(program: Program, edges: Iterable[Edge]) -> dict[str, str]:
    """For each edge the key of its Cell-mode group: class and structure of its outermost repeated block, and
    the edge's place in it. An edge in no repeated block is alone."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for path, info in program.modules.items():
        if _may_repeat(program, path):
            counts[info.name, info.structure] += 1
    groups = {}
    for edge in edges:
        groups[edge.key] = edge.key
        place = program.modules[edge.entry].place
        if place is not None:
            groups[edge.key] = place
            continue
        entry = edge.key.removesuffix(ENDING) if edge.place else edge.entry
        for path in prefixes(entry):
            block = program.modules.get(path)
            inside = edge.exit == path or edge.exit.startswith(path + ".")
            if block is None or not inside or counts[block.name, block.structure] < 2:
                continue
            places = [p[len(path) + 1 :] or "." for p in dict.fromkeys((entry, edge.exit))]
            ending = ENDING if edge.place else ""
            groups[edge.key] = f"{block.name}-{block.structure}:{'>'.join(places)}{ending}"
            break
    return groups


def _may_repeat(program: Program, path: str) -> bool:
    """Blocks are modules with parts of their own; a bare Sequential counts if it has a parent to repeat in."""
    info = program.modules[path]
    if info.kind == "composite":
        return bool(path)
    return info.kind == "container" and info.name == "Sequential" and bool(path)
