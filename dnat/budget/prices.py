"""What each set of choices costs: which operations are needed, and what of each remains in narrower widths."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..edges import ORIGINAL, Edge, replacements
from ..errors import UsageError
from ..tracing import change_of

FULL = 0.97
"""The share of a limit that is to be used where any legal set has a cost between that and the limit."""

FULL_WITH_WIDTHS = 0.99
"""The same where widths may shrink: their steps are fine."""

Groups = Mapping[str, Sequence[Edge]]
"""Edges by the group that shares a choice."""

Parts = Mapping[tuple[Edge, str], Mapping[int, float]]
"""{(edge, choice): {place of a weight: the share of it that remains}}, of widths."""


class Costs:
    """What sets of choices cost: multiply-adds of one image, or any other sum over operations.

    Args:
        edges: the edges that may change.
        weights: what each operation of the program's first trace costs; by default its multiply-adds.
        parts: what of a cost remains with a width's choice: {(edge, choice): {place of the weight: share}}; by
            default the share of its channels, of all operations that work on them.
        owners: of each weight the operation that has it, where an operation has several or none.
    """

    def __init__(
        self,
        edges: Iterable[Edge],
        weights: Sequence[float] | None = None,
        parts: Parts | None = None,
        owners: Sequence[int] | None = None,
    ) -> None:
        self.edges = tuple(edges)
        self.trace = self.edges[0].program.traces[0]
        batch = max(self.trace.batch, 1)
        self.counted = weights is None
        """Whether costs are multiply-adds, which are known of operations that are not there yet, too."""
        self.weights = [op.madds / batch for op in self.trace.operations] if weights is None else list(weights)
        self.owners = list(range(len(self.trace.operations))) if owners is None else list(owners)
        if len(self.weights) != len(self.owners):
            raise UsageError(f"{len(self.weights)} weights for {len(self.owners)} operations")
        # Another operation has multiply-adds of its own, and so has a reduction that stands in for an identity.
        self.added = {(e, c): e.added(c) for e in self.edges for c in e.modules if self.counted and e.added(c)}
        self.parts = remaining_shares(self.edges, self.weights) if parts is None else parts
        self._places: defaultdict[int, list[int]] = defaultdict(list)
        for number, owner in enumerate(self.owners):
            self._places[owner].append(number)
        self.total = sum(self.weights)
        """The cost of the untouched network."""
        self.unread = self.total - sum(self.weights[i] for i in self._of(self.trace.live))
        """What operations cost that nothing reads; it is paid whatever is chosen."""

    @property
    def full(self) -> float:
        """The share of a limit that is to be used where any legal set does."""
        return FULL_WITH_WIDTHS if self.parts else FULL

    def of(self, choices: Mapping[Edge, str]) -> float:
        """The cost when these choices are made; edges that are missing stay original."""
        change = change_of(self.trace, *replacements(self.trace, choices))
        (values, operations), dead, revived = self.trace.untouched, change.dead, change.revived
        shares: defaultdict[int, float] = defaultdict(lambda: 1.0)
        for pair in choices.items():
            for number, share in self.parts.get(pair, {}).items():
                shares[number] *= share
        cost = (
            self.total
            - sum(self.weights[i] for i in self._of(dead))
            + sum(self.weights[i] for i in self._of(revived))
        )
        for number, share in shares.items():
            owner = self.owners[number]
            if owner in revived or (owner in operations and owner not in dead):
                cost -= self.weights[number] * (1 - share)
        for edge, choice in choices.items():
            outs = (out for _, out in edge.values(self.trace)) if (edge, choice) in self.added else ()
            if any(change.values.get(out, out in values) for out in outs):
                cost += self.added[edge, choice]
        return cost

    def _of(self, operations: Iterable[int]) -> list[int]:
        """The places of the weights that some operations have."""
        return [number for owner in operations for number in self._places.get(owner, ())]

    def removed(self, choices: Mapping[Edge, str]) -> frozenset[int]:
        """The operations that these choices make unnecessary."""
        return change_of(self.trace, *replacements(self.trace, choices)).dead

    def shares(self, members: Iterable[Edge], choice: str) -> dict[int, float]:
        """The share of each operation that remains where the widths of a group become a choice."""
        remaining: dict[int, float] = {}
        for edge in members:
            for number, share in self.parts.get((edge, choice), {}).items():
                remaining[number] = remaining.get(number, 1.0) * share
        return remaining

    def expectation(self, groups: Groups, legal: Mapping[str, Sequence[str]]) -> "Expectation":
        """The table behind the expected cost when each group makes a random choice of its own."""
        killers: defaultdict[int, set[tuple[str, str, float]]] = defaultdict(set)
        for group, members in groups.items():
            for choice in legal[group]:
                if choice != ORIGINAL:
                    for number in self._of(self.removed(dict.fromkeys(members, choice))):
                        killers[number].add((group, choice, 1.0))
                    for number, share in self.shares(members, choice).items():
                        killers[number].add((group, choice, 1 - share))
        shares: defaultdict[frozenset[tuple[str, str, float]], float] = defaultdict(float)
        for number, own in killers.items():
            shares[frozenset(own)] += self.weights[number]
        fixed = self.total - sum(shares.values())
        rows = tuple((s, tuple(sorted(k))) for k, s in sorted(shares.items(), key=lambda x: sorted(x[0])) if s)
        added = tuple(
            (group, choice, weight)
            for group, members in groups.items()
            for choice in legal[group]
            if (weight := sum(self.added.get((e, choice), 0.0) for e in members))
        )
        return Expectation(self.total, fixed, rows, added)


@dataclass(frozen=True)
class Expectation:
    """The cost that remains, as a table.

    Attributes:
        total: the cost of the untouched network.
        fixed: what no single choice can make less.
        shares: (cost, the (group, choice, share) each of which takes that share of it away).
        added: (group, choice, cost that comes with it).
    """

    total: float
    fixed: float
    shares: tuple[tuple[float, tuple[tuple[str, str, float], ...]], ...]
    added: tuple[tuple[str, str, float], ...]


def remaining_shares(edges: Iterable[Edge], weights: Sequence[float]) -> Parts:
    """What remains of operations' multiply-adds: of all that work on a width's channels, their share."""
    return {
        (edge, choice): {i: edge.remaining(choice) for i in sorted(edge.place.operations) if weights[i]}
        for edge in edges
        if edge.place
        for choice in edge.choices[1:]
    }


def by_edge(groups: Groups, choices: Mapping[str, str]) -> dict[Edge, str]:
    """The choices of groups as choices of their edges."""
    return {edge: choices[group] for group, members in groups.items() for edge in members}
