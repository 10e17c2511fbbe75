"""Runs that are asked to stop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from ...errors import UsageError

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


@contextmanager
def stop_on_signals() -> Iterator[Callable[[Any], bool]]:
    """Within, SIGINT, SIGTERM and SIGHUP only set a flag that the run asks for; a second SIGINT stops at once.

    SIGHUP comes when a terminal is closed; who ignores it, as `nohup` does, goes on ignoring it. A trial of a
    sweep also stops when the process that started it is gone.

    Raises:
        ValueError: the variable DNAT_PARENT, which a sweep sets, is no process.
    """
    asked: list[int] = []
    parent = os.environ.pop("DNAT_PARENT", None)  # not for processes that this one starts
    if parent is not None and not parent.isdecimal():
        raise UsageError(f"DNAT_PARENT={parent} is no process: a sweep sets it for its trials; unset it")
    terminals = [number for number in (1, 2) if os.isatty(number)]  # once one is closed nobody can tell

    def note(number: int, frame: Any) -> None:
        if number in asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if number == _HANGUP:
            _silence(terminals)
        with contextlib.suppress(OSError):
            click.echo("stopping after this batch; once more to stop at once", err=True)

    heard = [signal.SIGINT, signal.SIGTERM]
    if _HANGUP is not None and signal.getsignal(_HANGUP) != signal.SIG_IGN:
        heard.append(_HANGUP)
    old = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda progress: bool(asked) or (parent is not None and os.getppid() != int(parent))
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _silence(streams: list[int]) -> None:
    """Let nothing more go to terminals that are closed: each line would be an error."""
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in streams:
            os.dup2(nowhere, number)
        os.close(nowhere)
