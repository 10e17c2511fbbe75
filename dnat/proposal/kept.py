"""A plan in a file: what was measured is never measured again, also where it was not finished."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..files import atomic_write
from ..rundir import SENSITIVITY
from .budgets import Budget, parse_budget
from .planner import Planner, Tell
from .result import Proposals

PART = ".part"
"""Ending of the file beside a plan's that holds what was measured until all is."""


def kept(planner: Planner, budgets: Sequence[Budget], measure: int, path: Path, tell: Tell) -> Proposals:
    """A plan that is written to a file, and goes on with what the file holds: measurements, and other budgets.

    Args:
        planner: with network and images.
        budgets: to add to those of the file.
        measure: see `plan`.
        path: of the file; unfinished measurements are kept beside it. In a run's directory, what the run measured
            of the same network with the same images is used.
        tell: see `plan`.

    Raises:
        ValueError: the file holds something else, or a plan of other weights, images or settings.
    """
    earlier = Proposals.read(path) if path.exists() else None
    if earlier and earlier.digest != planner.digest:
        raise UsageError(
            f"{path} is a plan of another network, or other weights, images or settings: choose another file"
        )
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}")
    part = path.with_name(path.name + PART)
    sensitivity = earlier.sensitivity if earlier else planner.measured(tell, part, path.with_name(SENSITIVITY))
    asked = [p.budget for p in earlier.proposals] if earlier else []
    every = list(dict.fromkeys([*map(parse_budget, asked), *budgets]))
    untimed = earlier is not None and not earlier.timed and not measure
    known = earlier.proposals if earlier and untimed else ()
    result = planner.result(sensitivity, every, measure, known, tell)
    atomic_write(path, (result.to_json() + "\n").encode())
    part.unlink(missing_ok=True)
    return result
