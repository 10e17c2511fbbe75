"""Where a network may change: units, modules, and the named edges of cells, as edges that have no choice yet."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace

from ..tracing import Call, Operation, Program, State, Trace, changed_states
from .edge import IDENTITY, NONE, ORIGINAL, Edge, Kind, in_order, prefixes


def candidate_edges(program: Program) -> tuple[Edge, ...]:
    """Every place that could change, in order of execution; nested ones, too."""
    # A network of genotype cells has the edges of its genotype, and no others: its authors named them.
    named = _operations(program)
    return in_order([*(named or [*units(program), *_modules(program)]), *_skips(program)])


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
    around = set(trace.calls[call].scope)
    readers = {
        next((c for c in trace.operations[user].scope if c not in around), None)
        for user in trace.users[outputs[0]]
    }
    if len(readers) != 1 or (reader := readers.pop()) is None:
        return None
    norm = trace.calls[reader]
    return reader if norm.inputs == outputs and norm.plain and _is_norm(program, trace, reader) else None


def _is_norm(program: Program, trace: Trace, call: int) -> bool:
    """Whether a call is one of a norm: torch's, or a module that keeps the shape, has weights or buffers,
    multiplies nothing by a matrix, and makes something else of zeros.
    """
    norm = trace.calls[call]
    if program.modules[norm.path].kind == "norm":
        return True
    before, after = trace.values[norm.inputs[0]], trace.values[norm.outputs[0]]
    if before.shape != after.shape or not program.modules[norm.path].has_state:
        return False
    if any(trace.operations[i].madds for i in trace.within(call)):
        return False
    states = changed_states(trace, norm.inputs, last=norm.outputs[0])
    return states.get(norm.outputs[0], trace.states[norm.outputs[0]]) is not State.ZERO


def _modules(program: Program) -> list[Edge]:
    """Modules that multiply something and have no shortcut inside: such as map one tensor to one, and such as are
    given or give several, of which one is read.

    With a shortcut, the branches beside it offer the same and more.
    """
    first = program.traces[0]
    edges = []
    for path in dict.fromkeys(call.path for call in first.calls):
        info = program.modules[path]
        if not path or info.kind not in ("composite", "container", "other") or info.scripted:
            continue
        edge = _edge(program, "block", path, path) or _edge(program, "block", path, path, _part(program, path))
        if edge is None:
            continue
        call = first.calls_of(path)[0]
        heavy = {first.operations[i].outputs[0] for i in first.within(call) if first.operations[i].madds}
        if not heavy:
            continue
        # Does an input get through where nothing is multiplied? Then there is a shortcut.
        _, out = edge.values(first)[0]
        if _reaches(first, first.calls[call].inputs, out, heavy):
            continue
        edges.append(edge)
    return edges


def _part(program: Program, path: str) -> int | None:
    """Which of the tensors that a module gives is the only one that anything behind it reads, in every call."""
    parts = set()
    for trace in program.traces:
        for i in trace.calls_of(path):
            call = trace.calls[i]
            read = [place for place, value in enumerate(call.outputs) if _is_read(trace, i, value)]
            parts.add(read[0] if len(read) == 1 and call.inputs and call.opens else None)
    return parts.pop() if len(parts) == 1 else None


def _is_read(trace: Trace, call: int, value: int) -> bool:
    """Whether something beyond a call reads a value."""
    return value in trace.outputs or any(call not in trace.operations[user].scope for user in trace.users[value])


def _reaches(trace: Trace, starts: Collection[int], end: int, without: Collection[int]) -> bool:
    seen, reached, first = set(), [end], min(starts, default=end)
    while reached:
        value = reached.pop()
        if value in starts:
            return True
        producer = trace.values[value].producer
        if value in seen or value in without or value < first or producer is None:
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


def _edge(program: Program, kind: Kind, entry: str, exit: str, part: int | None = None) -> Edge | None:
    """An edge with no choice yet; None where it does not map one tensor to one in every call, or to a part."""
    used = False
    for trace in program.traces:
        for a, b in zip(trace.calls_of(entry), trace.calls_of(exit), strict=True):
            used = True
            begins, ends = trace.calls[a], trace.calls[b]
            plain = begins.plain and ends.plain
            if (part is None and not plain) or set(begins.inputs) & set(ends.outputs):
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
        shape_out=first.values[first.calls[exits[0]].outputs[part or 0]].shape[1:],
        madds=sum(first.operations[i].madds for i in scope) // max(first.batch, 1),
        choices=(ORIGINAL,),
        group="",
        copies=_is_written(program, exit, part or 0),
        lone=all(t.calls[i].lone for t in program.traces for i in t.calls_of(entry) + t.calls_of(exit)),
        part=part,
        program=program,
    )


def _is_written(program: Program, exit: str, part: int) -> bool:
    """Whether code other than a module with an `inplace` switch writes into the edge's output."""
    for trace in program.traces:
        for i in trace.calls_of(exit):
            for user in trace.users[trace.calls[i].outputs[part]]:
                op = trace.operations[user]
                by_switch = bool(op.scope) and program.modules[trace.calls[op.scope[-1]].path].inplace
                if op.mutates and not by_switch:
                    return True
    return False


