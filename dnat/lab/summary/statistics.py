"""Intervals for means, tests of paired differences, their posterior, and Holm's correction.

`scipy.stats` has the same under other names, and is what the tests compare with. Not used here since its Wilcoxon
test is not exact where differences are equal, and its permutations of 20 differences take 16 s (here 0.03 s).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from ...errors import UsageError, WrongTypeError
from ...seeds import check_seed

Interval = tuple[float, float]
"""Lower and upper end."""

Alternative = Literal["two-sided", "greater"]
"""What a test asks of a mean: whether it is another one than 0, or above 0."""

MOST_FLIPS = 20
"""With more differences their signs are not flipped in all ways."""

RESAMPLES = 9999
"""How often the bootstrap draws."""


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's interval for the mean: mean -+ t * std / sqrt(n), with n - 1 degrees of freedom.

    It supposes values that are about normal. Where all are equal both ends are their value.

    Args:
        values: at least two, finite.
        confidence: how often such an interval holds the true mean; between 0 and 1.

    Raises:
        ValueError, TypeError: too few values, one that is no finite number, a confidence out of range.

    >>> [round(end, 2) for end in t_interval([91.0, 92.0, 93.0])]
    [89.52, 94.48]
    """
    values = _finite(values, "values", least=2)
    t = float(stdtrit(len(values) - 1, (1 + check_confidence(confidence)) / 2))
    mean, reach = statistics.mean(values), t * statistics.stdev(values) / math.sqrt(len(values))
    return mean - reach, mean + reach


