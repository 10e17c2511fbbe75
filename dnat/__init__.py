"""Differentiable neural architecture transformation: train any PyTorch network into a smaller, better one.

    network -> program -> edges -> relaxed network -> two-stage training -> choices -> plain network

The public names stand below in the order of that story. They are imported when they are first used, so that
`dnat --help` need not wait for torch.

`dnat.cost`, `dnat.transform`, `dnat.export` and `dnat.transitions` are the functions, also when the modules of
the same names were imported: `import dnat.cost as m` gives the function. Other names of such a module are
imported with `from dnat.cost import operation_seconds`.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config as Config
    from .cost import Cost as Cost
    from .cost import Latency as Latency
    from .cost import cost as cost
    from .cost import latency as latency
    from .data import Data as Data
    from .data import load as load
    from .discretization import discretize as discretize
    from .edges import Edge as Edge
    from .errors import DnatError as DnatError
    from .export import export as export
    from .ground_truth import compare_with_table as compare_with_table
    from .networks import build as build
    from .planning import find_edges as find_edges
    from .proposal import Proposals as Proposals
    from .proposal import plan as plan
    from .records import Records as Records
    from .relaxation import RelaxedNetwork as RelaxedNetwork
    from .relaxation import relax as relax
    from .selection import select as select
    from .tracing import Program as Program
    from .tracing import trace as trace
    from .training import evaluate as evaluate
    from .transform import Transformation as Transformation
    from .transform import train as train
    from .transform import transform as transform
    from .transitions import transitions as transitions

_HOME = {
    "build": "networks",
    "load": "data",
    "Data": "data",
    "transitions": "transitions",
    "trace": "tracing",
    "Program": "tracing",
    "find_edges": "planning",
    "Edge": "edges",
    "relax": "relaxation",
    "RelaxedNetwork": "relaxation",
    "select": "selection",
    "discretize": "discretization",
    "cost": "cost",
    "Cost": "cost",
    "latency": "cost",
    "Latency": "cost",
    "Config": "config",
    "plan": "proposal",
    "Proposals": "proposal",
    "transform": "transform",
    "train": "transform",
    "evaluate": "training",
    "export": "export",
    "Transformation": "transform",
    "compare_with_table": "ground_truth",
    "Records": "records",
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


class _Package(types.ModuleType):
    """Keeps `dnat.cost`, `dnat.transform`, `dnat.export` and `dnat.transitions` the functions.

    Importing the modules of the same names would otherwise put the modules in their place.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
