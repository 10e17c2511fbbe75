"""Rows of text as a table where the screen is wide enough for it, else as a list in which nothing is cut."""

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import indent
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from .console import folded

_OF_PROSE = 24
"""Letters of a broken column at least."""
_BETWEEN = 2
"""Letters between two columns."""
_INDENT = "    "


@dataclass(frozen=True)
class Grid:
    """Rows under the names of their columns. In the list each row begins with its first cell on a line of its own.

    Cells are shown as they are, without markup. No cell of a table is cut, and only those of `prose` are broken:
    the first one is a key, which is copied from here into a command.

    Attributes:
        title: above it.
        columns: their names.
        rows: a cell for each column.
        numbers: names of the columns that are set to the right.
        prose: names of the columns that may be broken between words.
        caption: how to read it, below.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[str] = frozenset()
    prose: frozenset[str] = frozenset()
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        if self._least() <= options.max_width:
            yield self._table()
        else:
            yield from self._list(options.max_width)
        if self.caption:
            yield _whole(folded(self.caption, options.max_width), "dim")

    def _least(self) -> int:
        """The letters that the table needs."""
        widths = (max(map(cell_len, column)) for column in zip(self.columns, *self.rows, strict=True))
        of_prose = (min(w, _OF_PROSE) if n in self.prose else w for n, w in zip(self.columns, widths, strict=True))
        return sum(of_prose) + _BETWEEN * (len(self.columns) - 1)

    def _table(self) -> Table:
        table = Table(
            title=Text(self.title) if self.title else None,
            title_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, _BETWEEN - 1, 0, 0),
        )
        for name in self.columns:
            justify: Literal["left", "right"] = "right" if name in self.numbers else "left"
            table.add_column(Text(name), justify=justify, no_wrap=name not in self.prose)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _list(self, width: int) -> Iterator[RenderableType]:
        yield _whole(folded(self.title, width), "italic")
        for key, *cells in self.rows:
            yield _whole(key, "bold")
            named = [f"{name} {cell}".strip() for name, cell in zip(self.columns[1:], cells, strict=True) if cell]
            yield _whole(indent(folded("; ".join(named), width - len(_INDENT)), _INDENT))


def _whole(text: str, style: str = "") -> Text:
    """Lines as they are."""
    return Text(text, style, no_wrap=True, overflow="ignore")
