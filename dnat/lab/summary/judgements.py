"""Tables beside the long one: what is to be believed of each method, and of all networks at once."""

from dataclasses import dataclass

from ..formatting import escaped, markdown_rows, signed_interval
from ..metrics import Metric
from .aggregation import Aggregate, aggregates
from .comparison import Comparison
from .statistics import MOST_FLIPS
from .summaries import Summary
from .tables import p_cell


@dataclass(frozen=True)
class Judgements:
    """A table: its title, the names of its columns, rows of cells, and how to read it.

    The columns in `texts` are names; the others are numbers.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: str
    texts: int = 1

    def markdown(self) -> str:
        """The table in Markdown."""
        rule = ["---"] * self.texts + ["---:"] * (len(self.columns) - self.texts)
        legend = escaped(self.legend).replace("*", r"\*")
        return f"## {escaped(self.title)}\n\n{markdown_rows([self.columns, rule, *self.rows])}\n\n{legend}"


def judgements(summary: Summary) -> list[Judgements]:
    """What is to be believed of each method beside the baseline, and of methods over several networks at once."""
    return [*_judged(summary), *_aggregated(summary)]


def _judged(summary: Summary) -> list[Judgements]:
    """Of each method; nothing where nothing is compared over seeds."""
    compared = [c for c in summary.comparisons if c.chances]
    if not compared:
        return []
    metrics = {(row.data, row.network): row.metric for row in summary.rows}
    several = len({c.data for c in compared}) > 1
    alone = len({(c.data, c.network) for c in compared}) == 1
    columns = [*([] if alone else ["network"]), "method", "n", "difference", "better", "equal", "worse"]
    columns += ["at worst", "p, not worse"] if summary.margin is not None else []
    rows, last = [], None
    for c in compared:
        name = f"{c.network} on {c.data}" if several else c.network
        rows.append(
            (*([] if alone else [name if name != last else ""]), *_cells(c, metrics[c.data, c.network], summary))
        )
        last = name
    title = f"Better, equal or worse than {summary.baseline}"
    return [Judgements(title, tuple(columns), tuple(rows), _legend(summary), texts=1 if alone else 2)]


def _cells(c: Comparison, metric: Metric, summary: Summary) -> list[str]:
    assert c.chances is not None
    cells = [c.method, str(c.n), metric.change(c.mean, None), *(f"{p:.1%}".replace("%", " %") for p in c.chances)]
    if c.not_worse is None:
        return cells
    return [*cells, metric.change(c.not_worse.worst, None), p_cell(c.not_worse, summary.significance)]


def _legend(summary: Summary) -> str:
    within = "exactly 0, which is possible only where all differences are equal"
    if summary.margin is not None:
        within = f"within ±{bound(summary)}"
    text = (
        "Better, equal, worse: probabilities, given these seeds, of the true mean difference; equal is "
        f"{within}. They are of Student's t around the mean difference (prior 1/sigma, normal differences, "
        "independent seeds; Benavoli et al. 2017)."
    )
    if summary.margin is None:
        return text
    return (
        f"{text} At worst: the end of the one-sided {100 * summary.confidence:g} % t interval. p, not worse: of "
        f"the exact one-sided sign-flip test that the method is worse by {bound(summary)} or more (of the paired "
        f"t test with more than {MOST_FLIPS} seeds), Holm-corrected over the methods of a network; *: at most "
        f"{summary.significance:g}: it is not worse by that; ?: cannot be, with so few seeds."
    )


def bound(summary: Summary) -> str:
    """The margin in words."""
    units = {row.metric.points for row in summary.rows}
    unit = units.pop() if len(units) == 1 else " (points of shares)"
    return f"{summary.margin:g}{unit.removesuffix('s') if summary.margin == 1 else unit}"


def _aggregated(summary: Summary) -> list[Judgements]:
    """Methods over the networks and data sets that they share with the baseline; nothing of fewer than two."""
    found = aggregates(summary)
    legend = (
        "Networks: how many networks and data sets of those that the baseline has. All numbers are "
        f"interquartile means over their runs, with the {100 * summary.confidence:g} % interval of the bootstrap "
        f"that draws seeds within each (Agarwal et al. 2021). Difference: to {summary.baseline}, paired by seed."
    )
    tables = []
    for metric in dict.fromkeys(a.metric for a in found):
        rows = tuple(tuple(_row(a)) for a in found if a.metric == metric)
        columns = ("method", "networks", "runs", metric.column, "difference")
        tables.append(Judgements("Over all networks", columns, rows, legend))
    return tables


def _row(a: Aggregate) -> list[str]:
    value = format(a.value, a.metric.form)
    if a.interval:
        value += f" [{', '.join(format(end, a.metric.form) for end in a.interval)}]"
    change = "-" if a.difference is None else signed_interval(a.difference, a.difference_interval, a.metric.form)
    of = f" of {a.of}" * (len(a.groups) < a.of)
    return [a.method, f"{len(a.groups)}{of}", str(a.runs), value, change]
