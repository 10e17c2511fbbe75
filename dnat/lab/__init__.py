"""The laboratory: what compares methods, and the command. `dnat` itself never imports it.

`dnat.lab.results(*paths)` gives any runs and sweeps as a pandas DataFrame.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .tabulation import results as results

__all__ = ["results"]


def __getattr__(name: str) -> Any:
    if name != "results":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .tabulation import results

    globals()["results"] = results
    return results
