"""Pictures of genotypes, before and after their transformation: nodes, the operations on the edges, what changed.

A cell is drawn from left to right: the outputs of the two cells before it, its nodes with a box for each operation
that they sum, and its own output, the channels of the nodes that its light wires come from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any

from ...networks.genotypes import CellGenotype, Genotype
from .changes import Change, cell_edges, short_name
from .layout import BOX_HEIGHT, END, NODE, Layout, Place, Point, Wire, lay_out
from .parts import STYLES, blank_page, check_formats, rounded, save, text, text_width, wrap

WIDTH = 12.4
"""In inches: cells that do not fit into it side by side stand one below the other."""

_MARGIN, _APART, _HEADING, _BELOW, _LEGEND_LINE = 0.35, 0.6, 0.36, 0.28, 0.24
_LEADING = 1.55 / 72
_SIZE = 8.5
_CONCAT = ("#b9c7d3", "-", 1.0)
_WIRE = "#777777"
_STYLES = STYLES | {"absent": ("#999999", "#ffffff", (0, (1, 2.2)), 0.8)}
_HEADER = ((13, "bold", "#222222"), (9.5, "normal", "#222222"), (9.5, "normal", "#444444"))
_LEGEND = {
    "original": "unchanged",
    "identity": "becomes a skip connection",
    "none": "removed",
    "other": "becomes another operation",
    "added": "connection added",
    "absent": "null: no connection",
}
_COUNTED = {
    "identity": ("skip connection", "skip connections"),
    "none": ("removed", "removed"),
    "other": ("other operation", "other operations"),
    "added": ("connection added", "connections added"),
}


@dataclass(frozen=True)
class _Panel:
    """One cell to draw: its heading, where its parts stand, its edges, and before or after what (or neither)."""

    heading: str
    cell: CellGenotype
    layout: Layout
    edges: Mapping[Place, Change]
    phase: str

    @property
    def changed(self) -> bool:
        """Whether changes are marked here."""
        return self.phase == "after"

    def operation(self, place: Place) -> str:
        """What an edge computes."""
        return self.edges[place].after if self.changed else self.edges[place].before

    def state(self, place: Place) -> str:
        """How an edge looks."""
        if self.changed:
            return self.edges[place].state
        return "absent" if self.edges[place].before == "null" else "original"

    def is_zero(self, node: int) -> bool:
        """Whether only null edges lead to a node."""
        edges = self.cell.nodes[node - 2] if node > 1 else ()
        return node > 1 and all(self.operation((node - 2, j)) == "null" for j in range(len(edges)))


def draw_genotype(
    before: Genotype,
    path: str | Path,
    *,
    after: Genotype | None = None,
    title: str,
    subtitle: str = "",
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw the cells of a genotype; with `after`, those of both side by side, and what changed.

    If normal and reduce are equal, they are drawn once.

    Args:
        before: the genotype.
        path: where to write, without a suffix.
        after: what became of it: the same but for its operations.
        title: the first line of the picture.
        subtitle: the second.
        formats: png, svg or pdf.

    Returns:
        The files that were written. The same genotypes give the same SVG, byte for byte. In it, operations have
        ids like `edge:normal.nodes[2][0]:identity`; those before a transformation, `before:normal.nodes[2][0]`.

    Raises:
        ValueError: an unknown format, or genotypes that differ in more than their operations.
    """
    check_formats(formats)
    cells = {name: cell_edges(name, before, after or before) for name in ("normal", "reduce")}
    once = before.normal == before.reduce and (after is None or after.normal == after.reduce)
    if once:
        cells = {"normal and reduce": cells["normal"]}
    edges = [edge for found in cells.values() for edge in found]
    names = {short_name(operation) for edge in edges for operation in (edge.before, edge.after)}
    box = max(text_width(name, _SIZE) for name in names) + 0.14
    groups: list[list[_Panel]] = []
    for name, found in cells.items():
        cell = before.reduce if name == "reduce" else before.normal
        layout, places = lay_out(cell, box), {(edge.node, edge.edge): edge for edge in found}
        headings = {"": f"{name} cell"}
        if after is not None:
            headings = {phase: f"{name} cell, {phase}" for phase in ("before", "after")}
        groups.append([_Panel(words, cell, layout, places, phase) for phase, words in headings.items()])
    if after is None:
        groups = [[panel for panels in groups for panel in panels]]
    counts = "" if after is None else _counts(edges, " of each cell" if once else "")
    return save(_page(groups, (title, subtitle, counts)), path, formats)


