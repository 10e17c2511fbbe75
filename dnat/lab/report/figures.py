"""The page's figures as plotly's JSON, made by hand: plotly itself runs in the reader's browser only.

Colours stand in the figures by name ("@text", "@m0", ...); the page paints them from `LIGHT` or `DARK`, so that a
figure follows the page's theme. Names come from users: plotly reads a little HTML in every text, so that all of
them go through `plain`.
"""

import html
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..formatting import duration
from .gather import Group
from .series import (
    SEED_CURVES,
    Axis,
    Curve,
    Spot,
    axes,
    curves,
    floor,
    interval_of,
    mean_curve,
    mean_spots,
    pareto,
    spots,
    thinned,
)

METHOD_COLOURS = 8
"""Methods beyond so many take the colours but the baseline's again, with other markers and lines."""


def _of_methods(*colours: str) -> dict[str, str]:
    """The colours of the methods by name."""
    return {f"m{i}": colour for i, colour in zip(range(METHOD_COLOURS), colours, strict=True)}


LIGHT = {
    "page": "#ffffff",
    "text": "#1b1f24",
    "muted": "#5c6570",
    "grid": "#e4e7eb",
    "pair": "#c0c7cf",
    "search": "#c98500",
    "training": "#0072b2",
    # The baseline's, then Okabe and Ito's, darkened where they would be too faint on white.
    **_of_methods("#5c6570", "#0072b2", "#d55e00", "#008a64", "#b3538a", "#a97500", "#3f8fc4", "#7b4fb0"),
}
DARK = {
    "page": "#14171b",
    "text": "#e7eaee",
    "muted": "#a2abb5",
    "grid": "#31373f",
    "pair": "#545d68",
    "search": "#e6b042",
    "training": "#56a8e0",
    **_of_methods("#a2abb5", "#56a8e0", "#ff8a47", "#3cc79b", "#e695c3", "#e6b042", "#9fd0f2", "#b99aeb"),
}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "hexagon", "triangle-down")
_DASHES = ("solid", "dash", "dot", "dashdot")

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


@dataclass(frozen=True)
class Look:
    """The colour, marker and line of each method, the same in all figures of a page."""

    methods: tuple[str, ...]

    def colour(self, method: str) -> str:
        """The name of its colour."""
        return f"@m{self._place(method)[1]}"

    def symbol(self, method: str) -> str:
        """Its marker; the cross is kept for dead networks."""
        again, place = self._place(method)
        return _SYMBOLS[(place + again) % len(_SYMBOLS)]

    def dash(self, method: str) -> str:
        """Its line."""
        return _DASHES[self._place(method)[0] % len(_DASHES)]

    def _place(self, method: str) -> tuple[int, int]:
        """How often the colours were used up before, and the colour's number: the first is the baseline's own."""
        i = self.methods.index(method)
        again, place = divmod(i - 1, METHOD_COLOURS - 1)
        return (again, place + 1) if i else (0, 0)


