"""What came out, in words: never more than the statistics say."""

import math
from dataclasses import dataclass

from ..formatting import p_text, signed_interval
from ..metrics import Metric
from ..summary import Comparison, Interval, Row
from ..summary.judgements import bound
from ..summary.statistics import t_interval
from .gather import Group, Report


@dataclass(frozen=True)
class Headline:
    """The method with the best mean of one network on one data set.

    Attributes:
        group: the network and data.
        row: of that method.
        compared: with the baseline; None where it is the baseline, or there is none.
        madds: change of multiply-adds to before in percent, with its t interval (None where all runs agree).
    """

    group: Group
    row: Row
    compared: Comparison | None
    madds: tuple[float, Interval | None]


def headline(report: Report, group: Group) -> Headline:
    """What came out for one network on one data set; of equal means the one with fewer multiply-adds."""
    best = max((row.mean for row in group.rows), key=group.metric.merit)
    row = min((r for r in group.rows if group.metric.equal(r.mean, best)), key=lambda r: r.madds)
    return Headline(group, row, report.summary.comparison(row), madds_change(group, row.method))


def madds_change(group: Group, method: str) -> tuple[float, Interval | None]:
    """Change of multiply-adds to before over a method's runs, in percent, with its t interval."""
    trials = [run.trial for run in group.runs[method]]
    changes = [100 * (t.madds - t.madds_before) / t.madds_before for t in trials]
    mean = math.fsum(changes) / len(changes)
    return mean, t_interval(changes) if len(set(changes)) > 1 else None


def sentences(report: Report, group: Group) -> list[str]:
    """Three sentences at most: the best method; that with the fewest multiply-adds if it is another; and, with a
    margin, which methods are not worse by it."""
    first = headline(report, group)
    row, metric = first.row, group.metric
    seeds = f"n = {row.n}"
    if len(group.rows) == 1:
        return [f"{group.title}: {row.method} has {_mean(row)} test {metric.title} ({seeds})."]
    equal = [r.method for r in group.rows if r is not row and metric.equal(r.mean, row.mean)]
    tied = f", the same as {' and '.join(equal)}" if equal else ""
    found = [
        f"{group.title}: {row.method} has the {metric.best} mean test {metric.title}, {_mean(row)} "
        f"({seeds}){tied}{_against(first.compared, metric, report.summary.significance)}."
    ]
    least = min(group.rows, key=lambda r: (r.madds, -metric.merit(r.mean)))
    if least is not row and least.madds < row.madds:
        change = signed_interval(*madds_change(group, least.method), form=".1f")
        compared = report.summary.comparison(least)
        found.append(
            f"{group.title}: {least.method} needs the fewest multiply-adds, {change} % to before, at "
            f"{_mean(least)}{_against(compared, metric, report.summary.significance)}."
        )
    return found + _not_worse(report, group)


def _not_worse(report: Report, group: Group) -> list[str]:
    """Of which methods it is shown that they are not worse by the margin, and of which it is not."""
    summary = report.summary
    tests = [(c.method, c.not_worse) for row in group.rows if (c := summary.comparison(row)) and c.not_worse]
    if not tests:
        return []
    level, shown, others = summary.significance, [], []
    for method, test in tests:
        if test.p_holm is None or test.least_p_holm is None:
            others.append(f"{method} (not tested)")
        elif test.p_holm <= level:
            shown.append(f"{method} (p = {p_text(test.p_holm)})".replace("= <", "<"))
        else:
            why = "too few seeds" if test.least_p_holm > level else f"p = {p_text(test.p_holm)}"
            others.append(f"{method} ({why})")
    parts = [f"shown of {', '.join(shown)}"] if shown else []
    parts += [f"not shown of {', '.join(others)}"] if others else []
    claim = f"not worse than {summary.baseline} by {bound(summary)} or more"
    return [f"{group.title}: {claim}: {'; '.join(parts)}."]


def _mean(row: Row) -> str:
    return row.metric.spread(row.mean, row.std) + row.metric.unit


def _against(compared: Comparison | None, metric: Metric, level: float) -> str:
    if compared is None:
        return ""
    change = metric.change(compared.mean, compared.interval) + metric.points
    return f": {change} to {compared.baseline}, {verdict(compared, level)}"


def verdict(compared: Comparison, level: float) -> str:
    """What the test says, in words."""
    if compared.p_holm is None or compared.least_p_holm is None:
        return "not tested"
    if compared.p_holm <= level:
        return f"significant (p = {p_text(compared.p_holm)})".replace("= <", "<")
    if compared.least_p_holm > level:
        return "too few seeds to be significant"
    return f"not significant (p = {p_text(compared.p_holm)})"
