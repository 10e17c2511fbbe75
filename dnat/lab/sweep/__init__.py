"""Networks x methods x seeds -> runs in one directory: many at a time, each resumable, none stopped by another.

    variants    methods with settings of their own, by name
    settings    which trials there are, with which settings, and what is wrong with them
    trials      one trial in a process of its own, and what became of it
    preflight   each network and data set, tried once before any trial
    directory   a sweep's files
    local       trials on this machine
    cluster     trials on Ray
    timing      the times of networks, measured when no trial runs
    schedule    `run_sweep`: the loop over them

The names are imported when they are first used: whoever only runs a trial need not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .directory import Standing as Standing
    from .directory import commands as commands
    from .directory import continued as continued
    from .directory import read as read
    from .schedule import Options as Options
    from .schedule import View as View
    from .schedule import remaining as remaining
    from .schedule import run_sweep as run_sweep
    from .schedule import write_plan as write_plan
    from .settings import Sweep as Sweep
    from .settings import Trial as Trial
    from .settings import parse_names as parse_names
    from .settings import parse_seeds as parse_seeds
    from .settings import plan as plan
    from .variants import parse_variant as parse_variant

_HOME = {
    "Sweep": "settings",
    "Trial": "settings",
    "parse_names": "settings",
    "parse_seeds": "settings",
    "plan": "settings",
    "parse_variant": "variants",
    "Standing": "directory",
    "commands": "directory",
    "continued": "directory",
    "read": "directory",
    "Options": "schedule",
    "View": "schedule",
    "remaining": "schedule",
    "run_sweep": "schedule",
    "write_plan": "schedule",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
