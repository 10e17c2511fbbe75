"""Program -> Edges: where a network may change, what is legal there, and which edges share theta.

Kinds of edges:

unit    a convolution or linear layer with its only norm (the activation stays outside);
block   a module of several units that maps one tensor to one, with no shortcut inside;
branch  the same, where its output is only ever added to something else;
skip    a null edge (`operations.NullEdge`), where a connection may grow.

An edge may become an identity where its output has its input's shape and type in every call that was seen, and
may become none where a zero in its place would only ever meet data in additions, so that dropping it is exact.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from .naming import unknown
from .tracing import Program, State, Trace

Kind = Literal["unit", "block", "branch", "skip"]
ORIGINAL, IDENTITY, NONE = "original", "identity", "none"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A place where a network may change.

    Attributes:
        key: "entry path" or "entry path>exit path"; the same in every process.
        kind: see the module.
        operation: what the edge computes now, by the field's name ("conv_3x3", "null", a class).
        entry, exit: paths of the modules at which the edge begins and ends.
        shape_in, shape_out: without the batch, as seen on the first example.
        madds: multiply-adds of one image.
        choices: what it may become, "original" first.
        group: edges of one group share theta in Cell mode.
        copies: code behind the edge writes into its output, so an identity must make a copy.
    """

    key: str
    kind: Kind
    operation: str
    entry: str
    exit: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    choices: tuple[str, ...]
    group: str
    copies: bool = False
    program: Program = field(repr=False, compare=False)

    def values(self, trace: Trace) -> list[tuple[int, int]]:
        """The values (in, out) of each of the edge's calls in a trace."""
        entries, exits = trace.calls_of(self.entry), trace.calls_of(self.exit)
        return [(trace.calls[a].inputs[0], trace.calls[b].outputs[0]) for a, b in zip(entries, exits, strict=True)]


def find_edges(program: Program, space: str = "dnat") -> tuple[Edge, ...]:
    """The edges of a network, in order of execution.

    Only edges that have a choice are listed. Nested edges are found too (a branch and the units in it); where
    two edges end at the same value, "none" is offered by the outer one alone.

    Args:
        program: from `dnat.trace`.
        space: "dnat": original, identity and none.

    Raises:
        ValueError: an unknown space.

    >>> import dnat
    >>> edges = find_edges(dnat.trace(dnat.build("resnet8"), __import__("torch").zeros(2, 3, 32, 32)))
    >>> [(e.key, e.choices) for e in edges][:2]
    [('layer1.0.conv1>layer1.0.bn1', ('original', 'identity')), ('layer1.0.conv2>layer1.0.bn2', \
('original', 'identity', 'none'))]
    """
    if space != "dnat":
        raise unknown("space", space, ["dnat"])
    candidates = [*units(program), *_modules(program), *_skips(program)]
    edges = [_with_choices(edge) for edge in candidates]
    edges = _nones_once(edges)
    groups = _groups(program, edges)
    return in_order(replace(e, group=groups[e.key]) for e in edges if len(e.choices) > 1)