def t_bound(values: Sequence[float], confidence: float = 0.95) -> float:
    """The lower end of Student's one-sided interval for the mean; see `t_interval`."""
    values = _finite(values, "values", least=2)
    t = float(stdtrit(len(values) - 1, check_confidence(confidence)))
    return statistics.mean(values) - t * statistics.stdev(values) / math.sqrt(len(values))


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The percentile bootstrap's interval for the mean.

    The order of values does not matter. With few values the interval is too short: with five it holds the mean of
    normal values in about 83 of 100 cases where 95 are wanted, so that it is the t interval's companion, not its
    substitute. It is never wider than the values.

    Args:
        values: at least two, finite.
        confidence: between 0 and 1.
        seed: of the draws, which come from NumPy's Philox generator.
        resamples: number of draws, at least 1.

    Raises:
        ValueError, TypeError: as for `t_interval`; a seed or number of draws out of range.

    >>> bootstrap_interval([91.0, 92.0])
    (91.0, 92.0)
    """
    drawn = np.sort(_finite(values, "values", least=2))
    tail = (1 - check_confidence(confidence)) / 2
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 1:
        raise UsageError(f"resamples must be an integer of at least 1, not {resamples!r}")
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(check_seed(seed))))
    means = drawn[generator.integers(0, len(drawn), (resamples, len(drawn)))].mean(axis=1)
    low, high = np.clip(np.quantile(means, [tail, 1 - tail]), drawn[0], drawn[-1])
    return float(low), float(high)


def sign_flip(differences: Sequence[float], alternative: Alternative = "two-sided") -> float:
    """p of the exact sign-flip test that the mean of paired differences is 0.

    It is the share of the 2**n ways to choose signs that give a mean as far from 0 as the one that was found,
    which is one of them. Means that differ by rounding alone count as equal. The smallest p is 2/2**n: only that
    way and its opposite are as extreme. Of "greater" it is the share of means as large, and 1/2**n at least.

    Args:
        differences: 1 to 20, finite.
        alternative: see `Alternative`.

    Raises:
        ValueError, TypeError: none or too many differences, or one that is no finite number.

    >>> sign_flip([1.0, 2.0, 0.5, 1.5, 3.0]), sign_flip([1.0, 2.0, 0.5, 1.5, 3.0], "greater")
    (0.0625, 0.03125)
    """
    values = _finite(differences, "differences", least=1)
    if len(values) > MOST_FLIPS:
        raise UsageError(
            f"signs of at most {MOST_FLIPS} differences can be flipped in all ways, not of {len(values)}: "
            "use the paired t test"
        )
    sums = np.array(values[:1])  # its other sign gives the same sums, but for their sign
    for value in values[1:]:
        sums = np.concatenate((sums + value, sums - value))
    rounding = 1e-12 * math.fsum(map(abs, values))
    if alternative == "greater":
        return float(np.mean(np.concatenate((sums, -sums)) >= math.fsum(values) - rounding))
    return float(np.mean(np.abs(sums) >= abs(math.fsum(values)) - rounding))


def wilcoxon(differences: Sequence[float]) -> float:
    """p of Wilcoxon's signed-rank test of paired differences, two-sided and exact for any number of them.

    Zeros are left out, as Wilcoxon did; equal sizes get the mean of their ranks, and p is exact for those ranks.
    Where nothing but zeros is left p is 1.

    Args:
        differences: at least one, finite.

    Raises:
        ValueError, TypeError: no differences, or one that is no finite number.

    >>> wilcoxon([1.0, 2.0, -0.5, 1.5, 3.0])
    0.125
    """
    values = np.array([v for v in _finite(differences, "differences", least=1) if v])
    if not len(values):
        return 1.0
    _, place, count = np.unique(np.abs(values), return_inverse=True, return_counts=True)
    ranks = (2 * np.cumsum(count) - count + 1)[place]  # twice the mean ranks: integers
    total, positive = int(ranks.sum()), int(ranks[values > 0].sum())
    chances = np.zeros(total + 1)  # of each sum of the ranks whose differences are positive
    chances[0] = 1.0
    for rank in ranks:
        chances[rank:] = chances[rank:] + chances[:-rank]
        chances /= 2
    extreme = np.abs(2 * np.arange(total + 1) - total) >= abs(2 * positive - total)
    return min(1.0, float(chances[extreme].sum()))


def paired_t(differences: Sequence[float], alternative: Alternative = "two-sided") -> float | None:
    """p of the paired t test that the mean difference is 0; None where all differences are equal."""
    std, n = statistics.stdev(differences), len(differences)
    if not std:
        return None
    t = exact_mean(differences) / (std / math.sqrt(n))
    return float(stdtr(n - 1, -t)) if alternative == "greater" else 2 * float(stdtr(n - 1, -abs(t)))


class Chances(NamedTuple):
    """Probabilities that a mean difference is above, within and below a margin on both sides of 0."""

    better: float
    equal: float
    worse: float


def chances(differences: Sequence[float], margin: float = 0.0) -> Chances:
    """What paired differences leave to believe of their mean, after them and with no opinion before.

    The posterior of the mean of normal differences, with the prior 1/sigma, is Student's t with n - 1 degrees of
    freedom around their mean, of scale std / sqrt(n): the Bayesian t test of Benavoli et al. 2017 (JMLR 18(77)),
    with no correlation, since seeds are independent, as the folds of a cross-validation are not.
    Where all differences are equal their value is certain.

    Args:
        differences: at least two, of which more is better.
        margin: within which a difference is none; at least 0.

    >>> [round(p, 3) for p in chances([0.5, 0.1, 0.3], margin=0.1)]
    [0.887, 0.076, 0.037]
    """
    values = _finite(differences, "differences", least=2)
    n, mean, scale = len(values), exact_mean(values), statistics.stdev(values) / math.sqrt(len(values))
    if not scale:
        better, worse = float(mean > margin), float(mean < -margin)
    else:
        better = float(stdtr(n - 1, (mean - margin) / scale))
        worse = float(stdtr(n - 1, (-margin - mean) / scale))
    return Chances(better, max(0.0, 1 - better - worse), worse)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down procedure, in the order they were given in.

    The smallest of m is multiplied by m, the next by m - 1 and so on; none may be smaller than the one before it,
    nor larger than 1. Whoever rejects what is at most 0.05 then errs anywhere in the family with a probability of
    at most 0.05, however the tests depend on one another (Holm 1979).

    Raises:
        ValueError, TypeError: a value that is no number from 0 to 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    values = _finite(p_values, "p values", least=0)
    for value in values:
        if not 0 <= value <= 1:
            raise UsageError(f"p values must be from 0 to 1, not {value!r}")
    corrected, largest = [0.0] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - place) * values[i]))
        corrected[i] = largest
    return corrected


def exact_mean(values: Iterable[float]) -> float:
    """Rounded once: it does not depend on the order, and the mean of equal values is their value."""
    return float(statistics.mean(map(float, values)))


def check_margin(margin: float) -> float:
    """A margin, if it is a positive number."""
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < math.inf:
        raise UsageError(f"a margin must be a positive number (0.3 for 0.3 points), not {margin!r}")
    return float(margin)


def _finite(values: Sequence[float], name: str, least: int) -> tuple[float, ...]:
    """The values as floats, if they are enough and all are finite numbers."""
    values = tuple(values)
    if len(values) < least:
        raise UsageError(f"{name}: at least {least} {'is' if least == 1 else 'are'} needed, not {len(values)}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise WrongTypeError(f"{name} must be numbers, not {type(value).__name__} {value!r}")
        if not math.isfinite(value):
            raise UsageError(f"{name} must be finite, not {value!r}")
    return tuple(map(float, values))


def check_confidence(confidence: float) -> float:
    """A confidence, if it is a number between 0 and 1."""
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise WrongTypeError(f"confidence must be a number, not {type(confidence).__name__} {confidence!r}")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence must be between 0 and 1 (0.95 for 95 %), not {confidence!r}")
    return float(confidence)
