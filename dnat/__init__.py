"""Differentiable neural architecture transformation: train any PyTorch network into a smaller, better one.

    network -> program -> edges -> relaxed network -> two-stage training -> choices -> plain network

The public names, in the order of that story, are listed in `__all__`. They are imported when first used, so that
`dnat --help` need not wait for torch.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .edges import Edge as Edge
    from .edges import find_edges as find_edges
    from .networks import build as build
    from .tracing import Program as Program
    from .tracing import trace as trace

_HOME = {
    "build": "networks",
    "Program": "tracing",
    "trace": "tracing",
    "Edge": "edges",
    "find_edges": "edges",
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
    """Keeps `dnat.cost` and `dnat.transform` the functions: importing the modules of the same names would
    otherwise put the modules in their place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
