"""Before/after pictures of a network: its operations in order, the changed ones marked.

A picture is drawn from plain rows, so that a finished run can be drawn again from architecture.json.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...costs import Cost
from ...edges import ENDING, Tally, narrowed, remaining_share
from ...networks.genotypes import OPERATIONS
from ..formatting import count
from .changes import short_name
from .parts import STYLES, blank_page, check_formats, rounded, save, text

WIDTH = 12.4
"""Width of the picture in inches; one unit of its coordinates is an inch."""

_BOX, _HEIGHT, _GAP, _PAD = 0.92, 0.46, 0.16, 0.12
_LANE = 0.22
_LEGEND = {
    "original": "kept",
    "fixed": "cannot change",
    "identity": "becomes identity",
    "none": "branch removed",
    "removed": "gone along with it",
    "added": "skip connection added",
    "other": "becomes another operation",
    "narrowed": "narrower: so many of its channels stay",
}


@dataclass(frozen=True)
class OperationRow:
    """One operation of a network and what became of it.

    Attributes:
        key: path of its entry, or "entry>exit".
        kind: unit, block, branch, skip; fixed for an operation that has no choice; width for the channels that
            one makes (`key` is "path:width"), which are no operation of their own.
        operation: name ("conv_3x3").
        shape_in, shape_out: without the batch.
        madds: multiply-adds of one image.
        choice: original, identity, none, another operation, or the share of a width that stays ("5/8"); of a skip
            edge, original means that it stays absent.
        theta: gates for none, identity and original when the choice was made.
        removed: it is gone since everything that it fed is gone.
        left: channels that it is given and that it gives afterwards, where some are fewer.
    """

    key: str
    kind: str
    operation: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    choice: str = "original"
    theta: tuple[float, float, float] | None = None
    removed: bool = False
    left: tuple[int, int] | None = None

    @property
    def state(self) -> str:
        """How the row looks after the transformation."""
        if self.kind == "skip":
            return "added" if self.choice == "identity" else "absent"
        if self.kind == "width":
            return "original" if self.choice == "original" else "narrowed"
        if self.removed:
            return "removed"
        if self.choice not in ("original", "identity", "none"):
            return "other"
        return "fixed" if self.kind == "fixed" else self.choice

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that it is given and that it gives: a linear layer has them last."""
        place = -1 if self.operation == "linear" else 0
        return self.shape_in[place], self.shape_out[place]

    @property
    def entry(self) -> str:
        """The path of the operation's first module, or of that which makes the channels."""
        return self.key.partition(">")[0].removesuffix(ENDING)


def rows_to_json(rows: Iterable[OperationRow]) -> list[dict[str, Any]]:
    """Rows as JSON can hold them."""
    return [asdict(row) for row in rows]


def rows_from_json(tables: Iterable[dict[str, Any]]) -> list[OperationRow]:
    """The inverse of `rows_to_json`."""
    tuples = ("shape_in", "shape_out", "theta", "left")
    fields: Iterable[dict[str, Any]] = (
        {k: tuple(v) if k in tuples and v else v for k, v in table.items()} for table in tables
    )
    return [OperationRow(**row) for row in fields]


@dataclass(frozen=True)
class _Block:
    """Rows that are drawn in one frame: operations side by side, whole branches above, skip edges below.

    Widths are drawn into the operations that make their channels: {key of an operation: the width}.
    """

    name: str
    units: tuple[OperationRow, ...]
    wholes: tuple[OperationRow, ...]
    skips: tuple[OperationRow, ...]
    widths: Mapping[str, OperationRow]

    @property
    def slots(self) -> int:
        return max(len(self.units), 1)

    @property
    def is_alone(self) -> bool:
        """Whether it is one operation that needs no frame."""
        return len(self.units) == 1 and self.units[0].entry == self.name

    @property
    def width(self) -> float:
        return self.slots * _BOX + (self.slots - 1) * _GAP + 2 * _PAD


def draw_network(
    rows: Sequence[OperationRow],
    path: str | Path,
    *,
    title: str,
    before: Cost,
    after: Cost,
    formats: Sequence[str] = ("png", "svg"),
) -> list[Path]:
    """Draw a network before and after its transformation.

    Args:
        rows: its operations in order of execution.
        path: where to write, without a suffix.
        title: the first line of the picture.
        before, after: what the network costs.
        formats: png, svg or pdf.

    Returns:
        The files that were written. The same rows give the same SVG, byte for byte.

    Raises:
        ValueError: an unknown format.
    """
    check_formats(formats)
    lines = _lines(_blocks(rows))
    panel = sum(_line_height(line) for line in lines) + 0.35
    height = 1.15 + 2 * panel + 0.45
    axes = blank_page(WIDTH, height)
    _draw_header(axes, rows, title, before, after)
    _draw_panel(axes, lines, 1.15, "before", changed=False)
    _draw_panel(axes, lines, 1.15 + panel, "after", changed=True)
    _draw_legend(axes, rows, height - 0.25)
    return save(axes, path, formats)


