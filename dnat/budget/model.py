"""The best set of choices within a budget, as an integer program that is solved again as conflicts turn up."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

from ..edges import NONE, ORIGINAL, crossings, problems
from ..errors import UsageError
from ..seeds import Stream, numpy_generator
from . import streams
from .needs import Bill
from .prices import Costs, Groups, by_edge
from .solver import IntegerProgram, Row

PROBED = 1000
"""Branches of the probe before training: DARTS at its papers' depth (160 edges) needs as many at most."""

MOST_STEPS = 100_000
"""Of more steps than these the solver would not tell one from none by its tolerance."""


class InfeasibleError(UsageError):
    """No legal set of choices keeps the budget."""


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
    model = Model(groups, scores, costs, limit, floor=floor)
    choices = model.solve()
    if choices is None and floor:
        floor = min(floor, dearest(groups, legal, costs, limit))
        model = Model(groups, scores, costs, limit, floor=floor)
        choices = model.solve()
    if model.unsolved:
        if choices is None:
            raise UsageError(
                f"no set within the budget was found in {model.program.branches} branches: give another one"
            )
        warnings.warn(
            f"this is the best set in {model.program.branches} branches; another one may be worth at most "
            f"{model.program.gap:.3g} more",
            stacklevel=2,
        )
    if choices is None:
        _, least = cheapest(groups, legal, costs)
        raise InfeasibleError(
            f"no legal set of choices costs at most {limit:.6g}: the smallest reachable cost is {least:.6g} "
            f"({least / costs.total:.1%} of the original's {costs.total:.6g})"
        )
    return choices


def cheapest(groups: Groups, legal: Mapping[str, Sequence[str]], costs: Costs) -> tuple[dict[str, str], float]:
    """The legal choices that cost least, and their cost."""
    choices = Model(groups, _equal_scores(legal), costs, None, worth=-1.0).solve()
    assert choices is not None, "the untouched network is legal"
    return choices, costs.of(by_edge(groups, choices))


def dearest(groups: Groups, legal: Mapping[str, Sequence[str]], costs: Costs, limit: float) -> float:
    """The cost of the legal choices that cost most among those that cost at most `limit`; 0 if there are none."""
    choices = Model(groups, _equal_scores(legal), costs, limit, worth=1.0).solve()
    return costs.of(by_edge(groups, choices)) if choices else 0.0


def is_hard(groups: Groups, legal: Mapping[str, Sequence[str]], costs: Costs, limit: float, seed: int) -> bool:
    """Whether the best set within a limit may not be found: it was not, in `PROBED` branches, for scores that are
    drawn as theta has them in the middle of a run."""
    draw, usual = numpy_generator(seed, Stream.PROBE), {ORIGINAL: 0.9, NONE: 0.0}
    scores = {g: {c: usual.get(c, 0.1) + draw.normal(0, 0.15) for c in choices} for g, choices in legal.items()}
    model = Model(groups, scores, costs, limit, branches=PROBED)
    model.solve()
    return model.unsolved


def common_step(prices: Iterable[float]) -> int:
    """The largest whole number of which all prices are multiples; 0 where some are no whole numbers.

    >>> common_step([24.0, -36.0, 0.0]), common_step([2.0, 0.0004])
    (12, 0)
    """
    found = [price for price in prices if price]
    whole = [round(price) for price in found]
    near = all(map(math.isclose, found, whole))  # shares of channels are fractions
    return math.gcd(*whole) if near else 0


