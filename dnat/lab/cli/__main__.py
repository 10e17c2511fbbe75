"""The process of the command: `dnat`, or `python -m dnat.lab.cli`, by which a sweep starts its trials."""

import atexit
import contextlib
import os
import sys

from .group import main as run


def main() -> None:
    """Run the command, and end the process at once when it and whatever it left to be done at the end are done.

    Python takes itself apart at its end, object by object; with torch that takes a second, and changes nothing.
    """
    code: int | None = None

    def leave() -> None:
        if code is None:
            return  # by another way than ours
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # what is registered first is done last
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else None
        raise


if __name__ == "__main__":
    main()
