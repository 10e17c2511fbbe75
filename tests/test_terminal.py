"""What a terminal shows: nothing is cut or broken within a word, and keys can be copied whole."""

import io

import pytest
from rich.console import Console

from dnat.lab.terminal.console import Screen, folded
from dnat.lab.terminal.grid import Grid

KEY = "features.denseblock4.denselayer16.norm1>features.denseblock4.denselayer16.conv2"
GRID = Grid(
    "one of 2 edges",
    ("edge", "what", "MAdds"),
    ((KEY, "conv_3x3 [red]", "1,234"), ("fc", "linear", "7")),
    frozenset(("MAdds",)),
    caption="edge: an operation; " * 12,
)


def shown(part, width):
    screen = Screen(file=io.StringIO(), width=width)
    screen.print(part, highlight=False, markup=False)
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [20, 40, 80, 110, 200])
def test_a_grid_shows_all_its_cells_at_every_width(width):
    lines = shown(GRID, width)
    words = " ".join(lines).split()
    for cell in ("conv_3x3", "[red]", "1,234", "linear", "7", KEY, "fc"):
        assert any(cell == word.strip(";,") for word in words), cell
    assert all(len(line.rstrip()) <= width or line.strip() == KEY for line in lines)


def test_a_grid_is_a_table_exactly_where_it_fits():
    cells = (KEY, "conv_3x3 [red]", "1,234")
    needed = sum(map(len, cells)) + 2 * 2
    table, listed = shown(GRID, needed), shown(GRID, needed - 1)
    assert table[3].split("  ")[0] == KEY
    assert table[3].endswith("1,234")
    assert "what conv_3x3 [red]; MAdds 1,234" in listed[2]


def test_prose_may_be_broken_and_keys_may_not():
    words = "a reason of several words that is long enough to be broken"
    grid = Grid("", ("run", "why"), (("a" * 30, words),), prose=frozenset(("why",)))
    lines = shown(grid, 60)
    assert max(map(len, lines)) <= 60
    assert lines[2].startswith("a" * 30)
    told = " ".join(line.replace("a" * 30, "").strip() for line in lines[2:])
    assert told == words


def test_texts_break_between_words_only():
    text = f"note: {KEY}: original was changed to none to keep the budget, or so"
    lines = folded(text, 40).split("\n")
    assert f"{KEY}:" in lines
    assert " ".join(lines) == text
    assert all(len(line) <= 40 or line == f"{KEY}:" for line in lines)
    assert folded("one\n\n  two", 40) == "one\n\n  two"
    plain = Console(file=io.StringIO(), width=40)
    plain.print(text)  # what rich does by itself: the key is broken
    assert KEY not in plain.file.getvalue()
