"""Tables: a finished run and what changed in it, predictions, the edges of a network, networks and data sets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from ...data import DataSet
from ...edges import IDENTITY, NONE, Edge, Tally, narrowed
from ...networks import Definition, NetworkSize
from ..formatting import change
from ..metrics import metrics_of, watched
from ..prediction import Prediction
from ..runs import Survey
from .console import printable


def result_table(record: dict[str, Any]) -> Table:
    """Metrics, parameters, multiply-adds and time of a finished run; the first metric also of earlier moments."""
    results, seconds = record["results"], record["seconds"]
    metrics, split = metrics_of(record), watched(record)
    first, title = metrics[0], escape(metrics[0].title)
    before, after = results["cost_before"], results["cost_after"]
    table = Table(title=f"{record['job']['network']} on {record['job']['data']}, seed {record['job']['seed']}")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for name, key in (("parameters", "params"), ("multiply-adds", "madds")):
        table.add_row(name, f"{before[key]:,}", f"{after[key]:,}", change(before[key], after[key]))
    if "latency" in record:
        before_ms, after_ms = (record["latency"][when]["seconds"] * 1e3 for when in ("before", "after"))
        latency = record["latency"]["before"]
        label = f"time for {latency['batch']} on {latency['device']}"
        table.add_row(label, f"{before_ms:.2f} ms", f"{after_ms:.2f} ms", change(before_ms, after_ms))
    if record["job"].get("weights") is not None:
        table.add_row(f"test {title}, as it was given", first.text(results[f"test_{first.name}_before"]), "", "")
    relaxed, committed = (results.get(f"{when}_{split}_{first.name}") for when in ("relaxed", "committed"))
    if relaxed is not None and committed is not None:
        moments = ("end of the architecture stage", "choices just made")
        if "search" in seconds:
            moments = ("with shared weights", "before it is trained")
        if "search" in seconds or seconds.get("architecture"):
            table.add_row(f"{split} {title}, {moments[0]}", first.text(relaxed), "", "")
        table.add_row(f"{split} {title}, {moments[1]}", "", first.text(committed), "")
    for metric in metrics:
        value = metric.text(results[f"test_{metric.name}"])
        table.add_row(f"test {escape(metric.title)}, result", "", value, "")
    stages = "  ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items() if taken)
    table.add_row("time", "", stages, "")
    return table


def changes_table(edges: list[dict[str, Any]]) -> Table:
    """The edges that changed, and what the choices were worth; `edges` as in architecture.json."""
    changed = [e for e in edges if e["choice"] != "original"]
    table = Table(title=str(Tally.of_reports(edges)), caption=_LEGEND, caption_justify="left")
    told = any(e.get("by") for e in changed)
    words = ("edge", "operation", "becomes", *(["chosen by"] if told else []))
    for name in (*words, "worth", "original's", "margin", "MAdds saved"):
        table.add_column(name, justify="left" if name in words else "right", overflow="fold")
    for edge in changed:
        none, identity, original = edge["gates"]
        gates = {"none": none, "identity": identity} | dict(edge.get("others", ()))
        table.add_row(
            escape(edge["key"]),
            escape(edge["operation"]),
            _becomes(edge),
            *([edge.get("by", "")] if told else []),
            *map(_worth, (gates[edge["choice"]], original, edge["margin"])),
            f"{edge['saved']:,}",
        )
    return table


def _becomes(edge: Mapping[str, Any]) -> str:
    """What an edge becomes; a width with the share by which the choice is known."""
    if edge.get("kind") != "width":
        return str(edge["choice"])
    return f"{narrowed(edge['operation'], edge['choice'])} ({edge['choice']})"


def _worth(value: float) -> str:
    """What a choice was worth, in three digits.

    >>> _worth(0.98765), _worth(-0.0)
    ('0.988', '0.000')
    """
    return f"{value:.3f}".replace("-0.000", "0.000")


_LEGEND = (
    "worth: what the choice was worth when it was made, as its judge says; margin: how far it was ahead of the "
    "next, below 0 behind it"
)
_DECIDERS = {
    "budget": "the budget",
    "target": "the cost that was asked for",
    "legality": "what can be made together",
    "rewriting": "what could be carried out",
}


_WITHOUT_THETA = ("", "chance", "evenly")
"""What decides in methods that have no theta."""


def verdict(edges: list[dict[str, Any]]) -> str:
    """A line that says whether theta chose; empty where a method without theta did.

    Args:
        edges: as in architecture.json.

    >>> verdict([{"by": "theta", "choice": "none"}, {"by": "budget", "choice": "none"}])
    'changes: 1 by theta, 1 by the budget, not by theta'
    """
    if all(edge.get("by", "") in _WITHOUT_THETA for edge in edges):
        return ""
    if any(edge["by"] == "answers" for edge in edges):
        return "of the sets that use the budget, this one has the least sum of what its choices do to the answers"
    if any(edge["by"] == "plan" for edge in edges):
        return "the choices are those of the plan"
    judge = "the loss" if any(edge["by"] == "loss" for edge in edges) else "theta"
    changed = [edge for edge in edges if edge["choice"] != "original"]
    kept = [edge for edge in edges if edge["choice"] == "original"]
    parts = []
    for of, what in ((changed, "changes"), (kept, "edges that stay")):
        others = {name: sum(e["by"] == by for e in of) for by, name in _DECIDERS.items()}
        told = [f"{count} by {name}" for name, count in others.items() if count]
        if told:
            own = len(of) - sum(others.values())
            parts.append(f"{what}: {own} by {judge}, {', '.join(told)}, not by {judge}")
    return "; ".join(parts) or f"all choices are those that {judge} prefers"


def predictions_table(predictions: Sequence[Prediction]) -> Table:
    """What a network takes files for: a row for each class that is shown of a file."""
    table = Table("file", "class", Column("probability", justify="right"))
    for prediction in predictions:
        for i, (name, probability) in enumerate(prediction.classes):
            file = "" if i else str(prediction.file)
            table.add_row(Text(printable(file)), Text(printable(name)), f"{probability:.4f}")
    return table


def predictions_text(predictions: Iterable[Prediction]) -> Iterator[str]:
    """The same as a line for each file: the file, then class and probability in turn, between tabs."""
    for prediction in predictions:
        cells = (f"{printable(name)}\t{probability:.4f}" for name, probability in prediction.classes)
        yield "\t".join((printable(str(prediction.file)), *cells))


def survey_tables(name: str, survey: Survey, everything: bool, image: tuple[int, ...]) -> list[Table]:
    """What may change in a network for images (C, H, W), and if asked what may not and why."""
    found = survey.edges
    groups = len({e.group for e in found})
    widths = sum(e.kind == "width" for e in found)
    among = f" ({widths if widths < len(found) else 'all'} of them widths)" if widths else ""
    time = f"; {survey.latency}" if survey.latency else ""
    counted = f"images of {'x'.join(map(str, image))}"
    table = Table(title=f"{name}, {counted}: {len(found)} edges{among}, {groups} groups in cell mode{time}")
    numbers = ("MAdds", "saves", *(["saves time"] if survey.seconds else []))
    for column in ("edge", "kind", "operation", "shape", "may become", *numbers):
        # An edge's key is what one copies from here: it is folded, never cut.
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    # Other operations are many, and the same for edges alike: they are listed once, below.
    lists: dict[tuple[str, ...], str] = {}
    for edge in found:
        others = tuple(name for name, _ in edge.others)
        of_list = [lists.setdefault(others, f"others {len(lists) + 1}")] if others else []
        choices = ", ".join([*of_list, *(c for c in edge.choices[1:] if c not in others)])
        choices = _shares(edge) if edge.kind == "width" else choices
        shape = " > ".join(dict.fromkeys("x".join(map(str, s)) for s in (edge.shape_in, edge.shape_out)))
        row = [escape(edge.key), edge.kind, escape(edge.operation), shape, choices]
        row += [f"{edge.madds:,}", f"{survey.saved[edge.key]:,.0f}"]
        if survey.seconds:
            measured = len(edge.choices) - len(edge.others) > 1  # what another operation would take is not known
            row.append(f"{survey.seconds[edge.key] * 1e3:.3f} ms" if measured else "-")
        table.add_row(*row)
    if lists:
        table.caption = "\n".join(f"{name}: {', '.join(others)}" for others, name in lists.items())
        table.caption_justify = "left"
    if not everything:
        return [table]
    rest = Table(title=f"{len(survey.fixed)} operations and blocks cannot change")
    widths = any(edge.kind == "width" for edge in survey.fixed)
    for column in ("operation or block", "what", "why not identity", "why not none"):
        rest.add_column(column, overflow="fold")
    if widths:
        rest.add_column("why not narrower", overflow="fold")
    for edge in survey.fixed:
        why = dict(edge.refused)
        whys = [why.get(IDENTITY, ""), why.get(NONE, ""), ""]
        if edge.kind == "width":
            whys = ["", "", next((w for choice, w in edge.refused if choice not in (IDENTITY, NONE)), "")]
        rest.add_row(escape(edge.key), escape(edge.operation), *map(escape, whys[: 3 if widths else 2]))
    return [table, rest] if found else [rest]


def _shares(edge: Edge) -> str:
    """What a width may shrink to: the shares, and how many channels (or heads) each is."""
    ends = list(dict.fromkeys((edge.choices[1], edge.choices[-1])))
    return f"{' to '.join(ends)} ({' to '.join(str(edge.kept(choice)) for choice in ends)})"


def networks_table(title: str, found: Mapping[str, NetworkSize], sources: Mapping[str, str]) -> Table:
    """Networks by name: what they cost, where they may change, and where their definition comes from."""
    caption = "full, cell: how many thetas in each mode; in brackets with the null edges of NAT's genotypes"
    table = Table(title=f"networks {title}", caption=caption)
    for name in ("name", "parameters", "MAdds", "full", "cell", "defined in"):
        table.add_column(name, justify="left" if name in ("name", "defined in") else "right", overflow="fold")

    def thetas(plain: int | None, with_skips: int | None) -> str:
        return ("-" if plain is None else str(plain)) + (f" [{with_skips}]" if with_skips is not None else "")

    for name, size in found.items():
        full, cell = thetas(size.edges, size.skip_edges), thetas(size.groups, size.skip_groups)
        table.add_row(
            escape(name), f"{size.params:,}", f"{size.madds:,}", escape(full), escape(cell), escape(sources[name])
        )
    return table


def families_table(families: Iterable[Definition]) -> Table:
    """Networks that are named by a text: NAME:TEXT."""
    table = Table(title="and, by a text of yours", show_header=False)
    rows = [(f"{f.name}:TEXT", f.family, f.source) for f in families]
    rows += [
        ("torchvision:NAME", "a network of torchvision.models", ""),
        ("timm:NAME", "a network of timm, with pip install 'dnat[timm]'", ""),
        ("package.module:factory", "a function of yours that returns a module", ""),
    ]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def datasets_table(found: Iterable[DataSet]) -> Table:
    """Data sets by name, with the places in which their files are looked for."""
    table = Table(title="data sets", caption="files: in --data-root, $DNAT_DATA or ./data")
    for name in ("name", "what", "classes", "training", "test", "pixels", "files"):
        table.add_column(name, overflow="fold")

    def number(value: int | None) -> str:
        return "any" if value is None else f"{value:,}"

    for d in found:
        size = "any" if d.size is None else f"{d.size}x{d.size}"
        numbers = (number(d.classes), number(d.train), number(d.test))
        table.add_row(d.name, f"{escape(d.title)} ({escape(d.source)})", *numbers, size, escape(d.files))
    return table
