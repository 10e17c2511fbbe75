"""Differentiable neural architecture transformation: train any PyTorch network into a smaller, better one.

    network -> program -> edges -> relaxed network -> two-stage training -> choices -> plain network

The public names stand below in the order of that story. They are imported when they are first used, so that
`dnat --help` need not wait for torch.

Experiments that compare methods stand in `dnat.lab`, which this package never imports.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attachment import Architecture as Architecture
    from .attachment import attach as attach
    from .costs import Cost as Cost
    from .costs import Latency as Latency
    from .costs import cost as cost
    from .costs import latency as latency
    from .data import Data as Data
    from .data import from_loaders as from_loaders
    from .data import load as load
    from .discretization import discretize as discretize
    from .edges import Edge as Edge
    from .errors import DnatError as DnatError
    from .exports import export as export
    from .moves import transitions as transitions
    from .networks import build as build
    from .planning import find_edges as find_edges
    from .proposal import Proposals as Proposals
    from .proposal import plan as plan
    from .records import Records as Records
    from .relaxation import RelaxedNetwork as RelaxedNetwork
    from .relaxation import relax as relax
    from .results import Transformation as Transformation
    from .selection import select as select
    from .settings import Config as Config
    from .tasks import Task as Task
    from .tracing import Program as Program
    from .tracing import trace as trace
    from .tracking import Tracker as Tracker
    from .training import evaluate as evaluate
    from .transformation import train as train
    from .transformation import transform as transform

_HOME = {
    "build": "networks",
    "load": "data",
    "from_loaders": "data",
    "Data": "data",
    "transitions": "moves",
    "trace": "tracing",
    "Program": "tracing",
    "find_edges": "planning",
    "Edge": "edges",
    "relax": "relaxation",
    "RelaxedNetwork": "relaxation",
    "select": "selection",
    "discretize": "discretization",
    "cost": "costs",
    "Cost": "costs",
    "latency": "costs",
    "Latency": "costs",
    "Config": "settings",
    "plan": "proposal",
    "Proposals": "proposal",
    "transform": "transformation",
    "train": "transformation",
    "evaluate": "training",
    "export": "exports",
    "Transformation": "results",
    "attach": "attachment",
    "Architecture": "attachment",
    "Task": "tasks",
    "Records": "records",
    "Tracker": "tracking",
    "DnatError": "errors",
}
__all__ = list(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dnat' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
