"""Program -> Edges: where a network may change, what is legal there, and which edges share theta.

Kinds of edges:

unit    a convolution or linear layer with its only norm (the activation stays outside);
block   a module of several units that maps one tensor to one, with no shortcut inside;
branch  the same, where its output is only ever added to something else;
operation  an edge of a genotype's cell (`operations.CellOperation`); what is inside it is no edge of its own;
skip    a null edge (`operations.NullEdge`), where a connection may grow.

An edge may become another operation where NAT++'s moves, or a table of yours, allow it: of a searched cell a named
one, and a plain convolution a cheaper one of its own shape (`dnat.candidates`).

An edge may become an identity where its output has its input's shape and type in every call that was seen (an edge
of a genotype, and a null edge, also where a reduction must stand in for the identity), and
may become none where a zero in its place would only ever meet data in an addition, or stand beside data in a
concatenation, so that dropping it is exact. Each edge tells why it has no other choices (`Edge.refused`).
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from .candidates import moves
from .naming import unknown
from .networks.genotypes import OPERATIONS
from .tracing import Program, State, Trace
from .transitions import cost_of, read_transitions, transitions

Kind = Literal["unit", "block", "branch", "operation", "skip"]
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
        choices: what it may become, "original" first, then other operations by name, then identity and none.
        group: edges of one group share theta in Cell mode.
        copies: code behind the edge writes into its output, so an identity must make a copy.
        lone: its calls give it nothing but one tensor, so that `nn.Identity` can take its place.
        refused: (choice, why not) for each choice that it does not have.
        others: (name, multiply-adds of one image) of the other operations that it may become.
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
    lone: bool = True
    refused: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    others: tuple[tuple[str, int], ...] = ()
    program: Program = field(repr=False, compare=False)

    def values(self, trace: Trace) -> list[tuple[int, int]]:
        """The values (in, out) of each of the edge's calls in a trace."""
        entries, exits = trace.calls_of(self.entry), trace.calls_of(self.exit)
        return [(trace.calls[a].inputs[0], trace.calls[b].outputs[0]) for a, b in zip(entries, exits, strict=True)]

    @property
    def reentrant(self) -> bool:
        """Whether it runs in a checkpoint with `use_reentrant=True`, which passes on no gradient of its own where
        what goes in needs none."""
        return any(t.calls[i].reentrant for t in self.program.traces for i in t.calls_of(self.entry))

    def interleaved(self) -> int:
        """How many calls of its first module lie before the first that is followed by its last, at the most."""
        most = 1
        for trace in self.program.traces:
            order = sorted(
                [(i, 1) for i in trace.calls_of(self.entry)] + [(i, -1) for i in trace.calls_of(self.exit)]
            )
            open_ = 0
            for _, step in order if self.entry != self.exit else ():
                open_ += step
                most = max(most, open_)
        return most

    @property
    def passes(self) -> tuple[str, ...]:
        """The choices in which something else makes its output of its input: operations, and the identity."""
        return tuple(c for c in self.choices if c not in (ORIGINAL, NONE))

    @property
    def modules(self) -> tuple[str, ...]:
        """The choices that are modules of their own: operations; an identity on a null edge, or that reduces."""
        own = self.kind == "skip" or self.reduces
        return tuple(c for c in self.passes if c != IDENTITY or own)

    def added(self, choice: str) -> float:
        """Multiply-adds of one image that come with a choice."""
        if choice == IDENTITY:
            return float(self.shape_in[0] * math.prod(self.shape_out)) if self.reduces else 0.0
        return float(dict(self.others).get(choice, 0))

    @property
    def reduces(self) -> bool:
        """Whether its identity is a `FactorizedReduce`, with weights and multiply-adds of its own."""
        return IDENTITY in self.choices and self.shape_in != self.shape_out

    def without(self, choice: str, why: str) -> "Edge":
        """The edge with one choice less."""
        choices = tuple(c for c in self.choices if c != choice)
        return replace(self, choices=choices, refused=(*self.refused, (choice, why)))


