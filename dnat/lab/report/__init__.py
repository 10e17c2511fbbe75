"""The report of a sweep, or of any runs: Markdown, one page of HTML that needs no network, static pictures.

    report = gather(["runs/sweep"])
    markdown(report)                 tables and notes
    page(report)                     the page
    draw(report, "pictures")         PNG and SVG as in a paper

`draw` is imported when it is first used: the others need not wait for matplotlib.
"""

from typing import TYPE_CHECKING, Any

from .gather import Group, Report, Run, Sweep, Unfinished, gather, is_sweep
from .page import page
from .table import markdown

if TYPE_CHECKING:
    from .pictures import draw as draw

__all__ = ["Group", "Report", "Run", "Sweep", "Unfinished", "draw", "gather", "is_sweep", "markdown", "page"]


def __getattr__(name: str) -> Any:
    if name != "draw":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .pictures import draw

    globals()["draw"] = draw
    return draw
