"""Trials of one method, and a method beside the baseline.

Which p counts. Where at most 20 seeds are common to both, it is that of the exact sign-flip test of the mean
difference (Fisher's randomization test for pairs): if the method made no difference, either sign of each one would
have been as likely. It assumes no distribution, which matters here: dead networks make accuracies far from
normal. Its smallest value is 2/2**n, so that at n = 5 it cannot fall below 0.0625, whatever the method does; a
`Comparison` says so (`least_p`, `least_p_holm`). With more seeds it is the paired t test's. These p values are
two-sided; over the methods of one network and data set they are corrected by Holm's procedure.

Whether a method is not worse by a margin or more is a question of its own (`NotWorse`): the same tests, one-sided,
of the differences plus the margin. That nothing is significant does not answer it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from ..metrics import Metric
from .statistics import (
    MOST_FLIPS,
    Chances,
    Interval,
    bootstrap_interval,
    chances,
    exact_mean,
    holm,
    paired_t,
    sign_flip,
    t_bound,
    t_interval,
    wilcoxon,
)
from .trials import Trial


@dataclass(frozen=True)
class Row:
    """The trials of one method with one network on one data set.

    Attributes:
        data, network, method: as in `Trial`.
        seeds: in order.
        metric: what they are judged by.
        watched: the splits of their curves.
        values: of the metric on the test examples at each seed, as they are shown: accuracy in percent.
        mean: of the values.
        std: their sample standard deviation (divided by n - 1); None of one trial.
        interval: Student's, for the mean; None of one trial.
        bootstrap: the bootstrap's; None of one trial.
        dead: how many results are dead, of those that are known.
        unknown: of how many that is not known.
        params, madds: of the results, mean.
        params_change, madds_change: to before, in percent, mean; negative where the results are smaller.
        latency_before, latency_after: seconds, mean; None where a record has none.
        latency_spread: distance of the quartiles of `latency_after`, mean; None where a record has none.
        search_hours, training_hours: of a run, mean.
        total_hours: of all runs together.
        devices: where they ran.
    """

    data: str
    network: str
    method: str
    seeds: tuple[int, ...]
    metric: Metric
    watched: tuple[str, ...]
    values: tuple[float, ...]
    mean: float
    std: float | None
    interval: Interval | None
    bootstrap: Interval | None
    dead: int
    unknown: int
    params: float
    madds: float
    params_change: float
    madds_change: float
    latency_before: float | None
    latency_after: float | None
    latency_spread: float | None
    search_hours: float
    training_hours: float
    total_hours: float
    devices: tuple[str, ...]

    @property
    def n(self) -> int:
        """The number of trials."""
        return len(self.seeds)


@dataclass(frozen=True)
class NotWorse:
    """Whether a method is worse than the baseline by less than a margin: a test of non-inferiority.

    Attributes:
        margin: in the unit of the differences.
        worst: the end of the one-sided t interval at which the method is worst, as a difference like the others.
        p_flip: of the one-sided sign-flip test; None with more than 20 seeds.
        p_t: of the one-sided paired t test; None where all differences are equal.
        test: whose p counts: "sign-flip", with more than 20 seeds "t"; or "".
        p: that one; None where there is none.
        least_p: the smallest that this test can give with so many seeds.
        p_holm: p corrected over the methods of this network and data set.
        least_p_holm: the smallest that can become of it, if all of them had their `least_p`.
    """

    margin: float
    worst: float
    p_flip: float | None
    p_t: float | None
    test: str
    p: float | None
    least_p: float | None
    p_holm: float | None = None
    least_p_holm: float | None = None


@dataclass(frozen=True)
class Comparison:
    """A method beside the baseline on the same network and data, paired by seed.

    Attributes:
        data, network, method, baseline: what is compared.
        seeds: that both have, in order.
        differences: of values, method less baseline, for each seed.
        mean: of the differences.
        std: their sample standard deviation; None of one.
        interval: Student's, for the mean difference; None of one.
        d_z: mean / std, the size of the effect; None without a std above 0.
        p_flip: of the sign-flip test; None of one seed or more than 20.
        p_t: of the paired t test; None of one seed or where all differences are equal.
        p_wilcoxon: of Wilcoxon's signed-rank test, exact; None of one seed.
        why: why a p is missing; empty where none is.
        test: whose p counts: "sign-flip"; with more than 20 seeds "t", or "wilcoxon" where there is no t; or "".
        p: that one; None of one seed.
        least_p: the smallest that this test can give with so many seeds; None of one seed.
        p_holm: p corrected over the methods of this network and data set.
        least_p_holm: the smallest that can become of it, if all of them had their `least_p`.
        chances: that the method is better, equal (within the margin, if there is one) or worse; None of one seed.
        not_worse: than the baseline by the margin; None without a margin, or of one seed.
    """

    data: str
    network: str
    method: str
    baseline: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    std: float | None
    interval: Interval | None
    d_z: float | None
    p_flip: float | None
    p_t: float | None
    p_wilcoxon: float | None
    why: str
    test: str
    p: float | None
    least_p: float | None
    p_holm: float | None = None
    least_p_holm: float | None = None
    chances: Chances | None = None
    not_worse: NotWorse | None = None

    @property
    def n(self) -> int:
        """The number of pairs."""
        return len(self.seeds)


def row_of(trials: Sequence[Trial], seed: int, confidence: float) -> Row:
    """The row of one method's trials; `seed` is the bootstrap's."""
    first, several = trials[0], len(trials) > 1
    values = tuple(t.value for t in trials)
    return Row(
        data=first.data,
        network=first.network,
        method=first.method,
        seeds=tuple(t.seed for t in trials),
        metric=first.metric,
        watched=tuple(sorted({t.watched for t in trials})),
        values=values,
        mean=exact_mean(values),
        std=statistics.stdev(values) if several else None,
        interval=t_interval(values, confidence) if several else None,
        bootstrap=bootstrap_interval(values, confidence, seed) if several else None,
        dead=sum(t.dead is True for t in trials),
        unknown=sum(t.dead is None for t in trials),
        params=exact_mean(t.params for t in trials),
        madds=exact_mean(t.madds for t in trials),
        params_change=exact_mean(100 * (t.params - t.params_before) / t.params_before for t in trials),
        madds_change=exact_mean(100 * (t.madds - t.madds_before) / t.madds_before for t in trials),
        latency_before=_mean_of_all([t.latency_before for t in trials]),
        latency_after=_mean_of_all([t.latency_after for t in trials]),
        latency_spread=_mean_of_all([t.latency_spread for t in trials]),
        search_hours=exact_mean(t.search_seconds for t in trials) / 3600,
        training_hours=exact_mean(t.training_seconds for t in trials) / 3600,
        total_hours=math.fsum(t.search_seconds + t.training_seconds for t in trials) / 3600,
        devices=tuple(sorted({t.device for t in trials if t.device})),
    )


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing."""
    known = [v for v in values if v is not None]
    return exact_mean(known) if len(known) == len(values) else None


