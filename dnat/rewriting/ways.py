"""Where a network must be rewritten for none at an edge: the modules from the edge's end to the additions."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..edges import ORIGINAL, Edge, replacements
from ..tracing import Program, State, change_of


@dataclass(frozen=True)
class Way:
    """The modules that none at an edge is about.

    Attributes:
        zeros: those in whose forward something happens to the zeros, from the edge's end to the additions.
        dead: those in which something heavy is left without use.
        opened: those that must be traced through, since only a part of what they do changes.
    """

    zeros: frozenset[str]
    dead: frozenset[str]
    opened: frozenset[str]


def way_of(edge: Edge, choices: Mapping[Edge, str]) -> Way:
    """The way of none at an edge when these choices are made."""
    zeros: set[str] = set()
    dead: set[str] = set()
    opened: set[str] = set()
    for trace in edge.program.traces:
        zero, same = replacements(trace, choices)
        outs = {out for _, out in edge.values(trace)}
        # What this none alone makes useless, and what it does together with the other choices.
        change = change_of(trace, zero | outs, same)
        without = change_of(trace, *replacements(trace, {**choices, edge: ORIGINAL}))
        gone = change_of(trace, outs).dead | (change.dead - without.dead) | (without.revived - change.revived)
        lost = Counter(call for number in change.dead for call in trace.operations[number].scope)
        lost.subtract(call for number in change.revived for call in trace.operations[number].scope)
        around = [c for c in (trace.calls[c].parent for c in trace.calls_of(edge.exit)) if c is not None]
        zeros.update(trace.calls[c].path for c in around)
        reached = list(outs)
        for value in reached:
            for user in trace.users[value]:
                op = trace.operations[user]
                zeros.add(trace.calls[op.scope[-1]].path if op.scope else "")
                behind = [v for v in op.outputs if change.states.get(v, trace.states[v]) is State.ZERO]
                if len(behind) < len(op.outputs):
                    around.extend(op.scope)
                reached.extend(v for v in behind if v not in outs)
                outs.update(behind)
        for number in gone:
            op = trace.operations[number]
            if op.madds:
                dead.add(trace.calls[op.scope[-1]].path if op.scope else "")
                around.extend(c for c in op.scope if trace.live_within[c] > lost[c])
        while around:
            call = around.pop()
            opened.add(trace.calls[call].path)
            parent = trace.calls[call].parent
            if parent is not None:
                around.append(parent)
    return Way(frozenset(zeros), frozenset(dead), frozenset(opened))


def enclosing(program: Program, paths: Iterable[str]) -> str:
    """The path of the smallest module that is called and holds all of these."""
    parts = [path.split(".") if path else [] for path in paths]
    common: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    # A ModuleList has no forward of its own to trace.
    while not any(".".join(common) in trace.calls_by_path for trace in program.traces):
        common.pop()
    return ".".join(common)