def _blocks(rows: Sequence[OperationRow]) -> list[_Block]:
    narrowed = _narrowed(rows)
    of_block: dict[str, list[OperationRow]] = {}
    for row in rows:
        if row.kind != "width":
            of_block.setdefault(_block_of(row.entry), []).append(row)
    blocks = []
    for name, members in of_block.items():
        wholes = tuple(r for r in members if r.kind in ("block", "branch"))
        skips = tuple(r for r in members if r.kind == "skip")
        units = tuple(r for r in members if r not in wholes and r not in skips)
        blocks.append(_Block(name, units, wholes, skips, narrowed))
    return blocks


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


def _block_of(entry: str) -> str:
    """The path up to its first number that is not its end: layer1.0.conv1 is drawn in layer1.0."""
    parts = entry.split(".")
    for i, part in enumerate(parts[:-1]):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ".".join(parts[:-1]) or entry


def _lines(blocks: Iterable[_Block]) -> list[list[_Block]]:
    """Blocks in lines, as words are; a block that is wider than a line is cut in pieces."""
    most = int((WIDTH - 0.8 - 2 * _PAD + _GAP) // (_BOX + _GAP))
    pieces = []
    for block in blocks:
        first = replace(block, units=block.units[:most])
        rest = [block.units[i : i + most] for i in range(most, len(block.units), most)]
        pieces += [first, *(replace(block, units=units, wholes=(), skips=()) for units in rest)]
    lines: list[list[_Block]] = [[]]
    used = 0.0
    for block in pieces:
        if lines[-1] and used + block.width > WIDTH - 0.8:
            lines.append([])
            used = 0.0
        lines[-1].append(block)
        used += block.width + 0.3
    return lines


def _line_height(line: Sequence[_Block]) -> float:
    return 0.62 + _HEIGHT + _LANE * (max(len(b.wholes) for b in line) + max(_skip_lanes(b) for b in line))


def _skip_lanes(block: _Block) -> int:
    return -(-len(block.skips) // block.slots)


def _draw_header(axes: Any, rows: Sequence[OperationRow], title: str, before: Cost, after: Cost) -> None:
    words = _changes_text([row for row in rows if row.kind != "fixed"])
    cost = "      ".join(
        f"{name} {count(a)} → {count(b)} ({(b - a) / a:+.1%})" if a else f"{name} 0"
        for name, a, b in (
            ("parameters", before.params, after.params),
            ("multiply-adds", before.madds, after.madds),
        )
    )
    text(axes, 0.4, 0.35, title, size=14, weight="bold", align="left")
    text(axes, 0.4, 0.65, cost, size=10, align="left")
    text(axes, 0.4, 0.9, words, size=10, align="left", colour="#444444")


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


def _draw_panel(axes: Any, lines: Sequence[Sequence[_Block]], top: float, name: str, *, changed: bool) -> None:
    text(axes, 0.4, top + 0.12, name, size=11, weight="bold", align="left")
    y = top + 0.35
    for i, line in enumerate(lines):
        x = 0.4
        wholes = max(len(block.wholes) for block in line)
        for j, block in enumerate(line):
            _draw_block(axes, block, x, y, wholes, changed=changed)
            last = j == len(line) - 1
            if not (last and i == len(lines) - 1):
                middle = y + 0.3 + _LANE * wholes + _HEIGHT / 2
                start = x + block.width - (_PAD if block.is_alone else 0)
                end = x + block.width + (0.22 if last else 0.3 + (_PAD if line[j + 1].is_alone else 0))
                _draw_arrow(axes, start, middle, end)
            x += block.width + 0.3
        y += _line_height(line)


def _draw_block(axes: Any, block: _Block, x: float, y: float, wholes: int, *, changed: bool) -> None:
    top = y + 0.3 + _LANE * wholes
    lanes = _LANE * _skip_lanes(block)
    if not block.is_alone:
        frame = (x, y + 0.2, block.width, 0.2 + _LANE * wholes + _HEIGHT + lanes)
        rounded(axes, *frame, "#cfd6dd", "none", "-", 0.8)
        text(axes, x + 0.05, y + 0.1, block.name, size=7.5, align="left", colour="#555555", limit=block.width * 2)
    for i, row in enumerate(block.wholes):
        lane = (x + _PAD, y + 0.25 + _LANE * i, block.width - 2 * _PAD, _LANE - 0.05)
        state = row.state if changed else "original"
        _draw_operation(axes, lane, row, state, f"{row.kind} {_last_name(row)}", changed)
    gone = changed and any(row.state in ("identity", "none") for row in block.wholes)
    for i, row in enumerate(block.units):
        left = x + _PAD + i * (_BOX + _GAP)
        state = row.state if changed else ("fixed" if row.kind == "fixed" else "original")
        if gone and any(_is_inside(row, w) for w in block.wholes):
            state = "removed"
        width = block.widths.get(row.key) if changed and state in ("original", "fixed") else None
        _draw_operation(axes, (left, top, _BOX, _HEIGHT), row, state, _operation_text(row), changed, width)
        if i + 1 < len(block.units):
            _draw_arrow(axes, left + _BOX, top + _HEIGHT / 2, left + _BOX + _GAP)
    for i, row in enumerate(block.skips):
        column, lane_number = i % block.slots, i // block.slots
        left = x + _PAD + column * (_BOX + _GAP)
        place = (left, top + _HEIGHT + 0.06 + _LANE * lane_number, _BOX, _LANE - 0.07)
        state = row.state if changed else "absent"
        _draw_operation(axes, place, row, state, ("+ " if state == "added" else "") + _last_name(row), changed)


def _is_inside(row: OperationRow, whole: OperationRow) -> bool:
    return whole.choice != "original" and row.entry.startswith(whole.entry + ".")


def _draw_operation(
    axes: Any,
    place: tuple[float, float, float, float],
    row: OperationRow,
    state: str,
    label: str,
    changed: bool,
    width: OperationRow | None = None,
) -> None:
    """One operation: a box with its name, below it its channels or what became of it."""
    x, y, wide, height = place
    colour, fill, style, line = STYLES["narrowed" if width else state]
    box = rounded(axes, x, y, wide, height, colour, fill, style, line)
    box.set_gid(f"edge:{row.key}:{state}" if changed else f"before:{row.key}")
    middle = x + wide / 2
    strong = "#222222" if width or state not in ("absent", "removed", "fixed") else "#888888"
    if height < _HEIGHT:
        text(axes, middle, y + height / 2, label, size=7, colour=strong, limit=wide * 2)
        return
    if changed and state == "identity":
        axes.plot([x, x + wide], [y + height * 0.78] * 2, color=colour, lw=1.6, solid_capstyle="butt")
    if changed and state in ("none", "removed"):
        axes.plot([x, x + wide], [y + height, y], color=colour, lw=0.9, alpha=0.35)
    text(axes, middle, y + height * 0.3, label, size=8, colour=strong, limit=wide * 2)
    if state == "identity" and changed:
        return
    words = _channels_left(width) if width else _second_line(row, state, changed)
    text(axes, middle, y + height * 0.72, words, size=7, colour=strong, limit=wide * 2)
    if width:
        _draw_kept_share(axes, x, y + height, wide, width)


def _draw_kept_share(axes: Any, x: float, foot: float, wide: float, width: OperationRow) -> None:
    """At the foot of a box how much of its channels stays, as a part of its side."""
    share = remaining_share(width.operation, width.choice)
    lines = axes.plot([x, x + wide * share], [foot] * 2, color=STYLES["narrowed"][0], lw=4, solid_capstyle="butt")
    lines[0].set_gid(f"edge:{width.key}:{width.state}")


def _channels_left(width: OperationRow) -> str:
    left = narrowed(width.operation, width.choice).partition(" ")[0]
    return f"→ {left} of {width.operation.removesuffix(' channels').replace(' x ', '×')}"


def _second_line(row: OperationRow, state: str, changed: bool) -> str:
    if changed and state in ("none", "removed"):
        return state
    if changed and state == "other":
        return f"→ {short_name(row.choice)}"
    before, after = (changed and row.left) or row.channels
    images = len(row.shape_out) == 3 and row.operation != "linear"
    return f"{before} → {after}" + (f" @{row.shape_out[-1]}" if images else "")


def _operation_text(row: OperationRow) -> str:
    if row.kind == "operation" and row.operation in OPERATIONS:
        return short_name(row.operation)
    if row.operation.startswith(("conv", "dw", "gc")):
        return row.operation.replace("_", " ").replace("x", "×")
    return row.operation


def _last_name(row: OperationRow) -> str:
    return row.entry.rpartition(".")[2]


def _draw_legend(axes: Any, rows: Sequence[OperationRow], y: float) -> None:
    states = {row.state for row in rows}
    x = 0.4
    for state, words in _LEGEND.items():
        if state in states or state == "original":
            colour, fill, style, line = STYLES[state]
            rounded(axes, x, y - 0.08, 0.3, 0.16, colour, fill, style, line)
            text(axes, x + 0.38, y, words, size=8, align="left")
            x += 0.62 + 0.075 * len(words)


def _draw_arrow(axes: Any, x: float, y: float, end: float) -> None:
    style = {"arrowstyle": "-|>", "color": "#777777", "lw": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 6}
    axes.annotate("", xy=(end, y), xytext=(x, y), arrowprops=style)
