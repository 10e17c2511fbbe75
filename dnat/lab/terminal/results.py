"""Tables of what came out: a finished run, what changed in it and by what, what a network takes files for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from ...edges import Tally, narrowed
from ..formatting import change
from ..prediction import Prediction
from .console import printable


def result_table(record: dict[str, Any]) -> Table:
    """Accuracy, parameters, multiply-adds and time of a finished run."""
    results, seconds = record["results"], record["seconds"]
    before, after = results["cost_before"], results["cost_after"]
    table = Table(title=f"{record['job']['network']} on {record['job']['data']}, seed {record['job']['seed']}")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for name, key in (("parameters", "params"), ("multiply-adds", "madds")):
        table.add_row(name, f"{before[key]:,}", f"{after[key]:,}", change(before[key], after[key]))
    if "latency" in record:
        before_ms, after_ms = (record["latency"][when]["seconds"] * 1e3 for when in ("before", "after"))
        first = record["latency"]["before"]
        label = f"time for {first['batch']} on {first['device']}"
        table.add_row(label, f"{before_ms:.2f} ms", f"{after_ms:.2f} ms", change(before_ms, after_ms))
    if record["job"].get("weights") is not None:
        table.add_row("test accuracy, as it was given", f"{results['test_accuracy_before']:.2%}", "", "")
    if results["relaxed_test_accuracy"] is not None:
        moments = ("end of the architecture stage", "choices just made")
        if "search" in seconds:
            moments = ("with shared weights", "before it is trained")
        if "search" in seconds or seconds.get("architecture"):
            table.add_row(f"test accuracy, {moments[0]}", f"{results['relaxed_test_accuracy']:.2%}", "", "")
        table.add_row(f"test accuracy, {moments[1]}", "", f"{results['committed_test_accuracy']:.2%}", "")
    table.add_row("test accuracy, result", "", f"{results['test_accuracy']:.2%}", "")
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
