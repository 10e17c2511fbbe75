"""Edges of one program, and the groups that share theta."""

from collections.abc import Sequence

from ..naming import unknown
from ..tracing import Program, Trace
from .edge import Edge


class EdgeSet(tuple[Edge, ...]):
    """A tuple of edges of one program, in its order, which says what they have in common."""

    @property
    def program(self) -> Program:
        """The program in which they were found."""
        return self[0].program

    @property
    def trace(self) -> Trace:
        """Its first trace."""
        return self.program.traces[0]

    def groups(self, mode: str) -> dict[str, list[Edge]]:
        """{name: edges} of the groups that share theta; in full mode each edge is one.

        Raises:
            ValueError: a mode that is neither "full" nor "cell".
        """
        if mode not in ("full", "cell"):
            raise unknown("mode", mode, ["full", "cell"])
        groups: dict[str, list[Edge]] = {}
        for edge in self:
            groups.setdefault(edge.key if mode == "full" else edge.group, []).append(edge)
        return groups


def common_choices(edges: Sequence[Edge]) -> tuple[str, ...]:
    """What all edges of a group may become."""
    return tuple(c for c in edges[0].choices if all(c in edge.choices for edge in edges))
