"""Before/after pictures of a network: its graph with what changes marked, and the graph of what is left.

A picture is drawn from plain rows and graphs, so that a finished run can be drawn again from architecture.json.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...costs import Cost
from ...edges import Tally, narrowed, remaining_share
from ...networks.genotypes import OPERATIONS
from ..formatting import count
from .changes import short_name
from .flow import HEADING, Flow, Frame, flow, parts_of, sections_of
from .graphs import Graph, Node
from .modules import block_of, condensed, modules_of, runs_of
from .parts import STYLES, blank_page, check_formats, rounded, save, text, text_width, wrap
from .rows import OperationRow

WIDTH = 7.08
"""Width of the picture in inches, 180 mm: a page's. One unit of its coordinates is an inch."""

_MARGIN, _APART = 0.08, 0.3
_LARGE, _SMALL = 6.6, 6.0
_HIGH, _FLAT, _ROUND, _MOST = 0.27, 0.15, 0.15, 1.0
"""Height of an operation, of a mark, of a join; the greatest width of an operation."""

_WIDE = ("operation", "module")
_LEAST, _HEAVIEST = (0.965, 0.975, 0.985), (0.60, 0.74, 0.87)
"""Fill for no multiply-adds, and for the most that an operation of the network has."""

_WIRE, _GONE = "#70767c", "#d9a3ab"
_LEGEND = {
    "identity": "becomes identity",
    "none": "removed",
    "removed": "goes along with it",
    "added": "skip connection added",
    "other": "becomes another operation",
    "narrowed": "narrower: so many of its channels stay",
}


@dataclass(frozen=True)
class _Box:
    """How a node is drawn: its two lines of text, its state, its share of the most multiply-adds, its size."""

    kind: str
    lines: tuple[str, ...]
    state: str
    share: float
    width: float
    height: float
    kept: float = 1.0


@dataclass(frozen=True)
class _Panel:
    """One of the two graphs, placed."""

    name: str
    graph: Graph
    boxes: tuple[_Box, ...]
    flow: Flow


