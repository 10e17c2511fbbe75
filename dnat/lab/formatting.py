"""Numbers as tables, pages and terminals have them, and text that is safe in Markdown."""

import math
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal


def digits(value: float, number: int = 3) -> str:
    """So many significant digits, never an exponent.

    >>> digits(1234567), digits(0.00012345), digits(2.0), digits(125.0, 2), digits(float("nan"))
    ('1230000', '0.000123', '2', '120', 'nan')
    """
    return f"{Decimal(f'{value:.{number}g}'):f}" if math.isfinite(value) else str(value)


def count(value: float) -> str:
    """Three significant digits with a unit: k, M or G.

    >>> count(999), count(999_999), count(3_346_000)
    ('999', '1 M', '3.35 M')
    """
    value = float(f"{value:.3g}")
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{digits(value / size)} {unit}"
    return digits(value)


def change(before: float, after: float) -> str:
    """The change from one number to another, in percent.

    >>> change(200, 150), change(0, 0)
    ('-25.0 %', '')
    """
    return f"{(after - before) / before:+.1%}".replace("%", " %") if before else ""


def spread(mean: float, std: float | None, form: str = ".2f") -> str:
    """A mean with its deviation, where it has one.

    >>> spread(93.0, None), spread(93.0, 0.25)
    ('93.00', '93.00 ± 0.25')
    """
    return format(mean, form) + ("" if std is None else f" ± {std:{form}}")


def signed_interval(mean: float, interval: tuple[float, float] | None, form: str) -> str:
    """A change with its interval, where it has one; never "-0.0"."""
    form = f"+z{form}"
    text = format(mean, form)
    return text if interval is None else f"{text} [{format(interval[0], form)}, {format(interval[1], form)}]"


def p_text(value: float) -> str:
    """A p value as tables have it."""
    return "< 0.001" if value < 0.001 else f"{value:.3g}"


def clock(seconds: float) -> str:
    """Seconds as one reads them while something runs.

    >>> clock(8.25), clock(75), clock(7384)
    ('8.2 s', '1:15 min', '2:03 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60) if seconds >= 3600 else round(seconds)
    return f"{minutes // 60}:{minutes % 60:02d} {'h' if seconds >= 3600 else 'min'}"


def duration(hours: float) -> str:
    """Hours as reports have them: seconds and minutes where they are few.

    >>> duration(0.005), duration(0.5), duration(41.2)
    ('18 s', '30 min', '41.2 h')
    """
    if hours >= 1:
        return f"{digits(hours)} h"
    return f"{digits(60 * hours)} min" if hours >= 1 / 30 else f"{digits(3600 * hours)} s"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of plain text; the first column begins at the left, all others end at the right.

    >>> print("\\n".join(aligned([("seeds", "power"), ("3", "0.5")])))
    seeds  power
    3        0.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [(row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])) for row in rows]
    return ["  ".join(row).rstrip() for row in cells]


_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that control a terminal or turn the direction of text around, and halves of characters; but for tabs
and ends of lines."""


def plain(text: str) -> str:
    """A text whose control characters are written out: those of files of others would do what they say.

    >>> print(plain("a\\x1b[31mb"))
    a\\x1b[31mb
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def line(text: str) -> str:
    """The same in one line: ends of lines and tabs are written out, too."""
    return re.sub(r"[\n\t]", lambda found: ascii(found[0])[1:-1], plain(text))


def escaped(text: str) -> str:
    """Text that stays in its cell of a Markdown table and makes neither tags nor links.

    >>> print(escaped("a|b <i>c</i> p < 0.1"))
    a\\|b &lt;i>c&lt;/i> p < 0.1
    """
    text = re.sub(r"\s+", " ", text).replace("\\", r"\\").replace("|", r"\|").replace("](", r"]\(")
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)


def markdown_rows(rows: Iterable[Sequence[str]]) -> str:
    """Rows of a Markdown table, each cell escaped; the line below the head is one of them."""
    return "\n".join(f"| {' | '.join(map(escaped, row))} |" for row in rows)


def markdown_list(texts: Iterable[str]) -> str:
    """A Markdown list, each entry escaped."""
    return "\n".join(f"- {escaped(text)}" for text in texts)
