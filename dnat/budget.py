"""What each set of choices costs, and the best set within a budget.

`Costs` knows, for every operation of a traced network, whether it is still needed once some choices are made:
what only fed a branch that is dropped, and what lies inside a block that is replaced, costs nothing any more.

`best` finds the legal set of choices with the largest score whose cost keeps a limit: a multiple-choice knapsack
with precedence, solved exactly as a mixed integer linear program by `scipy.optimize.milp` (HiGHS). The variables
are the choices of each group of edges (binary) and whether each value is needed (continuous, but forced to 0 or 1
by the choices). Sets that cannot be made together are cut off one conflict at a time, as they turn up.
"""

import ctypes
import itertools
import math
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from .edges import NONE, ORIGINAL, Edge, crosses, problems, replacements
from .errors import UsageError
from .tracing import State

FULL = 0.97
"""The share of a limit that is to be used where any legal set has a cost between that and the limit."""

FULL_WITH_WIDTHS = 0.99
"""The same where widths may shrink: their steps are fine."""

MOST_NODES = 1000
"""After how many branches the best set so far is taken where much of a limit is to be used: whether sizes can add
up to that may take for ever to find out. Small networks need fewer."""

Groups = Mapping[str, Sequence[Edge]]
"""Edges by the group that shares a choice."""


Parts = Mapping[tuple[Edge, str], Mapping[int, float]]
"""{(edge, choice): {place of a weight: the share of it that remains}}, of widths."""


class InfeasibleError(UsageError):
    """No legal set of choices keeps the budget."""


class Costs:
    """What sets of choices cost: multiply-adds of one image, or any other sum over operations.

    Args:
        edges: the edges that may change.
        weights: what each operation of the program's first trace costs; by default its multiply-adds.
        parts: what of a cost remains with a width's choice: {(edge, choice): {place of the weight: share}}; by
            default the share of its channels, of all operations that work on them.
        owners: of each weight the operation that has it, where an operation has several or none.
    """

    def __init__(
        self,
        edges: Iterable[Edge],
        weights: Sequence[float] | None = None,
        parts: Parts | None = None,
        owners: Sequence[int] | None = None,
    ) -> None:
        self.edges = tuple(edges)
        self.trace = self.edges[0].program.traces[0]
        batch = max(self.trace.batch, 1)
        self.counted = weights is None
        """Whether costs are multiply-adds, which are known of operations that are not there yet, too."""
        self.weights = [op.madds / batch for op in self.trace.operations] if weights is None else list(weights)
        self.owners = list(range(len(self.trace.operations))) if owners is None else list(owners)
        if len(self.weights) != len(self.owners):
            raise UsageError(f"{len(self.weights)} weights for {len(self.owners)} operations")
        # Another operation has multiply-adds of its own, and so has a reduction that stands in for an identity.
        self.added = {(e, c): e.added(c) for e in self.edges for c in e.modules if self.counted and e.added(c)}
        self.parts = _shares(self.edges, self.weights) if parts is None else parts
        self.total = sum(self.weights)
        """The cost of the untouched network."""
        self._useless = self.total - sum(self.weights[i] for i in self._of(self.trace.live()))

    @property
    def full(self) -> float:
        """The share of a limit that is to be used where any legal set does."""
        return FULL_WITH_WIDTHS if self.parts else FULL

    def of(self, choices: Mapping[Edge, str]) -> float:
        """The cost when these choices are made; edges that are missing stay original."""
        values, operations = self.trace.needed(*replacements(self.trace, choices))
        added = (
            weight
            for (edge, choice), weight in self.added.items()
            if choices.get(edge) == choice and any(out in values for _, out in edge.values(self.trace))
        )
        narrowed = [self.parts[edge, choice] for edge, choice in choices.items() if (edge, choice) in self.parts]
        numbers = self._of(operations)
        remaining = (self.weights[i] * math.prod(p.get(i, 1.0) for p in narrowed) for i in numbers)
        return self._useless + sum(remaining) + sum(added)

    def _of(self, operations: Collection[int]) -> list[int]:
        """The places of the weights that some operations have."""
        return [number for number, owner in enumerate(self.owners) if owner in operations]

    def removed(self, choices: Mapping[Edge, str]) -> frozenset[int]:
        """The operations that these choices make unnecessary."""
        return self.trace.live() - self.trace.live(*replacements(self.trace, choices))

    def _narrowed(self, members: Iterable[Edge], choice: str) -> dict[int, float]:
        """The share of each operation that remains where the widths of a group become a choice."""
        found: dict[int, float] = {}
        for edge in members:
            for number, share in self.parts.get((edge, choice), {}).items():
                found[number] = found.get(number, 1.0) * share
        return found

    def expectation(self, groups: Groups, legal: Mapping[str, Sequence[str]]) -> "Expectation":
        """The table behind the expected cost when each group makes a random choice of its own."""
        killers: defaultdict[int, set[tuple[str, str, float]]] = defaultdict(set)
        for group, members in groups.items():
            for choice in legal[group]:
                if choice != ORIGINAL:
                    for number in self._of(self.removed(dict.fromkeys(members, choice))):
                        killers[number].add((group, choice, 1.0))
                    for number, share in self._narrowed(members, choice).items():
                        killers[number].add((group, choice, 1 - share))
        shares: defaultdict[frozenset[tuple[str, str, float]], float] = defaultdict(float)
        for number, found in killers.items():
            shares[frozenset(found)] += self.weights[number]
        fixed = self.total - sum(shares.values())
        rows = tuple((s, tuple(sorted(k))) for k, s in sorted(shares.items(), key=lambda x: sorted(x[0])) if s)
        added = tuple(
            (group, choice, weight)
            for group, members in groups.items()
            for choice in legal[group]
            if (weight := sum(self.added.get((e, choice), 0.0) for e in members))
        )
        return Expectation(self.total, fixed, rows, added)


