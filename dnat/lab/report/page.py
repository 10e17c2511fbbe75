"""Report -> one page of HTML that holds everything it shows: no network is needed, and none is allowed.

Everything that comes from a run is text to Jinja2, which escapes it; figures are JSON in which "<" cannot occur.
Pictures of networks are images by data: URL, in which no script runs, whatever stands in the file.
"""

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import __version__
from ...edges import is_share
from ...naming import unknown
from ..formatting import count, digits, duration, plain, signed_interval
from ..metrics import ACCURACY, capital, common
from ..summary.judgements import judgements
from ..summary.tables import headers, legend
from .configuration import environments, recipes, settings
from .figures import Figure, cost_figure, curve_figure, strip_figure, tradeoff_figure
from .gather import Report, Run
from .headline import Headline, headline, sentences, verdict
from .looks import DARK, LIGHT, Look
from .series import SEED_CURVES, Gates, agreement, choices, gates
from .table import LAYOUTS, long_lines, papers_legend, papers_tables

MOST_PICTURES = 24
PICTURE_BYTES = 1_500_000
"""Larger pictures are named and left in their directory."""
MOST_GATES = 12
"""Runs whose gates are shown."""
MOST_EDGES = 48
"""Edges of a run whose gates are shown, and rows of a table of choices."""
MOST_RECIPES = 12
MOST_TILES = 12
MOST_RUNS = 1000
"""Rows of the table of runs."""
_GATE_POINTS = 60

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tile:
    """A number that should be seen first: what it is, the number, and what has to be known of it."""

    name: str
    value: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of the table of runs: what it shows, and what it is sorted by and downloaded as."""

    text: str
    value: str | float


@dataclass(frozen=True)
class Picture:
    """A picture of a run: its title and its data: URL."""

    title: str
    url: str


@dataclass(frozen=True)
class Panel:
    """The gates of one group of edges as lines in a box of 220 x 110.

    Attributes:
        gates: what is drawn.
        lines: (choice, points of the line) of each choice.
        levels: (y, text) of the levels that are marked.
    """

    gates: Gates
    lines: tuple[tuple[str, str], ...]
    levels: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Gating:
    """The panels of one run; `left_out` edges have none."""

    title: str
    panels: tuple[Panel, ...]
    left_out: int


def page(report: Report, *, with_published: bool = False, layout: str = "both") -> str:
    """The report as one HTML page of about 1.3 MB, most of it plotly.

    Args:
        report: from `gather`.
        with_published: put the papers' own numbers below ours, for networks that they have.
        layout: which tables: "both", "papers" or "long".

    Raises:
        ValueError: an unknown layout.
    """
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    jinja = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    jinja.filters |= {"choice_class": choice_class, "agreement": agreement}
    text = jinja.get_template("page.html.j2").render(
        _told(report, with_published, layout)
        | {
            # Our own files and plotly's (its basic bundle, with `plotly.txt`): nothing of a run stands in them.
            "plotly": Markup((_HERE / "plotly.js").read_text(encoding="utf-8")),  # noqa: S704
            "script": Markup((_HERE / "page.js").read_text(encoding="utf-8")),  # noqa: S704
            "style": Markup((_HERE / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        }
    )
    return plain(text)


def _told(report: Report, with_published: bool, layout: str) -> dict[str, Any]:
    """What the template shows."""
    look = Look(report.methods)
    groups = report.groups
    pictures, no_pictures = _pictures(report)
    gating, no_gating = _gating(report)
    given, no_recipes = recipes(report, MOST_RECIPES)
    sections = _sections(report, look)
    made = [(group, c) for group in groups for c in choices(group)]
    papers = papers_tables(report, with_published=with_published) if layout != "long" else []
    return {
        "title": _title(report),
        "subtitle": _subtitle(report),
        "version": __version__,
        "palettes": {"light": LIGHT, "dark": DARK},
        "sentences": [s for group in groups for s in sentences(report, group)],
        "tiles": _tiles(report),
        "papers": papers,
        "papers_legend": papers_legend(papers, with_published),
        "long": [
            (data, headers(metric), long_lines(report, data))
            for data, metric in {g.data: g.metric for g in groups}.items()
        ]
        if layout != "papers"
        else [],
        "judgements": judgements(report.summary) if layout != "papers" else [],
        "legend": legend(report.summary),
        "notes": (*report.summary.notes, *report.notes),
        "sections": sections,
        "figures": [dict(f.views) for s in sections for f in s["figures"]],
        "many": len(groups) > 1,
        "gating": gating,
        "no_gating": no_gating,
        "gate_classes": {choice_class(c) for g in gating for p in g.panels for c, _ in p.lines},
        "pictures": pictures,
        "no_pictures": no_pictures,
        "choices": [(group, (c, dict(list(c.rows.items())[:MOST_EDGES]))) for group, c in made],
        "narrowing": any(is_share(choice) for _, c in made for row in c.rows.values() for choice in row),
        "settings": settings(report),
        "environments": environments(report),
        "recipes": given,
        "no_recipes": no_recipes,
        "run_columns": _RUN_COLUMNS,
        "run_rows": [_run_row(run) for run in report.runs[:MOST_RUNS]],
        "unfinished": report.unfinished,
        "runs": len(report.runs),
    }


_RUN_COLUMNS = (
    "run",
    "network",
    "data",
    "method",
    "seed",
    "result",
    "MAdds",
    "params",
    "time, ms",
    "duration",
    "directory",
)


def _run_row(run: Run) -> list[Cell]:
    """A run in the table of runs; its cells are those of `_RUN_COLUMNS`."""
    trial = run.trial
    metric, seconds = trial.metric, trial.search_seconds + trial.training_seconds
    time = None if trial.latency_after is None else 1e3 * trial.latency_after
    texts = (run.name, trial.network, trial.data, trial.method)
    return [
        *(Cell(text, text) for text in texts),
        Cell(str(trial.seed), trial.seed),
        Cell(f"{trial.value:{metric.form}}{metric.unit}{', dead' * (trial.dead is True)}", trial.value),
        Cell(count(trial.madds), trial.madds),
        Cell(count(trial.params), trial.params),
        Cell("-" if time is None else digits(time), "" if time is None else time),
        Cell(duration(seconds / 3600), round(seconds, 3)),
        Cell(str(run.directory), str(run.directory)),
    ]


def _title(report: Report) -> str:
    if report.sweeps:
        return ", ".join(sweep.name for sweep in report.sweeps)
    titles = [group.title for group in report.groups]
    return titles[0] if len(titles) == 1 else f"{len(report.runs)} runs"


def _subtitle(report: Report) -> str:
    runs = len(report.runs)
    said = f"{runs} finished run{'s' * (runs > 1)}"
    if report.unfinished:
        said += f", {len(report.unfinished)} not finished"
    finished = [str(record["finished"]) for record in report.records if record.get("finished")]
    return f"{said}; the last one ended {max(finished)}" if finished else said


def _tiles(report: Report) -> list[Tile]:
    found = [_tile(headline(report, group), report.summary.significance) for group in report.groups[:MOST_TILES]]
    hours = sum(row.total_hours for row in report.summary.rows)
    search = sum(row.search_hours * row.n for row in report.summary.rows)
    dead = sum(row.dead for row in report.summary.rows)
    not_known = sum(row.unknown for row in report.summary.rows)
    noun = "image" if report.metrics == (ACCURACY,) else "example"
    notes = (f"{not_known} older runs do not say",) if not_known else (f"give every {noun} the same answer",)
    found.append(Tile("dead networks", f"{dead} of {len(report.runs)}", notes))
    searching = (f"{duration(search)} of it searching",) if search else ()
    found.append(Tile("time of all runs", duration(hours), searching))
    if report.unfinished:
        states = [u.state for u in report.unfinished]
        counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        found.append(Tile("not finished", str(len(states)), (counts,)))
    return found


def _tile(found: Headline, level: float) -> Tile:
    row, metric = found.row, found.group.metric
    notes = [f"{row.method}, n = {row.n}"]
    equal = [r.method for r in found.group.rows if r is not row and metric.equal(r.mean, row.mean)]
    if equal:
        notes.append(f"the same as {' and '.join(equal)}, with fewer multiply-adds")
    if found.compared is not None:
        change = metric.change(found.compared.mean, found.compared.interval) + metric.points
        notes.append(f"{change} to {found.compared.baseline}; {verdict(found.compared, level)}")
    notes.append(f"multiply-adds {signed_interval(*found.madds, form='.1f')} %")
    value = metric.spread(row.mean, row.std) + metric.unit
    return Tile(f"{metric.best} mean {metric.title}, {found.group.title}", value, tuple(notes))


def _sections(report: Report, look: Look) -> list[dict[str, Any]]:
    """The figures by kind, each with its number on the page."""
    title_of = capital(common(report.metrics, "results"))
    noun = "images" if report.metrics == (ACCURACY,) else "examples"
    begins = {m.direction: "begins" if m.direction == "max" else "ends" for m in report.metrics}
    crowded = any(len(runs) > SEED_CURVES for group in report.groups for runs in group.runs.values())
    kinds: list[tuple[str, str, str, Iterable[Figure | None]]] = [
        (
            "curves",
            f"{title_of} while training",
            "Thin lines: single seeds. Thick line: their mean. Dashed: the end of the architecture stage, after "
            f"which the choices are in force. Of long trainings the axis {' or '.join(begins.values())} where the "
            "curves are after a tenth of the epochs."
            + f" Of a method with more than {SEED_CURVES} seeds as many are drawn; the mean is that of all."
            * crowded,
            (curve_figure(group, look) for group in report.groups),
        ),
        (
            "seeds",
            f"{title_of} of each seed",
            "Each point is a run; a line connects the runs of one seed, which began with the same weights and saw "
            f"the same {noun}. Bars: mean and 95 % t interval. A cross is a dead network.",
            (strip_figure(group, look) for group in report.groups),
        ),
        (
            "cost",
            f"{title_of} against cost",
            "Small: single runs. Large: means. The dotted line joins the means that no other one beats in both."
            + _of_time(report),
            (tradeoff_figure(group, look) for group in report.groups),
        ),
        (
            "time",
            "Time",
            "The paler part is search: what a method does before it trains; dnat chooses while it trains. Thin "
            "lines: the deviation over seeds.",
            (cost_figure(group, look) for group in report.groups),
        ),
    ]
    found, number = [], 0
    for key, title, text, made in kinds:
        figures = [f for f in made if f is not None]
        views = list(dict.fromkeys(name for f in figures for name in f.views if name))
        if figures:
            found.append(
                {"key": key, "title": title, "text": text, "figures": figures, "views": views, "from": number}
            )
        number += len(figures)
    return found


def _of_time(report: Report) -> str:
    """How time was measured, where it was."""
    known = [run.trial for run in report.runs if run.trial.latency_after is not None]
    if not known:
        return ""
    when = "when no other trial ran" if all(t.latency_alone for t in known) else "at the end of each run"
    return f" Time: the median for one batch in eval mode, measured {when}, with its quartiles' distance as a bar."


def _first_runs(report: Report) -> list[tuple[str, Run]]:
    """The first seed of each method that makes choices, or of the only one; with a title."""
    found = []
    for group in report.groups:
        for method, runs in group.runs.items():
            if len(group.runs) == 1 or any(run.architecture.get("commitment") for run in runs):
                found.append((f"{group.title}: {method}, seed {runs[0].trial.seed}", runs[0]))
    return found


def _pictures(report: Report) -> tuple[list[Picture], list[str]]:
    """Pictures of the networks, and what is said of those that are left out."""
    found: list[Picture] = []
    large, beyond = [], 0
    for title, run in _first_runs(report):
        for file, what in (("architecture.svg", "network"), ("cells.svg", "cells")):
            path = run.directory / file
            if not path.is_file():
                continue
            if len(found) == MOST_PICTURES:
                beyond += 1
            elif path.stat().st_size > PICTURE_BYTES:
                large.append(f"{run.name}/{file}")
            else:
                content = base64.b64encode(path.read_bytes()).decode()
                found.append(Picture(f"{title}, {what}", f"data:image/svg+xml;base64,{content}"))
    said = []
    if found and len(report.runs) > len({run.name for _, run in _first_runs(report)}):
        said.append("One seed of each method is shown; the others' pictures lie in their run directories.")
    if beyond:
        said.append(f"{beyond} more pictures are left out.")
    if large:
        said.append(f"Too large to be shown here: {', '.join(large)}.")
    return found, said


def _gating(report: Report) -> tuple[list[Gating], list[str]]:
    found: list[Gating] = []
    beyond = 0
    for title, run in _first_runs(report):
        made = gates(run)
        if made and len(found) < MOST_GATES:
            panels = tuple(_panel(g) for g in made[:MOST_EDGES])
            found.append(Gating(title, panels, max(len(made) - MOST_EDGES, 0)))
        elif made:
            beyond += 1
    return found, [f"The gates of {beyond} more methods are left out."] if beyond else []


def _panel(made: Gates) -> Panel:
    """Lines in a box of 220 x 110, whose plot is from (26, 8) to (214, 88)."""
    values = [v for line in made.gates.values() for v in line]
    low, high = min(0.0, *values), max(1.0, *values)
    last = max(made.epochs[-1], 1.0)
    step = max(len(made.epochs) // _GATE_POINTS, 1)
    kept = sorted({*range(0, len(made.epochs), step), len(made.epochs) - 1})

    def place(epoch: float, value: float) -> str:
        x = 26 + 188 * epoch / last
        return f"{x:.1f},{_height(value, low, high):.1f}"

    lines = tuple(
        (choice, " ".join(place(made.epochs[i], line[i]) for i in kept)) for choice, line in made.gates.items()
    )
    return Panel(made, lines, tuple((_height(level, low, high), f"{level:g}") for level in (0.0, 1.0)))


def _height(value: float, low: float, high: float) -> float:
    return 88 - 80 * (value - low) / (high - low)


def choice_class(choice: str | None) -> str:
    """The class of a choice in the style sheet."""
    if choice is None:
        return "absent"
    if choice in ("original", "identity", "none"):
        return choice
    return "narrowed" if is_share(choice) else "other"
