"""The command `dnat`. Each command parses, calls and prints; what it needs is imported when it runs."""

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .commands import cli as cli
    from .commands import exit_code as exit_code
    from .commands import make_job as make_job


def main() -> None:
    """Run the command and exit with its code."""
    try:
        if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
            signal.signal(signal.SIGINT, _interrupt)
        from ...errors import told_of_machine

        with told_of_machine():
            from .group import main as run
    except KeyboardInterrupt:
        sys.stderr.write(_STOPPED)
        sys.exit(130)
    except OSError as error:
        sys.stderr.write(f"dnat: {error}\n")
        sys.exit(73)
    run()


_STOPPED = "dnat: stopped at once\n"


def _interrupt(number: int, frame: Any) -> None:
    """As Python does; but while torch is loaded its C++ would abort at an exception."""
    torch = sys.modules.get("torch")
    if getattr(getattr(torch, "__spec__", None), "_initializing", False):
        os.write(2, _STOPPED.encode())
        os._exit(130)
    raise KeyboardInterrupt


def __getattr__(name: str) -> Any:
    if name not in ("cli", "exit_code", "make_job"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import commands

    return getattr(commands, name)