def legal_edges(
    program: Program,
    space: str | Mapping[str, Sequence[str]] = "dnat",
    *,
    only: Collection[str] | None = None,
) -> tuple[Edge, ...]:
    """Every operation and block of a network, with the choices that would be exact, in order of execution.

    Those without a choice but "original" say why in `Edge.refused`. See `planning.find_edges`, which offers what
    can also be made.
    """
    if isinstance(space, str) and space not in ("dnat", "nat++"):
        raise unknown("space", space, ["dnat", "nat++"])
    table = transitions(space) if isinstance(space, str) else read_transitions(space)
    edges = _worth(_with_choices(edge) for edge in _distinct(_candidates(program)))
    free = {e.key for e in edges if only is None or any(fnmatchcase(e.key, pattern) for pattern in only)}
    edges = [e if e.key in free else _barred(e) for e in edges]
    if space != "dnat":
        edges = [_with_others(edge, table) if edge.key in free else edge for edge in edges]
    return tuple(edges)


def possible_edges(program: Program, names: Mapping[str, str]) -> tuple[Edge, ...]:
    """Every place of a network with all that could be made of it, offered or not.

    Args:
        program: from `dnat.trace`.
        names: {edge key: operation} that edges are to become.
    """
    edges = [_with_choices(edge) for edge in _candidates(program)]
    # A grouped convolution has the choices of the dense one.
    tables = {e.key: {e.operation.removeprefix("g"): (e.operation, names[e.key])} for e in edges if e.key in names}
    return tuple(_with_others(e, tables[e.key]) if e.key in tables else e for e in edges)


def _candidates(program: Program) -> tuple[Edge, ...]:
    # A network of genotype cells has the edges of its genotype, and no others: its authors named them.
    named = _operations(program)
    return in_order([*(named or [*units(program), *_modules(program)]), *_skips(program)])


def _distinct(edges: Iterable[Edge]) -> list[Edge]:
    """Of modules that wrap each other and do the same, the unit if there is one, else the outermost."""
    found: dict[tuple[tuple[int, int], ...], Edge] = {}
    for edge in edges:
        place = tuple(edge.values(edge.program.traces[0]))
        if place not in found or edge.kind in ("unit", "operation"):
            found[place] = edge
    return list(found.values())


def _worth(edges: Iterable[Edge]) -> list[Edge]:
    """Without blocks around a single unit (and its activation) that may become no more than the unit may."""
    edges = list(edges)
    found = {edge.entry: set(edge.choices) for edge in edges if edge.kind == "unit"}

    def inside(edge: Edge) -> list[set[str]]:
        return [c for entry, c in found.items() if entry.startswith(edge.entry + ".")]

    return [
        e
        for e in edges
        if e.kind not in ("block", "branch") or len(inside(e)) != 1 or not set(e.choices) <= inside(e)[0]
    ]


