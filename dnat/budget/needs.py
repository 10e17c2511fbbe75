"""The cost of choices as a linear function of an integer program: who needs what, and what that costs."""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ..edges import NONE, ORIGINAL, Edge
from ..tracing import State, changed_states
from .prices import Costs, Groups
from .solver import ALWAYS, IntegerProgram

Choices = Mapping[tuple[str, str], int]
"""{(group, choice): the number of its variable}."""


class Needs:
    """Which values of a trace are needed once choices are made, from the trace's end to its beginning.

    Args:
        program: gets the variables and constraints.
        groups, costs: see `dnat.budget.best`.
        choices: the variables of the choices.

    Attributes:
        need: {value: its need}, from the last one to the first.
        alive: {place of a weight: the need of its operation}.
        prices: {variable: what an operation that a choice adds costs, where it is 1}.
    """

    def __init__(self, program: IntegerProgram, groups: Groups, costs: Costs, choices: Choices) -> None:
        self.program, self.costs, self.choices = program, costs, choices
        self.group_of = {edge: group for group, members in groups.items() for edge in members}
        self.prices: defaultdict[int, float] = defaultdict(float)
        self.ends: defaultdict[int, list[Edge]] = defaultdict(list)
        self.starts: defaultdict[int, list[tuple[Edge, str, int]]] = defaultdict(list)
        self.cuts: defaultdict[int, dict[int, None]] = defaultdict(dict)
        for edge, group in self.group_of.items():
            self._place(edge, group)
        self.need: dict[int, int | None] = {}
        self.alive = self._walk()

    def _place(self, edge: Edge, group: str) -> None:
        """Note where an edge ends, what its choices read, and which values they cut."""
        trace = self.costs.trace
        pairs = edge.values(trace)
        for start, out in pairs:
            self.ends[out].append(edge)
            self.cuts[out].update(dict.fromkeys(self.of_edge(edge)))
            passes = (c for c in edge.passes if (group, c) in self.choices)
            self.starts[start].extend((edge, choice, out) for choice in passes)
        if (group, NONE) in self.choices:
            for value, state in sorted(changed_states(trace, {out for _, out in pairs}).items()):
                if state is State.ZERO:
                    self.cuts[value][self.choices[group, NONE]] = None

    def _walk(self) -> dict[int, int | None]:
        trace, costs = self.costs.trace, self.costs
        need = self.need
        source: dict[int, int | None] = {}
        alive: dict[int, int | None] = {}

        def is_alive(number: int) -> int | None:
            if number not in alive:
                alive[number] = self.program.any_of(source[v] for v in trace.operations[number].outputs)
            return alive[number]

        for value in reversed(range(len(trace.values))):
            demands = [is_alive(user) for user in trace.users[value]]
            if value in trace.outputs:
                demands.append(ALWAYS)
            for edge, choice, out in self.starts.get(value, ()):
                behind = need[out]
                if behind is not None:
                    demands.append(self._through(edge, choice, behind, self.ends[out]))
            demand = need[value] = self.program.any_of(demands)
            cuts = list(self.cuts.get(value, ()))
            if demand is None or value in trace.nulls:
                source[value] = None
            else:
                source[value] = self.program.restricted(demand, [], cuts) if cuts else demand
        return {number: is_alive(costs.owners[number]) for number, weight in enumerate(costs.weights) if weight}

    def _through(self, edge: Edge, choice: str, behind: int, ends: Iterable[Edge]) -> int:
        """The need of an edge's input when the choice reads it and no edge around it has replaced it."""
        trace = self.costs.trace
        first = edge.values(trace)[0][0]
        outer = [v for e in ends if e is not edge and e.values(trace)[0][0] < first for v in self.of_edge(e)]
        need = self.program.restricted(behind, [self.choices[self.group_of[edge], choice]], outer)
        self.prices[need] += self.costs.added.get((edge, choice), 0.0)
        return need

    def of_edge(self, edge: Edge) -> list[int]:
        """The variables of an edge's choices that put something else in its output's place."""
        group = self.group_of[edge]
        return [self.choices[group, c] for c in (*edge.passes, NONE) if (group, c) in self.choices]


