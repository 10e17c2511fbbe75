"""The page's figures as plotly's JSON, made by hand: plotly itself runs in the reader's browser only."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formatting import duration
from ..metrics import capital
from .gather import Group
from .looks import Look, plain
from .placing import label_places, spread_apart
from .series import (
    SEED_CURVES,
    Axis,
    Column,
    Curve,
    Spot,
    axes,
    columns,
    curves,
    interval_of,
    mean_curve,
    mean_spots,
    pareto,
    reach,
    spots,
    thinned,
)

_FEW_EPOCHS = 10
"""So few are all marked: ticks between them would stand for halves."""

_FEW_METHODS = 4
"""With more, the lines that connect seeds are thinner."""

_LETTER = 6.7
"""Pixels that a letter of a label takes, about."""


@dataclass(frozen=True)
class Figure:
    """A figure as the page holds it.

    Attributes:
        title: what it is of.
        alt: what it shows, for whoever does not see it.
        views: {name of the view: {"data", "layout"}}; one, or several that the reader switches between.
    """

    title: str
    alt: str
    views: Mapping[str, Mapping[str, Any]]


def curve_figure(group: Group, look: Look) -> Figure | None:
    """The metric over the epochs, and what else is told of them: a thin line a seed, a thick one for the mean."""
    measured = curves(group)
    if not measured:
        return None
    views = {column.name: _curves(group, column, look) for column in columns(group)}
    means = [mean_curve(list(c)) for _, c in itertools.groupby(measured, lambda c: c.method)]
    alt = "; ".join(f"{m.method} ends at {_shown(group, m.values[-1])}" for m in means if m.epochs)
    title = capital(group.watched.removesuffix(", %"))
    return Figure(group.title, f"{title} over the epochs: {alt}.", views)


def _curves(group: Group, column: Column, look: Look) -> dict[str, Any]:
    """A column of the rows over the epochs."""
    of_method = {m: list(c) for m, c in itertools.groupby(curves(group, column), lambda c: c.method)}
    means = {method: mean_curve(found) for method, found in of_method.items()}
    data = []
    for method, found in of_method.items():
        if len(found) > 1:
            shown = [(c, f"{method}, seed {c.seed}") for c in found[:SEED_CURVES]]
            data += [_curve(thinned(c), column, look, name, 1, 0.5) for c, name in shown]
    drawn = [c for c in means.values() if c.epochs]
    data += [_curve(thinned(c), column, look, _mean_name(c, of_method), 2.5, 1) for c in drawn]
    last = max(c.epochs[-1] for found in of_method.values() for c in found)
    first = min(c.epochs[0] for found in of_method.values() for c in found)
    layout = _layout("epoch", plain(column.name, 60), height=360, right=_room(means))
    layout["xaxis"] |= {"range": [first if first < last else 0, last], "tickformat": "d"}
    if last - first <= _FEW_EPOCHS:
        layout["xaxis"]["dtick"] = 1
    ends = reach(list(itertools.chain(*of_method.values())), column.better)
    least = -math.inf if column.better else 0.0
    layout["yaxis"]["range"] = _padded(ends, least=least, flat=_flat(group) if column.unit else 0.0)
    heights = spread_apart([c.values[-1] for c in drawn], layout["yaxis"]["range"], 290)
    for c, y in zip(drawn, heights, strict=True):
        layout["annotations"].append(_label(1, y, c.method, look, xref="paper"))
    moments: dict[float, list[str]] = {}
    for c in means.values():
        if c.committed is not None:
            moments.setdefault(c.committed, []).append(c.method)
    for epoch, methods in moments.items():
        of_whom = f": {', '.join(methods)}" if len(moments) > 1 else ""
        layout["shapes"].append(_upright(epoch))
        layout["annotations"].append(_note(epoch, f"choices in force{of_whom}", epoch > (first + last) / 2))
    return {"data": data, "layout": layout}


def _mean_name(curve: Curve, of_method: Mapping[str, Sequence[Curve]]) -> str:
    n = len(of_method[curve.method])
    return (
        f"{curve.method}, mean of {n} seeds"
        if n > 1
        else f"{curve.method}, seed {of_method[curve.method][0].seed}"
    )


def _curve(curve: Curve, column: Column, look: Look, name: str, width: float, opacity: float) -> dict[str, Any]:
    line = {"color": look.colour(curve.method), "width": width, "dash": look.dash(curve.method)}
    hover = f"%{{fullData.name}}<br>epoch %{{x}}: %{{y:{column.form}}}{column.unit}<extra></extra>"
    y = [float(f"{v:.6g}") for v in curve.values]
    return _scatter("lines", name, curve.epochs, y, opacity=opacity, line=line, hovertemplate=hover)


def _hover(group: Group, axis: str) -> str:
    """A value of an axis as plotly shows it."""
    return f"%{{{axis}:{group.metric.form}}}{group.metric.unit}"


def _shown(group: Group, value: float) -> str:
    return f"{value:{group.metric.form}}{group.metric.unit}"


def _scatter(mode: str, name: str, x: Sequence[float], y: Sequence[float], **more: Any) -> dict[str, Any]:
    """A trace of plotly's; one without a name stands in no legend."""
    named = {"name": plain(name)} if name else {}
    return {"type": "scatter", "mode": mode, **named, "x": list(x), "y": list(y), **more}


