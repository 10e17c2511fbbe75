"""A result beside all that could have been reached: its rank, its regret, and many of them together."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...errors import UsageError
from .spaces import Moves, Prices, reachable


@dataclass(frozen=True)
class Known:
    """An architecture as digits, its accuracy in percent, from the table, and multiply-adds of one image."""

    architecture: str
    accuracy: float
    madds: int


@dataclass(frozen=True)
class Ranking:
    """What else could have been reached. Only architectures that the table has are counted.

    Attributes:
        allowed: multiply-adds that were allowed: the budget; without one, or where the result costs more than the
            budget, what the result costs.
        best: the most accurate of those that cost no more than that.
        best_anywhere: the most accurate of all, whatever it costs.
        rank: of the result among those that cost no more, 1 being the best; of equals each has the best rank.
        among: how many those are, the result included.
        mean, std: of their accuracies: what one drawn at random, each as likely, is expected to have, and how far
            such a draw lies from that (the standard deviation of the whole set, not of a sample).
        better: the share of them that are better than `mean`: the chance of a random draw to be.
        reachable: how many architectures can be reached, whatever they cost.
        missing: how many more could be, but are not in the table.
    """

    allowed: float
    best: Known
    best_anywhere: Known
    rank: int
    among: int
    mean: float
    std: float
    better: float
    reachable: int
    missing: int


@dataclass(frozen=True)
class Lookup:
    """What became of one architecture.

    Attributes:
        before: the architecture that was given, in its live form.
        after: what the method made of it; None where that cannot be told.
        ranking: beside what else could have been reached; None where `after` is.
        problem: why there is no result; empty where there is one.
    """

    before: Known
    after: Known | None = None
    ranking: Ranking | None = None
    problem: str = ""

    @property
    def regret(self) -> float:
        """By how many percent the best that was allowed is better than the result; NaN without a result."""
        return self.ranking.best.accuracy - self.after.accuracy if self.ranking and self.after else math.nan

    @property
    def regret_anywhere(self) -> float:
        """The same beside the best of all, whatever it costs; NaN without a result."""
        if not (self.ranking and self.after):
            return math.nan
        return self.ranking.best_anywhere.accuracy - self.after.accuracy

    @property
    def control_regret(self) -> float:
        """The expected regret of a random draw among what was allowed; NaN without a result."""
        return self.ranking.best.accuracy - self.ranking.mean if self.ranking else math.nan

    @property
    def used(self) -> float:
        """The share of the multiply-adds that were allowed which the result has; NaN without a result."""
        return self.after.madds / self.ranking.allowed if self.ranking and self.after else math.nan


class UnreadableError(Exception):
    """What a method returned is no architecture of the space."""


def lookup(
    space: str,
    before: Known,
    after: str,
    table: Mapping[str, float],
    price: Prices,
    moves: Moves,
    allowed: float,
) -> Lookup:
    """A result beside all that could have been reached."""
    reached = reachable(space, before.architecture, moves)
    if after not in reached:
        named = repr(moves) if isinstance(moves, str) else "of that table"
        raise UnreadableError(f"{before.architecture} cannot become {after} by the moves of the space {named}")
    if after not in table:
        raise UnreadableError(f"the result {after} is not in the table of accuracies")
    known = [Known(a, table[a], price.of(a)) for a in reached if a in table]
    result = next(k for k in known if k.architecture == after)
    allowed = max(allowed, result.madds)
    within = [k for k in known if k.madds <= allowed]
    accuracies = [k.accuracy for k in within]
    mean = statistics.fmean(accuracies)
    ranking = Ranking(
        allowed=allowed,
        # Of equals the cheapest, then the first by its digits.
        best=min(within, key=lambda k: (-k.accuracy, k.madds)),
        best_anywhere=min(known, key=lambda k: (-k.accuracy, k.madds)),
        rank=1 + sum(a > result.accuracy for a in accuracies),
        among=len(within),
        mean=mean,
        std=statistics.pstdev(accuracies),
        better=sum(_above(a, mean) for a in accuracies) / len(accuracies),
        reachable=len(known),
        missing=len(reached) - len(known),
    )
    return Lookup(before, result, ranking)


def _above(accuracy: float, mean: float) -> bool:
    """Whether an accuracy is above a mean by more than rounding."""
    return accuracy > mean and not math.isclose(accuracy, mean, rel_tol=1e-12)


@dataclass(frozen=True)
class LookupSummary:
    """Many lookups together; accuracies and regrets are means, in percent.

    Attributes:
        n: lookups with a result; all the rest is of them.
        failed: lookups without one.
        unchanged: results that are the architecture that was given. Doing nothing costs most, and beats random
            draws wherever changes do harm: look at the results that changed, too.
        before, after: accuracy of the architectures as they were given, and of what became of them.
        control: expected accuracy of random draws among what was allowed.
        regret, control_regret: of the results, and what is expected of random draws.
        regret_anywhere: of the results beside the best that could be reached at any cost.
        wins, losses, ties: how often the result was better than the mean of the random draw, worse, or equal.
        wins_by_chance: how many wins random draws are expected to have (that is not a half: a mean is no median).
        p_value: how likely random draws are to win as often or more often.
        used: the share of the multiply-adds that were allowed which the results have.
    """

    n: int
    failed: int
    unchanged: int
    before: float
    after: float
    control: float
    regret: float
    control_regret: float
    regret_anywhere: float
    wins: int
    losses: int
    ties: int
    wins_by_chance: float
    p_value: float
    used: float


def summary(lookups: Iterable[Lookup]) -> LookupSummary:
    """What lookups are on average, and how often the method beat the random draw.

    Raises:
        ValueError: there is none with a result.
    """
    lookups = list(lookups)
    counted = [(o, o.after, o.ranking) for o in lookups if o.after and o.ranking]
    if not counted:
        first = f": {lookups[0].problem}" if lookups else ""
        raise UsageError(f"none of {len(lookups)} outcomes has a result{first}")
    wins = sum(_above(after.accuracy, s.mean) for _, after, s in counted)
    losses = sum(_above(s.mean, after.accuracy) for _, after, s in counted)
    chances = [s.better for _, _, s in counted]
    mean = statistics.fmean
    return LookupSummary(
        n=len(counted),
        failed=len(lookups) - len(counted),
        unchanged=sum(after == o.before for o, after, _ in counted),
        before=mean(o.before.accuracy for o, _, _ in counted),
        after=mean(after.accuracy for _, after, _ in counted),
        control=mean(s.mean for _, _, s in counted),
        regret=mean(o.regret for o, _, _ in counted),
        control_regret=mean(o.control_regret for o, _, _ in counted),
        regret_anywhere=mean(o.regret_anywhere for o, _, _ in counted),
        wins=wins,
        losses=losses,
        ties=len(counted) - wins - losses,
        wins_by_chance=math.fsum(chances),
        p_value=_at_least(wins, chances),
        used=mean(o.used for o, _, _ in counted),
    )


def _at_least(wins: int, chances: Iterable[float]) -> float:
    """The probability of so many wins or more, of independent draws that each win with a chance of their own."""
    distribution = [1.0]
    for chance in chances:
        lost = [p * (1 - chance) for p in distribution] + [0.0]
        won = [0.0] + [p * chance for p in distribution]
        distribution = [a + b for a, b in zip(lost, won, strict=True)]
    return min(1.0, math.fsum(distribution[wins:]))
