"""Runs that are asked to stop."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click


@contextmanager
def stop_on_signals() -> Iterator[Callable[[Any], bool]]:
    """Within, SIGINT and SIGTERM only set a flag that the run asks for; a second SIGINT stops at once.

    A trial of a sweep also stops when the process that started it is gone.
    """
    asked: list[int] = []
    parent = os.environ.pop("DNAT_PARENT", None)  # not for processes that this one starts

    def note(number: int, frame: Any) -> None:
        if number in asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        click.echo("stopping after this batch; once more to stop at once", err=True)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda progress: bool(asked) or (parent is not None and os.getppid() != int(parent))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
