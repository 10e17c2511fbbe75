"""What several runs came to, as tables of a terminal."""

from collections.abc import Iterator

from ..report import Report
from ..report.headline import sentences
from ..summary import Row, Summary
from ..summary.judgements import Judgements, judgements
from ..summary.tables import cells, headers, legend
from .grid import Grid

_SHOWN = 5
"""Columns of the long table that are shown here: method, n, metric, difference and p."""


def report_parts(report: Report) -> Iterator[str | Grid]:
    """A report for a terminal: what came out in words, the tables, what has to be known, what is not finished."""
    yield "\n".join(s for group in report.groups for s in sentences(report, group))
    yield from summary_tables(report.summary)
    for table in judgements(report.summary):
        numbers = frozenset(table.columns[table.texts :])
        yield Grid(table.title, *_keyed(table), numbers, caption=table.legend)
    for note in (*report.summary.notes, *report.notes):
        yield f"note: {note}"
    if report.unfinished:
        rows = tuple((run.name, run.state, run.reason) for run in report.unfinished)
        yield Grid("not finished", ("run", "state", "reason"), rows, prose=frozenset(("reason",)))


def _keyed(table: Judgements) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Columns and rows with one name in front, which a list can begin with."""
    if table.texts == 1:
        return table.columns, table.rows
    network, rows = "", []
    for first, second, *others in table.rows:
        network = first or network
        rows.append((f"{network}, {second}", *others))
    return (f"{table.columns[0]}, {table.columns[1]}", *table.columns[2:]), tuple(rows)


def summary_tables(summary: Summary) -> Iterator[Grid]:
    """A table for each network on each data set; the last has the legend. Files and the page have more columns."""
    groups = list(dict.fromkeys((row.data, row.network) for row in summary.rows))
    for group in groups:
        rows = [row for row in summary.rows if (row.data, row.network) == group]
        dead = ["dead"] if any(row.dead for row in rows) else []
        columns = (*headers(rows[0].metric)[1 : _SHOWN + 1], "MAdds", *dead)
        yield Grid(
            f"{group[1]} on {group[0]}",
            columns,
            tuple(_cells(row, summary, bool(dead)) for row in rows),
            frozenset(columns[1:]),
            caption=legend(summary, costs=False) if group == groups[-1] else "",
        )


def _cells(row: Row, summary: Summary, with_dead: bool) -> tuple[str, ...]:
    shown = cells(row, summary.comparison(row), summary.significance)
    return (*shown[:_SHOWN], f"{row.madds_change:+z.1f} %", *([shown[-1]] if with_dead else []))