def in_order(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges in order of execution, an outer one before those inside it."""
    edges = list(edges)
    order: dict[str, int] = {}
    for edge in edges[:1]:
        for i, call in enumerate(edge.program.traces[0].calls):
            order.setdefault(call.path, i)
    return tuple(sorted(edges, key=lambda e: (order[e.entry], -order[e.exit])))


def replacements(trace: Trace, choices: Mapping[Edge, str]) -> tuple[set[int], dict[int, int]]:
    """What a set of choices does to a trace's values: those that become zero, and those that become another."""
    zero: set[int] = set()
    same: dict[int, int] = {}
    for edge, choice in choices.items():
        if choice == ORIGINAL:
            continue
        for value_in, value_out in edge.values(trace):
            if choice == NONE:
                zero.add(value_out)
            else:
                same[value_out] = value_in
    return zero, same


def problems(choices: Mapping[Edge, str]) -> list[str]:
    """Why a set of choices cannot be made together, over all traces; empty if it can (`Trace.problems`)."""
    programs = {id(edge.program): edge.program for edge in choices}
    found: dict[str, None] = {}
    for program in programs.values():
        for trace in program.traces:
            found.update(dict.fromkeys(trace.problems(*replacements(trace, choices))))
    return list(found)


def units(program: Program) -> list[Edge]:
    """Every convolution and linear layer that takes one tensor, with the norm that alone reads its output.

    They are listed as edges with no choice but "original"; `find_edges` tells which have more.
    """
    exits: defaultdict[str, set[str]] = defaultdict(set)
    for trace in program.traces:
        for i, call in enumerate(trace.calls):
            if program.modules[call.path].kind in ("convolution", "linear"):
                exits[call.path].add(_norm_behind(program, trace, i) or call.path)
    found_units = []
    for entry, found in exits.items():
        exit = found.pop() if len(found) == 1 else entry
        if any(len(t.calls_of(entry)) != len(t.calls_of(exit)) for t in program.traces):
            exit = entry
        edge = _edge(program, "unit", entry, exit)
        if edge is not None:
            found_units.append(edge)
    return found_units


def _norm_behind(program: Program, trace: Trace, call: int) -> str | None:
    """The path of the norm that is the only reader of a call's output."""
    outputs = trace.calls[call].outputs
    if len(outputs) != 1 or outputs[0] in trace.outputs:
        return None
    readers = {trace.operations[user].scope for user in trace.users[outputs[0]]}
    if len(readers) != 1 or not (scope := readers.pop()):
        return None
    norm = trace.calls[scope[-1]]
    is_norm = program.modules[norm.path].kind == "norm" and norm.inputs == outputs
    return norm.path if is_norm else None


def _modules(program: Program) -> list[Edge]:
    """Modules that map one tensor to one by several multiplying operations, and have no shortcut inside.

    With a shortcut, the branches beside it offer the same and more.
    """
    first = program.traces[0]
    edges = []
    for path in dict.fromkeys(call.path for call in first.calls):
        info = program.modules[path]
        if not path or info.kind not in ("composite", "container"):
            continue
        edge = _edge(program, "block", path, path)
        if edge is None:
            continue
        call = first.calls_of(path)[0]
        scope = first.within(call)
        heavy = {first.operations[i].outputs[0] for i in scope if first.operations[i].madds}
        if len(heavy) < 2:
            continue  # a unit and perhaps its activation: the unit is an edge itself
        # Does the input get through where nothing is multiplied? Then there is a shortcut.
        value_in, value_out = edge.values(first)[0]
        if _reaches(first, value_in, value_out, heavy):
            continue
        edges.append(edge)
    return edges


def _reaches(trace: Trace, start: int, end: int, without: Collection[int]) -> bool:
    seen, reached = set(), [end]
    while reached:
        value = reached.pop()
        if value == start:
            return True
        producer = trace.values[value].producer
        if value in seen or value in without or producer is None:
            continue
        seen.add(value)
        reached.extend(trace.operations[producer].inputs)
    return False


def _skips(program: Program) -> list[Edge]:
    nulls = [path for path, info in program.modules.items() if info.kind == "null"]
    edges = (_edge(program, "skip", path, path) for path in nulls)
    return [replace(e, choices=(ORIGINAL, IDENTITY)) for e in edges if e is not None]


def _edge(program: Program, kind: Kind, entry: str, exit: str) -> Edge | None:
    """An edge with no choice yet; None where it does not map one tensor to one in every call."""
    used = False
    for trace in program.traces:
        for a, b in zip(trace.calls_of(entry), trace.calls_of(exit), strict=True):
            used = True
            plain = (trace.calls[a].plain, trace.calls[b].plain)
            if not all(plain) or trace.calls[a].inputs == trace.calls[b].outputs:
                return None
    first = program.traces[0]
    entries, exits = first.calls_of(entry), first.calls_of(exit)
    if not used or not entries:
        return None
    scope = frozenset().union(*(first.within(i) for i in entries + exits))
    return Edge(
        key=entry if entry == exit else f"{entry}>{exit}",
        kind=kind,
        operation=program.modules[entry].name,
        entry=entry,
        exit=exit,
        shape_in=first.values[first.calls[entries[0]].inputs[0]].shape[1:],
        shape_out=first.values[first.calls[exits[0]].outputs[0]].shape[1:],
        madds=sum(first.operations[i].madds for i in scope) // max(first.batch, 1),
        choices=(ORIGINAL,),
        group="",
        copies=_is_written(program, entry, exit),
        program=program,
    )


def _is_written(program: Program, entry: str, exit: str) -> bool:
    """Whether code other than a module with an `inplace` switch writes into the edge's output."""
    for trace in program.traces:
        for i in trace.calls_of(exit):
            for user in trace.users[trace.calls[i].outputs[0]]:
                op = trace.operations[user]
                by_switch = bool(op.scope) and program.modules[trace.calls[op.scope[-1]].path].inplace
                if op.mutates and not by_switch:
                    return True
    return False


def _with_choices(edge: Edge) -> Edge:
    if edge.kind == "skip":
        return edge
    choices = [ORIGINAL]
    traces = edge.program.traces
    alike = all(
        (t.values[a].shape, t.values[a].dtype) == (t.values[b].shape, t.values[b].dtype)
        for t in traces
        for a, b in edge.values(t)
    )
    if alike:
        choices.append(IDENTITY)
    if not problems({edge: NONE}) and _is_live(edge):
        choices.append(NONE)
    kind = "branch" if edge.kind == "block" and NONE in choices else edge.kind
    return replace(edge, choices=tuple(choices), kind=kind)


def _is_live(edge: Edge) -> bool:
    """Whether the edge's output depends on the input and is read at all."""
    for trace in edge.program.traces:
        states = trace.propagate()
        for _, out in edge.values(trace):
            if states[out] is not State.DATA or not (trace.users[out] or out in trace.outputs):
                return False
    return True


def _nones_once(edges: Iterable[Edge]) -> list[Edge]:
    """Of edges that end at the same value only the outermost offers none: it would do the same at each."""
    edges = list(edges)
    outer: dict[int, Edge] = {}
    first = edges[0].program.traces[0] if edges else None
    for edge in edges:
        if first is not None and NONE in edge.choices:
            out = edge.values(first)[0][1]
            if out not in outer or len(edge.exit) < len(outer[out].exit):
                outer[out] = edge
    keep = {edge.key for edge in outer.values()}
    return [e if e.key in keep else replace(e, choices=tuple(c for c in e.choices if c != NONE)) for e in edges]


def _groups(program: Program, edges: Iterable[Edge]) -> dict[str, str]:
    """For each edge the key of its Cell-mode group: class and structure of its outermost repeated block, and
    the edge's place in it. An edge in no repeated block is alone."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for path, info in program.modules.items():
        if _may_repeat(program, path):
            counts[info.name, info.structure] += 1
    groups = {}
    for edge in edges:
        groups[edge.key] = edge.key
        parts = edge.entry.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            found = program.modules.get(path)
            inside = edge.exit == path or edge.exit.startswith(path + ".")
            if found is None or not inside or counts[found.name, found.structure] < 2:
                continue
            places = [p[len(path) + 1 :] or "." for p in dict.fromkeys((edge.entry, edge.exit))]
            groups[edge.key] = f"{found.name}-{found.structure}:{'>'.join(places)}"
            break
    return groups


def _may_repeat(program: Program, path: str) -> bool:
    """Blocks are modules with parts of their own; a bare Sequential counts if it has a parent to repeat in."""
    info = program.modules[path]
    if info.kind == "composite":
        return bool(path)
    return info.kind == "container" and info.name == "Sequential" and bool(path)