def in_order(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges in order of execution, an outer one before those inside it."""
    edges = list(edges)
    order: dict[str, int] = {}
    for edge in edges[:1]:
        for i, call in enumerate(edge.program.traces[0].calls):
            order.setdefault(call.path, i)
    return tuple(sorted(edges, key=lambda e: (order[e.entry], -order[e.exit])))


def replacements(trace: Trace, choices: Mapping[Edge, str]) -> tuple[set[int], dict[int, int]]:
    """What a set of choices does to a trace's values: those that become zero, and those that become another.

    A value that another operation computes counts as becoming that operation's input: it depends on nothing else.
    Where several edges end at one value, the outermost that changes decides: what is inside is gone with it.
    """
    found: dict[int, tuple[int, str]] = {}
    for edge, choice in choices.items():
        if choice == ORIGINAL:
            continue
        for value_in, value_out in edge.values(trace):
            if value_out not in found or value_in < found[value_out][0]:
                found[value_out] = (value_in, choice)
    zero = {out for out, (_, choice) in found.items() if choice == NONE}
    return zero, {out: start for out, (start, choice) in found.items() if choice != NONE}


def problems(choices: Mapping[Edge, str]) -> list[str]:
    """Why a set of choices cannot be made together, over all traces; empty if it can (`Trace.problems`)."""
    programs = {id(edge.program): edge.program for edge in choices}
    found: dict[str, None] = {}
    for program in programs.values():
        for trace in program.traces:
            zero, same = replacements(trace, choices)
            found.update(dict.fromkeys(trace.problems(zero, same)))
            found.update(dict.fromkeys(_reductions_of_nothing(trace, choices, zero, same)))
    return list(found)


def _reductions_of_nothing(
    trace: Trace, choices: Mapping[Edge, str], zero: Collection[int], same: Mapping[int, int]
) -> Iterator[str]:
    """Operations that would be given zeros: norms make something else of them, so they cannot be dropped."""
    own = [(edge, choice) for edge, choice in choices.items() if _has_weights(edge, choice)]
    if not own:
        return
    states = trace.propagate(zero, same)
    for edge, choice in own:
        for start, out in edge.values(trace):
            if out in same and states[start] is not State.DATA:
                what = "reduction" if choice == IDENTITY else choice
                yield f"{edge.key}: its {what} would be given nothing"


def _has_weights(edge: Edge, choice: str) -> bool:
    return edge.reduces if choice == IDENTITY else choice not in (ORIGINAL, NONE)


def units(program: Program) -> list[Edge]:
    """Every convolution and linear layer that takes one tensor, with the norm that alone reads its output.

    They are listed as edges with no choice but "original"; `legal_edges` tells which have more.
    """
    norms: defaultdict[str, list[list[int | None]]] = defaultdict(list)
    for trace in program.traces:
        for path, calls in trace.calls_by_path.items():
            if program.modules[path].kind in ("convolution", "linear"):
                norms[path].append([_norm_behind(program, trace, call) for call in calls])
    found_units = []
    for entry, behind in norms.items():
        edge = _edge(program, "unit", entry, _exit(program, entry, behind))
        if edge is not None:
            found_units.append(edge)
    return found_units


def _exit(program: Program, entry: str, behind: Sequence[Sequence[int | None]]) -> str:
    """The path of the norm that stands behind a module in each of its calls, and only there; or the module's own.

    Args:
        behind: for each trace, for each call of the module, the call of the norm behind it.
    """
    traces = [trace for trace in program.traces if trace.calls_of(entry)]
    first = behind[0][0]
    if first is None:
        return entry
    path = traces[0].calls[first].path
    return path if all(b == t.calls_of(path) for b, t in zip(behind, traces, strict=True)) else entry


def _norm_behind(program: Program, trace: Trace, call: int) -> int | None:
    """The call of the norm that is the only reader of a call's output."""
    outputs = trace.calls[call].outputs
    if len(outputs) != 1 or outputs[0] in trace.outputs:
        return None
    readers = {trace.operations[user].scope for user in trace.users[outputs[0]]}
    if len(readers) != 1 or not (scope := readers.pop()):
        return None
    norm = trace.calls[scope[-1]]
    is_norm = program.modules[norm.path].kind == "norm" and norm.inputs == outputs
    return scope[-1] if is_norm else None


def _modules(program: Program) -> list[Edge]:
    """Modules that map one tensor to one, multiply something, and have no shortcut inside.

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
        if not heavy:
            continue
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
        # A product of the input and a gate (squeeze and excitation) is no shortcut around the gate.
        op = trace.operations[producer]
        if op.behaviour != "multiply" or len(op.inputs) < 2:
            reached.extend(op.inputs)
    return False


def _operations(program: Program) -> list[Edge]:
    paths = [path for path, info in program.modules.items() if info.kind == "operation"]
    return [e for e in (_edge(program, "operation", path, path) for path in paths) if e is not None]


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
        lone=all(t.calls[i].lone for t in program.traces for i in t.calls_of(entry) + t.calls_of(exit)),
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
    choices, refused = [ORIGINAL], []
    fixed = _unlearned(edge)
    none = fixed or _unheard(edge) or next(iter(problems({edge: NONE})), "")
    for choice, why in ((IDENTITY, fixed or _no_identity(edge)), (NONE, none)):
        if why:
            refused.append((choice, why))
        else:
            choices.append(choice)
    kind = "branch" if edge.kind == "block" and NONE in choices else edge.kind
    return replace(edge, choices=tuple(choices), refused=tuple(refused), kind=kind)


def _barred(edge: Edge) -> Edge:
    """The edge without the choices that it has, since a setting keeps it as it is."""
    for choice in edge.choices[1:]:
        edge = edge.without(choice, "not among the edges that may change (setting edges)")
    return edge


def _with_others(edge: Edge, table: Mapping[str, tuple[str, ...]]) -> Edge:
    """The edge with the other operations that a table lets it become."""
    shape = edge.program.modules[edge.entry].geometry
    if _unlearned(edge) or _unheard(edge) or edge.reentrant:  # a checkpoint's first run teaches them nothing
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


def _no_identity(edge: Edge) -> str:
    """Why the edge cannot become an identity; empty if it can."""
    if edge.kind != "operation":
        return _unlike(edge)
    return "it is one" if edge.operation == "skip_connect" else ""


def _unlike(edge: Edge) -> str:
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


def _unlearned(edge: Edge) -> str:
    """Whether the edge runs where the network switches gradients off: its theta could not be trained."""
    calls = (t.calls[i] for t in edge.program.traces for i in t.calls_of(edge.entry))
    return "" if all(call.learns for call in calls) else "the network runs it without gradients (under no_grad)"


def _unheard(edge: Edge) -> str:
    """Why the edge's output could not be missed; empty if it depends on the input and is read."""
    for trace in edge.program.traces:
        states = trace.propagate()
        for _, out in edge.values(trace):
            if states[out] is not State.DATA:
                return "its output does not depend on the network's input"
            if not (trace.users[out] or out in trace.outputs):
                return "its output is not used"
    return ""


def nones_once(edges: Iterable[Edge]) -> list[Edge]:
    """Takes none from edges where another edge's none does the same and more."""
    edges = list(edges)
    changes = {e.key: [_change(e, trace) for trace in e.program.traces] for e in edges if NONE in e.choices}
    found = []
    for place, edge in enumerate(edges):
        for other_place, other in enumerate(edges):
            if edge is other or edge.key not in changes or other.key not in changes:
                continue
            covered = _covers(changes[other.key], changes[edge.key])
            mutual = covered and _covers(changes[edge.key], changes[other.key])
            if covered and not (mutual and place < other_place):
                edge = edge.without(NONE, f"the same as none at {other.key}")
                break
        found.append(edge)
    return found


def _change(edge: Edge, trace: Trace) -> tuple[set[int], set[int], frozenset[int]]:
    """What none at an edge does: the edge's outputs, the values that become zero, the operations that remain."""
    outs = {out for _, out in edge.values(trace)}
    states = trace.propagate(outs)
    return outs, {i for i, state in enumerate(states) if state is State.ZERO}, trace.live(outs)


def _covers(
    outer: list[tuple[set[int], set[int], frozenset[int]]], inner: list[tuple[set[int], set[int], frozenset[int]]]
) -> bool:
    """Whether one none makes the other's output zero, and lets nothing live that the other would remove."""
    pairs = zip(outer, inner, strict=True)
    return all(outs <= zeros and live_outer <= live for (outs, _, live_outer), (_, zeros, live) in pairs)


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
