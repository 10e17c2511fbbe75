"""The console that results are printed to, and bars on it."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_UNWATCHED = 1000
"""Columns where nobody watches: every line stays one line, which others can search and cut."""


class Screen(Console):
    """A console that breaks lines between words only: keys and paths longer than the screen stay whole."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `rich` does; texts are broken here."""
        broken = [folded(o, self.width) if isinstance(o, str) else o for o in objects]
        options.setdefault("soft_wrap", True)
        super().print(*broken, **options)

    def on_broken_pipe(self) -> None:
        """Let whoever runs here know that nobody reads on; `rich` would end the process."""
        raise


def folded(text: str, width: int) -> str:
    """A text in lines of so many letters at most, but for words that are longer.

    >>> folded("note: layer1.0.conv1>layer1.0.bn2 stays", 20)
    'note:\\nlayer1.0.conv1>layer1.0.bn2\\nstays'
    """
    how: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    return "\n".join("\n".join(textwrap.wrap(line, width, **how)) or line for line in text.split("\n"))


def console() -> Console:
    """The console that results are printed to."""
    return Screen(width=None if sys.stdout.isatty() else _UNWATCHED)


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
            tasks[what] = shown.add_task(what)
        shown.update(tasks[what], completed=done, total=of)

    with shown:
        yield tell


def printable(text: str) -> str:
    """A text without characters that would move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