def _counts(edges: Sequence[Change], where: str) -> str:
    states = [edge.state for edge in edges if edge.before != edge.after]
    words = f"{len(states)} of {len(edges)} edges{where} changed"
    parts = [f"{n} {names[n > 1]}" for state, names in _COUNTED.items() if (n := states.count(state))]
    return f"{words}: {', '.join(parts)}" if parts else words


def _page(groups: Sequence[Sequence[_Panel]], header: tuple[str, str, str]) -> Any:
    """The whole picture: words, panels (those of a group side by side if they fit), legend."""
    panels = [panel for group in groups for panel in group]
    rows: list[Sequence[_Panel]] = []
    for group in groups:
        rows += [group] if _width(group) <= WIDTH - 2 * _MARGIN else [[panel] for panel in group]
    width = max(_width(row) for row in rows)
    second = max((row[0].layout.width + _APART for row in rows if len(row) > 1), default=0.0)
    needs = (_needs(words, size, weight) for words, (size, weight, _) in zip(header, _HEADER, strict=True))
    width = max(width, *needs)
    lines = [
        (line, *style)
        for words, style in zip(header, _HEADER, strict=True)
        for line in wrap(words, width, style[0], style[1])
    ]
    legend = _legend(panels, width)
    height = 2 * _MARGIN + sum(size * _LEADING for _, size, _, _ in lines) + len(legend) * _LEGEND_LINE
    height += sum(_row_height(row) for row in rows)
    axes = blank_page(width + 2 * _MARGIN, height)
    y = _MARGIN - 0.1
    for line, size, weight, colour in lines:
        text(axes, _MARGIN, y + size * _LEADING / 2, line, size=size, weight=weight, colour=colour, align="left")
        y += size * _LEADING
    y += 0.1
    for row in rows:
        for column, panel in enumerate(row):
            _panel(axes, panel, _MARGIN + column * second, y, _row_height(row))
        y += _row_height(row)
    for items in legend:
        _legend_line(axes, items, y + _LEGEND_LINE / 2)
        y += _LEGEND_LINE
    return axes


def _needs(words: str, size: float, weight: str) -> float:
    """How wide a page must be for a line of its header: half of the usual width, or the longest word."""
    longest = max((text_width(word, size, weight) for word in words.split()), default=0.0)
    return max(longest, min(text_width(words, size, weight), WIDTH / 2))


def _width(row: Sequence[_Panel]) -> float:
    return sum(panel.layout.width + _APART for panel in row) - _APART


def _row_height(row: Sequence[_Panel]) -> float:
    return _HEADING + max(panel.layout.height for panel in row) + _BELOW


def _legend(panels: Sequence[_Panel], width: float) -> list[list[tuple[str, str, float]]]:
    """The states that occur, in lines: each with its words and its distance from the left."""
    marked = any(panel.changed for panel in panels)
    states = {panel.state(place) for panel in panels for place in panel.edges}
    items = [(state, words) for state, words in _LEGEND.items() if state in states]
    items = [(state, words if marked or state == "absent" else "operation") for state, words in items]
    lines: list[list[tuple[str, str, float]]] = []
    x = width
    for state, words in [*items, ("concat", "concatenated")]:
        needed = 0.38 + text_width(words, 8)
        if x + needed > width:
            lines.append([])
            x = 0.0
        lines[-1].append((state, words, x))
        x += needed + 0.2
    return lines


def _legend_line(axes: Any, items: Sequence[tuple[str, str, float]], y: float) -> None:
    for state, words, x in items:
        left = _MARGIN + x
        if state == "concat":
            _line(axes, [(left, y), (left + 0.3, y)], *_CONCAT)
        else:
            rounded(axes, left, y - 0.08, 0.3, 0.16, *_STYLES[state])
        text(axes, left + 0.38, y, words, size=8, align="left")


def _panel(axes: Any, panel: _Panel, x: float, y: float, height: float) -> None:
    text(axes, x, y + _HEADING / 2, panel.heading, size=10, weight="bold", align="left")
    layout = panel.layout
    # Panels of one row stand around the same line.
    dy = y + _HEADING + (height - _HEADING - _BELOW - layout.height) / 2

    def at(point: Point) -> Point:
        return point[0] + x, point[1] + dy

    looks = [(_wire_state(panel, wire), wire) for wire in layout.wires]
    order = ("absent", "concat", "original", "none")  # what matters more lies above
    looks.sort(key=lambda look: order.index(look[0]) if look[0] in order else len(order))
    for state, wire in looks:
        _line(axes, _curve(at(wire.start), at(wire.bend), at(wire.end)), *_wire_style(state))
    for place in panel.edges:
        _operation(axes, panel, place, at(layout.operations[place]), at(layout.nodes[place[0] + 2]))
    for node, point in layout.nodes.items():
        _node(axes, panel, node, at(point))
    _end(axes, "$c_{k}$", at(layout.output))