@dataclass(frozen=True)
class Expectation:
    """The cost that remains, as a table.

    Attributes:
        total: the cost of the untouched network.
        fixed: what no single choice can make less.
        shares: (cost, the (group, choice, share) each of which takes that share of it away).
        added: (group, choice, cost that comes with it).
    """

    total: float
    fixed: float
    shares: tuple[tuple[float, tuple[tuple[str, str, float], ...]], ...]
    added: tuple[tuple[str, str, float], ...]


def _shares(edges: Iterable[Edge], weights: Sequence[float]) -> Parts:
    """What remains of operations' multiply-adds: of all that work on a width's channels, their share."""
    return {
        (edge, choice): {i: edge.remaining(choice) for i in sorted(edge.place.operations) if weights[i]}
        for edge in edges
        if edge.place
        for choice in edge.choices[1:]
    }


def best(
    groups: Groups, scores: Mapping[str, Mapping[str, float]], costs: Costs, limit: float, floor: float = 0.0
) -> dict[str, str]:
    """The legal choices with the largest sum of scores among those that cost at most `limit`.

    Args:
        groups: the edges of each group.
        scores: what each legal choice of each group is worth; "original" must be among them.
        costs: of the same edges.
        limit: in the unit of `costs`.
        floor: what they cost at least, or else as much as any legal set does within the limit.

    Returns:
        {group: choice}.

    Raises:
        InfeasibleError: no legal set is so cheap; the message tells the smallest reachable cost.
    """
    legal = {group: list(score) for group, score in scores.items()}
    found = _Model(groups, scores, costs, limit, floor=floor).solve()
    if found is None and floor:
        floor = min(floor, dearest(groups, legal, costs, limit))
        found = _Model(groups, scores, costs, limit, floor=floor).solve()
    if found is None:
        _, least = cheapest(groups, legal, costs)
        raise InfeasibleError(
            f"no legal set of choices costs at most {limit:.6g}: the smallest reachable cost is {least:.6g} "
            f"({least / costs.total:.1%} of the original's {costs.total:.6g})"
        )
    return found


