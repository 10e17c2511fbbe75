"""Report -> the numbers of each figure. Pages and static pictures draw the same ones."""

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..metrics import ACCURACY, Metric
from ..summary import Interval, Trial
from .gather import Group, Run, number

CURVE_POINTS = 100
"""Most points of a curve; longer ones are thinned out evenly."""

LONG = 20
"""Curves over so many epochs are shown from where they are after a tenth of them."""

SEED_CURVES = 10
"""Most curves of single seeds for a method; the mean is that of all."""

BASIC = ("none", "identity", "original")
"""Columns of theta that older rows hold without naming them."""

OPEN = 0.02
"""A gate that stays below is shut: curves of other operations that never open are left out."""


@dataclass(frozen=True)
class Curve:
    """The metric over the epochs of a run, or the mean over the runs of a method.

    Attributes:
        method: of the run.
        seed: of the run; None of a mean.
        epochs: in order.
        values: after each of them, on the examples that are watched, as they are shown.
        committed: the epoch after which the choices were in force; None where none were made while it trained.
    """

    method: str
    seed: int | None
    epochs: tuple[float, ...]
    values: tuple[float, ...]
    committed: float | None


@dataclass(frozen=True)
class Column:
    """What the rows of epochs tell, as it is shown.

    Attributes:
        name: in words, with its unit.
        key: in the rows, by the split that a run watches.
        scale: what values are multiplied by.
        form, unit: of numbers that are shown.
        better: "max" or "min": the first epochs of a long training, which would take up the axis, are left out;
            None where the whole is shown.
    """

    name: str
    key: Callable[[str], str]
    scale: float = 1
    form: str = ".4g"
    unit: str = ""
    better: str | None = None


@dataclass(frozen=True)
class Spot:
    """A place in the plane of cost and metric.

    Attributes:
        method: of the run or runs.
        seed: of the run; None of a mean.
        cost: in the unit of the axis.
        value: on the test examples, as it is shown.
        dead: whether every example gets the same answer; of a mean: of any.
        spread: distance of the quartiles of a cost that was measured; of a mean: their mean.
    """

    method: str
    seed: int | None
    cost: float
    value: float
    dead: bool
    spread: float = 0.0


@dataclass(frozen=True)
class Axis:
    """A cost: its name, the title of its axis, its unit, and how a trial has it (None: not measured)."""

    name: str
    title: str
    unit: str
    of: Callable[[Trial], float | None]
    spread: Callable[[Trial], float] = lambda trial: 0.0


@dataclass(frozen=True)
class Gates:
    """What the choices of a group of edges were weighed by over the epochs.

    Attributes:
        key: of the group, or of the edge where each has its own theta.
        epochs: in order, from 0 on.
        gates: {choice: its gate then}; of other operations, and of a width's shares, those that ever
            opened.
        chosen: what became of the group's edges.
    """

    key: str
    epochs: tuple[float, ...]
    gates: Mapping[str, tuple[float, ...]]
    chosen: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """What became of each edge over the seeds of a method.

    Attributes:
        method: by name.
        seeds: in order.
        rows: {edge: its choice at each seed; None where that run has no such edge}, without those that stay.
        staying: the number of edges that keep their operation at every seed.
    """

    method: str
    seeds: tuple[int, ...]
    rows: Mapping[str, tuple[str | None, ...]]
    staying: int


def columns(group: Group) -> list[Column]:
    """What is told of the epochs of a group: the metric, the losses, the rate, and what an epoch took."""
    metric = group.metric
    watched = group.watched.removesuffix(f" {metric.column}")
    found = [
        metric_column(group),
        Column("training loss", lambda split: "train_loss", better="min"),
        Column(f"{watched} loss", lambda split: f"{split}_loss", better="min"),
        Column("learning rate", lambda split: "lr"),
        Column(f"{metric.examples} a second", lambda split: "images_per_second"),
        Column("most memory, GB", lambda split: "memory", scale=1e-9),
    ]
    return [c for c in found if curves(group, c)]


def metric_column(group: Group) -> Column:
    """The metric of a group on the examples that are watched."""
    metric = group.metric
    key = "{}_" + metric.name
    return Column(group.watched, key.format, metric.scale, metric.form, metric.unit, metric.direction)


def curves(group: Group, column: Column | None = None) -> list[Curve]:
    """The curve of each run that has one, by method and seed; by default of the metric."""
    column = column or metric_column(group)
    found = []
    for method, runs in group.runs.items():
        for run in runs:
            name, scale = column.key(run.trial.watched), column.scale
            points = [(number(row["epoch"]), number(row.get(name))) for row in run.metrics]
            known = [(e, scale * v) for e, v in points if e is not None and v is not None]
            if known:
                epochs, values = zip(*known, strict=True)
                found.append(Curve(method, run.trial.seed, epochs, values, committed(run)))
    return found