def _wire_state(panel: _Panel, wire: Wire) -> str:
    """How a piece of wire looks that may serve several edges: as those of them look that let something through."""
    states = {panel.state(place) for place in wire.edges}
    live = states - {"absent", "none"}
    if live:
        return live.pop() if len(live) == 1 else "original"
    if wire.concat:
        return "absent" if panel.is_zero(wire.node) else "concat"
    return "none" if "none" in states else "absent"


def _wire_style(state: str) -> tuple[str, Any, float]:
    if state == "concat":
        return _CONCAT
    colour, _, style, width = _STYLES[state]
    return (_WIRE, "-", 0.9) if state == "original" else (colour, style, width)


def _curve(start: Point, bend: Point, end: Point) -> list[Point]:
    """A curve that leaves and arrives level, as control points, and a straight piece."""
    middle = (start[0] + bend[0]) / 2
    return [start, (middle, start[1]), (middle, bend[1]), bend, end]


def _line(axes: Any, points: Sequence[Point], colour: str, style: Any, width: float) -> None:
    """A straight line (two points) or a curve (four) with a straight piece behind it."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    codes = [Curve.MOVETO, Curve.LINETO]
    if len(points) > 2:
        codes = [Curve.MOVETO, *[Curve.CURVE4] * 3, Curve.LINETO]
    cap = "round" if style == "-" else "butt"  # pieces of one wire meet without a seam
    path = Curve(points, codes)
    axes.add_patch(
        PathPatch(path, edgecolor=colour, facecolor="none", linestyle=style, linewidth=width, capstyle=cap)
    )


def _operation(axes: Any, panel: _Panel, place: Place, point: Point, node: Point) -> None:
    """The box of an operation, and the arrow from it to its node."""
    state = panel.state(place)
    colour, fill, style, line = _STYLES[state]
    if state == "original" and panel.operation(place) == "skip_connect":
        fill = "#ffffff"
    x, y, box = *point, panel.layout.box
    patch = rounded(axes, x - box / 2, y - BOX_HEIGHT / 2, box, BOX_HEIGHT, colour, fill, style, line)
    key = panel.edges[place].key
    patch.set_gid(f"before:{key}" if panel.phase == "before" else f"edge:{key}:{state}")
    strong = "#999999" if state == "absent" else "#222222"
    text(axes, x, y, short_name(panel.operation(place)), size=_SIZE, colour=strong)
    start, end = (x + box / 2, y), _towards(node, (x + box / 2, y), NODE / 2)
    wire, style, line = _wire_style(state)
    if state in ("absent", "none"):  # nothing arrives there
        _line(axes, [start, end], wire, style, line)
    else:
        _arrow(axes, start, end, wire, style, line)


def _towards(point: Point, start: Point, distance: float) -> Point:
    """The place at a distance before a point, on the line from `start`."""
    dx, dy = point[0] - start[0], point[1] - start[1]
    share = 1 - distance / hypot(dx, dy)
    return start[0] + dx * share, start[1] + dy * share


def _arrow(axes: Any, start: Point, end: Point, colour: str, style: Any, width: float) -> None:
    _line(axes, [start, end], colour, style, width)
    head = {"arrowstyle": "-|>", "color": colour, "lw": 0, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
    axes.annotate("", xy=end, xytext=start, arrowprops=head)


def _node(axes: Any, panel: _Panel, node: int, point: Point) -> None:
    """A node with its number; one that only null edges lead to is faint, since it is zero."""
    from matplotlib.patches import Circle

    if node < 2:
        _end(axes, "$c_{k-2}$" if node == 0 else "$c_{k-1}$", point)
        return
    zero = panel.is_zero(node)
    colour, _, style, line = _STYLES["absent" if zero else "original"]
    axes.add_patch(Circle(point, NODE / 2, edgecolor=colour, facecolor="#ffffff", linestyle=style, linewidth=line))
    text(axes, *point, str(node - 2), size=_SIZE, colour="#999999" if zero else "#222222")


def _end(axes: Any, name: str, point: Point) -> None:
    """An input of the cell or its output."""
    x, y = point[0] - END[0] / 2, point[1] - END[1] / 2
    rounded(axes, x, y, *END, "#444444", "#f6f6f6", "-", 0.8)
    axes.text(*point, name, fontsize=10, ha="center", va="center", color="#222222")
