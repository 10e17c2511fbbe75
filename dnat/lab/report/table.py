"""The tables of a report as cells, and as Markdown: networks as rows and methods as column groups, as papers print
them; and the long one of `dnat.lab.summary`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ...naming import unknown
from ..formatting import digits, escaped, markdown_list, markdown_rows, plain
from ..metrics import ACCURACY, Metric, meaning
from ..summary import Row
from ..summary import markdown as long_table
from ..summary.judgements import judgements
from ..summary.tables import cells
from .gather import Group, Report, Unfinished
from .headline import sentences
from .published import Published, published

LAYOUTS = ("both", "papers", "long")
"""Which tables a report has."""


@dataclass(frozen=True)
class Line:
    """A row of the papers' table.

    Attributes:
        network: by name.
        source: number of the paper that the row quotes; None of our own runs.
        cells: metric and hours of each method, as text; "-" where there is none.
        best: places of the methods with the best mean; empty of fewer than two methods.
    """

    network: str
    source: int | None
    cells: tuple[tuple[str, str], ...]
    best: tuple[int, ...]


@dataclass(frozen=True)
class PapersTable:
    """One data set's table.

    Attributes:
        data: by name.
        metric: what its runs are judged by.
        methods: of the column groups.
        lines: our row of each network, then those of the papers.
        sources: of the papers' rows; the first has number 1.
    """

    data: str
    metric: Metric
    methods: tuple[str, ...]
    lines: tuple[Line, ...]
    sources: tuple[str, ...]


def papers_tables(report: Report, *, with_published: bool = False) -> list[PapersTable]:
    """A table for each data set, as the DNAT paper's: mean with its deviation, and hours, of each method."""
    found = []
    for data in dict.fromkeys(group.data for group in report.groups):
        groups = [group for group in report.groups if group.data == data]
        metric = groups[0].metric
        quote = with_published and metric == ACCURACY
        quoted = {g.network: published(data, g.network) if quote else () for g in groups}
        ours = {row.method for group in groups for row in group.rows}
        methods = [m for m in report.methods if m in ours]
        methods += dict.fromkeys(p.method for rows in quoted.values() for p in rows if p.method not in methods)
        sources = list(dict.fromkeys(p.source for rows in quoted.values() for p in rows))
        lines = []
        for group in groups:
            lines.append(_ours(group, methods))
            for source in dict.fromkeys(p.source for p in quoted[group.network]):
                mine = [p for p in quoted[group.network] if p.source == source]
                lines.append(_theirs(group.network, mine, methods, sources.index(source) + 1))
        found.append(PapersTable(data, metric, tuple(methods), tuple(lines), tuple(sources)))
    return found


def _ours(group: Group, methods: Sequence[str]) -> Line:
    rows = {row.method: row for row in group.rows}

    def texts(row: Row) -> tuple[str, str]:
        search = f"{digits(row.search_hours)} + " if row.search_hours else ""
        return row.metric.spread(row.mean, row.std), search + digits(row.training_hours)

    shown = tuple(texts(rows[m]) if m in rows else ("-", "-") for m in methods)
    best = _best([rows[m].mean if m in rows else None for m in methods], group.metric)
    return Line(group.network, None, shown, best)


def _theirs(network: str, quoted: Sequence[Published], methods: Sequence[str], number: int) -> Line:
    known = {p.method: p for p in quoted}

    def texts(p: Published) -> tuple[str, str]:
        return ACCURACY.spread(p.accuracy, p.std), "-" if p.hours is None else digits(p.hours)

    shown = tuple(texts(known[m]) if m in known else ("-", "-") for m in methods)
    best = _best([known[m].accuracy if m in known else None for m in methods], ACCURACY)
    return Line(network, number, shown, best)


def _best(means: Sequence[float | None], metric: Metric) -> tuple[int, ...]:
    known = [m for m in means if m is not None]
    if len(known) < 2:
        return ()
    best = max(known, key=metric.merit)
    return tuple(i for i, m in enumerate(means) if m is not None and metric.equal(m, best))


PUBLISHED_LEGEND = (
    "Rows with a number in brackets are quoted from papers, whose networks, recipes and machines may differ from "
    "ours; they take no part in the statistics. Their hours are GPU-hours, search and training together."
)
NOT_PUBLISHED = "The papers have no numbers for these networks on these data."


def papers_legend(tables: Iterable[PapersTable], with_published: bool) -> str:
    """How to read the papers' tables."""
    tables = list(tables)
    metrics = list(dict.fromkeys(table.metric for table in tables))
    percent = " in percent" if all(m.is_share for m in metrics) else ""
    best = {m.best for m in metrics}
    text = (
        f"{meaning(metrics)}{percent}, mean ± sample standard deviation over seeds (none of a single run); the "
        f"{best.pop() if len(best) == 1 else 'best'} mean of a row in bold. Hours: of one run; where a method "
        "searches first, search + training."
    )
    if not with_published:
        return text
    return f"{text} {PUBLISHED_LEGEND if any(table.sources for table in tables) else NOT_PUBLISHED}"


def papers_markdown(table: PapersTable) -> str:
    """A papers' table in Markdown, with its sources; two columns for each method."""
    unit = "%" if table.metric.is_share else table.metric.title
    head = ["network", *(name for m in table.methods for name in (f"{m}, {unit}", "hours"))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for line in table.lines:
        row = [line.network if line.source is None else f"published [{line.source}]"]
        for place, (mean, hours) in enumerate(line.cells):
            row += [f"**{mean}**" if place in line.best else mean, hours]
        lines.append(row)
    text = f"## {escaped(table.data)}\n\n{markdown_rows(lines)}"
    if table.sources:
        text += "\n\n" + "\n".join(f"- [{i}] {source}" for i, source in enumerate(table.sources, 1))
    return text


def markdown(report: Report, *, with_published: bool = False, layout: str = "both") -> str:
    """The report as Markdown: what came out in words, tables, notes, and runs that are not finished.

    Args:
        report: from `gather`.
        with_published: put the papers' own numbers below ours, for networks that they have.
        layout: "papers": networks as rows and methods as column groups; "long": a row for each method, with
            intervals, tests and costs; "both".

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    parts = ["# Report", markdown_list(s for g in report.groups for s in sentences(report, g))]
    if layout != "long":
        tables = papers_tables(report, with_published=with_published)
        parts += [papers_markdown(table) for table in tables]
        parts.append(papers_legend(tables, with_published))
    if layout != "papers":
        parts.append("# Statistics")
        parts.append(long_table(report.summary).rstrip())
        parts += [table.markdown() for table in judgements(report.summary)]
    if report.notes:
        parts.append(markdown_list(report.notes))
    if report.unfinished:
        parts += ["# Not finished", _unfinished(report.unfinished)]
    return plain("\n\n".join(parts) + "\n")


def _unfinished(runs: Sequence[Unfinished]) -> str:
    lines = [("run", "state", "reason"), ("---", "---", "---")]
    lines += [(u.name, u.state, u.reason or "-") for u in runs]
    return markdown_rows(lines)


@dataclass(frozen=True)
class LongLine:
    """A row of the long table: its network, its cells from the method on, and whether its difference counts."""

    network: str
    cells: tuple[str, ...]
    significant: bool


def long_lines(report: Report, data: str) -> list[LongLine]:
    """The rows of the long table of one data set; `headers` names the columns."""
    level, found = report.summary.significance, []
    for row in (r for r in report.summary.rows if r.data == data):
        c = report.summary.comparison(row)
        significant = c is not None and c.p_holm is not None and c.p_holm <= level
        found.append(LongLine(row.network, cells(row, c, level), significant))
    return found