def mean_curve(of_method: Sequence[Curve]) -> Curve:
    """The mean of the curves of one method, at the epochs that all of them have."""
    tables = [dict(zip(c.epochs, c.values, strict=True)) for c in of_method]
    common = sorted(set.intersection(*(set(t) for t in tables)))
    moments = {c.committed for c in of_method}
    return Curve(
        of_method[0].method,
        None,
        tuple(common),
        tuple(statistics.mean(t[epoch] for t in tables) for epoch in common),
        moments.pop() if len(moments) == 1 else None,
    )


def reach(found: Sequence[Curve], better: str | None = "max") -> tuple[float, float]:
    """The values that long curves are shown between: from the worst one after a tenth of the epochs to the best.

    The first epochs would otherwise take up the axis, and what differs later would be one line. Short curves
    (`LONG` epochs at most) are shown whole, and those of which no end is better.
    """
    first, last = min(c.epochs[0] for c in found), max(c.epochs[-1] for c in found)
    begin = first + 0.1 * (last - first) if last - first >= LONG and better else -math.inf
    points = [point for c in found for point in zip(c.epochs, c.values, strict=True)]
    of_all, of_late = [v for _, v in points], [v for e, v in points if e >= begin]
    return (min(of_all), max(of_late)) if better == "min" else (min(of_late), max(of_all))


def committed(run: Run) -> float | None:
    """The epoch after which the choices were in force; None where they were not made while the network trained."""
    commitment = run.architecture.get("commitment")
    epoch = number(commitment.get("epoch")) if isinstance(commitment, Mapping) else None
    return epoch or None


def thinned(curve: Curve, most: int = CURVE_POINTS) -> Curve:
    """A curve of at most so many points: spread evenly, with the first and the last one."""
    n = len(curve.epochs)
    if n <= most:
        return curve
    kept = sorted({round(i * (n - 1) / (most - 1)) for i in range(most)})
    epochs, values = (tuple(of[i] for i in kept) for of in (curve.epochs, curve.values))
    return replace(curve, epochs=epochs, values=values)


def axes(group: Group) -> list[Axis]:
    """Multiply-adds, parameters and time, in units that suit the group; time where all runs have it."""
    trials = [run.trial for runs in group.runs.values() for run in runs]
    found = [
        _axis("multiply-adds", trials, lambda t: float(t.madds)),
        _axis("parameters", trials, lambda t: float(t.params)),
    ]
    if all(t.latency_after is not None for t in trials):
        found.append(_time_axis(trials[0]))
    return found


def _time_axis(first: Trial) -> Axis:
    """The time of a network on the machine that ran it, in the batch that the first trial has."""
    batch = f"{first.latency_batch} " if first.latency_batch else "a batch "
    return Axis(
        "time",
        f"time for {batch}on {first.device or 'this machine'}, ms",
        "ms",
        lambda t: None if t.latency_after is None else 1e3 * t.latency_after,
        lambda t: 1e3 * (t.latency_spread or 0.0),
    )


def _axis(name: str, trials: Sequence[Trial], of: Callable[[Trial], float]) -> Axis:
    largest = max(of(t) for t in trials)
    units = (("billions", 1e9), ("millions", 1e6), ("thousands", 1e3))
    unit, size = next(((u, s) for u, s in units if largest >= s), ("", 1.0))
    return Axis(name, f"{name} of the result" + (f", {unit}" if unit else ""), unit, lambda t: of(t) / size)


def spots(group: Group, axis: Axis) -> list[Spot]:
    """Each run in the plane of a cost and the metric."""
    found = []
    for method, runs in group.runs.items():
        for run in runs:
            cost = axis.of(run.trial)
            if cost is not None:
                dead, spread = run.trial.dead is True, axis.spread(run.trial)
                found.append(Spot(method, run.trial.seed, cost, run.trial.value, dead, spread))
    return found


def mean_spots(runs: Sequence[Spot]) -> list[Spot]:
    """The mean of each method's runs."""
    found = []
    for method, of_method in itertools.groupby(runs, lambda s: s.method):
        mine = list(of_method)
        cost, value = statistics.mean(s.cost for s in mine), statistics.mean(s.value for s in mine)
        spread = statistics.mean(s.spread for s in mine)
        found.append(Spot(method, None, cost, value, any(s.dead for s in mine), spread))
    return found