def cheapest(groups: Groups, legal: Mapping[str, Sequence[str]], costs: Costs) -> tuple[dict[str, str], float]:
    """The legal choices that cost least, and their cost."""
    none = {group: dict.fromkeys(choices, 0.0) for group, choices in legal.items()}
    found = _Model(groups, none, costs, None, worth=-1.0).solve()
    assert found is not None, "the untouched network is legal"
    return found, costs.of(by_edge(groups, found))


def dearest(groups: Groups, legal: Mapping[str, Sequence[str]], costs: Costs, limit: float) -> float:
    """The cost of the legal choices that cost most among those that cost at most `limit`; 0 if there are none."""
    none = {group: dict.fromkeys(choices, 0.0) for group, choices in legal.items()}
    found = _Model(groups, none, costs, limit, worth=1.0).solve()
    return costs.of(by_edge(groups, found)) if found else 0.0


def by_edge(groups: Groups, choices: Mapping[str, str]) -> dict[Edge, str]:
    """The choices of groups as choices of their edges."""
    return {edge: choices[group] for group, members in groups.items() for edge in members}


_ALWAYS = -1
"""Stands for a need that is certain; other needs are numbers of variables, or None where nothing is needed."""


@dataclass
class _Rows:
    """Linear constraints: `sum of coefficient * variable >= bound`, row by row."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    bounds: list[float] = field(default_factory=list)

    def add(self, terms: Iterable[tuple[int, float]], bound: float) -> None:
        row = len(self.bounds)
        self.entries.extend((row, variable, coefficient) for variable, coefficient in terms)
        self.bounds.append(bound)

    def equal(self, terms: Sequence[tuple[int, float]], value: float) -> None:
        """A sum is a value."""
        self.add(terms, value)
        self.add([(variable, -coefficient) for variable, coefficient in terms], -value)


CHATTER = b"HighsMipSolverData"
"""Begins a line that HiGHS writes to the process's standard output, whatever it is asked; it would spoil JSON."""


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Within, what C code writes to the standard output waits, and goes on without the solver's lines."""
    sys.stdout.flush()
    try:
        before = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            if os.name == "posix":
                ctypes.CDLL(None).fflush(None)
            os.dup2(before, 1)
            os.close(before)
            file.seek(0)
            rest = b"".join(line for line in file if not line.startswith(CHATTER))
            while rest:
                rest = rest[os.write(1, rest) :]


