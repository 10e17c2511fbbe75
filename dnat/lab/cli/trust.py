"""Whoever runs a command is asked before it imports code that somebody else may have named: `dnat.lab.consent`."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from ...errors import UsageError
from ...naming import look_here
from ...settings import Job
from ..consent import Code, code_in, is_trusted, trust
from .group import FIRST
from .output import say

TRUST = click.option(
    "--trust-code",
    is_flag=True,
    help="Run the code that a file or a directory of somebody else's names; without, that is asked, or refused.",
)


def agree(code: Iterable[Code], where: Path, trust_code: bool) -> None:
    """Ask whether code may run that a file or a directory names, unless that is known.

    Args:
        code: all of it.
        where: the file or the directory.
        trust_code: whether the answer is yes.

    Raises:
        UsageError: it is not to run, nobody is there to be asked, or it can never be meant.
    """
    code = tuple(code)
    for one in code:
        one.check()
    if is_trusted(where, code):
        return
    if not trust_code:
        _ask(code, where)
    _keep(code, where)


def begin(code: Iterable[Code], where: Path | None = None) -> None:
    """Let code run that was agreed to, or typed: a module of the user's is found where the user stands.

    Args:
        code: all of it; where there is none, nothing changes.
        where: the directory that will name it from now on, so that nobody is asked about it.

    Raises:
        UsageError: it can never be meant.
    """
    code = tuple(code)
    for one in code:
        one.check()
    if code and where:
        _keep(code, where)
    if code:
        look_here()


def begin_again(job: Job, run: Path, trust_code: bool) -> None:
    """Let the code of a run run, asking for it unless this user's dnat has made the run."""
    code = code_in(job.flat())
    agree(code, run, trust_code)
    begin(code, run)


def _ask(code: tuple[Code, ...], where: Path) -> None:
    listed = "; ".join(f"{one} (from {one.source()})" for one in code)
    alone = os.environ.get("WORLD_SIZE", "") in ("", "1")
    if not (alone and sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            f"{where} names code, which would run with all your rights: {listed}. Nothing was imported; if you "
            "trust whoever wrote it, add --trust-code"
        )
    say(f"{where} names code, which would run with all your rights:", err=True)
    for one in code:
        say(f"  {one}\n    from {one.source()}", err=True)
    if not click.confirm("Run it?", err=True):
        raise UsageError(f"the code that {where} names is not trusted: nothing was imported")


def _keep(code: tuple[Code, ...], where: Path) -> None:
    if FIRST:
        try:
            trust(where, code)
        except OSError as error:
            why = error.strerror or error
            say(f"note: that this code may run could not be kept ({why}): it will be asked again", err=True)