def pareto(places: Sequence[Spot], metric: Metric = ACCURACY) -> list[Spot]:
    """Those that no other one beats: none is as cheap and as good, and better in one of both; by cost."""
    front: list[Spot] = []
    for spot in sorted(places, key=lambda s: (s.cost, -metric.merit(s.value))):
        last = front[-1] if front else None
        equal = last is not None and (spot.cost, spot.value) == (last.cost, last.value)
        if last is None or equal or metric.merit(spot.value) > metric.merit(last.value):
            front.append(spot)
    return front


def interval_of(group: Group, method: str) -> tuple[float, Interval | None]:
    """The mean of a method and its t interval, as they are shown."""
    row = next(r for r in group.rows if r.method == method)
    return row.mean, row.interval


def gates(run: Run) -> list[Gates]:
    """Theta's gates over the epochs of the architecture stage; empty where a run has none."""
    rows = [row for row in run.metrics if _is_matrix(row.get("gates"))]
    edges = edges_of(run)
    if not rows or not edges:
        return []
    mode = run.record["job"].get("mode")
    names = [str(e.get("key" if mode == "full" else "group")) for e in edges]
    groups = list(dict.fromkeys(names))
    widths = {name for e, name in zip(edges, names, strict=True) if e.get("kind") == "width"}
    rows = [row for row in rows if len(row["gates"]) == len(groups)]
    found = []
    for place, key in enumerate(groups):
        chosen = dict.fromkeys(str(e["choice"]) for e, name in zip(edges, names, strict=True) if name == key)
        table = _columns([(row.get("columns") or BASIC, row["gates"][place]) for row in rows])
        if rows and table:
            always = ("original",) if key in widths else BASIC
            kept = {c: v for c, v in table.items() if c in always or max(v) > OPEN}
            # Before the first epoch an edge is its original (`dnat.relaxation.theta`).
            whole = {c: (float(c == "original"), *values) for c, values in kept.items()}
            found.append(Gates(key, (0.0, *(float(row["epoch"]) for row in rows)), whole, tuple(chosen)))
    return found


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(row, list) and all(number(v) is not None for v in row) for row in value
    )


def _columns(rows: Sequence[tuple[Sequence[str], Sequence[float]]]) -> dict[str, tuple[float, ...]]:
    """{column: its value in each row}; empty where the rows do not have the same columns."""
    names = tuple(map(str, rows[0][0])) if rows else ()
    if any(tuple(map(str, columns)) != names or len(values) != len(names) for columns, values in rows):
        return {}
    return {name: tuple(float(values[i]) for _, values in rows) for i, name in enumerate(names)}


def edges_of(run: Run) -> list[Mapping[str, Any]]:
    """The edges of a run with their choices; empty of a method that makes none."""
    commitment = run.architecture.get("commitment")
    edges = commitment.get("edges") if isinstance(commitment, Mapping) else None
    if not isinstance(edges, list):
        return []
    return [e for e in edges if isinstance(e, Mapping) and "key" in e and "choice" in e]


def choices(group: Group) -> list[Choices]:
    """What became of each edge over the seeds, for each method that makes choices.

    Where edges share their choices (mode "cell", the cells of a genotype) their group stands for them.
    """
    found = []
    for method, runs in group.runs.items():
        made = [run for run in runs if edges_of(run)]
        if not made:
            continue
        tables = [_by_group(run) for run in made]
        if any(table is None for table in tables):
            tables = [{str(e["key"]): str(e["choice"]) for e in edges_of(run)} for run in made]
        known = [table for table in tables if table is not None]
        keys = dict.fromkeys(key for table in known for key in table)
        rows = {key: tuple(table.get(key) for table in known) for key in keys}
        changing = {key: row for key, row in rows.items() if any(c != "original" for c in row)}
        seeds = tuple(run.trial.seed for run in made)
        found.append(Choices(method, seeds, changing, len(rows) - len(changing)))
    return found


def _by_group(run: Run) -> dict[str, str] | None:
    """{group: its choice}; None where each edge has its own, or edges of a group differ all the same."""
    if run.record["job"].get("mode") != "cell" and not run.architecture.get("genotypes"):
        return None
    table: dict[str, str] = {}
    for edge in edges_of(run):
        if table.setdefault(str(edge.get("group", edge["key"])), str(edge["choice"])) != str(edge["choice"]):
            return None
    return table


def agreement(row: Sequence[str | None]) -> float:
    """The share of seeds that made the most frequent choice.

    >>> agreement(("identity", "identity", "original", "identity"))
    0.75
    """
    return max(row.count(choice) for choice in row) / len(row)
