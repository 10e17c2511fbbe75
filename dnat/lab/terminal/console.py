"""The console that results are printed to, and bars on it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def console() -> Console:
    """The console that results are printed to; wide enough for its tables when nobody watches."""
    return Console(width=None if sys.stdout.isatty() else 120, soft_wrap=True)


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