class _Model:
    """The integer program: choices of groups, and which values they leave needed.

    Args:
        groups, scores, costs: see `best`.
        limit: what the choices may cost; None: anything.
        floor: what they must cost.
        worth: what the whole network's cost is worth beside the scores.
    """

    def __init__(
        self,
        groups: Groups,
        scores: Mapping[str, Mapping[str, float]],
        costs: Costs,
        limit: float | None,
        *,
        floor: float = 0.0,
        worth: float = 0.0,
    ) -> None:
        self.groups, self.scores, self.costs, self.limit, self.floor = groups, scores, costs, limit, floor
        # Who is asked to be cheap needs nothing that is not needed; others might say that they do.
        self.exact = bool(floor) or worth > 0
        self.rows = _Rows()
        self.objective: list[float] = []
        self.choices: dict[tuple[str, str], int] = {}
        for group, score in scores.items():
            others = [c for c in score if c != ORIGINAL]
            for choice in others:
                self.choices[group, choice] = self._variable(score[choice] - score[ORIGINAL])
            if len(others) > 1:
                self.rows.add([(self.choices[group, c], -1.0) for c in others], -1.0)
        self.binaries = len(self.objective)
        self._keep_apart()
        self.price: defaultdict[int, float] = defaultdict(float)
        self.products: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}
        self.paid = costs._useless  # whatever is chosen
        self._needs()
        self.scale = max(costs.total, 1e-30)
        for variable, price in self.price.items():
            self.objective[variable] += worth * price / self.scale
        if limit is not None:
            terms = [(v, -p / self.scale) for v, p in self.price.items()]
            self.rows.add(terms, (self.paid - limit) / self.scale)
        if floor:
            self.rows.add([(v, p / self.scale) for v, p in self.price.items()], (floor - self.paid) / self.scale)

    def _keep_apart(self) -> None:
        """A width does not shrink where something else takes the place of what makes or reads its channels."""
        pairs = {
            (group, other, choice)
            for group, members in self.groups.items()
            for edge in members
            if edge.place
            for other, choice in self.choices
            if any(crosses(edge, e, choice) for e in self.groups[other])
        }
        for group, other, choice in sorted(pairs):
            widths = [(v, -1.0) for (g, _), v in self.choices.items() if g == group]
            self.rows.add([*widths, (self.choices[other, choice], -1.0)], -1.0)

    def _variable(self, worth: float = 0.0) -> int:
        self.objective.append(worth)
        return len(self.objective) - 1

    def _any(self, needs: Iterable[int | None]) -> int | None:
        """The need that is there as soon as one of several is."""
        given = {n for n in needs if n is not None}
        if _ALWAYS in given:
            return _ALWAYS
        if len(given) < 2:
            return next(iter(given), None)
        joint = self._variable()
        for need in given:
            self.rows.add([(joint, 1.0), (need, -1.0)], 0.0)
        if self.exact:
            self.rows.add([(joint, -1.0), *((need, 1.0) for need in given)], 0.0)
        return joint

    def _less(self, need: int, plus: Sequence[int], minus: Iterable[int]) -> int:
        """The need that is there where `need` and all of `plus` are, and none of `minus` is."""
        made, minus = self._variable(), list(minus)
        terms = [(made, 1.0), *((p, -1.0) for p in plus), *((m, 1.0) for m in minus)]
        bound = -float(len(plus))
        if need == _ALWAYS:
            bound += 1.0
        else:
            terms.append((need, -1.0))
        self.rows.add(terms, bound)
        if self.exact:
            for upper in (*plus, *([need] if need != _ALWAYS else [])):
                self.rows.add([(made, -1.0), (upper, 1.0)], 0.0)
            for other in minus:
                self.rows.add([(made, -1.0), (other, -1.0)], -1.0)
        return made

    def _needs(self) -> None:
        """Go through the trace from its end to its beginning: who needs what, and what that costs."""
        trace, costs = self.costs.trace, self.costs
        ends, starts, cuts = self._places()
        need: dict[int, int | None] = {}
        made: dict[int, int | None] = {}
        alive: dict[int, int | None] = {}

        def is_alive(number: int) -> int | None:
            if number not in alive:
                alive[number] = self._any(made[v] for v in trace.operations[number].outputs)
            return alive[number]

        for value in reversed(range(len(trace.values))):
            demands = [is_alive(user) for user in trace.users[value]]
            if value in trace.outputs:
                demands.append(_ALWAYS)
            for edge, choice, out in starts.get(value, ()):
                behind = need[out]
                if behind is not None:
                    demands.append(self._through(edge, choice, behind, ends[out]))
            wanted = need[value] = self._any(demands)
            if wanted is None or value in trace.nulls:
                made[value] = None
            else:
                made[value] = self._less(wanted, [], cuts[value]) if value in cuts else wanted
        weighty = (number for number, weight in enumerate(costs.weights) if weight)
        self._pay({number: is_alive(costs.owners[number]) for number in weighty})

    def _pay(self, alive: Mapping[int, int | None]) -> None:
        for number, need in alive.items():
            if need == _ALWAYS:
                self.paid += self.costs.weights[number]
            elif need is not None:
                self.price[need] += self.costs.weights[number]
        self._save(alive)

    def _save(self, alive: Mapping[int, int | None]) -> None:
        """Take off what widths save of the operations that are needed.

        Operations that the same widths work on, and that are needed together, are one term. Of one that several
        widths work on each combination of their choices has a variable, which is the product of theirs.
        """
        tables = self._tables()
        touched = {g: {number for row in table.values() for number in row} for g, table in tables.items()}
        terms: defaultdict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, need in alive.items():
            groups = tuple(g for g in tables if number in touched[g])
            if groups and need is not None:
                terms[need, groups].append(number)
        for (need, groups), numbers in terms.items():
            rows = [[(c, row) for c, row in [(ORIGINAL, {}), *tables[g].items()]] for g in groups]
            savings: dict[tuple[str, ...], float] = {}
            for combination in itertools.product(*rows):
                left = (math.prod(row.get(i, 1.0) for _, row in combination) for i in numbers)
                saved = sum(self.costs.weights[i] * (1 - share) for i, share in zip(numbers, left, strict=True))
                savings[tuple(c for c, _ in combination)] = saved
            chosen = self._together(groups, [[c for c, _ in row] for row in rows])
            self._cheaper(need, {v: savings[key] for key, v in chosen.items() if any(c != ORIGINAL for c in key)})

    def _tables(self) -> dict[str, dict[str, dict[int, float]]]:
        """For each group of widths and each of its choices the share of each operation that remains."""
        found: dict[str, dict[str, dict[int, float]]] = {}
        for group, choice in self.choices:
            table = self.costs._narrowed(self.groups[group], choice)
            if table:
                found.setdefault(group, {})[choice] = table
        return found

    def _together(self, groups: tuple[str, ...], choices: Sequence[Sequence[str]]) -> dict[tuple[str, ...], int]:
        """A variable for each combination of choices of some groups, 1 where all of them are made."""
        if len(groups) == 1:
            return {(c,): self.choices[groups[0], c] for c in choices[0] if c != ORIGINAL}
        if groups not in self.products:
            made = {key: self._variable() for key in itertools.product(*choices)}
            self.rows.equal([(v, 1.0) for v in made.values()], 1.0)
            for place, group in enumerate(groups):
                for choice in choices[place]:
                    if choice != ORIGINAL:
                        terms = [(v, 1.0) for key, v in made.items() if key[place] == choice]
                        self.rows.equal([*terms, (self.choices[group, choice], -1.0)], 0.0)
            self.products[groups] = made
        return self.products[groups]

    def _cheaper(self, need: int, savings: Mapping[int, float]) -> None:
        """Take off what each of some variables saves, of which one at the most is 1, where it is needed."""
        if need == _ALWAYS:
            for variable, saved in savings.items():
                self.price[variable] -= saved
            return
        used = []
        for variable, saved in savings.items():
            one = self._variable()
            self.rows.add([(variable, 1.0), (one, -1.0)], 0.0)
            if self.exact:
                self.rows.add([(one, 1.0), (need, -1.0), (variable, -1.0)], -1.0)
            self.price[one] -= saved
            used.append(one)
        self.rows.add([(need, 1.0), *((v, -1.0) for v in used)], 0.0)

    def _through(self, edge: Edge, choice: str, behind: int, ends: Iterable[Edge]) -> int:
        """The need of an edge's input when the choice reads it and no edge around it has replaced it."""
        outer = [v for e in ends if e is not edge and self._is_outer(e, edge) for v in self._all(e)]
        need = self._less(behind, [self.choices[self.group_of[edge], choice]], outer)
        self.price[need] += self.costs.added.get((edge, choice), 0.0)
        return need

    def _places(
        self,
    ) -> tuple[dict[int, list[Edge]], dict[int, list[tuple[Edge, str, int]]], dict[int, list[int]]]:
        """Edges by the value at which they end, choices by the value that they read, and what cuts values."""
        trace = self.costs.trace
        self.group_of = {edge: group for group, members in self.groups.items() for edge in members}
        ends: defaultdict[int, list[Edge]] = defaultdict(list)
        starts: defaultdict[int, list[tuple[Edge, str, int]]] = defaultdict(list)
        cuts: defaultdict[int, dict[int, None]] = defaultdict(dict)
        zeros: dict[Edge, set[int]] = {}
        for edge, group in self.group_of.items():
            pairs = edge.values(trace)
            for start, out in pairs:
                ends[out].append(edge)
                cuts[out].update(dict.fromkeys(self._all(edge)))
                passes = (c for c in edge.passes if (group, c) in self.choices)
                starts[start].extend((edge, choice, out) for choice in passes)
            if (group, NONE) in self.choices:
                states = trace.propagate({out for _, out in pairs})
                before = trace.propagate()
                zeros[edge] = {v for v, s in enumerate(states) if s is State.ZERO and before[v] is not State.ZERO}
                for value in zeros[edge]:
                    cuts[value][self.choices[group, NONE]] = None
        self._keep_zeros(ends, zeros)
        return ends, starts, {v: list(c) for v, c in cuts.items() if c}

    def _keep_zeros(self, ends: Mapping[int, Sequence[Edge]], zeros: Mapping[Edge, set[int]]) -> None:
        """An identity further on that would replace an edge's zero excludes that edge's none, then idle."""
        for edge, values in zeros.items():
            own = {out for _, out in edge.values(self.costs.trace)}
            mine = self.choices[self.group_of[edge], NONE]
            for value in values:
                for other in ends.get(value, ()):
                    outer = value not in own or self._is_outer(other, edge)
                    for choice in other.passes:
                        theirs = self.choices.get((self.group_of[other], choice))
                        if other is not edge and outer and theirs is not None:
                            self.rows.add([(mine, -1.0), (theirs, -1.0)], -1.0)

    def _all(self, edge: Edge) -> list[int]:
        group = self.group_of[edge]
        return [self.choices[group, c] for c in (*edge.passes, NONE) if (group, c) in self.choices]

    def _is_outer(self, edge: Edge, other: Edge) -> bool:
        trace = self.costs.trace
        return edge.values(trace)[0][0] < other.values(trace)[0][0]

    def solve(self) -> dict[str, str] | None:
        """The best legal choices; None where there are none within the limit."""
        while True:
            found = self._solution()
            if found is None:
                return None
            conflicts = self._conflicts(found)
            for conflict in conflicts:
                self._cut(conflict)
            if conflicts:  # what a set costs that cannot be made means nothing
                continue
            if not self._is_beyond(self.costs.of(by_edge(self.groups, found))):
                return found
            self._cut(list(found.items()))  # by the solver's tolerance: this very set

    def _is_beyond(self, cost: float) -> bool:
        return cost < self.floor * (1 - 1e-9) or (self.limit is not None and cost > self.limit * (1 + 1e-12))

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Forbid that all these choices are made together."""
        terms: list[tuple[int, float]] = []
        count = 0
        for group, choice in pairs:
            if choice == ORIGINAL:
                terms.extend((v, 1.0) for (g, _), v in self.choices.items() if g == group)
            else:
                terms.append((self.choices[group, choice], -1.0))
                count += 1
        self.rows.add(terms, 1.0 - count)

    def _solution(self) -> dict[str, str] | None:
        if not self.binaries:
            return None if self._is_beyond(self.costs.total) else dict.fromkeys(self.scores, ORIGINAL)
        count = len(self.objective)
        row, column, value = zip(*self.rows.entries, strict=True) if self.rows.entries else ((), (), ())
        matrix = csr_array((value, (row, column)), shape=(len(self.rows.bounds), count))
        integrality = np.zeros(count)
        integrality[: self.binaries] = 1
        with _without_chatter():
            result = milp(
                -np.asarray(self.objective),
                integrality=integrality,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix, lb=self.rows.bounds),
                options={"mip_rel_gap": 0.0} | ({"node_limit": MOST_NODES} if self.exact else {}),
            )
        if result.x is None:
            return None
        chosen = dict.fromkeys(self.scores, ORIGINAL)
        for (group, choice), variable in self.choices.items():
            if result.x[variable] > 0.5:
                chosen[group] = choice
        return chosen

    def _conflicts(self, found: Mapping[str, str]) -> list[list[tuple[str, str]]]:
        """Smallest sets of choices that cannot be made together, disjoint from each other."""

        def wrong(pairs: Iterable[tuple[str, str]]) -> bool:
            return bool(problems({e: c for g, c in pairs for e in self.groups[g]}))

        rest = [(g, c) for g, c in found.items() if c != ORIGINAL]
        conflicts = []
        while rest and wrong(rest):
            conflict = list(rest)
            for pair in rest:
                fewer = [p for p in conflict if p != pair]
                if wrong(fewer):
                    conflict = fewer
            conflicts.append(conflict)
            rest = [p for p in rest if p not in conflict]
        return conflicts
