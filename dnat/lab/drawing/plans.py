"""A picture of a plan: what each cost does to the answers, and what each choice does alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...edges import IDENTITY, NONE, ORIGINAL, remaining_share
from ...errors import UsageError
from ...proposal import Proposal, Proposals, Tried, amount, may_change
from .parts import FORMATS, STYLES, save

LEAST = 1e-4
"""The damage at the foot of the bars: what does less is shown as no more than a line."""

MOST_LABELS = 130
"""So many edges have their names; of more, those that are chosen somewhere, as far as there is room."""

_TEXT, _MUTED, _LINE = "#1b1f24", "#5c6570", "#0072b2"
_COLOURS = {choice: STYLES[choice][0] for choice in (IDENTITY, NONE, "other", "narrowed")}
_WORDS = {
    IDENTITY: "identity",
    NONE: "none",
    "other": "another operation (the best one)",
    "narrowed": "narrower, 7/8 to 1/8 (below: what is kept)",
}
_KEPT, _FIXED, _CUT = STYLES["original"][1], "#c9ced4", STYLES["narrowed"][1]
_OF_WIDTHS = "#8f3f6d"
"""The colour of the names of widths."""


def draw_plan(plan: Proposals, path: str | Path) -> Path:
    """Draw a plan: damage over cost with its budgets, the damage of each choice, and what each budget takes.

    Args:
        plan: the result of `dnat.plan`.
        path: of the file, which ends in .png, .svg or .pdf.

    Returns:
        The file. The same plan gives the same bytes.

    Raises:
        ValueError: another ending.
    """
    form = check_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    places = _places(plan)
    rows = max(len(plan.proposals), 1)
    width = min(max(8.0, 1.9 + 0.155 * len(places)), 24.0)
    row = 0.32 if _has_widths(plan) else 0.2
    heights = [2.5, 2.3, row * rows + 0.05]
    with rc_context({"font.size": 8, "text.color": _TEXT, "axes.labelcolor": _TEXT, "text.parse_math": False}):
        figure = Figure(figsize=(width, sum(heights) + 2.3), dpi=150, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_title(plan), fontsize=10, x=0.01, ha="left")
        curve, bars, table = figure.subplots(3, 1, height_ratios=heights)
        _draw_curve(curve, plan)
        _draw_bars(bars, plan, places)
        _draw_table(table, plan, places)
        # Placed once: saving would otherwise move the parts a little further.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for part in (curve, bars, table):  # the layout's solver rounds now one way and now another
            part.set_position([round(bound, 9) for bound in part.get_position().bounds])
        return save(curve, Path(path).with_suffix(""), [form])[0]


def check_picture(path: str | Path) -> str:
    """The format of a picture's file, by its ending.

    Raises:
        ValueError: it is none of `FORMATS`, or there is no such folder.
    """
    path = Path(path)
    form = path.suffix.removeprefix(".")
    if form not in FORMATS:
        raise UsageError(f"{path} cannot be drawn: end it in .{', .'.join(FORMATS)}")
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    return form


def _title(plan: Proposals) -> str:
    return (
        f"{plan.network}: {amount(plan.madds, 'madds')}, {may_change(plan)}; "
        f"{plan.images} images shown, nothing trained"
    )


def _places(plan: Proposals) -> dict[str, Tried | None]:
    """What is shown from left to right by its key, as the network comes to it; None: it cannot change."""
    edges = {edge.key: edge for edge in plan.edges}
    # What holds something that is shown is left out: it would be there twice.
    costly = [f.key for f in plan.fixed if f.madds and f.kind != "width"]
    fixed = [k for k in costly if not any(other.startswith(f"{k}.") for other in (*edges, *costly))]
    order = {key: i for i, key in enumerate(plan.order)}
    fixed = [] if all(edge.kind == "width" for edge in plan.edges) else fixed  # nothing else was asked for
    shown = sorted((*edges, *fixed), key=lambda key: order.get(key, len(order)))
    return {key: edges.get(key) for key in shown}


def _has_widths(plan: Proposals) -> bool:
    return any(edge.kind == "width" for edge in plan.edges)


def _draw_curve(axes: Any, plan: Proposals) -> None:
    points = [(100 * madds / plan.madds, damage) for madds, damage in plan.curve if math.isfinite(damage)]
    style = {"color": _LINE, "markersize": 3, "linewidth": 1.4, "zorder": 2}
    handles = axes.plot(*zip(*points, strict=True), "o-", label="best sets, sum of single damages", **style)
    ends = [damage for _, damage in points]
    for proposal in plan.proposals:
        x, damage = 100 * proposal.madds / plan.madds, proposal.expected
        if not math.isfinite(damage):
            continue
        ends.append(damage)
        label = "at a budget"
        marks = axes.plot(x, damage, "D", color=_COLOURS[IDENTITY], markersize=6, zorder=3, label=label)
        handles = [handles[0], *marks]
        words = f"{proposal.budget}: {damage:.2g}"
        axes.annotate(words, (x, damage), (7, 3), textcoords="offset points", fontsize=8, zorder=4)
    axes.legend(handles=handles, loc="upper right", frameon=False, fontsize=8)
    axes.set_xlim(0, 104)
    axes.set_xticks(range(0, 101, 10))
    top = max(ends)
    axes.set_ylim(-0.04 * top if top else -0.04, 1.14 * top if top else 1)
    axes.set_xlabel("multiply-adds left, %")
    axes.set_ylabel("damage to the answers")
    axes.grid(color="#e4e7eb", linewidth=0.6)
    _plain(axes)


def _draw_bars(axes: Any, plan: Proposals, places: Mapping[str, Tried | None]) -> None:
    """For each edge the damage of identity, none and the best other operation, side by side; of a width of all."""
    made = [proposal.choices for proposal in plan.proposals]
    kinds = {kind for edge in places.values() if edge for kind, _, _ in _damages(edge)}
    known = [d for edge in places.values() if edge for _, _, d in _damages(edge) if math.isfinite(d)]
    top = max([10 * LEAST, *known]) * 1.6
    for x, (key, edge) in enumerate(places.items()):
        if edge is None:
            axes.axvspan(x - 0.5, x + 0.5, color=_FIXED, alpha=0.5, linewidth=0)
            continue
        found = _damages(edge)
        step = 0.8 / max(len(found), 1)
        for i, (kind, choice, damage) in enumerate(found):
            taken = any(choices[key] == choice for choices in made)
            height = min(max(damage, LEAST * 1.15), top)
            axes.bar(
                *(x - 0.4 + step * (i + 0.5), height - LEAST, (1.0 if kind == "narrowed" else 0.88) * step),
                bottom=LEAST,
                color=_COLOURS[kind],
                alpha=1.0 if taken else 0.35,
                linewidth=0,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(LEAST, top)
    axes.set_ylabel("damage of each choice\nalone (log scale)")
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    _along(axes, places)
    axes.set_xticks([])
    _plain(axes)
    from matplotlib.patches import Patch

    handles = [Patch(color=_COLOURS[kind], label=_WORDS[kind]) for kind in _WORDS if kind in kinds]
    handles += [Patch(color=_MUTED, alpha=0.35, label="pale: taken at no budget")] if made else []
    fixed = "cannot change, but for widths" if _has_widths(plan) else "cannot change"
    handles += [Patch(color=_FIXED, alpha=0.5, label=fixed)] if None in places.values() else []
    columns = 5 if axes.figure.get_figwidth() > 11 else 3
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
    axes.legend(handles=handles, ncols=columns, frameon=False, fontsize=8, **place)


def _damages(edge: Tried) -> list[tuple[str, str, float]]:
    """(kind of choice, choice, damage) of what has a bar: of other operations the one that does least."""
    if edge.kind == "width":
        return [("narrowed", choice, damage) for choice, damage in edge.damages.items() if choice != ORIGINAL]
    found = [(c, c, edge.damages[c]) for c in (IDENTITY, NONE) if c in edge.damages]
    others = {c: d for c, d in edge.damages.items() if c not in (IDENTITY, NONE, ORIGINAL)}
    if others:
        best = min(others, key=lambda c: others[c])
        found.append(("other", best, others[best]))
    return found


def _draw_table(axes: Any, plan: Proposals, places: Mapping[str, Tried | None]) -> None:
    """A row for each budget: what becomes of each edge, and of a width how much is kept."""
    for y, proposal in enumerate(plan.proposals):
        for x, (key, edge) in enumerate(places.items()):
            colour, kept = _cell(edge, proposal.choices[key]) if edge else (_FIXED, 1.0)
            if kept < 1:
                axes.bar(x, 0.84, 0.9, bottom=y - 0.42, color=_CUT, linewidth=0)
            axes.bar(x, -0.84 * kept, 0.9, bottom=y + 0.42, color=colour, linewidth=0)
    _along(axes, places)
    axes.set_ylim(max(len(plan.proposals), 1) - 0.5, -0.5)
    axes.set_yticks(range(len(plan.proposals)))
    axes.set_yticklabels([f"{p.budget}: {p.madds / plan.madds:.0%} left" for p in plan.proposals], fontsize=8)
    names = list(places)
    named = _named(names, plan.proposals, 0.1 * len(names) / axes.figure.get_figwidth())
    axes.set_xticks(named)
    axes.set_xticklabels([names[i].partition(">")[0] for i in named], rotation=90, fontsize=6.5)
    axes.tick_params(length=0)
    _plain(axes)  # before names have colours: it would undo them
    for label, i in zip(axes.get_xticklabels(), named, strict=True):
        edge = places[names[i]]
        label.set_color("#8a929b" if edge is None else _OF_WIDTHS if edge.kind == "width" else _TEXT)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(edge: Tried, choice: str) -> tuple[str, float]:
    """The colour of a choice in the table, and how much of its cell it fills."""
    if choice == ORIGINAL:
        return _KEPT, 1.0
    if edge.kind == "width":
        return _COLOURS["narrowed"], remaining_share(edge.operation, choice)
    return _COLOURS.get(choice, _COLOURS["other"]), 1.0


def _named(names: Sequence[str], proposals: Sequence[Proposal], apart: float) -> list[int]:
    """Which edges have their names below them: all, or of very many those that change, so far apart."""
    if len(names) <= MOST_LABELS:
        return list(range(len(names)))
    taken = {key for p in proposals for key in p.changed}
    found: list[int] = []
    for i, key in enumerate(names):
        if key in taken and (not found or i - found[-1] >= apart):
            found.append(i)
    return found


def _along(axes: Any, places: Mapping[str, Tried | None]) -> None:
    axes.set_xlim(-0.7, len(places) - 0.3)


def _plain(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=_TEXT)
