"""What whole numbers know and fractions do not, of networks with two streams: rows that every legal set satisfies.

A cell of DARTS reads the two cells before it. A program whose variables may be fractions gets all that lies before
two cells for half its price where each of them is halved, so that branching would have to find out for hours what
is true at once: what one of two needed values does not read, the other one may. Three kinds of rows say so:

- of two `none`s that together leave an addition or a gathering without data one is chosen at the most;
- at each place of the order of values one that is still to be read is needed, since an output must depend on the
  images (`dnat.tracing.losses`): the sum of their needs is 1 at least;
- where one of two values is needed, so is what both are made from, unless a `none` lies between, one on each way:
  need >= 1 - none - none. And where an edge's output is needed, so is its input, unless none is chosen.

Networks of one stream have none of these, and their program stays as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

from ..edges import NONE, Edge
from ..tracing import State, changed_states
from .needs import Needs
from .solver import ALWAYS, Row

WIDEST = 6
"""Values that are still to be read at a place; of more the row says little."""
MOST_ROWS = 20_000
"""More rows of the third kind would cost more than they spare."""

Pair = tuple[str, str]
"""A group and a choice of it."""


def rows(needs: Needs, wrong: Callable[[Sequence[Pair]], bool]) -> list[Row]:
    """The rows, for a program whose needs are known.

    Args:
        needs: of the program.
        wrong: whether choices of groups cannot be made together.
    """
    places = _places(needs)
    streams = [place for place in places if len(place) == 2]
    if not streams:
        return []
    alone = [([(need, 1.0) for need in place], 1.0) for place in places]
    found = [*_nones_of_sums(needs, wrong), *alone, *_edges(needs)]
    shared = list(_shared(needs, streams))
    return found + (shared if len(shared) <= MOST_ROWS else [])


def _places(needs: Needs) -> list[tuple[int, ...]]:
    """At each place in the order of values the needs of those that are still to be read; smallest sets alone."""
    trace = needs.costs.trace
    if not any(trace.states[v] is State.DATA for v in trace.outputs):
        return []
    ends: dict[int, list[int]] = {}
    for value in range(len(trace.values)):
        readers = [out for user in trace.users[value] for out in trace.operations[user].outputs]
        readers += [out for _, _, out in needs.starts.get(value, ())]
        last = len(trace.values) if value in trace.outputs else max(readers, default=value)
        ends.setdefault(last, []).append(value)
    waiting: dict[int, None] = {}
    found: set[frozenset[int]] = set()
    for value in range(len(trace.values) - 1):
        if trace.states[value] is State.DATA or trace.nulls:  # what is zero may become data where there are nulls
            waiting[value] = None
        for done in ends.get(value, ()):
            waiting.pop(done, None)
        if 0 < len(waiting) <= WIDEST:
            here = {need for v in waiting if (need := needs.need[v]) is not None}
            if here and ALWAYS not in here:
                found.add(frozenset(here))
    return sorted(tuple(sorted(one)) for one in found if not any(other < one for other in found))


def _nones_of_sums(needs: Needs, wrong: Callable[[Sequence[Pair]], bool]) -> Iterator[Row]:
    """Of operations of two inputs: which two nones, one for each, cannot be chosen together."""
    trace = needs.costs.trace
    zeroing: dict[int, set[str]] = {}
    for edge, group in needs.group_of.items():
        if (group, NONE) in needs.choices:
            outs = {out for _, out in edge.values(trace)}
            for value, state in changed_states(trace, outs).items():
                if state is State.ZERO:
                    zeroing.setdefault(value, set()).add(group)
    pairs: set[tuple[str, str]] = set()
    for operation in trace.operations:
        inputs = list(dict.fromkeys(operation.inputs))
        if len(inputs) == 2:
            first, second = (zeroing.get(value, set()) for value in inputs)
            pairs |= {(min(p), max(p)) for p in product(first - second, second - first)}
    for one, other in sorted(pairs):
        if wrong([(one, NONE), (other, NONE)]):
            yield [(needs.choices[one, NONE], -1.0), (needs.choices[other, NONE], -1.0)], -1.0


def _edges(needs: Needs) -> Iterator[Row]:
    """An edge's input is needed where its output is, unless none is chosen."""
    for out in needs.ends:
        if not (crossing := _crossing(needs, out)):
            continue
        start, none = crossing
        before, behind = needs.need[start], needs.need[out]
        if before is None or before == ALWAYS or behind is None:
            continue
        terms = [(before, 1.0)] + ([] if none is None else [(none, 1.0)])
        yield (terms, 1.0) if behind == ALWAYS else ([*terms, (behind, -1.0)], 0.0)


def _crossing(needs: Needs, out: int) -> tuple[int, int | None] | None:
    """Input and none of the one edge that ends at a value; None where several do, or something else cuts it."""
    edges: Sequence[Edge] = needs.ends.get(out, ())
    if len(edges) != 1 or set(needs.cuts[out]) != set(needs.of_edge(edges[0])):
        return None
    (edge,) = edges
    start = next(s for s, o in edge.values(needs.costs.trace) if o == out)
    return (start, needs.choices.get((needs.group_of[edge], NONE))) if _reads(needs, out, start) else None


def _reads(needs: Needs, out: int, start: int) -> bool:
    """Whether a value is computed from another one without any edge between."""
    seen, waiting = set[int](), [out]
    while waiting:
        value = waiting.pop()
        for source in _made_from(needs, value):
            if source == start:
                return True
            if source > start and source not in seen and not needs.cuts.get(source):
                seen.add(source)
                waiting.append(source)
    return False


def _made_from(needs: Needs, value: int) -> Iterable[int]:
    """The values that are given to the operation that makes one; that of a null edge reads none of them."""
    trace = needs.costs.trace
    producer = trace.values[value].producer
    inputs = () if producer is None or value in trace.nulls else trace.operations[producer].inputs
    return (v for v in inputs if trace.states[v] is State.DATA and v not in trace.nulls)


def _shared(needs: Needs, streams: Iterable[tuple[int, ...]]) -> Iterator[Row]:
    """What both of two values are made from is needed, unless a none lies on each one's way."""
    value_of: dict[int, int] = {}
    for value, need in needs.need.items():
        if need is not None and need != ALWAYS:
            value_of[need] = value  # the earliest: needs are known from the last value to the first
    ways = {need: _ways(needs, value_of[need]) for need in sorted({n for pair in streams for n in pair})}
    found: dict[tuple[int, frozenset[int]], None] = {}
    for one, other in streams:
        for need, nones in ways[one].items():
            for none, another in product(nones, ways[other].get(need, ())):
                found[need, frozenset(n for n in (none, another) if n is not None)] = None
    for need, between in found:
        yield [(need, 1.0), *((none, 1.0) for none in sorted(between))], 1.0


def _ways(needs: Needs, value: int) -> dict[int, list[int | None]]:
    """The needs of what a value is made from, over ways with one edge at the most, each with that one's none."""
    found: dict[int, dict[int | None, None]] = {}
    seen: set[tuple[int, int | None]] = set()
    waiting: list[tuple[int, int | None]] = [(value, None)]
    while waiting:
        here, none = waiting.pop()
        if (here, none) in seen:
            continue
        seen.add((here, none))
        need = needs.need[here]
        if here != value and need is not None and need != ALWAYS:
            found.setdefault(need, {})[none] = None
        if not needs.cuts.get(here):
            waiting += [(source, none) for source in _made_from(needs, here)]
        elif crossing := _crossing(needs, here):
            start, own = crossing
            if own is None or none is None:
                waiting.append((start, none if own is None else own))
    return {need: list(nones) for need, nones in found.items()}