def _points(
    spots: Sequence[Spot],
    x: Sequence[float],
    y: Sequence[float],
    look: Look,
    size: int,
    opacity: float,
    hover: str,
) -> dict[str, Any]:
    """Runs of one method, or its mean, as markers; dead runs as crosses."""
    method = spots[0].method
    marker = {
        "color": look.colour(method),
        "size": size,
        "opacity": opacity,
        "symbol": ["x" if s.dead and s.seed is not None else look.symbol(method) for s in spots],
    }
    text = [f"seed {s.seed}{', dead' * s.dead}" for s in spots]
    hover = f"%{{fullData.name}}<br>{hover}<extra></extra>"
    return _scatter("markers", method, x, y, text=text, marker=marker, hovertemplate=hover)


def strip_figure(group: Group, look: Look) -> Figure:
    """Each seed a point, the points of a seed connected; beside them mean and t interval of each method."""
    axis = Axis("", "", "", lambda t: 0.0)
    found = spots(group, axis)
    methods = list(dict.fromkeys(s.method for s in found))
    seeds = sorted({s.seed for s in found if s.seed is not None})
    place = {m: len(methods) - 1 - i for i, m in enumerate(methods)}
    shift = {s: 0.3 * (i / (len(seeds) - 1) - 0.5) if len(seeds) > 1 else 0.0 for i, s in enumerate(seeds)}
    data = []
    for seed in seeds:
        mine = [s for s in found if s.seed == seed]
        if len(mine) > 1:
            heights = [place[s.method] + shift[seed] for s in mine]
            line = {"color": "@pair", "width": 1.2 if len(methods) <= _FEW_METHODS else 0.7}
            data.append(_scatter("lines", "", [s.value for s in mine], heights, line=line, hoverinfo="skip"))
    ends = [s.value for s in found]
    for method in methods:
        mine = [s for s in found if s.method == method]
        heights = [place[method] + shift[s.seed] for s in mine if s.seed is not None]
        hover = f"%{{text}}: {_hover(group, 'x')}"
        data.append(_points(mine, [s.value for s in mine], heights, look, 9, 0.85, hover))
        interval = interval_of(group, method)[1]
        data.append(_mean_mark(group, method, place[method] - 0.32, look))
        ends += interval or ()  # whole, though it may reach beyond what there can be
    layout = _layout(plain(group.tested, 60), "", height=110 + 62 * len(methods), right=24)
    names = [plain(m, 20) for m in methods]
    layout["xaxis"]["range"] = _padded(ends, flat=_flat(group))
    layout["yaxis"] |= {
        "tickvals": [place[m] for m in methods],
        "ticktext": names,
        "range": [-0.7, len(methods) - 0.5],
        "showgrid": False,
        "automargin": True,
    }
    unit = group.metric.unit
    values = {m: ", ".join(format(s.value, group.metric.form) for s in found if s.method == m) for m in methods}
    alt = "; ".join(f"{m}: {listed}{unit}" for m, listed in values.items())
    alt = f"Test {group.metric.title} of each seed. {alt}."
    return Figure(group.title, alt, {"": {"data": data, "layout": layout}})


