"""The times of a sweep's networks, measured one after another when all its trials are done.

Trials that run beside each other slow one another down, and what they measured of their networks says little. So
each network is measured again, before and after, in a process of its own while no trial runs.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

from ...naming import look_here, names_code
from ...rundir import RunFiles, read_job
from .forkserver import ForkServer
from .trials import beside


def measure(directories: Iterable[Path], stop: Callable[[], bool], server: ForkServer | None = None) -> str:
    """Measure the times of finished runs that nobody measured alone; each run's directory gets them.

    Args:
        directories: of the runs.
        stop: asked several times a second whether to leave it; what was measured is kept.
        server: which forks the process; without, it is a new one.

    Returns:
        What went wrong, in a line; empty if nothing did.
    """
    left = [str(place) for place in directories if not RunFiles(place).latency()]
    if not left or stop():
        return ""
    code, printed = beside(__name__, left, stop, server)
    lines = printed.splitlines()
    if not code or stop():
        return ""
    return f"times were not measured again: {lines[-1] if lines else f'exit code {code}'}"


def _main(*directories: str) -> None:
    from ..runs.finished import times

    for place in directories:
        if names_code(read_job(place).flat()):
            look_here()
        before, after = times(place)
        alone = {"before": before, "after": after}
        RunFiles(place).write_latency({name: asdict(t) | {"alone": True} for name, t in alone.items()})


if __name__ == "__main__":
    _main(*sys.argv[1:])
