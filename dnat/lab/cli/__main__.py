"""The process of the command: `dnat`, or `python -m dnat.lab.cli`, by which a sweep starts its trials."""

import atexit
import contextlib
import ctypes
import gc
import os
import sys

from . import main as run


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
    _keep_memory()
    gc.set_threshold(20_000, 20, 50)  # torch's hundred thousands of objects stay, and need not be looked through
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else None
        raise


def _keep_memory() -> None:
    """Let glibc keep what it was given back: by default it asks the kernel for large tensors each time anew.

    A network for images of 224 pixels takes half the time with it (`python benchmarks/evaluation.py`). No bit
    changes; the process keeps the most memory that it ever held at once.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        assert libc
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 1 << 26)):
            libc.mallopt(option, value)


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of malloc.h: from how many free bytes on memory is given back; how much is asked for at a time; how many
allocations may be mappings of their own."""


if __name__ == "__main__":
    main()
