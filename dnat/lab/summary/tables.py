"""The long table of a summary: a row for each method, with intervals, tests and costs."""

import math

from ..formatting import count, digits, escaped, markdown_list, markdown_rows, p_text
from ..metrics import Metric, meaning
from .comparison import Comparison, NotWorse, Row
from .statistics import MOST_FLIPS
from .summaries import Summary


def headers(metric: Metric) -> tuple[str, ...]:
    """The columns of a table of runs that are judged by a metric: the network, and what `cells` gives."""
    first = ("network", "method", "n", metric.column, "difference", "p (Holm)")
    return *first, "params", "MAdds", "latency, ms", "hours", "dead"


def markdown(summary: Summary) -> str:
    """A table for each data set in Markdown, with a legend and the notes.

    As in the tables of the DNAT paper each network has for each method mean, deviation and hours; the methods
    stand below one another, since there are more of them, with more columns. One trial has no deviation. `*` marks
    what is significant, `?` what cannot be with so few seeds.
    """
    parts = []
    for data in dict.fromkeys(row.data for row in summary.rows):
        rows = [row for row in summary.rows if row.data == data]
        head = headers(rows[0].metric)
        lines = [head, ("---", "---", *["---:"] * (len(head) - 2))]
        last = None
        for row in rows:
            name, last = row.network if row.network != last else "", row.network
            lines.append((name, *cells(row, summary.comparison(row), summary.significance)))
        hours = math.fsum(row.total_hours for row in rows)
        runs = sum(row.n for row in rows)
        devices = ", ".join(sorted({device for row in rows for device in row.devices}))
        spent = f"{runs} run{'s' * (runs > 1)}, {digits(hours)} hours in all{f' ({devices})' * bool(devices)}."
        parts.append(f"## {escaped(data)}\n\n{markdown_rows(lines)}\n\n{escaped(spent)}")
    parts.append(escaped(legend(summary)).replace("*", r"\*"))
    if summary.notes:
        parts.append(markdown_list(summary.notes))
    return "\n\n".join(parts) + "\n"


def cells(row: Row, compared: Comparison | None, level: float) -> tuple[str, ...]:
    """A row of the table as text, from the method on; `headers` names the columns.

    Args:
        row: of one method.
        compared: its comparison with the baseline; None of the baseline.
        level: the largest corrected p that is called significant.
    """
    dead = str(row.dead) + (f" ({row.unknown} unknown)" if row.unknown else "")
    return (
        row.method,
        str(row.n),
        row.metric.spread(row.mean, row.std),
        _difference(compared, row),
        p_cell(compared, level),
        _counted(row.params, row.params_change),
        _counted(row.madds, row.madds_change),
        _time(row),
        (f"{digits(row.search_hours)} + " if row.search_hours else "") + digits(row.training_hours),
        "-" if row.unknown == row.n else dead,
    )


def _counted(number: float, change: float) -> str:
    return f"{count(number)} ({change:+z.1f} %)" if change else count(number)


def _time(row: Row) -> str:
    """Milliseconds, with half of the quartiles' distance."""
    if row.latency_after is None:
        return "-"
    half = "" if row.latency_spread is None else f" ± {digits(500 * row.latency_spread, 2)}"
    return digits(1e3 * row.latency_after) + half


def _difference(compared: Comparison | None, row: Row) -> str:
    if compared is None:
        return "-"
    text = row.metric.change(compared.mean, compared.interval)
    return text if compared.n == row.n else f"{text} (n = {compared.n})"


def p_cell(test: Comparison | NotWorse | None, level: float) -> str:
    """The corrected p of a test: marked `*` where it counts, and `?` where it could not with so few seeds."""
    if test is None or test.p_holm is None or test.least_p_holm is None:
        return "-"
    mark = " *" if test.p_holm <= level else " ?" if test.least_p_holm > level else ""
    return p_text(test.p_holm) + mark


def legend(summary: Summary, *, costs: bool = True) -> str:
    """How to read the table, as plain text; with or without its columns of costs."""
    metrics = list(dict.fromkeys(row.metric for row in summary.rows))
    points = "in points, " if any(m.is_share for m in metrics) else ""
    text = (
        f"{meaning(metrics)}, mean ± sample standard deviation over n seeds. Difference: to "
        f"{summary.baseline}, {points}paired by seed, with its {100 * summary.confidence:g} % t interval, each "
        "for itself. p: of the exact sign-flip test of the mean difference (of the paired t test with more than "
        f"{MOST_FLIPS} seeds), "
        f"two-sided, Holm-corrected over the methods of a network; *: at most {summary.significance:g}; ?: cannot "
        "be, with so few seeds, whatever the method does. "
    )
    if not costs:
        return f"{text}MAdds: multiply-adds of the result, as a change to before."
    return (
        f"{text}Params, MAdds: of the result, with the change to before. Latency: the median of one batch, ± half "
        "of the distance of its quartiles, mean over the runs. Hours: of one run; where a method searches first, "
        "search + training."
    )