def _mean_mark(group: Group, method: str, y: float, look: Look) -> dict[str, Any]:
    colour, (mean, interval) = look.colour(method), interval_of(group, method)
    mark = _scatter(
        "markers",
        f"{method}, mean",
        [mean],
        [y],
        marker={"color": colour, "symbol": "line-ns-open", "size": 14, "line": {"width": 3}},
        hovertemplate=f"%{{fullData.name}}<br>{_hover(group, 'x')}<extra></extra>",
    )
    if interval is not None:
        bar = {"type": "data", "array": [interval[1] - mean], "color": colour, "thickness": 2, "width": 5}
        mark["error_x"] = bar
    return mark


def tradeoff_figure(group: Group, look: Look) -> Figure:
    """The metric against each cost: runs faint, means with their names, and the line of those not beaten."""
    costs = axes(group)
    views = {axis.name: _tradeoff(group, axis, look) for axis in costs}
    means = mean_spots(spots(group, costs[0]))
    alt = "; ".join(f"{s.method}: {_shown(group, s.value)} at {s.cost:.3g} {costs[0].unit}" for s in means)
    return Figure(group.title, f"Test {group.metric.title} against multiply-adds, means. {alt}.", views)


def _tradeoff(group: Group, axis: Axis, look: Look) -> dict[str, Any]:
    runs = spots(group, axis)
    means = mean_spots(runs)
    front = pareto(means, group.metric)
    line = {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "hv"}
    name, costs = "not beaten by any other", [s.cost for s in front]
    data = [_scatter("lines", name, costs, [s.value for s in front], line=line, hoverinfo="skip")]
    unit, value = plain(axis.unit), _hover(group, "y")
    for mean in means:
        mine = [s for s in runs if s.method == mean.method]
        if len(mine) > 1:
            data.append(_cloud(mine, look, 7, 0.6, f"%{{text}}: %{{x:.4g}} {unit}, {value}"))
    for mean in means:
        data.append(_cloud([mean], look, 12, 1, f"mean: %{{x:.4g}} {unit}, {value}"))
        if mean.spread:
            bar = {"type": "data", "array": [mean.spread / 2], "color": look.colour(mean.method)}
            data[-1]["error_x"] = bar | {"thickness": 1.5, "width": 4}
    layout = _layout(plain(axis.title, 60), plain(group.tested, 60), height=380, right=24)
    layout["xaxis"]["range"] = across = _padded([s.cost for s in runs], least=0.0, share=0.12)
    layout["yaxis"]["range"] = span = _padded([s.value for s in runs], share=0.08, flat=_flat(group))
    for mean, y, on_the_left in label_places(means, across, span, 300):
        layout["annotations"].append(_leader(mean, y, span, look, on_the_left))
    return {"data": data, "layout": layout}


def _cloud(spots: Sequence[Spot], look: Look, size: int, opacity: float, hover: str) -> dict[str, Any]:
    """Spots in the plane of cost and metric."""
    return _points(spots, [s.cost for s in spots], [s.value for s in spots], look, size, opacity, hover)


def _leader(mean: Spot, y: float, span: Sequence[float], look: Look, on_the_left: bool) -> dict[str, Any]:
    """A label beside a mean, drawn to it by a thin line where others pushed it away."""
    shift = -(y - mean.value) / (span[1] - span[0]) * 300
    return {
        "x": mean.cost,
        "y": mean.value,
        "text": plain(mean.method, 20),
        "font": {"color": look.colour(mean.method), "size": 13},
        "showarrow": True,
        "arrowhead": 0,
        "arrowwidth": 0.8,
        "arrowcolor": look.colour(mean.method),
        "ax": -14 if on_the_left else 14,
        "ay": shift,
        "xanchor": "right" if on_the_left else "left",
        "standoff": 6,
    }


