"""Theta: the architecture parameters, the gates and shares that they make, and what choices are worth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..edges import IDENTITY, NONE, ORIGINAL
from ..naming import unknown

CHOICES = (NONE, IDENTITY, ORIGINAL)
"""The first columns of theta; those of other operations follow by name."""

FORGETTING = 0.1
"""Share of the newest distance in the mean of an operation's distances from the original."""

STEEPNESS = 8.0
"""Slope of the sigmoid gate's exponent: g lies in (-0.019, 1.019), its slope is 2.1 at 1/2 and 0.15 at 0 and 1."""


def _as_it_is(x: Tensor) -> Tensor:
    return x


class Theta(nn.Module):
    """The architecture parameters of a relaxed network: a row (none, identity, original, ...) for each group.

    Args:
        rows: the choices of each group.
        gate: "raw" or "sigmoid"; see the module.
        columns: all choices; see `CHOICES`.
        widths: whether a group's other choices are widths: its original's gate is always open then, and all its
            other choices take part in every step, since they cost nothing.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]],
        gate: str,
        columns: tuple[str, ...] = CHOICES,
        widths: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if gate not in ("raw", "sigmoid"):
            raise unknown("gate", gate, ["raw", "sigmoid"])
        self.gate, self.columns = gate, columns
        start = torch.tensor([float(choice == ORIGINAL) for choice in columns])
        self.theta = nn.Parameter(start.repeat(len(rows), 1))
        offered = torch.tensor([[name in row for name in columns[len(CHOICES) :]] for row in rows])
        self.register_buffer("offered", offered, persistent=False)
        self.offered: Tensor
        self.register_buffer("widths", torch.tensor(widths or [False] * len(rows))[:, None], persistent=False)
        self.widths: Tensor
        # How far other operations are from the originals, as `learned` found it; 1 before it was measured.
        shape = offered.shape if offered.numel() else (0,)
        self.register_buffer("distance", torch.ones(shape), persistent=bool(offered.numel()))
        self.register_buffer("measured", torch.zeros(shape, dtype=torch.bool), persistent=bool(offered.numel()))
        self.distance: Tensor
        self.measured: Tensor
        self.alternatives = [[i for i, has in enumerate(row) if has] for row in offered.tolist()]
        """Of each group the places of its other operations among theirs."""
        # The other operation of each group that takes part in the present step; None: all of them.
        self.sampled: list[int] | None = None
        self.tried: tuple[int, int] | None = None
        # While choices are being settled: the gates at its beginning, and those that are its end.
        self.register_buffer("start_gates", None, persistent=False)
        self.register_buffer("end_gates", None, persistent=False)
        self.settled = 0.0
        # The gates of the forward pass that runs now: computed once for all edges, forgotten at its end.
        self._now: list[tuple[Tensor, ...]] | None = None
        # Distances of other operations, by row and column; collected while `taught` is open.
        self.distances: dict[tuple[int, int], list[Tensor]] | None = None
        self._needed: list[list[int]] | None = None
        self._teaches = False

    def settle(self, end: Tensor) -> None:
        """Leave theta alone from now on: the gates go straight from where they are to others.

        `settled` says how far they are, from 0 to 1.

        Args:
            end: the gates at the end (groups, columns).
        """
        self.start_gates, self.end_gates = self.gates().detach().clone(), end.to(self.theta)
        self.settled = 0.0

    @property
    def is_settling(self) -> bool:
        """Whether `settle` was called."""
        return self.end_gates is not None

    def gates(self) -> Tensor:
        """What each choice is weighed by now: (groups, columns), the first being none, identity, original."""
        if self.end_gates is None:
            gates = self._weighed(self._shares())
        else:
            assert isinstance(self.start_gates, Tensor)
            gates = torch.lerp(self.start_gates, self.end_gates, self.settled)
        if self.tried is None:
            return gates
        row, column = self.tried
        one_hot = torch.arange(gates.shape[1], device=gates.device) == column
        return torch.where(
            torch.arange(len(gates), device=gates.device)[:, None] == row,
            (one_hot & (column != CHOICES.index(NONE))).to(gates),
            gates,
        )

    @contextmanager
    def trying(self, row: int, choice: str) -> Iterator[None]:
        """Within, a group computes what it would if a choice were made; all others what theta says."""
        self.tried = (row, self.columns.index(choice))
        try:
            yield
        finally:
            self.tried = None

    def _weighed(self, shares: Tensor | None) -> Tensor:
        gates, n = self.open_gates(), len(CHOICES)
        if shares is None:
            return gates
        slot = gates[:, n - 1 : n]
        return torch.cat([gates[:, : n - 1], slot * (1 - shares.sum(1, keepdim=True)), slot * shares], 1)

    def _shares(self) -> Tensor | None:
        """The shares of other operations (groups, operations); None where there are none."""
        if not self.offered.numel():
            return None
        shares = self.open_gates()[:, len(CHOICES) :] * self.offered
        return shares / shares.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def confine(self) -> None:
        """Keep the theta of other operations between 0 and 1, where their shares are: call it after a step."""
        self.theta[:, len(CHOICES) :].clamp_(0, 1)

    def scores(self) -> Tensor:
        """What each choice is worth, as theta stands: (groups, columns). The largest is chosen.

        Of none, identity and original it is the gate. Where other operations stand beside the original, what
        choosing one of them would change is taken off: with distances d_j of the operations from the original
        (see `taught`: 0 of one that computes the same, 1 of one that has nothing in common with it) choice c is
        worth

            g(theta_original) * (1 - sum over j of (s_j - [j = c])^2 * d_j)

        which is the gate, less the distance of op_c from what the edge computes now, if the operations' errors
        are uncorrelated. Without a charge or a budget an operation wins when its share exceeds 1/2; and one that
        computes what the original does costs nothing to choose, whatever its share. There is no gradient with
        respect to the shares: a charge for cost would open all of them alike, the worst as fast as the best.
        """
        shares, gates = self._shares(), self.open_gates()
        if shares is None:
            return gates
        shares = shares.detach()
        slot = gates[:, len(CHOICES) - 1 : len(CHOICES)]
        mixture = (shares**2 * self.distance).sum(1, keepdim=True)
        others = 1 - mixture - self.distance * (1 - 2 * shares)
        return torch.cat([gates[:, : len(CHOICES) - 1], slot * (1 - mixture), slot * others], 1)

    def open_gates(self) -> Tensor:
        """g(theta); 1 of the original of a width, which has no other scale than its channels'."""
        gates = self._bare_gates()
        if len(self.columns) == len(CHOICES):
            return gates
        original = torch.arange(gates.shape[1], device=gates.device) == CHOICES.index(ORIGINAL)
        return torch.where(self.widths & original, torch.ones((), dtype=gates.dtype, device=gates.device), gates)

    def _bare_gates(self) -> Tensor:
        if self.gate == "raw":
            return self.theta
        half = torch.full_like(self.theta, STEEPNESS / 2)
        low = torch.sigmoid(-half)
        # The denominator is computed as the numerator is, so that theta = 1 gives exactly 1.
        return (torch.sigmoid(STEEPNESS * self.theta - half) - low) / (torch.sigmoid(half) - low)

    def rows(self) -> list[tuple[Tensor, ...]]:
        """What each choice of every group is weighed by in a forward pass: 0-dim, a 1-element tensor would promote
        bfloat16."""
        gates = self.gates()
        shares = None if self.is_settling or self.sampled is None else self._shares()
        if shares is not None:
            assert self.sampled is not None
            taken = torch.arange(shares.shape[1]) == torch.tensor(self.sampled)[:, None]
            gates = self._weighed(shares * (taken.to(shares.device) | self.widths))
        flat, n = gates.flatten().unbind(), len(self.columns)
        return [flat[i * n : (i + 1) * n] for i in range(len(self.theta))]

    def needed(self, row: int) -> list[int]:
        """The columns of other operations that have a say in the present forward pass, or are to learn from it."""
        needed = self._weighing() if self._now is None else self._needed
        if needed is not None:
            return needed[row]
        every = [len(CHOICES) + i for i in range(self.offered.shape[1])]
        return every if self.sampled is None else every[self.sampled[row] :][:1]

    @contextmanager
    def taught(self) -> Iterator[dict[tuple[int, int], list[Tensor]]]:
        """Within, a forward pass teaches other operations what those compute that they may replace.

        A closed gate passes no gradient on to an operation's weights (docs/methods.md C3). This does: it
        collects, by group and operation, the mean squared difference of its output from the original's, both for
        the same input, as a share of the sum of their variances (over images and pixels, mean over channels).
        With equal means and variances, which norms see to, that is 1 - their correlation. Nothing before an
        operation learns from it, or through it: to what lies before, the edge looks as if its original had
        computed all that the two did, so that one forward pass of the operation serves both.
        """
        found: dict[tuple[int, int], list[Tensor]] = {}
        self.distances = found
        try:
            yield found
        finally:
            self.distances = None

    @torch.no_grad()
    def learned(self, found: Mapping[tuple[int, int], Sequence[Tensor]]) -> None:
        """Add what `taught` found to the running means of the distances."""
        if not found:
            return
        rows, columns = torch.tensor(list(found)).to(self.distance.device).T
        columns = columns - len(CHOICES)
        newest = torch.stack([torch.stack(list(d)).mean() for d in found.values()]).to(self.distance)
        newest = newest.nan_to_num(nan=torch.finfo(newest.dtype).max)
        old = self.distance[rows, columns]
        mean = torch.where(self.measured[rows, columns], torch.lerp(old, newest, FORGETTING), newest)
        self.distance[rows, columns] = mean
        self.measured[rows, columns] = True

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Within, all edges share one computation of the gates."""
        self._now, self._needed = self.rows(), self._weighing()
        if torch.is_grad_enabled():
            self._teaches = self.distances is not None
        try:
            yield
        finally:
            self._now = self._needed = None

    def _weighing(self) -> list[list[int]] | None:
        """The columns of operations that have weight, of each row; None where the others are to learn, too."""
        if len(self.columns) == len(CHOICES) or not (self.is_settling or not torch.is_grad_enabled()):
            return None
        weights = self.gates().abs()
        if self.is_settling and self.tried is None:
            weights = self.end_gates.abs() + self.start_gates.abs()
        others = (weights != 0)[:, len(CHOICES) :].tolist()
        return [[len(CHOICES) + i for i, has in enumerate(row) if has] for row in others]

    def teaches(self) -> bool:
        """Whether the present forward pass of an edge is one within `taught`, or the recomputation of one."""
        return self._teaches if self._now is None else self.distances is not None

    def collect(self, row: int, columns: Sequence[int], distances: Sequence[Tensor]) -> None:
        """Note what `taught` gives; not again what is computed again."""
        if self.distances is not None and self._now is not None:
            for column, distance in zip(columns, distances, strict=True):
                self.distances.setdefault((row, column), []).append(distance)

    def row(self, row: int) -> tuple[Tensor, ...]:
        """The gates of one group in the order of the columns."""
        if self._now is not None:
            return self._now[row]
        # Outside of a forward pass of the whole (a block called alone, recomputation by activation
        # checkpointing) they are computed afresh. Hooks of its own: a checkpoint expects what was kept within it
        # the first time, when the gates were there already.
        with saved_tensors_hooks(_as_it_is, _as_it_is):
            return self.rows()[row]
