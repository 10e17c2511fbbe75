"""Theta: the architecture parameters, the gates and shares that they make, and what choices are worth."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..edges import IDENTITY, NONE, ORIGINAL
from ..naming import unknown
from .modes import Mode, Open, Sampled, Settling, Trying

CHOICES = (NONE, IDENTITY, ORIGINAL)
"""The first columns of theta; those of other operations follow by name."""

FORGETTING = 0.1
"""Share of the newest distance in the mean of an operation's distances from the original."""

STEEPNESS = 8.0
"""Slope of the sigmoid gate's exponent: g lies in (-0.019, 1.019), its slope is 2.1 at 1/2 and 0.15 at 0 and 1."""


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
        self.mode: Mode = Open()

    def settle(self, end: Tensor) -> None:
        """Leave theta alone from now on: the gates go straight from where they are to others.

        Args:
            end: the gates at the end (groups, columns).
        """
        start = self.gates().detach().clone()
        self.mode = Settling(start, end.to(start), start.new_tensor(0.0))

    @property
    def is_settling(self) -> bool:
        """Whether `settle` was called."""
        return isinstance(self.base, Settling)

    def settle_to(self, progress: float) -> None:
        """Put the gates at a share of the way to their end, from 0 to 1."""
        assert isinstance(self.mode, Settling)
        self.mode = replace(self.mode, progress=self.mode.start.new_tensor(progress))

    def sample(self, places: Sequence[int] | None) -> None:
        """Let one other operation of each group take part, by its place among them, or all (None).

        While the gates settle that makes no difference.
        """
        if not self.is_settling:
            self.mode = Open() if places is None else Sampled(tuple(places))

    @contextmanager
    def trying(self, row: int, choice: str) -> Iterator[None]:
        """Within, a group computes what it would if a choice were made; all others what they did before."""
        others = self.mode
        self.mode = Trying(others, row, self.columns.index(choice))
        try:
            yield
        finally:
            self.mode = others

    @property
    def base(self) -> Open | Sampled | Settling:
        """The mode of the groups that nothing is tried on."""
        mode = self.mode
        while isinstance(mode, Trying):
            mode = mode.others
        return mode

    def gates(self) -> Tensor:
        """What each choice is weighed by now, whatever a sample takes: (groups, columns); see `CHOICES`."""
        if not isinstance(base := self.base, Settling):
            gates = self.weighed(self.shares())
        else:
            gates = torch.lerp(base.start.to(self.theta), base.end.to(self.theta), base.progress.to(self.theta))
        return tried(gates, self.mode)

    def weighed(self, shares: Tensor | None) -> Tensor:
        """The gates with what other operations have of the original's."""
        gates, n = self.open_gates(), len(CHOICES)
        if shares is None:
            return gates
        slot = gates[:, n - 1 : n]
        return torch.cat([gates[:, : n - 1], slot * (1 - shares.sum(1, keepdim=True)), slot * shares], 1)

    def shares(self) -> Tensor | None:
        """The shares of other operations (groups, operations); None where there are none."""
        if not self.offered.numel():
            return None
        shares = self.open_gates()[:, len(CHOICES) :] * self.offered
        return shares / shares.sum(1, keepdim=True).clamp(min=1)

    @torch.no_grad()
    def confine(self) -> None:
        """Keep the theta of other operations between 0 and 1, where their shares are: call it after a step."""
        self.theta[:, len(CHOICES) :].clamp_(0, 1)

    def worths(self) -> Tensor:
        """What each choice is worth, as theta stands: (groups, columns). The largest is chosen.

        Of none, identity and original it is the gate. Where other operations stand beside the original, what
        choosing one of them would change is taken off: with distances d_j of the operations from the original
        (see `ForwardPasses.taught`: 0 of one that computes the same, 1 of one that has nothing in common with it)
        choice c is worth

            g(theta_original) * (1 - sum over j of (s_j - [j = c])^2 * d_j)

        which is the gate, less the distance of op_c from what the edge computes now, if the operations' errors
        are uncorrelated. Without a charge or a budget an operation wins when its share exceeds 1/2; and one that
        computes what the original does costs nothing to choose, whatever its share. There is no gradient with
        respect to the shares: a charge for cost would open all of them alike, the worst as fast as the best.
        """
        shares, gates = self.shares(), self.open_gates()
        if shares is None:
            return gates
        shares = shares.detach()
        slot = gates[:, len(CHOICES) - 1 : len(CHOICES)]
        mixture = (shares**2 * self.distance).sum(1, keepdim=True)
        others = 1 - mixture - self.distance * (1 - 2 * shares)
        return torch.cat([gates[:, : len(CHOICES) - 1], slot * (1 - mixture), slot * others], 1)

    def open_gates(self) -> Tensor:
        """g(theta); 1 of the original of a width, which has no other scale than its channels'."""
        gates = gate_values(self.theta, self.gate)
        if len(self.columns) == len(CHOICES):
            return gates
        original = torch.arange(gates.shape[1], device=gates.device) == CHOICES.index(ORIGINAL)
        return torch.where(self.widths & original, torch.ones((), dtype=gates.dtype, device=gates.device), gates)

    @torch.no_grad()
    def learned(self, distances: Mapping[tuple[int, int], Sequence[Tensor]]) -> None:
        """Add what `ForwardPasses.taught` collected to the running means of the distances."""
        if not distances:
            return
        rows, columns = torch.tensor(list(distances)).to(self.distance.device).T
        columns = columns - len(CHOICES)
        newest = torch.stack([torch.stack(list(d)).mean() for d in distances.values()]).to(self.distance)
        newest = newest.nan_to_num(nan=torch.finfo(newest.dtype).max)
        old = self.distance[rows, columns]
        mean = torch.where(self.measured[rows, columns], torch.lerp(old, newest, FORGETTING), newest)
        self.distance[rows, columns] = mean
        self.measured[rows, columns] = True


def gate_values(theta: Tensor, gate: str) -> Tensor:
    """g(theta), element by element."""
    if gate == "raw":
        return theta
    half = torch.full_like(theta, STEEPNESS / 2)
    low = torch.sigmoid(-half)
    # The denominator is computed as the numerator is, so that theta = 1 gives exactly 1.
    return (torch.sigmoid(STEEPNESS * theta - half) - low) / (torch.sigmoid(half) - low)


def tried(gates: Tensor, mode: Mode) -> Tensor:
    """The gates with those of a group on which a choice is tried: one-hot, and none's all 0."""
    if not isinstance(mode, Trying):
        return gates
    one_hot = torch.arange(gates.shape[1], device=gates.device) == mode.column
    return torch.where(
        torch.arange(len(gates), device=gates.device)[:, None] == mode.row,
        (one_hot & (mode.column != CHOICES.index(NONE))).to(gates),
        gates,
    )