class Bill:
    """What choices cost: `fixed`, and the price of each variable that is 1.

    Operations that the same widths work on, and that are needed together, are one term. Of one that several widths
    work on each combination of their choices has a variable, which is the product of theirs.

    Args:
        program, groups, costs, choices: see `Needs`.

    Attributes:
        needs: what is needed.
        fixed: what is paid whatever is chosen.
        prices: {variable: what it costs}.
    """

    def __init__(self, program: IntegerProgram, groups: Groups, costs: Costs, choices: Choices) -> None:
        self.program, self.costs, self.choices = program, costs, choices
        self.products: dict[tuple[str, ...], dict[tuple[str, ...], int]] = {}
        self.needs = needs = Needs(program, groups, costs, choices)
        self.fixed, self.prices = costs.unread, needs.prices
        for number, need in needs.alive.items():
            if need == ALWAYS:
                self.fixed += costs.weights[number]
            elif need is not None:
                self.prices[need] += costs.weights[number]
        self._save(needs.alive, self._tables(groups))

    def _tables(self, groups: Groups) -> dict[str, dict[str, dict[int, float]]]:
        """For each group of widths and each of its choices the share of each operation that remains."""
        tables: dict[str, dict[str, dict[int, float]]] = {}
        for group, choice in self.choices:
            shares = self.costs.shares(groups[group], choice)
            if shares:
                tables.setdefault(group, {})[choice] = shares
        return tables

    def _save(
        self, alive: Mapping[int, int | None], tables: Mapping[str, Mapping[str, Mapping[int, float]]]
    ) -> None:
        """Take off what widths save of the operations that are needed."""
        touched = {g: {number for row in table.values() for number in row} for g, table in tables.items()}
        terms: defaultdict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
        for number, need in alive.items():
            groups = tuple(g for g in tables if number in touched[g])
            if groups and need is not None:
                terms[need, groups].append(number)
        for (need, groups), numbers in terms.items():
            rows = [{ORIGINAL: {}, **tables[g]} for g in groups]
            savings: dict[tuple[str, ...], float] = {}
            for combination in itertools.product(*(row.items() for row in rows)):
                left = (math.prod(row.get(i, 1.0) for _, row in combination) for i in numbers)
                saved = sum(self.costs.weights[i] * (1 - share) for i, share in zip(numbers, left, strict=True))
                savings[tuple(c for c, _ in combination)] = saved
            joint = self._together(groups, [list(row) for row in rows])
            self._cheaper(need, {v: savings[key] for key, v in joint.items() if any(c != ORIGINAL for c in key)})

    def _together(self, groups: tuple[str, ...], choices: Sequence[Sequence[str]]) -> dict[tuple[str, ...], int]:
        """A variable for each combination of choices of some groups, 1 where all of them are made."""
        if len(groups) == 1:
            return {(c,): self.choices[groups[0], c] for c in choices[0] if c != ORIGINAL}
        if groups not in self.products:
            product = {key: self.program.variable() for key in itertools.product(*choices)}
            self.program.equate([(v, 1.0) for v in product.values()], 1.0)
            for place, group in enumerate(groups):
                for choice in choices[place]:
                    if choice != ORIGINAL:
                        terms = [(v, 1.0) for key, v in product.items() if key[place] == choice]
                        self.program.equate([*terms, (self.choices[group, choice], -1.0)], 0.0)
            self.products[groups] = product
        return self.products[groups]

    def _cheaper(self, need: int, savings: Mapping[int, float]) -> None:
        """Take off what each of some variables saves, of which one at the most is 1, where it is needed."""
        if need == ALWAYS:
            for variable, saved in savings.items():
                self.prices[variable] -= saved
            return
        used = []
        for variable, saved in savings.items():
            both = self.program.variable()
            self.program.require([(variable, 1.0), (both, -1.0)], 0.0)
            if self.program.exact:
                self.program.require([(both, 1.0), (need, -1.0), (variable, -1.0)], -1.0)
            self.prices[both] -= saved
            used.append(both)
        self.program.require([(need, 1.0), *((v, -1.0) for v in used)], 0.0)
