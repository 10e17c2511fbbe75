"""What a command says, on a terminal or in a file."""

from typing import Any

import click

from ..formatting import plain


def say(text: Any = "", *, err: bool = False, nl: bool = True) -> None:
    """Print a text, without what would control a terminal; bytes as they are."""
    click.echo(text if isinstance(text, bytes) else plain(str(text)), err=err, nl=nl)
