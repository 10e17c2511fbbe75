"""What became of an edge, as runs report it, where theta had no part in it."""

from ...edges import IDENTITY, NONE, ORIGINAL, Edge
from ...results import EdgeReport


def edge_report(
    edge: Edge, group: str, choice: str, worth: dict[str, float], *, saved: int, reason: str, by: str = ""
) -> EdgeReport:
    """The report on one edge.

    Args:
        edge: the edge.
        group: that shares the choice.
        choice: that was made.
        worth: {choice: what it was worth to the method}; of a choice that is missing, 0.
        saved: multiply-adds of one image that it saves alone.
        reason: why the choice is another one than the method's own.
        by: what decided.
    """
    rest = [w for c, w in worth.items() if c != choice]
    gates = tuple(worth.get(c, 0.0) for c in (NONE, IDENTITY, ORIGINAL))
    others = {c: w for c, w in worth.items() if c not in (NONE, IDENTITY, ORIGINAL)}
    if choice not in (NONE, IDENTITY, ORIGINAL):
        others.setdefault(choice, 0.0)
    return EdgeReport(
        key=edge.key,
        kind=edge.kind,
        operation=edge.operation,
        shape_in=edge.shape_in,
        shape_out=edge.shape_out,
        madds=edge.madds,
        group=group,
        choice=choice,
        gates=(gates[0], gates[1], gates[2]),
        margin=worth.get(choice, 0.0) - max(rest, default=0.0),
        saved=saved,
        refused=edge.refused,
        reason=reason,
        others=tuple(others.items()),
        by=by,
    )
