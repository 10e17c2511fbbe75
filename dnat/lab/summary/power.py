"""How many seeds would show a difference, before they are trained."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri, ndtr, stdtrit

from ...errors import UsageError
from .comparison import Comparison
from .statistics import Interval

MOST_SEEDS = 1000
"""Nobody trains more."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be shown, and how surely.

    Attributes:
        difference: the true one, in the unit of the deviation. Without a margin its sign does not matter.
        deviation: standard deviation of the paired differences over seeds.
        tests: in the family; the smallest of so many p must be at most level / tests (Holm's first step).
        level: largest corrected p that is called significant.
        power: the probability with which it is to be shown.
        margin: where "not worse by the margin" is to be shown, one-sided; None for "different", two-sided.

    Raises:
        ValueError: out of range.
    """

    difference: float
    deviation: float
    tests: int = 1
    level: float = 0.05
    power: float = 0.8
    margin: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.difference):
            raise UsageError(f"difference must be a number, not {self.difference!r}")
        if not 0 < self.deviation < math.inf:
            raise UsageError(f"deviation must be a positive number, not {self.deviation!r}")
        if self.tests < 1:
            raise UsageError(f"tests must be at least 1, not {self.tests}")
        for name in ("level", "power"):
            if not 0 < getattr(self, name) < 1:
                raise UsageError(f"{name} must be between 0 and 1, not {getattr(self, name)!r}")
        if self.margin is not None and not 0 < self.margin < math.inf:
            raise UsageError(f"margin must be a positive number, not {self.margin!r}")
        if not self.effect:
            raise UsageError("no number of seeds shows a difference of 0: give --difference, or a --margin")
        if self.effect < 0:
            raise UsageError(
                f"a method that is worse by {-self.difference:g} is worse by the margin {self.margin:g}: no "
                "number of seeds shows the opposite"
            )

    @property
    def effect(self) -> float:
        """The mean difference, and the margin, in standard deviations."""
        shift = abs(self.difference) if self.margin is None else self.difference + self.margin
        return shift / self.deviation

    @property
    def level_of_each(self) -> float:
        """The level of the first test."""
        return self.level / self.tests


def t_power(question: Question, n: int) -> float:
    """The probability that the paired t test of n seeds shows it, if differences are normal.

    Under the alternative t has a noncentral t distribution with n - 1 degrees of freedom and the parameter
    sqrt(n) * effect (Cohen 1988; `statsmodels.stats.power.TTestPower` is the same).

    >>> round(t_power(Question(difference=0.5, deviation=1.0), 34), 3)
    0.808
    """
    if n < 2:
        return 0.0
    sides = 2 if question.margin is None else 1
    least = float(stdtrit(n - 1, 1 - question.level_of_each / sides))
    shift = math.sqrt(n) * question.effect
    # Of each size that the sample's deviation may have; scipy's nctdtr (1.17) gives no number at some places.
    sizes = least * np.sqrt(chdtri(n - 1, _MIDDLES) / (n - 1))
    power = ndtr(shift - sizes) + (ndtr(-shift - sizes) if sides == 2 else 0)
    return float(power.mean())


_MIDDLES = (np.arange(4096) + 0.5) / 4096
"""Of 4096 equal parts of the probabilities from 0 to 1."""


def seeds_of_t(question: Question) -> int | None:
    """The least number of seeds of which the t test has the power; None of more than 1000."""
    sizes = range(2, MOST_SEEDS + 1)
    place = bisect_left(sizes, question.power, key=lambda n: t_power(question, n))
    return sizes[place] if place < len(sizes) else None


def seeds_of_exact(question: Question) -> int:
    """The least number of seeds of which the sign-flip test and Wilcoxon's can be significant at all.

    Their smallest p is 2**(1 - n), and 2**-n one-sided, however large the difference is.

    >>> [seeds_of_exact(Question(difference=9, deviation=1, tests=tests)) for tests in (1, 3)]
    [6, 7]
    """
    sides = 2 if question.margin is None else 1
    return next(n for n in range(2, 64) if sides * 2.0**-n <= question.level_of_each)


def pooled_deviation(comparisons: Iterable[Comparison]) -> tuple[float, int]:
    """The deviation of paired differences over several comparisons, each around its own mean; degrees of freedom.

    Raises:
        ValueError: none of them has two seeds.
    """
    several = [c for c in comparisons if c.n > 1]
    freedom = sum(c.n - 1 for c in several)
    if not freedom:
        raise UsageError("no method has two seeds in common with the baseline: give --deviation")
    return math.sqrt(math.fsum((c.n - 1) * statistics.variance(c.differences) for c in several) / freedom), freedom


def deviation_interval(deviation: float, freedom: int, confidence: float = 0.95) -> Interval:
    """The chi-squared interval of a standard deviation of normal values."""
    tail = (1 - confidence) / 2
    ends = [deviation * math.sqrt(freedom / float(chdtri(freedom, p))) for p in (tail, 1 - tail)]
    return ends[0], ends[1]


def shown_sizes(answer: int | None, exact: int) -> Sequence[int]:
    """Numbers of seeds whose power is worth a line: few ones, those around the answer, and many."""
    last = max(answer or MOST_SEEDS, exact)
    usual = [3, 5, 7, 10, 15, 20, 30, 50, 100, 200, 500, 1000]
    near = {n for n in (last - 1, last) if n > 1}
    return sorted({n for n in usual if n <= 2 * last} | near)
