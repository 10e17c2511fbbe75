"""What a command says, on a terminal or in a file."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ..formatting import plain


def say(text: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text, without what would control a terminal; bytes as they are."""
    click.echo(text if isinstance(text, bytes) else plain(str(text)), err=err, nl=nl)


@contextmanager
def told_if_slow(what: str, seconds: float = 5.0) -> Iterator[None]:
    """Within, a note says what goes on if it lasts longer than this."""
    timer = threading.Timer(seconds, say, (f"note: {what}; this takes long",), {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