def _equal_scores(legal: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    return {group: dict.fromkeys(choices, 0.0) for group, choices in legal.items()}


class Model:
    """The integer program: choices of groups, and which values they leave needed.

    Args:
        groups, scores, costs: see `best`.
        limit: what the choices may cost; None: anything.
        floor: what they must cost.
        worth: what the whole network's cost is worth beside the scores.
        branches: see `IntegerProgram`.
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
        branches: int | None = None,
    ) -> None:
        self.groups, self.scores, self.costs, self.limit, self.floor = groups, scores, costs, limit, floor
        self.program = IntegerProgram(exact=bool(floor) or worth > 0, branches=branches)
        self.choices: dict[tuple[str, str], int] = {}
        self.variables: dict[str, list[int]] = {}
        for group, score in scores.items():
            others = [c for c in score if c != ORIGINAL]
            for choice in others:
                self.choices[group, choice] = self.program.binary(score[choice] - score[ORIGINAL])
            self.variables[group] = [self.choices[group, c] for c in others]
            if len(others) > 1:
                self.program.require([(self.choices[group, c], -1.0) for c in others], -1.0)
        self._keep_apart()
        bill = Bill(self.program, groups, costs, self.choices)
        self.program.rows += streams.rows(bill.needs, self._wrong)
        scale = max(costs.total, 1e-30)
        for variable, price in bill.prices.items():
            self.program.objective[variable] += worth * price / scale
        # Costs change in whole steps. A solver that does not know it tries layers of equal cost one by one.
        step = common_step(bill.prices.values())
        step = step if scale <= MOST_STEPS * step else 0
        unit = step or scale
        prices = [(v, round(p / step) if step else p / scale) for v, p in bill.prices.items()]
        if limit is not None:
            spare = (limit - bill.fixed) / unit
            self.program.require([(v, -p) for v, p in prices], -math.floor(spare + 1e-9) if step else -spare)
        if floor:
            least = (floor - bill.fixed) / unit
            self.program.require(prices, math.ceil(least - 1e-9) if step else least)

    def _keep_apart(self) -> None:
        """A width does not shrink where something else takes the place of what makes or reads its channels."""
        group_of = {edge: group for group, members in self.groups.items() for edge in members}
        made = [(edge, choice) for group, choice in self.choices for edge in self.groups[group]]
        crossed = crossings([edge for edge in group_of if edge.place], made)
        for group, other, choice in sorted({(group_of[w], group_of[e], choice) for w, e, choice in crossed}):
            widths = [(v, -1.0) for v in self.variables[group]]
            self.program.require([*widths, (self.choices[other, choice], -1.0)], -1.0)

    def solve(self) -> dict[str, str] | None:
        """The best legal choices; None where there are none within the limit."""
        cuts: list[Row] = []
        while True:
            choices = self._solution(cuts)
            if choices is None:
                return None
            conflicts = self._conflicts(choices)
            # What a set costs that cannot be made means nothing. By the solver's tolerance a set may be too dear.
            if not conflicts and not self._is_beyond(self.costs.of(by_edge(self.groups, choices))):
                return choices
            cuts += map(self._cut, conflicts or [list(choices.items())])

    @property
    def unsolved(self) -> bool:
        """Whether the last solution may not be the best. That a floor may be kept better is not of interest."""
        return bool(self.program.gap) and not self.program.exact

    def _is_beyond(self, cost: float) -> bool:
        return cost < self.floor * (1 - 1e-9) or (self.limit is not None and cost > self.limit * (1 + 1e-12))

    def _cut(self, pairs: Sequence[tuple[str, str]]) -> Row:
        """Forbids that all these choices are made together."""
        terms: list[tuple[int, float]] = []
        count = 0
        for group, choice in pairs:
            if choice == ORIGINAL:
                terms.extend((v, 1.0) for v in self.variables[group])
            else:
                terms.append((self.choices[group, choice], -1.0))
                count += 1
        return terms, 1.0 - count

    def _solution(self, cuts: Sequence[Row]) -> dict[str, str] | None:
        choices = dict.fromkeys(self.scores, ORIGINAL)
        if not self.choices:
            return None if self._is_beyond(self.costs.total) else choices
        values = self.program.solution(cuts)
        if values is None:
            return None
        return choices | {group: choice for (group, choice), v in self.choices.items() if values[v] > 0.5}

    def _wrong(self, pairs: Iterable[tuple[str, str]]) -> bool:
        """Whether choices cannot be made together."""
        return bool(problems({edge: choice for group, choice in pairs for edge in self.groups[group]}))

    def _conflicts(self, choices: Mapping[str, str]) -> list[list[tuple[str, str]]]:
        """Smallest sets of choices that cannot be made together, disjoint from each other."""
        rest = [(g, c) for g, c in choices.items() if c != ORIGINAL]
        conflicts = []
        while rest and self._wrong(rest):
            conflict = list(rest)
            for pair in rest:
                fewer = [p for p in conflict if p != pair]
                if self._wrong(fewer):
                    conflict = fewer
            conflicts.append(conflict)
            rest = [p for p in rest if p not in conflict]
        return conflicts