def cost_figure(group: Group, look: Look) -> Figure:
    """The time that a run of each method took: search, paler, and training, with the deviation over seeds."""
    trials = {method: [run.trial for run in runs] for method, runs in group.runs.items()}
    totals = {m: [(t.search_seconds + t.training_seconds) / 3600 for t in of] for m, of in trials.items()}
    means = {method: statistics.fmean(hours) for method, hours in totals.items()}
    largest = max(means.values())
    unit, size = (
        ("hours", 1.0) if largest >= 1 else ("minutes", 60.0) if largest >= 1 / 30 else ("seconds", 3600.0)
    )
    search = {method: statistics.fmean(t.search_seconds / 3600 for t in of) for method, of in trials.items()}
    parts = {"search": search, "training": {m: means[m] - search[m] for m in means}}
    colours = [look.colour(method) for method in means]
    data = [
        _bars(stage, [size * part[m] for m in means], colours, 0.45 if stage == "search" else 1, unit)
        for stage, part in parts.items()
        if any(part.values())
    ]
    if any(len(hours) > 1 for hours in totals.values()):
        spread = [size * statistics.stdev(h) if len(h) > 1 else 0.0 for h in totals.values()]
        bar = {"type": "data", "array": spread, "color": "@text", "thickness": 1.2, "width": 4}
        data[-1] |= {"error_x": bar}
    layout = _layout(f"{unit} of one run, mean and deviation", "", height=90 + 44 * len(means), right=90)
    layout["barmode"] = "stack"
    layout["xaxis"]["rangemode"] = "tozero"
    places = list(range(len(means)))[::-1]
    names = [plain(m, 20) for m in means]
    layout["yaxis"] |= {"tickvals": places, "ticktext": names, "showgrid": False, "automargin": True}
    for place, (method, total) in zip(places, means.items(), strict=True):
        hours = totals[method]
        end = total + (statistics.stdev(hours) if len(hours) > 1 else 0.0)
        note = {"x": size * end, "y": place, "text": f"  {duration(total)}", "xanchor": "left", "showarrow": False}
        layout["annotations"].append(note | {"font": {"color": "@text", "size": 12}})
    alt = "; ".join(f"{m}: {duration(t)}" for m, t in means.items())
    return Figure(group.title, f"Time of one run, mean. {alt}.", {"": {"data": data, "layout": layout}})


def _bars(name: str, values: Sequence[float], colours: Sequence[str], opacity: float, unit: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(values),
        "y": list(range(len(values)))[::-1],
        "width": 0.55,
        "marker": {"color": list(colours), "opacity": opacity},
        "hovertemplate": f"{name}: %{{x:.3g}} {unit}<extra></extra>",
    }


def _layout(x: str, y: str, *, height: int, right: float) -> dict[str, Any]:
    axis = {
        "gridcolor": "@grid",
        "zeroline": False,
        "linecolor": "@muted",
        "tickcolor": "@muted",
        "ticks": "outside",
        "ticklen": 4,
        "tickfont": {"color": "@muted", "size": 12},
        "automargin": True,
    }
    font = {"color": "@text", "size": 13}
    return {
        "height": height,
        "margin": {"l": 52, "r": right, "t": 28, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "color": "@text", "size": 13},
        "hoverlabel": {"bgcolor": "@page", "bordercolor": "@muted", "font": {"color": "@text"}},
        "hovermode": "closest",
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "@muted", "activecolor": "@text"},
        "dragmode": False,
        "showlegend": False,
        "xaxis": axis | {"title": {"text": x, "font": font, "standoff": 8}},
        "yaxis": axis | {"title": {"text": y, "font": font, "standoff": 8}},
        "annotations": [],
        "shapes": [],
    }


def _flat(group: Group) -> float:
    """The least room beside values that are all the same: half a point of a share."""
    return group.metric.scale / 200


def _padded(
    values: Sequence[float], least: float = -math.inf, share: float = 0.05, flat: float = 0.5
) -> list[float]:
    """A range with some room on both sides."""
    low, high = min(values), max(values)
    room = share * (high - low) or max(abs(high) * 0.02, flat)
    return [max(low - room, least), high + room]


def _room(labels: Sequence[str] | Mapping[str, Any]) -> float:
    """Pixels on the right for labels of the curves."""
    return 16 + _LETTER * max(len(plain(name, 20)) for name in labels)


def _label(x: float, y: float, method: str, look: Look, **more: Any) -> dict[str, Any]:
    font = {"color": look.colour(method), "size": 13}
    text = f" {plain(method, 20)}"
    return {"x": x, "y": y, "text": text, "font": font, "showarrow": False, "xanchor": "left"} | more


def _upright(x: float) -> dict[str, Any]:
    line = {"color": "@muted", "width": 1, "dash": "dash"}
    return {"type": "line", "x0": x, "x1": x, "y0": 0, "y1": 1, "yref": "paper", "line": line}


def _note(x: float, text: str, on_the_left: bool) -> dict[str, Any]:
    return {
        "x": x,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "xanchor": "right" if on_the_left else "left",
        "text": plain(text, 46),
        "font": {"color": "@muted", "size": 12},
        "showarrow": False,
    }
