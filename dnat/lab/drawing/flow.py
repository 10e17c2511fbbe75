"""Where the nodes of a network stand: from top to bottom, and in as many columns as a page takes.

A graph falls into parts at the nodes that every way passes. A part has rows: its longest way stands in the middle,
all else in lanes beside it, the shortest nearest. Wires bend between the rows only, where no nodes are, and pass a
row in a lane of their own. Parts that stand in one module get a frame; equal frames one behind another are drawn
once.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from .graphs import Graph

Point = tuple[float, float]
GAP, BEND, LANE, WIRE = 0.12, 0.05, 0.07, 0.09
"""In inches: between rows; more of it for an inch that a wire goes aside; between lanes; the lane of a wire."""

HEADING, PAD, GUTTER = 0.16, 0.05, 0.16
"""In inches: a line of the name of a frame (and half a line more), what is free in it, and between columns."""


_NARROW, _SCRAP = 0.44, 0.4
"""In inches: half of what a section takes up at least; what is lower begins no column."""


@dataclass(frozen=True)
class Part:
    """What stands between two nodes that every way passes: its nodes, the last of which ends it, and its arrows.

    `entry` is the node before it: None at the beginning.
    """

    entry: int | None
    nodes: tuple[int, ...]
    arrows: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Wire:
    """An arrow, as the points that it passes: straight down where x stays, bent where it does not."""

    arrow: tuple[int, int]
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Placed:
    """A part's nodes (their middles) and wires; x is 0 where it is entered, at y = 0, and where it is left, at the
    foot of its last node."""

    part: Part
    left: float
    right: float
    height: float
    foot: float
    nodes: Mapping[int, Point]
    wires: tuple[Wire, ...]


@dataclass(frozen=True)
class Section:
    """Parts within one module, which follow each other; `times` equal ones, from `first` to `last`, are one."""

    parts: tuple[Placed, ...]
    first: str
    last: str
    heading: float = HEADING
    times: int = 1
    alike: tuple[tuple[int, ...], ...] = ()

    @property
    def framed(self) -> bool:
        """Whether it has a frame with a name."""
        return bool(self.first)

    @property
    def entered(self) -> bool:
        """Whether anything leads into it."""
        return any(a == self.parts[0].part.entry for a, _ in self.parts[0].part.arrows)

    @property
    def height(self) -> float:
        """With its frame and its name."""
        return sum(part.height for part in self.parts) + (self.heading + 2 * PAD if self.framed else 0.0)

    @property
    def sides(self) -> tuple[float, float]:
        """How far it reaches to the left and to the right."""
        pad = PAD if self.framed else 0.0
        return max(_NARROW, *(p.left for p in self.parts)) + pad, max(
            _NARROW, *(p.right for p in self.parts)
        ) + pad


@dataclass(frozen=True)
class Frame:
    """The frame of a section, or of a piece of it; `middle` is where the wire comes in."""

    section: Section
    x: float
    y: float
    width: float
    height: float
    middle: float


@dataclass(frozen=True)
class Flow:
    """A whole graph on a page; `joints` are lines between its parts."""

    width: float
    height: float
    nodes: Mapping[int, Point]
    wires: tuple[Wire, ...]
    joints: tuple[tuple[Point, ...], ...]
    frames: tuple[Frame, ...]


Size = Callable[[int], tuple[float, float]]
"""Width and height of a node."""


def parts_of(graph: Graph) -> list[Part]:
    """The parts of a graph, in order; every node is in one."""
    inside = [0] * (len(graph.nodes) + 1)
    for a, b in graph.arrows:
        inside[a + 1] += 1
        inside[b] -= 1
    open_, ends = 0, []
    for i in range(len(graph.nodes)):
        open_ += inside[i]
        if not open_:
            ends.append(i)
    into: dict[int, list[tuple[int, int]]] = {}
    for a, b in graph.arrows:
        into.setdefault(b, []).append((a, b))
    found = []
    for before, end in pairwise([-1, *ends]):
        nodes = tuple(range(before + 1, end + 1))
        arrows = tuple(arrow for node in nodes for arrow in into.get(node, ()))
        found.append(Part(before if before >= 0 else None, nodes, arrows))
    return found


def place(part: Part, size: Size) -> Placed:
    """Place the nodes and wires of a part."""
    rows = _rows(part)
    lanes, passing = _lanes(part, rows)
    x = _across(part, lanes, passing, size)
    at = {node: x[lane] for node, lane in lanes.items()}
    stops = [
        (at[a], *([x[passing[i]]] if rows[b] - rows[a] > 1 else []), at[b]) for i, (a, b) in enumerate(part.arrows)
    ]
    tops, bottoms = _levels(part, rows, stops, size)
    middles = {node: (at[node], (tops[rows[node]] + bottoms[rows[node]]) / 2) for node in part.nodes}
    shifts = _shifts(part, stops, size)
    wires = []
    for i, (a, b) in enumerate(part.arrows):
        start = [(0.0, 0.0)] if a == part.entry else [_foot(middles[a], size(a)), (at[a], bottoms[rows[a]])]
        between = [(stops[i][1], y) for row in range(rows[a] + 1, rows[b]) for y in (tops[row], bottoms[row])]
        end = (at[b] + shifts[i], middles[b][1] - size(b)[1] / 2)
        points = [*start, *between, (end[0], tops[rows[b]]), end]
        wires.append(Wire((a, b), tuple(p for p, n in zip(points, [*points[1:], None], strict=True) if p != n)))
    left = max(0.0, *(size(n)[0] / 2 - at[n] for n in part.nodes), *(-x[lane] for lane in passing.values()))
    right = max(0.0, *(size(n)[0] / 2 + at[n] for n in part.nodes), *(x[lane] for lane in passing.values()))
    last = part.nodes[-1]
    return Placed(part, left, right, max(bottoms), _foot(middles[last], size(last))[1], middles, tuple(wires))


def _levels(
    part: Part, rows: Mapping[int, int], stops: Sequence[tuple[float, ...]], size: Size
) -> tuple[list[float], list[float]]:
    """Where each row begins and ends; a gap is the higher the further a wire goes aside in it."""
    last = max(rows[node] for node in part.nodes)
    bends = [0.0] * (last + 1)
    for (a, b), own in zip(part.arrows, stops, strict=True):
        for gap, far in ((rows[a] + 1, own[1] - own[0]), (rows[b], own[-1] - own[-2])):
            bends[gap] = max(bends[gap], abs(far))
    tops, bottoms = [0.0], [0.0]
    for row in range(1, last + 1):
        tops.append(bottoms[-1] + GAP + min(BEND * bends[row], 0.2))
        high = max((size(node)[1] for node in part.nodes if rows[node] == row), default=0.04)
        bottoms.append(tops[-1] + high)
    return tops, bottoms


def _shifts(part: Part, stops: Sequence[tuple[float, ...]], size: Size) -> dict[int, float]:
    """How far from the middle of its node each arrow arrives: side by side, in the order in which they come."""
    arrivals: dict[int, list[tuple[float, int]]] = {}
    for i, (_, b) in enumerate(part.arrows):
        arrivals.setdefault(b, []).append((stops[i][-2], i))
    found: dict[int, float] = {}
    for node, came in arrivals.items():
        step = min(0.09, 0.7 * size(node)[0] / len(came))
        found |= {i: step * (n - (len(came) - 1) / 2) for n, (_, i) in enumerate(sorted(came))}
    return found


def _foot(middle: Point, size: tuple[float, float]) -> Point:
    return middle[0], middle[1] + size[1] / 2


def _rows(part: Part) -> dict[int, int]:
    """The row of each node: below all that it reads, and the last node below all. What is added twice has a row
    between, where both wires can be seen."""
    rows = {} if part.entry is None else {part.entry: 0}
    for node in part.nodes:
        before = [a for a, b in part.arrows if b == node]
        rows[node] = max((rows[a] + (2 if before.count(a) > 1 else 1) for a in before), default=1)
    for node in reversed(part.nodes):
        after = [rows[b] for a, b in part.arrows if a == node]
        if after and not any(b == node for _, b in part.arrows):
            rows[node] = max(1, min(after) - 1)
    rows[part.nodes[-1]] = max(rows.values())
    return rows


def _lanes(part: Part, rows: Mapping[int, int]) -> tuple[dict[int, int], dict[int, int]]:
    """The lane of each node, and of each arrow (by its place) that passes rows: 0 is the middle."""
    remaining = dict(enumerate(part.arrows))
    lanes = {} if part.entry is None else {part.entry: 0}
    lanes[part.nodes[-1]] = 0
    passing: dict[int, int] = {}
    chains = []
    first = True
    while remaining:
        chain = _longest(remaining, lanes, part.entry if first else None)
        for arrow in chain:
            a, b = remaining.pop(arrow)
            if first:
                lanes |= {a: 0, b: 0}
                passing[arrow] = 0
            else:
                lanes.setdefault(a, 1)
                lanes.setdefault(b, 1)
        if not first:
            chains.append(chain)
        first = False
    middle = {node for node, lane in lanes.items() if lane == 0}
    return _beside(part, rows, chains, middle, passing)


def _longest(remaining: Mapping[int, tuple[int, int]], known: Mapping[int, int], start: int | None) -> list[int]:
    """The arrows of the longest way through nodes that are not placed, from one that is (or that nothing leads to)
    to one that is (or that leads nowhere)."""
    into = {b for _, b in remaining.values()}
    best: dict[int, list[int]] = {}
    chains: dict[int, list[int]] = {}
    for arrow, (a, b) in sorted(remaining.items(), key=lambda item: -item[1][0]):
        rest = [] if b in known else best.get(b, [])
        chains[arrow] = [arrow, *rest]
        if len(chains[arrow]) > len(best.get(a, [])):
            best[a] = chains[arrow]
    begins = [
        i for i, (a, _) in remaining.items() if (a in known or a not in into) and (start is None or a == start)
    ]
    return max((chains[i] for i in begins), key=len)


def _beside(
    part: Part,
    rows: Mapping[int, int],
    chains: Sequence[Sequence[int]],
    middle: set[int],
    passing: dict[int, int],
) -> tuple[dict[int, int], dict[int, int]]:
    """Give each chain the nearest lane that is free in the rows that it takes up: short ones first."""
    lanes, placed = dict.fromkeys(middle, 0), set(middle)
    own: list[tuple[int, int, Sequence[int], list[int], range]] = []
    for chain in chains:
        ends = [part.arrows[i] for i in chain]
        nodes = [n for n in dict.fromkeys(n for arrow in ends for n in arrow) if n not in placed]
        placed |= set(nodes)
        a, b = ends[0][0], ends[-1][1]
        rows_of = range(rows[a] + (a not in nodes), rows[b] + (b in nodes))
        own.append((len(rows_of), len(own), chain, nodes, rows_of))
    taken: dict[int, set[int]] = {}
    for _, _, chain, nodes, rows_of in sorted(own, key=lambda item: item[:2]):
        sides = (1, -1) if nodes else (1,)
        tried = (side * k for k in range(1, len(own) + 2) for side in sides)
        lane = next(k for k in tried if not taken.get(k, set()) & set(rows_of))
        taken.setdefault(lane, set()).update(rows_of)
        lanes |= dict.fromkeys(nodes, lane)
        passing |= dict.fromkeys(chain, lane)
    return lanes, passing


def _across(part: Part, lanes: Mapping[int, int], passing: Mapping[int, int], size: Size) -> dict[int, float]:
    """Where the middle of each lane is."""
    widths = dict.fromkeys([0, *lanes.values(), *passing.values()], WIRE)
    for node in part.nodes:
        widths[lanes[node]] = max(widths[lanes[node]], size(node)[0])
    x = {0: 0.0}
    for side in (1, -1):
        edge = widths[0] / 2
        for lane in sorted((k for k in widths if k * side > 0), key=abs):
            x[lane] = side * (edge + LANE + widths[lane] / 2)
            edge += LANE + widths[lane]
    return x


def sections_of(
    parts: Sequence[Part], blocks: Sequence[str], size: Size, looks: Callable[[int], Hashable], heading: float
) -> list[Section]:
    """The parts of a graph by the module they stand in; equal ones, one behind another, once.

    Args:
        parts, blocks: of the graph.
        size: of its nodes.
        looks: all that is shown of a node: two that are alike look the same.
        heading: the height of the names of frames.
    """
    found: list[Section] = []
    before: Hashable = None
    for name, group in groupby(zip(blocks, parts, strict=True), key=lambda pair: pair[0]):
        members = [part for _, part in group]
        for own in [members] if name else [[part] for part in members]:
            nodes = tuple(node for part in own for node in part.nodes)
            arrows = tuple((a - nodes[0], b - nodes[0]) for part in own for a, b in part.arrows)
            signature = (tuple(map(looks, nodes)), arrows)
            if name and signature == before:
                last = found[-1]
                found[-1] = replace(last, last=name, times=last.times + 1, alike=(*last.alike, nodes))
            else:
                placed = tuple(place(part, size) for part in own)
                found.append(Section(placed, name, name, heading, 1, (nodes,)))
            before = signature
    return found


def flow(sections: Sequence[Section], width: float) -> Flow:
    """Put sections into columns: as high as they must be to be no wider than a page, if they can be."""
    found = [_columns(sections, width)]
    starts = [i for i, section in enumerate(sections) if not section.entered]
    if len(starts) > 1:  # what is shown apart, beside the rest
        first = [list(sections[: starts[1]])]
        rest = _columns(sections[starts[1] :], width - GUTTER - _width(first))
        found += [first + rest] if _width(first + rest) <= width else []
    return _placed(min(found, key=lambda columns: max(map(_tall, columns))))


def _columns(sections: Sequence[Section], width: float) -> list[list[Section]]:
    highest = sum(section.height + PAD for section in sections)
    tried = max(max(part.height for part in s.parts) + s.heading + 2 * PAD for s in sections)
    while _width(_packed(sections, tried)) > width and tried <= highest:
        tried *= 1.03
    # A little higher is better than a column for what is left over.
    found = [_packed(sections, tried * more) for more in (1.0, 1.06, 1.12)]
    return min((columns for columns in found if _width(columns) <= width), key=len, default=found[0])


def _tall(column: Iterable[Section]) -> float:
    return sum(section.height + PAD for section in column)


def _width(columns: Sequence[Sequence[Section]]) -> float:
    return sum(sum(_sides(column)) for column in columns) + GUTTER * (len(columns) - 1)


def _sides(column: Iterable[Section]) -> tuple[float, float]:
    sides = [section.sides for section in column]
    return max(left for left, _ in sides), max(right for _, right in sides)


def _packed(sections: Iterable[Section], height: float) -> list[list[Section]]:
    """Sections in columns of a height at most; one that is higher than what is left of two thirds is cut."""
    columns: list[list[Section]] = [[]]
    used = 0.0
    for section in sections:
        for piece in _pieces(section, height, height - used):
            if columns[-1] and used + piece.height > height + (_SCRAP if piece.height < _SCRAP else 0.0):
                columns.append([])
                used = 0.0
            columns[-1].append(piece)
            used += piece.height + PAD
    return columns


def _pieces(section: Section, height: float, room: float) -> list[Section]:
    """A section, cut between its parts where it would not fit into a column."""
    if section.height <= max(room, 0.6 * height) or section.times > 1:
        return [section]
    pieces: list[list[Placed]] = [[]]
    frame = section.heading + 2 * PAD if section.framed else 0.0
    for part in section.parts:
        if sum(p.height for p in pieces[-1]) + part.height + frame > room:
            pieces.append([])
            room = height
        pieces[-1].append(part)
    kept = [tuple(parts) for parts in pieces if parts]
    return [replace(section, parts=parts) for parts in kept]


def _placed(columns: Sequence[Sequence[Section]]) -> Flow:
    nodes: dict[int, Point] = {}
    wires: list[Wire] = []
    joints: list[tuple[Point, ...]] = []
    frames: list[Frame] = []
    x, deepest = 0.0, 0.0
    end: Point | None = None
    for number, column in enumerate(columns):
        left, right = _sides(column)
        middle, y = x + left, 0.0
        for place_in, section in enumerate(column):
            top = y
            y += section.heading + PAD if section.framed else 0.0
            for i, part in enumerate(section.parts):
                start = (middle, y)
                if end is not None and any(a == part.part.entry for a, _ in part.part.arrows):
                    joints.append(
                        _joint(end, start, x - GUTTER / 2 if number and not place_in and not i else None)
                    )
                nodes |= {node: (middle + a, y + b) for node, (a, b) in part.nodes.items()}
                wires += [Wire(w.arrow, tuple((middle + a, y + b) for a, b in w.points)) for w in part.wires]
                end = (middle, y + part.foot)
                y += part.height
            if section.framed:
                y += PAD
                sides = section.sides
                frames.append(
                    Frame(
                        section,
                        middle - sides[0],
                        top + section.heading,
                        sum(sides),
                        y - top - section.heading,
                        middle,
                    )
                )
            deepest = max(deepest, y)
            y += PAD
        x += left + right + GUTTER
    return Flow(x - GUTTER, deepest + 0.1, nodes, tuple(wires), tuple(joints), tuple(frames))


def _joint(end: Point, start: Point, gutter: float | None) -> tuple[Point, ...]:
    """A line from the end of a part to the beginning of the next; to another column it goes between the two."""
    if gutter is None:
        return end, start
    low, high = end[1] + 0.05, -0.06
    return end, (end[0], low + PAD), (gutter, low + PAD), (gutter, high), (start[0], high), start
