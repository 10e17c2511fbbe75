"""Tables: a finished run and what changed in it, predictions, the edges of a network, networks and data sets."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...edges import IDENTITY, NONE, Edge, Tally, narrowed
from ..formatting import change, line
from ..metrics import Metric, metrics_of, watched
from ..prediction import Prediction
from ..runs import Survey
from .grid import Grid


def result_table(record: dict[str, Any]) -> Grid:
    """Metrics, parameters, multiply-adds and time of a finished run; the first metric also of earlier moments."""
    job, results, seconds = record["job"], record["results"], record["seconds"]
    metrics, split = metrics_of(record), watched(record)
    first = metrics[0]
    before, after = results["cost_before"], results["cost_after"]
    given = job.get("weights") is not None
    rows = [
        (name, f"{before[key]:,}", f"{after[key]:,}", change(before[key], after[key]))
        for name, key in (("parameters", "params"), ("multiply-adds", "madds"))
    ]
    for name, key in (("weights, bytes", "weights"), ("activations of one, bytes", "activations")):
        if "memory" in record:
            held = [record["memory"][when][key] for when in ("before", "after")]
            rows.append((name, f"{held[0]:,}", f"{held[1]:,}", change(held[0], held[1])))
    if "latency" in record:
        before_ms, after_ms = (record["latency"][when]["seconds"] * 1e3 for when in ("before", "after"))
        latency = record["latency"]["before"]
        label = f"time for {latency['batch']} on {latency['device']}"
        rows.append((label, f"{before_ms:.2f} ms", f"{after_ms:.2f} ms", change(before_ms, after_ms)))
    relaxed, committed = (results.get(f"{when}_{split}_{first.name}") for when in ("relaxed", "committed"))
    if relaxed is not None and committed is not None:
        moments = ("still relaxed", "choices just made")
        if "search" in seconds:
            moments = ("with shared weights", "before it is trained")
        if "search" in seconds or seconds.get("architecture"):
            rows.append((f"{split} {first.title}, {moments[0]}", first.text(relaxed), "", ""))
        rows.append((f"{split} {first.title}, {moments[1]}", "", first.text(committed), ""))
    for metric in metrics:
        at_first, at_last = results.get(f"test_{metric.name}_before"), results[f"test_{metric.name}"]
        rows.append(
            (
                f"test {metric.title}",
                _text(metric, at_first),
                _text(metric, at_last),
                _gain(metric, at_first, at_last),
            )
        )
    stages = ", ".join(f"{stage} {taken:.1f} s" for stage, taken in seconds.items() if taken)
    return Grid(
        f"{job['network']} on {job['data']}, seed {job['seed']}" + (f"; {stages}" if stages else ""),
        ("", "before", "after", "change"),
        tuple(rows),
        frozenset(("before", "after", "change")),
        caption=_AS_GIVEN if given else _UNTRAINED if job["method"] != "original" else "",
    )


_AS_GIVEN = "before: the network as it was given"
_UNTRAINED = (
    "before: with its initial weights. What the same training makes of the untouched network is another run: the "
    "same command with --method original"
)


def _text(metric: Metric, value: float | None) -> str:
    return "" if value is None else metric.text(value)


def _gain(metric: Metric, before: float | None, after: float) -> str:
    """The change of a metric: of shares in points."""
    if before is None or not metric.is_share:
        return ""
    return f"{100 * (after - before):+.2f} points"


def changes_table(edges: list[dict[str, Any]]) -> Grid:
    """The edges that changed, and what the choices were worth; `edges` as in architecture.json."""
    changed = [e for e in edges if e["choice"] != "original"]
    told = any(e.get("by") for e in changed)
    rows = []
    for edge in changed:
        none, identity, original = edge["gates"]
        gates = {"none": none, "identity": identity} | dict(edge.get("others", ()))
        cells = (edge["key"], edge["operation"], _becomes(edge), *([edge.get("by", "")] if told else []))
        worth = map(_worth, (gates[edge["choice"]], original, edge["margin"]))
        rows.append((*cells, *worth, f"{edge['saved']:,}"))
    words = ("edge", "operation", "becomes", *(["chosen by"] if told else []))
    numbers = ("worth", "original's", "margin", "MAdds saved")
    return Grid(str(Tally.of_reports(edges)), (*words, *numbers), tuple(rows), frozenset(numbers), caption=_LEGEND)


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
    "edge: an operation or block that may change; none: it is taken out, identity: its input goes on as it is; "
    "worth: what the choice was worth when it was made, as its judge says, beside what the original was; margin: "
    "how far it was ahead of the next, below 0 behind it; MAdds: multiply-adds for one example"
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


def predictions_table(predictions: Sequence[Prediction]) -> Grid:
    """What a network takes files for: a row for each class that is shown of a file."""
    rows = []
    for prediction in predictions:
        for i, (name, probability) in enumerate(prediction.classes):
            file = "" if i else str(prediction.file)
            rows.append((line(file), line(name), f"{probability:.4f}"))
    return Grid("", ("file", "class", "probability"), tuple(rows), frozenset(("probability",)))


def predictions_text(predictions: Iterable[Prediction]) -> Iterator[str]:
    """The same as a line for each file: the file, then class and probability in turn, between tabs."""
    for prediction in predictions:
        cells = (f"{line(name)}\t{probability:.4f}" for name, probability in prediction.classes)
        yield "\t".join((line(str(prediction.file)), *cells))


def survey_tables(name: str, survey: Survey, everything: bool, image: tuple[int, ...]) -> list[Grid]:
    """What may change in a network for images (C, H, W), and if asked what may not and why."""
    found = survey.edges
    groups = len({e.group for e in found})
    widths = sum(e.kind == "width" for e in found)
    among = f" ({widths if widths < len(found) else 'all'} of them widths)" if widths else ""
    time = f"; {survey.latency}" if survey.latency else ""
    counted = f"images of {'x'.join(map(str, image))}"
    title = f"{name}, {counted}: {len(found)} edges{among}, {groups} groups in cell mode{time}"
    numbers = ("MAdds", "saves", *(["saves time"] if survey.seconds else []))
    # Other operations are many, and the same for edges alike: they are listed once, below.
    lists: dict[tuple[str, ...], str] = {}
    rows = []
    for edge in found:
        others = tuple(name for name, _ in edge.others)
        of_list = [lists.setdefault(others, f"others {len(lists) + 1}")] if others else []
        choices = ", ".join([*of_list, *(c for c in edge.choices[1:] if c not in others)])
        choices = _shares(edge) if edge.kind == "width" else choices
        shape = " > ".join(dict.fromkeys("x".join(map(str, s)) for s in (edge.shape_in, edge.shape_out)))
        row = [edge.key, edge.kind, edge.operation, shape, choices]
        row += [f"{edge.madds:,}", f"{survey.saved[edge.key]:,.0f}"]
        if survey.seconds:
            measured = len(edge.choices) - len(edge.others) > 1  # what another operation would take is not known
            row.append(f"{survey.seconds[edge.key] * 1e3:.3f} ms" if measured else "-")
        rows.append(tuple(row))
    columns = ("edge", "kind", "operation", "shape", "may become", *numbers)
    legend = [f"{name}: {', '.join(others)}" for others, name in lists.items()]
    changing = Grid(title, columns, tuple(rows), frozenset(numbers), caption="\n".join([*legend, _OF_EDGES]))
    if not everything:
        return [changing]
    narrow = any(edge.kind == "width" for edge in survey.fixed)
    fixed = []
    for edge in survey.fixed:
        why = dict(edge.refused)
        whys = [why.get(IDENTITY, ""), why.get(NONE, ""), ""]
        if edge.kind == "width":
            whys = ["", "", next((w for choice, w in edge.refused if choice not in (IDENTITY, NONE)), "")]
        fixed.append((edge.key, edge.operation, *whys[: 3 if narrow else 2]))
    columns = ("operation or block", "what", "not identity:", "not none:", *(["not narrower:"] if narrow else []))
    rest = Grid(
        f"{len(survey.fixed)} operations and blocks cannot change",
        columns,
        tuple(fixed),
        prose=frozenset(columns[2:]),
    )
    return [changing, rest] if found else [rest]


_OF_EDGES = (
    "edge: an operation or block that may change; identity: its input goes on as it is; none: it is taken out; "
    "MAdds: its multiply-adds for one such image, and what the choice that saves most saves"
)


def _shares(edge: Edge) -> str:
    """What a width may shrink to: the shares, and how many channels (or heads) each is."""
    ends = list(dict.fromkeys((edge.choices[1], edge.choices[-1])))
    return f"{' to '.join(ends)} ({' to '.join(str(edge.kept(choice)) for choice in ends)})"
