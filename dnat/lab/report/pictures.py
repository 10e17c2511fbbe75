"""Static pictures of a report, as in a paper: seeds, the metric against multiply-adds, curves; SVG and PNG."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..drawing.parts import check_formats, save
from .gather import Group, Report
from .looks import LIGHT, Look, shortened
from .placing import label_places, spread_apart
from .series import SEED_CURVES, axes, curves, interval_of, mean_curve, mean_spots, pareto, reach, spots, thinned

_MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "pentagon": "p",
    "star": "*",
    "hexagon": "h",
    "triangle-down": "v",
}
_WIDTH = 4.6  # inches


def draw(report: Report, folder: str | Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw each network's seeds, costs and curves into a folder, which is made where it is missing.

    Returns:
        The files, named KIND-NETWORK-DATA.FORMAT.

    Raises:
        ValueError: an unknown format.
    """
    check_formats(formats)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    look, files = Look(report.methods), list[Path]()
    for group in report.groups:
        for kind, drawn in _KINDS.items():
            picture = drawn(group, look)
            if picture is not None:
                # Placed once: each format would otherwise move the parts a little further.
                picture.figure.draw_without_rendering()
                picture.figure.set_layout_engine("none")
                files += save(picture, folder / f"{kind}-{file_name(group)}", formats)
    return files


def file_name(group: Group) -> str:
    """A network and its data as the part of a file's name.

    >>> file_name(Group("cifar10", "torchvision:resnet18", (), {}))
    'torchvision-resnet18-cifar10'
    """
    kept = "".join(c if c.isalnum() or c in "._" else "-" for c in f"{group.network}-{group.data}")
    return kept[:100].strip("-.") or "network"


def _page(height: float) -> Any:
    figure = Figure(figsize=(_WIDTH, height), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    with rc_context({"font.size": 8}):
        axes_ = figure.add_subplot()
    for side in ("top", "right"):
        axes_.spines[side].set_visible(False)
    axes_.tick_params(labelsize=8, colors=LIGHT["text"])
    return axes_


def _titles(page: Any, group: Group, x: str, y: str) -> None:
    page.set_title(shortened(group.title, 60), fontsize=9, loc="left", pad=12, parse_math=False)
    page.set_xlabel(shortened(x, 60), fontsize=8, parse_math=False)
    page.set_ylabel(shortened(y, 60), fontsize=8, parse_math=False)


def strip_picture(group: Group, look: Look) -> Any:
    """Each seed a point, points of a seed connected, mean and t interval below."""
    names = list(group.runs)
    page = _page(0.9 + 0.45 * len(names))
    by_seed: dict[int, list[tuple[float, float]]] = {}
    seeds = sorted({run.trial.seed for runs in group.runs.values() for run in runs})
    for place, method in enumerate(names):
        for run in group.runs[method]:
            shift = 0.3 * (seeds.index(run.trial.seed) / max(len(seeds) - 1, 1) - 0.5)
            point = (run.trial.value, place - 0.12 + shift)
            by_seed.setdefault(run.trial.seed, []).append(point)
            marker = "x" if run.trial.dead else _MARKERS[look.symbol(method)]
            page.plot(*point, marker, color=look.paint(method), markersize=4, zorder=3)
        mean, interval = interval_of(group, method)
        reach = 0.0 if interval is None else interval[1] - mean
        style = {"color": look.paint(method), "zorder": 2}
        page.errorbar(mean, place + 0.26, xerr=reach, fmt="|", markersize=9, capsize=2.5, linewidth=1.2, **style)
    for points in by_seed.values():
        page.plot(*zip(*points, strict=True), color="#cfd4da", linewidth=0.7, zorder=1)
    page.set_ylim(len(names) - 0.4, -0.6)
    page.set_yticks(range(len(names)))
    page.set_yticklabels([shortened(m, 20) for m in names], parse_math=False)
    page.tick_params(axis="y", length=0)
    _titles(page, group, group.tested, "")
    return page


def tradeoff_picture(group: Group, look: Look) -> Any:
    """The metric against multiply-adds: runs faint, means with names, the line of those not beaten."""
    page = _page(2.9)
    axis = axes(group)[0]
    runs = spots(group, axis)
    means = mean_spots(runs)
    front = pareto(means, group.metric)
    page.step([s.cost for s in front], [s.value for s in front], ":", where="post", color="#5c6570", linewidth=1)
    for spot in runs:
        marker = "x" if spot.dead else _MARKERS[look.symbol(spot.method)]
        page.plot(spot.cost, spot.value, marker, color=look.paint(spot.method), markersize=3.5, alpha=0.4)
    for mean in means:
        colour = look.paint(mean.method)
        page.plot(mean.cost, mean.value, _MARKERS[look.symbol(mean.method)], color=colour, markersize=7)
    page.margins(x=0.14, y=0.1)
    low, high = page.get_xlim()
    for mean, y, left in label_places(means, (low, high), page.get_ylim(), 200, gap=12):
        page.annotate(
            shortened(mean.method, 20),
            (mean.cost, mean.value),
            (mean.cost + (high - low) * (-0.035 if left else 0.035), y),
            ha="right" if left else "left",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            color=look.paint(mean.method),
            parse_math=False,
        )
    unit = f", {axis.unit}" if axis.unit else ""
    _titles(page, group, f"multiply-adds of the result{unit}", group.tested)
    return page


def curve_picture(group: Group, look: Look) -> Any:
    """The metric over the epochs, thin for seeds and thick for means; None where there are no curves."""
    found = {m: list(c) for m, c in itertools.groupby(curves(group), lambda c: c.method)}
    if not found:
        return None
    page = _page(2.9)
    ends = []
    for method, mine in found.items():
        colour = look.paint(method)
        for curve in map(thinned, mine[:SEED_CURVES] if len(mine) > 1 else []):
            page.plot(curve.epochs, curve.values, color=colour, linewidth=0.6, alpha=0.4)
        mean = thinned(mean_curve(mine))
        if mean.epochs:
            page.plot(mean.epochs, mean.values, color=colour, linewidth=1.6)
            ends.append((method, mean.values[-1]))
    for epoch in sorted({c for mine in found.values() if (c := mean_curve(mine).committed) is not None}):
        page.axvline(epoch, color="#5c6570", linewidth=0.7, linestyle="--")
        place = {"transform": page.get_xaxis_transform(), "fontsize": 6.5, "va": "bottom"}
        page.text(epoch, 1.0, " choices in force", color="#5c6570", **place)
    every = [value for mine in found.values() for curve in mine for value in curve.values]
    low, high = reach(list(itertools.chain(*found.values())), group.metric.direction)
    if low < high and (low, high) != (min(every), max(every)):
        page.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
    heights = spread_apart([value for _, value in ends], page.get_ylim(), 200, gap=11)
    for (method, _), y in zip(ends, heights, strict=True):
        page.annotate(
            shortened(method, 16),
            (1.015, y),
            xycoords=("axes fraction", "data"),
            fontsize=8,
            va="center",
            color=look.paint(method),
            annotation_clip=False,
            parse_math=False,
        )
    page.xaxis.set_major_locator(MaxNLocator(integer=True))
    _titles(page, group, "epoch", group.watched)
    return page


_KINDS: dict[str, Callable[[Group, Look], Any]] = {
    "seeds": strip_picture,
    "tradeoff": tradeoff_picture,
    "curves": curve_picture,
}
