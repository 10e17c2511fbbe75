"""What all pictures share: a page whose unit is an inch, the looks of each state, boxes and text.

Colours are those of Okabe and Ito, and every state has a line style of its own, so that nothing is lost in grey.
matplotlib takes a second to import, so that it is when something is drawn: most commands draw nothing.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...errors import UsageError
from ...files import atomic_write
from ..formatting import plain

FORMATS = ("png", "svg", "pdf")

STYLES = {
    # state: (edge colour, fill, line style, line width)
    "original": ("#444444", "#e8eef4", "-", 0.8),
    "fixed": ("#999999", "#f6f6f6", "-", 0.6),
    "identity": ("#d55e00", "#ffffff", (0, (4, 2)), 1.3),
    "none": ("#b00020", "#ffffff", (0, (1, 1.5)), 1.3),
    "removed": ("#b00020", "#ffffff", (0, (1, 4)), 0.8),
    "other": ("#0072b2", "#e1eff8", (0, (6, 1.5, 1, 1.5)), 1.3),
    "narrowed": ("#cc79a7", "#f9ecf3", (0, (3, 1, 1, 1, 1, 1)), 1.5),
    "added": ("#009e73", "#d9f0e8", "-", 1.5),
    "absent": ("#bbbbbb", "#ffffff", (0, (1, 3)), 0.6),
}


def check_formats(formats: Sequence[str]) -> None:
    """Refuse formats that are not known.

    Raises:
        ValueError: an unknown format.
    """
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"unknown format {name!r}; known: {', '.join(FORMATS)}")


def blank_page(width: float, height: float) -> Any:
    """The axes of an empty page of so many inches; y grows downwards, as one reads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.axis("off")
    return axes


def save(axes: Any, path: str | Path, formats: Sequence[str]) -> list[Path]:
    """Write a page in some formats, with the same bytes every time; `path` has no suffix."""
    from matplotlib import rc_context

    files = []
    with rc_context({"svg.hashsalt": "dnat", "svg.fonttype": "none"}):
        for name in formats:
            file = Path(path).with_name(f"{Path(path).name}.{name}")
            metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[name]
            drawn = io.BytesIO()
            axes.figure.savefig(drawn, format=name, metadata=metadata)
            atomic_write(file, drawn.getvalue())
            files.append(file)
    return files


def rounded(
    axes: Any, x: float, y: float, width: float, height: float, colour: str, fill: str, style: Any, line: float
) -> Any:
    """A box with round corners; x and y are its corner at the top left."""
    from matplotlib.patches import FancyBboxPatch

    box = FancyBboxPatch(
        (x, y),
        width,
        height,
        boxstyle="round,pad=0,rounding_size=0.05",
        edgecolor=colour,
        facecolor=fill,
        linestyle=style,
        linewidth=line,
    )
    return axes.add_patch(box)


def text(
    axes: Any,
    x: float,
    y: float,
    words: str,
    *,
    size: float,
    align: str = "center",
    colour: str = "#222222",
    weight: str = "normal",
    zorder: float = 3,
) -> None:
    """Text at a place, never read as mathematics."""
    style = {"fontsize": size, "ha": align, "va": "center", "color": colour, "weight": weight, "zorder": zorder}
    axes.text(x, y, plain(words), parse_math=False, **style)


def text_width(words: str, size: float, weight: str = "normal") -> float:
    """How many inches a line of text takes."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(words, font, ismath=False)
    return width / 72


def wrap(words: str, width: float, size: float, weight: str = "normal") -> list[str]:
    """Text in lines of at most so many inches, as far as it has spaces to be cut at; no lines for no text."""
    lines: list[str] = []
    for word in words.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, weight) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
