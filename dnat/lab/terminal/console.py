"""The console that results are printed to, and bars on it."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment

from ..formatting import plain

_UNWATCHED = 1000
"""Columns where nobody watches: every line stays one line, which others can search and cut."""


class Screen(Console):
    """A console that breaks lines between words only: keys and paths longer than the screen stay whole.

    Texts are shown as they are: without markup, and with their control characters written out. Styles come from
    what is made for `rich`.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich` does; texts are broken here."""
        broken = [folded(plain(o), self.width) if isinstance(o, str) else o for o in objects]
        options = {"soft_wrap": True, "markup": False} | options
        super().print(*broken, **options)

    def on_broken_pipe(self) -> None:
        """Let whoever runs here know that nobody reads on; `rich` would end the process."""
        raise

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """What `rich` prints: each text of tables, bars and lines comes through here."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else plain(segment.text)
            yield segment if text == segment.text else Segment(text, segment.style)


def folded(text: str, width: int) -> str:
    """A text in lines of so many letters at most, but for words that are longer.

    >>> folded("note: layer1.0.conv1>layer1.0.bn2 stays", 20)
    'note:\\nlayer1.0.conv1>layer1.0.bn2\\nstays'
    """
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return "\n".join("\n".join(textwrap.wrap(line, width, **how)) or line for line in text.split("\n"))


def console(stderr: bool = False) -> Console:
    """The console that results are printed to, or what is told beside them."""
    return Screen(width=None if sys.stdout.isatty() else _UNWATCHED, stderr=stderr)


def bars(screen: Console, *more: TextColumn) -> Progress:
    """Bars, shown where someone watches, that leave nothing behind; `more` stands before the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *more, TimeRemainingColumn())
    return Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)


@contextmanager
def watched(screen: Console) -> Iterator[Callable[[str, int, int], None]]:
    """Within, a bar shows how far what is told has come; where nobody watches, nothing is shown."""
    shown = bars(screen)
    tasks: dict[str, Any] = {}

    def tell(what: str, done: int, of: int) -> None:
        if what not in tasks:
            for task in tasks.values():
                shown.update(task, visible=False)
            tasks[what] = shown.add_task(escape(what))
        shown.update(tasks[what], completed=done, total=of)

    with shown:
        yield tell
