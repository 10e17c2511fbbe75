"""Sets of choices that nothing was learned for: drawn by chance, or spread evenly over a network's depth."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...budget import Costs, Groups, best, by_edge
from ...edges import IDENTITY, NONE, ORIGINAL, problems
from ...seeds import Stream, numpy_generator

SLACK = 0.97
"""A control costs between this share of the budget and the budget, where there are such sets."""

WALKS = 100
"""So many random walks are tried before the integer program is asked."""

PROGRAMS = 8
"""So many sets of the integer program are made where no walk ended within the budget."""

PHASES = (0.5, 0.4, 0.6, 0.3, 0.7, 0.2, 0.8, 0.1, 0.9, 0.0)
"""Where in each of equal parts of the depth a layer goes: in the middle, or as near to it as may be."""

Legal = Mapping[str, Sequence[str]]
"""What each group of edges may become, "original" first."""

Choices = dict[str, str]
"""{group: choice}."""


class _Sets:
    """What sets of choices cost, and whether they can be made; what was asked before is known."""

    def __init__(self, groups: Groups, costs: Costs) -> None:
        self.groups, self.costs = groups, costs
        self._prices: dict[tuple[tuple[str, str], ...], float] = {}

    def price(self, choices: Choices) -> float:
        key = tuple((g, c) for g, c in choices.items() if c != ORIGINAL)
        if key not in self._prices:
            self._prices[key] = self.costs.of(by_edge(self.groups, choices))
        return self._prices[key]

    def fits(self, choices: Choices, floor: float, limit: float) -> bool:
        """Whether a set costs so much, and can be made."""
        return floor <= self.price(choices) <= limit and not problems(by_edge(self.groups, choices))


def random_set(groups: Groups, legal: Legal, costs: Costs, limit: float, seed: int) -> Choices:
    """Legal choices by chance that cost between 0.97 of the limit and the limit.

    A walk begins with the network as it is and visits the groups in a random order. Each time one of the group's
    other choices is drawn, all with the same probability, and made if the network becomes cheaper by it, but not
    cheaper than 0.97 of the limit, and the choices can be made together. The walk ends as soon as the limit is
    kept; one that does not keep it in the end is thrown away, and another is drawn. So all groups are alike likely
    to come first, and where all changes save the same, all sets of so many are alike likely. A change inside of
    something that another change took away is taken back, as it changes nothing.

    Where none of `WALKS` walks ends between the two, the integer program gives `PROGRAMS` sets that keep the limit
    with the largest sum of random scores, in which originals are restored in a random order while the limit allows
    it. What the dearest of them costs takes the place of 0.97 of the limit, and walks are tried again; that set
    itself is taken where they fail, too.

    Args:
        groups: the edges of each group.
        legal: what each group may become.
        costs: of the edges.
        limit: in the unit of `costs`.
        seed: of the run; the draws have a stream of their own.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    sets = _Sets(groups, costs)
    if costs.total <= limit:
        return dict.fromkeys(legal, ORIGINAL)
    found = _walked(sets, legal, SLACK * limit, limit, seed)
    if found is not None:
        return found
    made = [
        _programmed(sets, legal, limit, numpy_generator(seed, Stream.POLICY, "program", number))
        for number in range(PROGRAMS)
    ]
    dearest = max(made, key=sets.price)
    return _walked(sets, legal, sets.price(dearest), limit, seed) or dearest


def _walked(sets: _Sets, legal: Legal, floor: float, limit: float, seed: int) -> Choices | None:
    """What the first walk that ends between the two has chosen."""
    for number in range(WALKS):
        found = _walk(sets, legal, floor, limit, numpy_generator(seed, Stream.POLICY, "control", number))
        if found is not None:
            return found
    return None


def _walk(sets: _Sets, legal: Legal, floor: float, limit: float, random: np.random.Generator) -> Choices | None:
    chosen = dict.fromkeys(legal, ORIGINAL)
    names = list(legal)
    for place in random.permutation(len(names)).tolist():
        others = [c for c in legal[names[place]] if c != ORIGINAL]
        if not others:
            continue
        trial = {**chosen, names[place]: others[int(random.integers(len(others)))]}
        paid = sets.price(chosen)
        if sets.price(trial) < paid and sets.fits(trial, floor, paid):
            chosen = trial
        if sets.price(chosen) <= limit:
            return _without_idle(sets, chosen)
    return None