T = TypeVar("T", Comparison, NotWorse)


def comparisons_of(
    rows: Sequence[Row], baseline: str, confidence: float, margin: float | None = None
) -> list[Comparison]:
    """All methods of a network and data set with the baseline, where they have seeds in common."""
    base = next((row for row in rows if row.method == baseline), None)
    if base is None:
        return []
    others = [row for row in rows if row is not base and set(row.seeds) & set(base.seeds)]
    comparisons = _corrected([_comparison(row, base, confidence, margin) for row in others])
    tested = iter(_corrected([c.not_worse for c in comparisons if c.not_worse]))
    return [replace(c, not_worse=next(tested)) if c.not_worse else c for c in comparisons]


def _corrected(tests: Sequence[T]) -> list[T]:
    """Tests of one family with their p corrected; those without a p are not in it."""
    corrected = iter(holm([t.p for t in tests if t.p is not None]))
    least = iter(holm([t.least_p for t in tests if t.least_p is not None]))
    return [t if t.p is None else replace(t, p_holm=next(corrected), least_p_holm=next(least)) for t in tests]


def not_worse(merits: Sequence[float], margin: float, confidence: float) -> NotWorse:
    """Whether a mean difference is above minus a margin.

    Args:
        merits: at least two paired differences, of which more is better.
        margin: above 0.
        confidence: of the one-sided interval.
    """
    n, shifted = len(merits), [merit + margin for merit in merits]
    p_flip = sign_flip(shifted, "greater") if n <= MOST_FLIPS else None
    p_t = paired_t(shifted, "greater")
    test, p, least = "", None, None
    if p_flip is not None:
        test, p, least = "sign-flip", p_flip, 2.0**-n
    elif p_t is not None:
        test, p, least = "t", p_t, 0.0
    return NotWorse(margin, t_bound(merits, confidence), p_flip, p_t, test, p, least)


def _comparison(row: Row, base: Row, confidence: float, margin: float | None) -> Comparison:
    ours, theirs = (dict(zip(r.seeds, r.values, strict=True)) for r in (row, base))
    seeds = tuple(sorted(set(ours) & set(theirs)))
    differences = tuple(row.metric.difference(ours[s], theirs[s]) for s in seeds)
    n, mean = len(seeds), exact_mean(differences)
    std = statistics.stdev(differences) if n > 1 else None
    p_flip = sign_flip(differences) if 1 < n <= MOST_FLIPS else None
    p_t = paired_t(differences) if n > 1 else None
    p_wilcoxon = wilcoxon(differences) if n > 1 else None
    why = []
    if n == 1:
        why.append("one seed in common: no test")
    elif p_t is None:
        why.append("all differences are equal: no t test")
    if n > MOST_FLIPS:
        why.append(f"more than {MOST_FLIPS} seeds: no sign-flip test")
    tests: dict[str, tuple[float | None, float | None]] = {
        "sign-flip": (p_flip, 2.0 ** (1 - n)),
        "t": (p_t, 0.0),
        "wilcoxon": (p_wilcoxon, 2.0 ** (1 - n)),
    }
    test = next((name for name, (p, _) in tests.items() if p is not None), "")
    p, least = tests.get(test, (None, None))
    merits = [row.metric.merit(d) for d in differences]
    bounded = not_worse(merits, margin, confidence) if margin is not None and n > 1 else None
    if bounded:
        bounded = replace(bounded, worst=row.metric.merit(bounded.worst))
    return Comparison(
        data=row.data,
        network=row.network,
        method=row.method,
        baseline=base.method,
        seeds=seeds,
        differences=differences,
        mean=mean,
        std=std,
        interval=t_interval(differences, confidence) if n > 1 else None,
        d_z=mean / std if std else None,
        p_flip=p_flip,
        p_t=p_t,
        p_wilcoxon=p_wilcoxon,
        why="; ".join(why),
        test=test,
        p=p,
        least_p=least,
        chances=chances(merits, margin or 0.0) if n > 1 else None,
        not_worse=bounded,
    )
