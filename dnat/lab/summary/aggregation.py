"""Methods over several networks and data sets at once: the interquartile mean, with a stratified bootstrap.

Agarwal et al. 2021 (Deep Reinforcement Learning at the Edge of the Statistical Precipice; their library is
rliable): the mean of the middle half of all runs depends less on one outlier than the mean, and on more
runs than the median. Runs are drawn anew within each network, so that its part of them stays as large.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...seeds import check_seed
from ..metrics import Metric
from .comparison import Comparison, Row
from .statistics import RESAMPLES, Interval, check_confidence
from .summaries import Summary


@dataclass(frozen=True)
class Aggregate:
    """A method over several networks and data sets that are judged by one metric.

    Attributes:
        metric: of all.
        method: as in `Row`.
        groups: (data, network) of those that count.
        of: how many there are in all.
        runs: in all groups together.
        value: the interquartile mean of the metric, as it is shown; `interval` is the bootstrap's, None where no
            group has two seeds.
        difference: that of the paired differences to the baseline, with its interval; None of the baseline.
    """

    metric: Metric
    method: str
    groups: tuple[tuple[str, str], ...]
    of: int
    runs: int
    value: float
    interval: Interval | None
    difference: float | None
    difference_interval: Interval | None


def aggregates(summary: Summary, seed: int = 0) -> tuple[Aggregate, ...]:
    """Methods that share two or more networks or data sets with the baseline, over all that they share.

    Args:
        summary: of runs.
        seed: of the bootstrap; each method draws from it anew.
    """
    found = []
    for metric in dict.fromkeys(row.metric for row in summary.rows):
        rows = [row for row in summary.rows if row.metric == metric]
        based = {(row.data, row.network) for row in rows if row.method == summary.baseline}
        if len(based) < 2:
            continue
        for method in dict.fromkeys(row.method for row in rows):
            mine = [row for row in rows if row.method == method and (row.data, row.network) in based]
            compared = [summary.comparison(row) for row in mine]
            if len(mine) > 1:
                found.append(_aggregate(mine, [c for c in compared if c], len(based), summary.confidence, seed))
    return tuple(found)


def _aggregate(
    rows: Sequence[Row], compared: Sequence[Comparison], of: int, confidence: float, seed: int
) -> Aggregate:
    values, differences = [row.values for row in rows], [c.differences for c in compared]
    return Aggregate(
        metric=rows[0].metric,
        method=rows[0].method,
        groups=tuple((row.data, row.network) for row in rows),
        of=of,
        runs=sum(row.n for row in rows),
        value=interquartile_mean([v for stratum in values for v in stratum]),
        interval=stratified_interval(values, confidence, seed),
        difference=interquartile_mean([d for stratum in differences for d in stratum]) if differences else None,
        difference_interval=stratified_interval(differences, confidence, seed) if differences else None,
    )


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean without the lowest and the highest quarter, each rounded down to whole values.

    >>> interquartile_mean([0, 1, 2, 3, 100]), interquartile_mean([1, 2, 6])
    (2.0, 3.0)
    """
    return float(_middle(np.sort(np.asarray(values, dtype=float))))


def _middle(ordered: np.ndarray) -> np.ndarray:
    """The mean of the middle half of ordered values, along the last axis."""
    cut = ordered.shape[-1] // 4
    return np.asarray(ordered[..., cut : ordered.shape[-1] - cut].mean(-1))


def stratified_interval(
    strata: Sequence[Sequence[float]], confidence: float = 0.95, seed: int = 0, resamples: int = RESAMPLES
) -> Interval | None:
    """The percentile bootstrap's interval for the interquartile mean of all values, drawn within each stratum.

    Args:
        strata: the values of each network, for example.
        confidence: between 0 and 1.
        seed: of the draws.
        resamples: number of draws.

    Returns:
        The interval; None where no stratum has two values.
    """
    if max(map(len, strata), default=0) < 2:
        return None
    tail = (1 - check_confidence(confidence)) / 2
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(check_seed(seed))))
    drawn = [
        np.sort(np.asarray(stratum, dtype=float))[generator.integers(0, len(stratum), (resamples, len(stratum)))]
        for stratum in strata
    ]
    low, high = np.quantile(_middle(np.sort(np.concatenate(drawn, axis=1), axis=1)), [tail, 1 - tail])
    return float(low), float(high)