def _without_idle(sets: _Sets, chosen: Choices) -> Choices:
    """The set without changes of what another one took away in any case."""
    for group in [g for g, c in chosen.items() if c != ORIGINAL]:
        fewer = {**chosen, group: ORIGINAL}
        paid = sets.price(chosen)
        if sets.fits(fewer, paid, paid):
            chosen = fewer
    return chosen


def _programmed(sets: _Sets, legal: Legal, limit: float, random: np.random.Generator) -> Choices:
    scores = {group: {choice: float(random.random()) for choice in choices} for group, choices in legal.items()}
    chosen = best(sets.groups, scores, sets.costs, limit)
    changed = [g for g, c in chosen.items() if c != ORIGINAL]
    for place in random.permutation(len(changed)).tolist():
        fewer = {**chosen, changed[place]: ORIGINAL}
        if sets.fits(fewer, 0.0, limit):
            chosen = fewer
    return chosen


@dataclass(frozen=True)
class _Removal:
    """What a choice of a group takes away, alone: operations of the trace, in order of execution."""

    group: str
    choice: str
    operations: frozenset[int]
    place: int
    passed: bool


def evenly(groups: Groups, legal: Legal, costs: Costs, limit: float) -> Choices:
    """`narrow_set` where widths may shrink, and enough of them; else `uniform_set`.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    found = None if costs.total <= limit else narrow_set(groups, legal, costs, limit)
    return uniform_set(groups, legal, costs, limit) if found is None else found


def uniform_set(groups: Groups, legal: Legal, costs: Costs, limit: float) -> Choices:
    """Layers removed evenly over the depth: which ones follows from the budget alone.

    What can be removed are units (by an identity) and branches (by none). Of those that lie in one another the
    outermost counts: in ResNet20 the blocks. Places where the shape stays as it is come first: n of them, in order
    of execution. To remove k evenly the depth is divided into k equal parts, and the middle one of each part goes:
    places number floor((i + 1/2) n / k), i from 0 to k - 1, counted from 0.

    k is the smallest number with which the cost falls between 0.97 of the limit and the limit. Where the middles
    do not do that, other phases than 1/2 are tried for the same k, the nearest first. Where no k does, the dearest
    of these sets that keeps the limit is taken, and one of its changes moved to the nearest other change of the
    network with which the cost is between the two, or as near below them as may be. Where the places that keep
    their shape do not suffice, all others are taken, too; where those do not, the fewest changes that do.

    Args:
        groups, legal, costs, limit: as for `random_set`.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    sets = _Sets(groups, costs)
    if costs.total <= limit:
        return dict.fromkeys(legal, ORIGINAL)
    removals = list(_removals(sets, legal))
    places = _outermost(removals)
    for chosen in ([r for r in places if r.passed], places):
        found = _dearest(sets, legal, list(_spread(chosen)), limit)
        if found is not None:
            return _moved(sets, legal, removals, found, limit)
    return best(groups, {g: {c: float(c == ORIGINAL) for c in row} for g, row in legal.items()}, costs, limit)


def narrow_set(groups: Groups, legal: Legal, costs: Costs, limit: float) -> Choices | None:
    """All widths shrunk alike: to the largest step that keeps the limit, then some of them, spread evenly over the
    depth, to the next larger one as long as the limit allows. None where there are no widths, or not enough.
    """
    sets = _Sets(groups, costs)
    original = dict.fromkeys(legal, ORIGINAL)
    steps = {group: list(legal[group]) for group, members in groups.items() if members[0].place}
    longest = max(map(len, steps.values()), default=0)

    def at(level: int) -> Choices:
        return original | {
            group: row[round(level * (len(row) - 1) / (longest - 1))] for group, row in steps.items()
        }

    level = next((n for n in range(1, longest) if sets.price(at(n)) <= limit), None)
    if level is None:
        return None
    chosen, larger = at(level), at(level - 1)
    # Multiples of the golden ratio, without their whole parts, fall evenly (Weyl 1916).
    order = sorted(range(len(steps)), key=lambda place: place * 0.6180339887 % 1)
    for group in (list(steps)[place] for place in order):
        trial = {**chosen, group: larger[group]}
        if sets.price(trial) <= limit:
            chosen = trial
    return chosen


