"""How methods look in all figures: their colours, markers and lines, and their names in short.

Colours stand in the page's figures by name ("@text", "@m0", ...); the page paints them from `LIGHT` or `DARK`, so
that a figure follows the page's theme. Names come from users: plotly reads a little HTML in every text, so that
all of them go through `plain`.
"""

import html
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Look:
    """The colour, marker and line of each method, the same in all figures of a page."""

    methods: tuple[str, ...]

    def colour(self, method: str) -> str:
        """The name of its colour."""
        return f"@m{self._place(method)[1]}"

    def paint(self, method: str) -> str:
        """Its colour on paper."""
        return LIGHT[self.colour(method).removeprefix("@")]

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