def draw_network(
    rows: Sequence[OperationRow],
    path: str | Path,
    *,
    graphs: tuple[Graph, Graph],
    title: str,
    before: Cost,
    after: Cost,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw a network before and after its transformation.

    Args:
        rows: its operations in order of execution.
        path: where to write, without a suffix.
        graphs: before and after, as `graph_of` makes them.
        title: the first line of the picture.
        before, after: what the network costs.
        formats: png, svg or pdf.

    Returns:
        The files that were written. The same rows and graphs give the same SVG, byte for byte. In it, operations
        before have ids like `edge:KEY:STATE`, those after `after:KEY`; what is drawn for several, the first's.

    Raises:
        ValueError: an unknown format.
    """
    check_formats(formats)
    return save(_page(rows, graphs, title, before, after), path, formats)


def _page(rows: Sequence[OperationRow], graphs: tuple[Graph, Graph], title: str, before: Cost, after: Cost) -> Any:
    unchanged = graphs[0] == graphs[1] and all(row.state in ("original", "fixed", "absent") for row in rows)
    names = ("",) if unchanged else ("before", "after")
    room = WIDTH - 2 * _MARGIN
    makers = [_maker(name, graph, rows, graphs) for name, graph in zip(names, graphs, strict=False)]
    panels, half = [make(room) for make in makers], (room - _APART) / 2
    halves = [make(half) for make in makers] if len(makers) > 1 else []
    beside = bool(halves) and all(panel.flow.width <= half for panel in halves)
    beside = beside and max(p.flow.height for p in halves) <= sum(p.flow.height for p in panels)
    panels = halves if beside else panels
    heights = [panel.flow.height + 0.32 for panel in panels]
    width = max(WIDTH, 2 * _MARGIN + max(panel.flow.width for panel in panels))
    lines = _header(rows, title, before, after, width - 2 * _MARGIN)
    top = 0.12 + sum(size * 1.5 / 72 for _, size, _ in lines)
    legend = _legend(panels, rows, width - 2 * _MARGIN)
    tall = max(heights) if beside else sum(heights)
    axes = blank_page(width, top + tall + 0.2 * len(legend) + 0.14)
    y = 0.06
    for words, size, weight in lines:
        text(axes, _MARGIN, y + size * 0.75 / 72, words, size=size, weight=weight, align="left")
        y += size * 1.5 / 72
    x, y = _MARGIN, top
    for panel, height in zip(panels, heights, strict=True):
        _draw_panel(axes, panel, x, y)
        x, y = (x + (room + _APART) / 2, y) if beside else (x, y + height)
    for i, line in enumerate(legend):
        _draw_legend(axes, line, top + tall + 0.2 * i + 0.14)
    return axes


def _header(
    rows: Sequence[OperationRow], title: str, before: Cost, after: Cost, width: float
) -> list[tuple[str, float, str]]:
    words = _changes_text([row for row in rows if row.kind != "fixed"])
    cost = ",  ".join(
        f"{name} {count(a)} → {count(b)} ({(b - a) / a:+.1%})" if a else f"{name} 0"
        for name, a, b in (
            ("parameters", before.params, after.params),
            ("multiply-adds", before.madds, after.madds),
        )
    )
    styles = ((title, 10.0, "bold"), (cost, 7.5, "normal"), (words, 7.5, "normal"))
    return [(line, size, weight) for all_, size, weight in styles for line in wrap(all_, width, size, weight)]


def _maker(
    name: str, graph: Graph, rows: Sequence[OperationRow], graphs: tuple[Graph, Graph]
) -> Callable[[float], _Panel]:
    """What makes a panel of a width."""
    runs, modules = runs_of(graph), modules_of(graphs[0])
    block = {node: block_of(graph, part, modules) for part in parts_of(graph) for node in part.nodes}
    block |= {node: module for run, module in runs.items() for node in run}
    known, narrow = {row.key: row for row in rows}, _narrowed(rows)
    most = _most(graphs[0])

    def box(node: Node, within: str, apart: bool = False) -> _Box:
        row, width = known.get(node.key), narrow.get(node.key)
        state = _state(node, row, rows, width, before=name == "before")
        lines = _lines(node, row, within, state, width, before=name == "before", sizes=not apart)
        kept = remaining_share(width.operation, width.choice) if width and state == "narrowed" else 1.0
        share = 0.0 if apart or not most else min(node.madds / most, 1.0)
        return _Box(node.kind, lines, state, share, *_size(node, lines), kept)

    inside = {node for run in runs for node in run}
    boxes = [box(node, block[i], i in inside) for i, node in enumerate(graph.nodes)]
    whole, came, apart = condensed(graph, runs, boxes.__getitem__)
    boxes = [boxes[i] if i >= 0 else box(node, "") for node, i in zip(whole.nodes, came, strict=True)]
    apart_ = [i in inside for i in came]
    widest = [
        max((b.width for b, a in zip(boxes, apart_, strict=True) if b.kind in _WIDE and a == own), default=0.6)
        for own in (False, True)
    ]
    boxes = [replace(b, width=widest[a]) if b.kind in _WIDE else b for b, a in zip(boxes, apart_, strict=True)]
    parts = parts_of(whole)
    blocks = [block_of(whole, part, {*modules, *apart}) for part in parts]
    long = any(text_width(name, _SMALL) > min(widest) / 2 for name in blocks)
    sections = sections_of(
        parts,
        blocks,
        lambda node: (boxes[node].width, boxes[node].height),
        lambda node: boxes[node],
        HEADING + 0.1 * long,
    )
    sections = [replace(s, times=len(apart.get(s.first, "1"))) if s.first in apart else s for s in sections]
    return lambda width: _Panel(name, whole, tuple(boxes), flow(sections, width))


def _most(graph: Graph) -> int:
    """The most multiply-adds that one box has."""
    runs = runs_of(graph)
    inside = {node for run in runs for node in run}
    alone = [node.madds for i, node in enumerate(graph.nodes) if i not in inside]
    return max([*alone, *(sum(graph.nodes[i].madds for i in run) for run in runs)], default=0)


def _state(
    node: Node, row: OperationRow | None, rows: Iterable[OperationRow], width: OperationRow | None, *, before: bool
) -> str:
    """How a node looks."""
    if row and row.state == "added":
        return "added"
    if before and node.fate != "stays":
        around = [r.state for r in rows if _is_inside(node, r)]
        if "identity" in around and "none" not in around:
            return "identity"
        gone = "none" if "none" in around or (row and row.state == "none") else "removed"
        return gone if node.fate == "goes" else "identity" if row else "absent"
    if width:
        return "narrowed"
    return "other" if row and row.state == "other" else "original"


def _is_inside(node: Node, whole: OperationRow) -> bool:
    return whole.kind in ("block", "branch") and f"{node.path}.".startswith(f"{whole.entry}.")


def _lines(
    node: Node,
    row: OperationRow | None,
    block: str,
    state: str,
    width: OperationRow | None,
    *,
    before: bool,
    sizes: bool,
) -> tuple[str, ...]:
    """What is written in a node: what it computes; its name, and its channels or what becomes of it."""
    if node.kind == "module":
        return tuple(_cut(line, _MOST - 0.1) for line in node.label.split("\n"))
    if node.kind != "operation":
        return (_words(node.label),)
    own = node.path.removeprefix(f"{block}.") if block and node.path != block else node.path.rpartition(".")[2]
    own = own if block else node.path
    became = {"identity": "identity", "none": "removed", "removed": "removed"}.get(state, "")
    if state == "narrowed" and width:
        became = _channels_left(width)
    if state == "other" and row and before:
        became = f"→ {_words(row.choice)}"
    if not became and sizes:
        ends = (row.left or row.channels) if row and not before else row.channels if row else node.shape[:1]
        became = "→".join(map(str, ends))
    size = f" @{node.shape[-1]}" if len(node.shape) == 3 and row and row.operation != "linear" and sizes else ""
    became = (f" {became}" if "→ " in became else f": {became}") if became else ""
    return f"{_words(node.label)}{size}", _cut(own, _MOST - 0.1 - text_width(became, _SMALL)) + became


def _words(label: str) -> str:
    """An operation's name as it is read."""
    if label in OPERATIONS:
        return short_name(label)
    if label.startswith(("conv", "dw", "gc")):
        return label.replace("_", " ").replace("x", "×")
    return "attention" if label == "scaled_dot_product_attention" else label


def _cut(words: str, room: float) -> str:
    """A name's end, as much as there is room for."""
    if text_width(words, _SMALL) <= room:
        return words
    while len(words) > 3 and text_width(f"…{words}", _SMALL) > room:
        words = words[1:]
    return f"…{words.lstrip('.')}"


def _size(node: Node, lines: Sequence[str]) -> tuple[float, float]:
    if node.kind == "join" and len(node.label) == 1:
        return _ROUND, _ROUND
    sizes = (_LARGE, _SMALL) if node.kind in _WIDE else (_SMALL,)
    wide = max(text_width(line, size) for line, size in zip(lines, sizes, strict=True)) + 0.1
    return min(wide, _MOST), _HIGH if node.kind in _WIDE else _FLAT


def _channels_left(width: OperationRow) -> str:
    left = narrowed(width.operation, width.choice).partition(" ")[0]
    return f"→ {left} of {width.operation.removesuffix(' channels').replace(' x ', '×')}"


def _narrowed(rows: Sequence[OperationRow]) -> dict[str, OperationRow]:
    """{key of the operation that makes a width's channels: the width}, of those that are narrower.

    Channels that no operation of the picture makes stand at the next one: it reads them.
    """
    found: dict[str, OperationRow] = {}
    units = [r for r in rows if r.kind not in ("width", "skip", "block", "branch")]
    for i, row in enumerate(rows):
        if row.state != "narrowed":
            continue
        makers = [r for r in units if r.entry == row.entry] or [r for r in rows[i:] if r in units]
        for maker in makers[:1]:
            found[maker.key] = row
    return found


def _changes_text(edges: Sequence[OperationRow]) -> str:
    """How many edges changed, and to what."""
    tally = Tally.of((row.kind, row.choice) for row in edges)
    states = [row.state for row in edges if row.choice != "original"]
    words = f"{states.count('identity')} identity, {states.count('none')} none"
    if "other" in states:
        words += f", {states.count('other')} other operations"
    if "added" in states:
        words += f", {states.count('added')} skip connections added"
    if not tally.widths:
        return f"{tally}: {words}"
    of_operations = f"{tally.changed - tally.narrowed} of {tally.operations} operations changed: {words};  "
    return of_operations * bool(tally.operations) + f"{tally.narrowed} of {tally.widths} widths narrowed"


def _draw_panel(axes: Any, panel: _Panel, x: float, top: float) -> None:
    if panel.name:
        text(axes, x, top + 0.1, panel.name, size=8.5, weight="bold", align="left")
    y = top + 0.28
    for frame in panel.flow.frames:
        _draw_frame(axes, frame, x, y)
    for joint in panel.flow.joints:
        _draw_wire(axes, joint, x, y, _WIRE, "-")
    for wire in panel.flow.wires:
        gone = any(panel.boxes[n].state in ("none", "removed") for n in wire.arrow)
        line = _draw_wire(axes, wire.points, x, y, _GONE if gone else _WIRE, (0, (2, 1.5)) if gone else "-")
        line.set_gid(f"wire:{panel.name}:{wire.arrow[0]}-{wire.arrow[1]}")
        _draw_head(axes, x + wire.points[-1][0], y + wire.points[-1][1], _GONE if gone else _WIRE)
    drawn: set[str] = set()
    for node, (across, down) in panel.flow.nodes.items():
        box, own = panel.boxes[node], panel.graph.nodes[node]
        gid = f"after:{own.key}" if panel.name == "after" else f"edge:{own.key}:{box.state}"
        gid = gid if own.key else ""
        _draw_node(
            axes,
            box,
            x + across,
            y + down,
            *((gid, f"kept:{panel.name}:{own.key}") if gid and gid not in drawn else ()),
        )
        drawn.add(gid)


def _draw_frame(axes: Any, frame: Frame, x: float, y: float) -> None:
    rounded(axes, x + frame.x, y + frame.y, frame.width, frame.height, "#cfd6dd", "#fcfcfd", "-", 0.6).set_zorder(
        0
    )
    section = frame.section
    left, line = x + frame.x + 0.02, y + frame.y - 0.06
    room = frame.middle - frame.x - 0.06
    names = _in_lines(section.first, room)
    for i, name in enumerate(names):
        place = line - 0.1 * (len(names) - 1 - i)
        text(axes, left, place, _cut(name, room), size=_SMALL, align="left", colour="#555555")
    if section.times > 1:
        words, place = f"× {section.times}", x + frame.middle + 0.05
        text(axes, place, line, words, size=7.0, weight="bold", align="left")
        place += text_width(words, 7.0, "bold") + 0.04
        room = x + frame.x + frame.width - place - text_width("to ", _SMALL)
        if section.last != section.first:
            last = section.last if text_width(section.last, _SMALL) <= room else section.last.rpartition(".")[2]
            text(axes, place, line, f"to {last}", size=_SMALL, align="left", colour="#555555")


def _in_lines(name: str, room: float) -> list[str]:
    """A path in two lines where one has no room for it."""
    if text_width(name, _SMALL) <= room or "." not in name:
        return [name]
    names = name.split(".")
    cuts = [".".join(names[:i]) for i in range(1, len(names))]
    first = max((cut for cut in cuts if text_width(cut, _SMALL) <= room), key=len, default=cuts[0])
    return [first, name[len(first) :]]


def _draw_node(axes: Any, box: _Box, x: float, y: float, gid: str = "", kept: str = "") -> None:
    """One node around a point, with ids for its box and for the line at its foot, which shows what is kept."""
    fill: Any
    colour, fill, style, line = STYLES[box.state]
    gone = box.state in ("none", "removed", "identity", "absent")
    if box.kind in ("operation", "mark") and not gone:
        fill = tuple(a + (b - a) * box.share**0.5 for a, b in zip(_LEAST, _HEAVIEST, strict=True))
    if box.kind in ("input", "output"):
        colour, fill, style, line = "#70767c", "#ffffff", "-", 0.6
    if box.width == box.height == _ROUND:
        from matplotlib.patches import Ellipse

        patch = axes.add_patch(
            Ellipse((x, y), _ROUND, _ROUND, edgecolor=colour, facecolor="#ffffff", linestyle=style, linewidth=line)
        )
    else:
        place = (x - box.width / 2, y - box.height / 2, box.width, box.height)
        patch = rounded(axes, *place, colour, fill, style, line)
    patch.set_zorder(3)
    patch.set_gid(gid or None)
    words = {"none": "#9a7a80", "removed": "#9a7a80", "absent": "#999999"}.get(box.state, "#222222")
    if len(box.lines) == 1:
        text(axes, x, y, box.lines[0], size=_SMALL if box.width > _ROUND else 7, colour=words, zorder=4)
        return
    if box.state in ("none", "removed"):
        ends = [x - box.width / 2, x + box.width / 2], [y + box.height / 2, y - box.height / 2]
        axes.plot(*ends, color=colour, lw=0.8, alpha=0.3, zorder=3)
    text(axes, x, y - box.height * 0.22, box.lines[0], size=_LARGE, colour=words, zorder=4)
    text(axes, x, y + box.height * 0.22, box.lines[1], size=_SMALL, colour=words, zorder=4)
    if box.kept < 1:
        left, foot = x - box.width / 2, y + box.height / 2
        ends = [left, left + box.width * box.kept], [foot] * 2
        (line,) = axes.plot(*ends, color=colour, lw=3, solid_capstyle="butt", zorder=4)
        line.set_gid(kept or None)


def _draw_wire(
    axes: Any, points: Sequence[tuple[float, float]], x: float, y: float, colour: str, style: Any
) -> Any:
    """A line through points: straight where it goes down or across, bent where it does both."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    found, codes = [points[0]], [Line.MOVETO]
    for (a, b), (c, d) in pairwise(points):
        if a == c or b == d:
            found.append((c, d))
            codes.append(Line.LINETO)
        else:
            middle = (b + d) / 2
            found += [(a, middle), (c, middle), (c, d)]
            codes += [Line.CURVE4] * 3
    line = Line([(x + a, y + b) for a, b in found], codes)
    return axes.add_patch(
        PathPatch(line, facecolor="none", edgecolor=colour, linewidth=0.8, linestyle=style, zorder=2)
    )


def _draw_head(axes: Any, x: float, y: float, colour: str) -> None:
    from matplotlib.patches import Polygon

    corners = [(x, y), (x - 0.022, y - 0.05), (x + 0.022, y - 0.05)]
    axes.add_patch(Polygon(corners, facecolor=colour, edgecolor="none", zorder=2))


def _legend(
    panels: Sequence[_Panel], rows: Sequence[OperationRow], width: float
) -> list[list[tuple[float, str, str]]]:
    """Lines of (place, state, words)."""
    states = {box.state for panel in panels for box in panel.boxes}
    most = _most(panels[0].graph)
    items = [(state, words) for state, words in _LEGEND.items() if state in states]
    items.append(("original", f"kept; the stronger its shade, the more multiply-adds (up to {count(most)})"))
    items.append(("", "+ sum  ‖ concatenation  × product; activations and reshapes are not shown"))
    lines: list[list[tuple[float, str, str]]] = [[]]
    x = 0.0
    for state, words in items:
        needs = text_width(words, 7.0) + (0.36 if state else 0.0) + 0.2
        if lines[-1] and x + needs > width:
            lines.append([])
            x = 0.0
        lines[-1].append((x, state, words))
        x += needs
    return lines


def _draw_legend(axes: Any, line: Sequence[tuple[float, str, str]], y: float) -> None:
    for x, state, words in line:
        if state:
            colour, fill, style, width = STYLES[state]
            rounded(axes, _MARGIN + x, y - 0.06, 0.26, 0.12, colour, fill, style, width)
        text(axes, _MARGIN + x + (0.32 if state else 0.0), y, words, size=7.0, align="left")