def _removals(sets: _Sets, legal: Legal) -> Iterator[_Removal]:
    """All changes that remove something, in order of execution."""
    found = []
    for group, choices in legal.items():
        for choice in (c for c in choices if c in (IDENTITY, NONE)):
            operations = sets.costs.removed(dict.fromkeys(sets.groups[group], choice))
            alone = {**dict.fromkeys(legal, ORIGINAL), group: choice}
            if operations and sets.price(alone) < sets.costs.total:
                passed = _passes(sets, group, operations)
                found.append(_Removal(group, choice, operations, min(operations), passed))
    yield from sorted(found, key=lambda r: r.place)


def _passes(sets: _Sets, group: str, operations: frozenset[int]) -> bool:
    """Whether all that the removed operations read has the shape of what they gave."""
    trace = sets.costs.trace
    read = {
        v for o in operations for v in trace.operations[o].inputs if trace.values[v].producer not in operations
    }
    given = {trace.values[out].shape for edge in sets.groups[group] for _, out in edge.values(trace)}
    return {trace.values[v].shape for v in read} == given or len(sets.groups[group]) > 1


def _outermost(removals: Sequence[_Removal]) -> list[_Removal]:
    """Those that lie in no other, one of each group and of each place."""
    found: dict[frozenset[int], _Removal] = {}
    for removal in removals:
        if not any(removal.operations < other.operations for other in removals):
            found.setdefault(removal.operations, removal)
    groups: dict[str, _Removal] = {}
    for removal in found.values():
        groups.setdefault(removal.group, removal)
    return list(groups.values())


def _spread(places: Sequence[_Removal]) -> Iterator[list[_Removal]]:
    """Evenly spread parts of the places, from one of them to all; see `uniform_set`."""
    n = len(places)
    for k in range(1, n + 1):
        for phase in PHASES:
            yield [places[int((i + phase) * n / k)] for i in range(k)]


def _dearest(sets: _Sets, legal: Legal, spread: Sequence[Sequence[_Removal]], limit: float) -> Choices | None:
    """The first set within the interval; else the dearest that keeps the limit; else None."""
    found: Choices | None = None
    for removals in spread:
        chosen = dict.fromkeys(legal, ORIGINAL) | {r.group: r.choice for r in removals}
        least = sets.price(found) if found else 0.0
        if (found is None or sets.price(chosen) > least) and sets.fits(chosen, least, limit):
            found = chosen
            if sets.price(found) >= SLACK * limit:
                break
    return found


def _moved(sets: _Sets, legal: Legal, removals: Sequence[_Removal], chosen: Choices, limit: float) -> Choices:
    """The set, with one change moved where that brings the cost into the interval, or nearest to it."""
    if sets.price(chosen) >= SLACK * limit:
        return chosen
    places = {(r.group, r.choice): r.place for r in removals}
    trials: list[tuple[int, Choices]] = []
    for group, choice in chosen.items():
        if choice == ORIGINAL:
            continue
        fewer = {**chosen, group: ORIGINAL}
        for removal in removals:
            if fewer[removal.group] == ORIGINAL and (removal.group, removal.choice) != (group, choice):
                distance = abs(removal.place - places[group, choice])
                trials.append((distance, {**fewer, removal.group: removal.choice}))
    trials.sort(key=lambda trial: trial[0])
    for _, trial in trials:  # the nearest first
        if sets.price(trial) > sets.price(chosen) and sets.fits(trial, 0.0, limit):
            chosen = trial
            if sets.price(chosen) >= SLACK * limit:
                break
    return chosen


CHOOSERS: Mapping[str, Callable[[Groups, Legal, Costs, float, int], Choices]] = {
    "control-random": random_set,
    "control-uniform": lambda groups, legal, costs, limit, seed: evenly(groups, legal, costs, limit),
}
"""The sets that nothing was learned for, by the method's name."""
