"""What replacing values changes in a trace, found where it changes; `Trace.propagate` looks at all of it."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from .program import Operation, State, Trace


@dataclass(frozen=True)
class Change:
    """What is different in a trace when some of its values are replaced; see `change_of`.

    Attributes:
        states: {value: its state}, of those that have another.
        values, operations: {value or operation: whether an output needs it}, of those of which that is different.
    """

    states: Mapping[int, State]
    values: Mapping[int, bool]
    operations: Mapping[int, bool]

    @property
    def dead(self) -> frozenset[int]:
        """The operations that an output does not need any more."""
        return frozenset(number for number, needed in self.operations.items() if not needed)

    @property
    def revived(self) -> frozenset[int]:
        """The operations that an output needs now."""
        return frozenset(number for number, needed in self.operations.items() if needed)


def _crossed(counts: Mapping[int, int], more: Mapping[int, int]) -> dict[int, bool]:
    """Where a count begins or ceases to be above zero when more is added; and whether it is."""
    sums = {i: (counts[i] > 0, counts[i] + step > 0) for i, step in more.items()}
    return {i: after for i, (before, after) in sums.items() if before != after}


def changed_states(
    trace: Trace, zero: Collection[int] = (), same: Mapping[int, int] | None = None, *, last: int | None = None
) -> dict[int, State]:
    """What `Trace.propagate` would give, of the values alone whose state is another than when nothing is replaced.

    Only what is behind the replaced values is looked at, as far as something changes there, so that a branch
    of a long network costs no more than one of a short one.

    Args:
        zero, same: see `Trace.propagate`.
        last: values behind this one are of no interest.
    """
    same, zero = same or {}, frozenset(zero)
    states: dict[int, State] = {}
    copies: defaultdict[int, list[int]] = defaultdict(list)
    for value, source in same.items():
        copies[source].append(value)
    waiting = sorted({*zero, *same})
    known = set(waiting)
    while waiting and (last is None or waiting[0] <= last):
        value = heappop(waiting)
        state = trace.state_of(value, zero, same, lambda i: states.get(i, trace.states[i]))
        if state is trace.states[value]:
            continue
        states[value] = state
        made = (v for user in trace.users[value] for v in trace.operations[user].outputs)
        for behind in (*made, *copies.get(value, ())):
            if behind not in known:
                known.add(behind)
                heappush(waiting, behind)
    return states


def change_of(trace: Trace, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> Change:
    """What is different when some values are replaced: see `changed_states` and `Trace.needed`.

    What is needed is followed from there towards the inputs, as far as values gain or lose their last reader.
    """
    same, states = same or {}, changed_states(trace, zero, same)
    values, operations = trace.demand
    more, made = Counter[int](), Counter[int]()
    waiting = [-value for value in {*states, *same}]
    heapify(waiting)
    known = set(waiting)
    while waiting:
        value = -heappop(waiting)
        before = values[value] > 0 and trace.states[value] is not State.ZERO
        after = values[value] + more[value] > 0 and states.get(value, trace.states[value]) is not State.ZERO
        if before == after and value not in same:
            continue
        producer = trace.values[value].producer
        sources = set(trace.operations[producer].inputs) if producer is not None else set()
        own = after and value not in same
        if producer is not None:
            made[producer] += own - before
        steps = [(source, own - before) for source in sources]
        if after and not own:
            steps.append((same[value], 1))
        for source, step in steps:
            more[source] += step
            if -source not in known:
                known.add(-source)
                heappush(waiting, -source)
    return Change(states, _crossed(values, more), _crossed(operations, made))


def losses(trace: Trace, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> list[str]:
    """Why a set of replacements cannot be made exactly; empty if it can.

    A zero may only ever meet data in an addition, where dropping it changes nothing, or stand beside it; no
    addition and no gathering may lose all its operands; every output must still depend on the input.
    """
    before, after = trace.states, changed_states(trace, zero, same)
    without = {i for i, state in after.items() if before[i] is State.DATA and state is not State.DATA}
    reasons = ["an output would no longer depend on the input" for i in trace.outputs if i in without]
    for op in (trace.operations[number] for number in sorted({u for i in without for u in trace.users[i]})):
        lost = [i for i in op.inputs if i in without]
        if len(lost) == sum(before[i] is State.DATA for i in op.inputs):
            if _is_node(trace, op):
                reasons.append(f"{trace.where(op)}: every input of {op.name.strip('_')} would be lost")
            continue
        zeros = all(after[i] is State.ZERO for i in lost)
        rest = [i for i in op.inputs if i not in lost]
        fits = all(trace.values[i].shape == trace.values[op.outputs[0]].shape for i in rest)
        allowed = op.behaviour in ("gather", "multiply") or (op.behaviour == "add" and fits)
        if not (zeros and allowed):
            reasons.append(f"{trace.where(op)}: {op.name.strip('_')} would join data with a constant")
    return reasons


def _is_node(trace: Trace, operation: Operation) -> bool:
    """Whether an operation gathers several values and is the last of its sum (`a + b + c` is one node)."""
    if operation.behaviour not in ("add", "gather") or len(operation.inputs) < 2:
        return False
    users = [trace.operations[u] for v in operation.outputs for u in trace.users[v]]
    return not users or any(user.behaviour != "add" for user in users)