def everything_else(program: Program, edges: Collection[Edge]) -> list[Edge]:
    """What has weights or multiplies and is no edge, with the reason why it cannot change.

    Modules are listed by their paths, functions as "path:function" of the module that calls them.
    """
    first = program.traces[0]
    paths = {path for edge in edges for path in (edge.entry, edge.exit)}
    listed = {i for path in paths for i in first.calls_of(path)}
    rest = []
    for path, info in program.modules.items():
        inside = not paths.isdisjoint(prefixes(path))
        if info.weights and info.kind not in ("composite", "container") and not inside:
            rest.append(_unchangeable(program, path))
    listed |= {i for edge in rest for i in first.calls_of(edge.entry)}
    functions: defaultdict[str, list[Operation]] = defaultdict(list)
    for op in first.operations:
        if op.madds and listed.isdisjoint(op.scope):
            path = first.calls[op.scope[-1]].path if op.scope else ""
            functions[f"{path}:{op.name.strip('_')}".lstrip(":")].append(op)
    return rest + [_function(program, key, operations) for key, operations in functions.items()]


def _unchangeable(program: Program, path: str) -> Edge:
    """A module that is no edge."""
    first, info = program.traces[0], program.modules[path]
    calls = [first.calls[i] for i in first.calls_of(path)]
    inside = {i for c in first.calls_of(path) for i in first.within(c)}
    return _fixed(
        program,
        path,
        info.name,
        calls[0].inputs if calls else (),
        calls[0].outputs if calls else (),
        sum(first.operations[i].madds for i in inside),
        _why_no_edge(program, path, calls),
    )


def _why_no_edge(program: Program, path: str, calls: Sequence[Call]) -> str:
    info, first = program.modules[path], program.traces[0]
    if info.scripted:
        return "it is scripted: what it does inside cannot be seen"
    if not calls:
        return "it is not called on the example (its weights may be used by other code)"
    if info.kind == "norm":
        return "a norm stays, unless it ends an operation that goes"
    if not any(first.operations[i].madds for c in first.calls_of(path) for i in first.within(c)):
        return "it multiplies nothing"
    if not all(call.plain for call in calls):
        return "it is given or gives several tensors, and not one of them alone is read"
    return "its input reaches its output without it"


def _function(program: Program, key: str, operations: Sequence[Operation]) -> Edge:
    """A function that multiplies, in the forward of a module that is no edge."""
    op = operations[0]
    why = "a function in the code of a module: only modules can change"
    return _fixed(program, key, op.name.strip("_"), op.inputs, op.outputs, sum(o.madds for o in operations), why)


def _fixed(
    program: Program,
    key: str,
    operation: str,
    inputs: Sequence[int],
    outputs: Sequence[int],
    madds: int,
    why: str,
) -> Edge:
    first = program.traces[0]
    shapes = [first.values[values[0]].shape[1:] if values else () for values in (inputs, outputs)]
    path = key.rpartition(":")[0] if key not in program.modules else key
    return Edge(
        key=key,
        kind="other",
        operation=operation,
        entry=path,
        exit=path,
        shape_in=shapes[0],
        shape_out=shapes[1],
        madds=madds // max(first.batch, 1),
        choices=(ORIGINAL,),
        group=key,
        refused=((IDENTITY, why), (NONE, why)),
        program=program,
    )