def shortened(text: str, most: int = 32) -> str:
    """A name on one line, cut in the middle where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"


def plain(text: str, most: int = 32) -> str:
    """A name that plotly shows as it is: shortened, and not read as HTML."""
    return html.escape(shortened(text, most), quote=False)


def curve_figure(group: Group, look: Look) -> Figure | None:
    """Test accuracy over the epochs: a thin line for each seed, a thick one for the mean."""
    of_method = {m: list(c) for m, c in itertools.groupby(curves(group), lambda c: c.method)}
    if not of_method:
        return None
    means = {method: mean_curve(found) for method, found in of_method.items()}
    data = []
    for method, found in of_method.items():
        if len(found) > 1:
            data += [_curve(thinned(c), look, f"{method}, seed {c.seed}", 1, 0.5) for c in found[:SEED_CURVES]]
    data += [_curve(thinned(c), look, _mean_name(c, of_method), 2.5, 1) for c in means.values() if c.epochs]
    every = [a for found in of_method.values() for c in found for a in c.accuracies]
    last = max(c.epochs[-1] for found in of_method.values() for c in found)
    first = min(c.epochs[0] for found in of_method.values() for c in found)
    layout = _layout("epoch", "test accuracy, %", height=360, right=_room(means))
    layout["xaxis"] |= {"range": [first if first < last else 0, last], "tickformat": "d"}
    if last - first <= _FEW_EPOCHS:
        layout["xaxis"]["dtick"] = 1
    begin = floor(list(itertools.chain(*of_method.values())))
    layout["yaxis"]["range"] = _padded([max(min(every), begin), max(every)])
    heights = spread_apart([c.accuracies[-1] for c in means.values() if c.epochs], layout["yaxis"]["range"], 290)
    for c, y in zip((c for c in means.values() if c.epochs), heights, strict=True):
        layout["annotations"].append(_label(1, y, c.method, look, xref="paper"))
    moments: dict[float, list[str]] = {}
    for c in means.values():
        if c.committed is not None:
            moments.setdefault(c.committed, []).append(c.method)
    for epoch, methods in moments.items():
        of_whom = f": {', '.join(methods)}" if len(moments) > 1 else ""
        layout["shapes"].append(_upright(epoch))
        layout["annotations"].append(_note(epoch, f"choices in force{of_whom}", epoch > (first + last) / 2))
    alt = "; ".join(f"{m} ends at {c.accuracies[-1]:.2f} %" for m, c in means.items() if c.epochs)
    return Figure(group.title, f"Test accuracy over the epochs: {alt}.", {"": _figure(data, layout)})


def _mean_name(curve: Curve, of_method: Mapping[str, Sequence[Curve]]) -> str:
    n = len(of_method[curve.method])
    return (
        f"{curve.method}, mean of {n} seeds"
        if n > 1
        else f"{curve.method}, seed {of_method[curve.method][0].seed}"
    )


def _curve(curve: Curve, look: Look, name: str, width: float, opacity: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": plain(name),
        "x": list(curve.epochs),
        "y": [round(a, 4) for a in curve.accuracies],
        "opacity": opacity,
        "line": {"color": look.colour(curve.method), "width": width, "dash": look.dash(curve.method)},
        "hovertemplate": "%{fullData.name}<br>epoch %{x}: %{y:.2f} %<extra></extra>",
    }


def strip_figure(group: Group, look: Look) -> Figure:
    """Each seed a point, the points of a seed connected; beside them mean and t interval of each method."""
    axis = Axis("", "", lambda t: 0.0)
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
            data.append(_pair_line(1.2 if len(methods) <= _FEW_METHODS else 0.7, mine, heights))
    ends = [s.accuracy for s in found]
    for method in methods:
        mine = [s for s in found if s.method == method]
        data.append(_strip(mine, [place[method] + shift[s.seed] for s in mine if s.seed is not None], look))
        mean, interval = interval_of(group, method)
        data.append(_mean_mark(method, mean, interval, place[method] - 0.32, look))
        ends += [] if interval is None else [max(interval[0], 0.0), min(interval[1], 100.0)]
    layout = _layout("test accuracy, %", "", height=110 + 62 * len(methods), right=24)
    names = [plain(m, 20) for m in methods]
    low, high = _padded(ends)
    layout["xaxis"]["range"] = [max(low, -1), min(high, 101)]
    layout["yaxis"] |= {
        "tickvals": [place[m] for m in methods],
        "ticktext": names,
        "range": [-0.7, len(methods) - 0.5],
        "showgrid": False,
        "automargin": True,
    }
    alt = "; ".join(f"{m}: {', '.join(f'{s.accuracy:.2f}' for s in found if s.method == m)} %" for m in methods)
    return Figure(group.title, f"Test accuracy of each seed. {alt}.", {"": _figure(data, layout)})


def _pair_line(width: float, found: Sequence[Spot], y: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [s.accuracy for s in found],
        "y": list(y),
        "line": {"color": "@pair", "width": width},
        "hoverinfo": "skip",
    }


def _strip(found: Sequence[Spot], y: Sequence[float], look: Look) -> dict[str, Any]:
    method = found[0].method
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(method),
        "x": [s.accuracy for s in found],
        "y": list(y),
        "text": [f"seed {s.seed}{', dead' * s.dead}" for s in found],
        "marker": {
            "color": look.colour(method),
            "size": 9,
            "opacity": 0.85,
            "symbol": ["x" if s.dead else look.symbol(method) for s in found],
        },
        "hovertemplate": "%{fullData.name}<br>%{text}: %{x:.2f} %<extra></extra>",
    }


def _mean_mark(
    method: str, mean: float, interval: tuple[float, float] | None, y: float, look: Look
) -> dict[str, Any]:
    mark: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": plain(f"{method}, mean"),
        "x": [mean],
        "y": [y],
        "marker": {"color": look.colour(method), "symbol": "line-ns-open", "size": 14, "line": {"width": 3}},
        "hovertemplate": "%{fullData.name}<br>%{x:.2f} %<extra></extra>",
    }
    if interval is not None:
        half = interval[1] - mean
        mark["error_x"] = {
            "type": "data",
            "array": [half],
            "color": look.colour(method),
            "thickness": 2,
            "width": 5,
        }
    return mark


def tradeoff_figure(group: Group, look: Look) -> Figure:
    """Accuracy against each cost: runs faint, means with their names, and the line of those not beaten."""
    views = {axis.name: _tradeoff(group, axis, look) for axis in axes(group)}
    means = mean_spots(spots(group, axes(group)[0]))
    alt = "; ".join(f"{s.method}: {s.accuracy:.2f} % at {s.cost:.3g} {axes(group)[0].unit}" for s in means)
    return Figure(group.title, f"Test accuracy against multiply-adds, means. {alt}.", views)


def _tradeoff(group: Group, axis: Axis, look: Look) -> dict[str, Any]:
    runs = spots(group, axis)
    means = mean_spots(runs)
    front = pareto(means)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "not beaten by any other",
            "x": [s.cost for s in front],
            "y": [s.accuracy for s in front],
            "line": {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        }
    ]
    unit = plain(axis.unit)
    for mean in means:
        mine = [s for s in runs if s.method == mean.method]
        if len(mine) > 1:
            data.append(_cloud(mine, look, 7, 0.6, f"%{{text}}: %{{x:.4g}} {unit}, %{{y:.2f}} %"))
    data += [_cloud([m], look, 12, 1, f"mean: %{{x:.4g}} {unit}, %{{y:.2f}} %") for m in means]
    title = f"{axis.name} of the result" + (f", {axis.unit}" if axis.unit else "")
    layout = _layout(title, "test accuracy, %", height=380, right=24)
    layout["xaxis"]["range"] = across = _padded([s.cost for s in runs], least=0.0, share=0.12)
    layout["yaxis"]["range"] = span = _padded([s.accuracy for s in runs], share=0.08)
    for mean, y, on_the_left in label_places(means, across, span, 300):
        layout["annotations"].append(_leader(mean, y, span, look, on_the_left))
    return _figure(data, layout)


def _cloud(found: Sequence[Spot], look: Look, size: int, opacity: float, hover: str) -> dict[str, Any]:
    method = found[0].method
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(method),
        "x": [s.cost for s in found],
        "y": [s.accuracy for s in found],
        "text": [f"seed {s.seed}{', dead' * s.dead}" for s in found],
        "marker": {
            "color": look.colour(method),
            "size": size,
            "opacity": opacity,
            "symbol": ["x" if s.dead and s.seed is not None else look.symbol(method) for s in found],
        },
        "hovertemplate": f"%{{fullData.name}}<br>{hover}<extra></extra>",
    }


def _leader(mean: Spot, y: float, span: Sequence[float], look: Look, on_the_left: bool) -> dict[str, Any]:
    """A label beside a mean, drawn to it by a thin line where others pushed it away."""
    shift = -(y - mean.accuracy) / (span[1] - span[0]) * 300
    return {
        "x": mean.cost,
        "y": mean.accuracy,
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
    """The time that a run of each method took, search and training stacked."""
    methods = [row.method for row in group.rows]
    largest = max(row.search_hours + row.training_hours for row in group.rows)
    unit, size = (
        ("hours", 1.0) if largest >= 1 else ("minutes", 60.0) if largest >= 1 / 30 else ("seconds", 3600.0)
    )
    names = [plain(m, 20) for m in methods]
    data = [
        _bars(stage, [size * of(row) for row in group.rows], len(names), f"@{stage}", unit)
        for stage, of in _STAGES.items()
        if any(of(row) for row in group.rows)
    ]
    totals = [row.search_hours + row.training_hours for row in group.rows]
    layout = _layout(f"{unit} of one run, mean", "", height=120 + 44 * len(names), right=70)
    layout["barmode"] = "stack"
    layout["showlegend"] = len(data) > 1
    layout["legend"] = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"}
    layout["margin"]["t"] = 40
    layout["xaxis"]["rangemode"] = "tozero"
    places = list(range(len(names)))[::-1]
    layout["yaxis"] |= {"tickvals": places, "ticktext": names, "showgrid": False, "automargin": True}
    for place, total in zip(places, totals, strict=True):
        note = {
            "x": size * total,
            "y": place,
            "text": f" {duration(total)}",
            "xanchor": "left",
            "showarrow": False,
        }
        layout["annotations"].append(note | {"font": {"color": "@text", "size": 12}})
    alt = "; ".join(f"{m}: {duration(t)}" for m, t in zip(methods, totals, strict=True))
    return Figure(group.title, f"Time of one run, mean. {alt}.", {"": _figure(data, layout)})


_STAGES: dict[str, Callable[[Any], float]] = {
    "search": lambda row: row.search_hours,
    "training": lambda row: row.training_hours,
}


def _bars(name: str, values: Sequence[float], n: int, colour: str, unit: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(values),
        "y": list(range(n))[::-1],
        "width": 0.55,
        "marker": {"color": colour},
        "hovertemplate": f"{name}: %{{x:.3g}} {unit}<extra></extra>",
    }


def _figure(data: Sequence[Mapping[str, Any]], layout: Mapping[str, Any]) -> dict[str, Any]:
    return {"data": list(data), "layout": dict(layout)}


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


def _padded(values: Sequence[float], least: float = -math.inf, share: float = 0.05) -> list[float]:
    """A range with some room on both sides."""
    low, high = min(values), max(values)
    room = share * (high - low) or max(abs(high) * 0.02, 0.5)
    return [max(low - room, least), high + room]


def _room(labels: Sequence[str] | Mapping[str, Any]) -> float:
    """Pixels on the right for labels of the curves."""
    return 16 + _LETTER * max(len(plain(name, 16)) for name in labels)


def _label(x: float, y: float, method: str, look: Look, **more: Any) -> dict[str, Any]:
    font = {"color": look.colour(method), "size": 13}
    text = f" {plain(method, 16)}"
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


def spread_apart(values: Sequence[float], span: Sequence[float], pixels: float, gap: float = 17) -> list[float]:
    """Places near the values, in their order and on the axis, far enough apart for labels that stand there.

    Args:
        values: where labels belong.
        span: the axis' range, which is `pixels` long.
        pixels: see there.
        gap: pixels between two labels.
    """
    step = gap * (span[1] - span[0]) / pixels
    # Labels that touch make a block, which stands where the mean of its values is, as far as the axis reaches.
    blocks: list[tuple[list[int], float]] = []
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        blocks.append(([i], _within(values[i], step / 2, span)))
        while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], step):
            merged = blocks[-2][0] + blocks[-1][0]
            mean = sum(values[j] for j in merged) / len(merged)
            blocks[-2:] = [(merged, _within(mean, len(merged) * step / 2, span))]
    found = list(values)
    for members, centre in blocks:
        for place, i in enumerate(members):
            found[i] = centre + (place - (len(members) - 1) / 2) * step
    return found


def _within(centre: float, half: float, span: Sequence[float]) -> float:
    """The centre of something so large, moved into the span if it fits."""
    if 2 * half > span[1] - span[0]:
        return (span[0] + span[1]) / 2
    return min(max(centre, span[0] + half), span[1] - half)


def label_places(
    means: Sequence[Spot], across: Sequence[float], span: Sequence[float], pixels: float, gap: float = 17
) -> list[tuple[Spot, float, bool]]:
    """For each mean the height of its label and whether it stands on the left: towards the middle of the figure.

    Labels stand a little above their points, so that no level line runs through them.

    Args:
        means: in the plane of cost and accuracy.
        across: the range of costs.
        span: the range of accuracies, which is `pixels` long.
        pixels: see there.
        gap: pixels between two labels.
    """
    step = gap * (span[1] - span[0]) / pixels
    sides = {
        on_the_left: [m for m in means if _is_right(m, across) == on_the_left] for on_the_left in (False, True)
    }
    # Labels that point at one another from near points would meet in the middle on a narrow screen.
    near = 0.6 * (across[1] - across[0])
    meeting = any(
        abs(a.cost - b.cost) < near and abs(a.accuracy - b.accuracy) < 2 * step
        for a in sides[False]
        for b in sides[True]
    )
    found = []
    for mine in [sides[False] + sides[True]] if meeting else sides.values():
        heights = spread_apart([m.accuracy + 0.6 * step for m in mine], span, pixels, gap)
        found += [(m, y, _is_right(m, across)) for m, y in zip(mine, heights, strict=True)]
    return found


def _is_right(spot: Spot, across: Sequence[float]) -> bool:
    return spot.cost > (across[0] + across[1]) / 2


def _touch(lower: tuple[list[int], float], upper: tuple[list[int], float], step: float) -> bool:
    return upper[1] - lower[1] < step * (len(lower[0]) + len(upper[0])) / 2
