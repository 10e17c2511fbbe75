"""The names of methods as tables have them, and their order."""

import re
from collections.abc import Mapping
from typing import Any

from ..settings import ALIASES, METHODS
from . import fields

_ORDER = (*ALIASES, *METHODS)


def label(job: Mapping[str, Any]) -> str:
    """The name of a job's method as tables have it: its label, or the method with its mode and what limits it.

    Args:
        job: settings as they stand in a record, or `Job.flat()`.

    Raises:
        ValueError: no method, or dnat without a mode.

    >>> label({"method": "dnat", "mode": "full", "budget": 0.7})
    'dnat-full 0.7'
    >>> label({"method": "nat", "search": {"official": True}})
    'nat (official)'
    >>> label({"method": "dnat", "mode": "cell", "latency_budget": "5ms"})
    'dnat-cell latency 5ms'
    >>> label({"method": "dnat", "mode": "full", "budget": 0.7, "label": "slow"})
    'slow'
    """
    if job.get("label") is not None:
        return fields.name(job, "job.label")
    name = fields.name(job, "job.method")
    if name == "dnat":
        name += f"-{fields.name(job, 'job.mode')}"
    search = job.get("search")
    if isinstance(search, Mapping) and search.get("official"):
        # Of NAO's code the model alone is there, and not its search.
        name += " (official model)" if name == "nao" else " (official)"
    for key, prefix in (("budget", ""), ("latency_budget", "latency ")):
        if job.get(key) is not None:
            name += f" {prefix}{job[key]}"
    return name


def method_order(label: str, baseline: str) -> tuple[Any, ...]:
    """Sorts labels: the baseline first, then as in `dnat.settings.METHODS`, then by name."""
    base = label.partition(" ")[0]
    return label != baseline, _ORDER.index(base) if base in _ORDER else len(_ORDER), natural_order(label)


def natural_order(name: str) -> tuple[Any, ...]:
    """Sorts resnet8 before resnet20, and 0.35 before 0.5.

    >>> sorted(["lr=0.5", "lr=0.035", "lr=1e-05"], key=natural_order)
    ['lr=1e-05', 'lr=0.035', 'lr=0.5']
    """
    parts = re.split(r"([0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?)", name)
    return tuple(float(part) if place % 2 else part for place, part in enumerate(parts)), name
