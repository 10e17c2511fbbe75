"""Forward passes of a relaxed network: the gates that all edges share in one, and what it teaches operations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from .modes import Sampled, Settling
from .theta import CHOICES, Theta, tried


def _as_it_is(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class ForwardPass:
    """What all edges share in one forward pass of the whole network.

    Attributes:
        gates: of each group, by column.
        needed: of each group the columns of other operations that have weight; None: all that take part learn.
    """

    gates: list[tuple[Tensor, ...]]
    needed: list[list[int]] | None


class ForwardPasses:
    """What the hooks of all edges ask while a relaxed network runs.

    Args:
        theta: with the gates.
    """

    def __init__(self, theta: Theta) -> None:
        self.theta = theta
        self._pass: ForwardPass | None = None
        # Distances of other operations, by row and column; collected while `taught` is open.
        self.distances: dict[tuple[int, int], list[Tensor]] | None = None
        # Whether the last forward pass with gradients was within `taught`: recomputations of it come later.
        self._taught_last = False

    def _rows(self) -> list[tuple[Tensor, ...]]:
        """What each choice of every group is weighed by in a forward pass: 0-dim, a 1-element tensor would promote
        bfloat16."""
        gates, base = self.theta.gates(), self.theta.base
        shares = self.theta.shares() if isinstance(base, Sampled) else None
        if isinstance(base, Sampled) and shares is not None:
            taken = torch.arange(shares.shape[1]) == torch.tensor(base.places)[:, None]
            gates = tried(
                self.theta.weighed(shares * (taken.to(shares.device) | self.theta.widths)), self.theta.mode
            )
        flat, n = gates.flatten().unbind(), len(self.theta.columns)
        return [flat[i * n : (i + 1) * n] for i in range(len(self.theta.theta))]

    def needed(self, row: int) -> list[int]:
        """The columns of other operations that have a say in the present forward pass, or are to learn from it."""
        needed = self._weighing() if self._pass is None else self._pass.needed
        if needed is not None:
            return needed[row]
        columns = [len(CHOICES) + i for i in range(self.theta.offered.shape[1])]
        return columns[base.places[row] :][:1] if isinstance(base := self.theta.base, Sampled) else columns

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
        distances: dict[tuple[int, int], list[Tensor]] = {}
        self.distances = distances
        try:
            yield distances
        finally:
            self.distances = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, all edges share one computation of the gates."""
        self._pass = ForwardPass(self._rows(), self._weighing())
        if torch.is_grad_enabled():
            self._taught_last = self.distances is not None
        try:
            yield
        finally:
            self._pass = None

    def _weighing(self) -> list[list[int]] | None:
        """The columns of operations that have weight, of each row; None where the others are to learn, too."""
        if len(self.theta.columns) == len(CHOICES) or not (self.theta.is_settling or not torch.is_grad_enabled()):
            return None
        weights = self.theta.gates().abs()
        if isinstance(self.theta.mode, Settling):
            weights = self.theta.mode.end.to(weights).abs() + self.theta.mode.start.to(weights).abs()
        others = (weights != 0)[:, len(CHOICES) :].tolist()
        return [[len(CHOICES) + i for i, has in enumerate(row) if has] for row in others]

    def teaches(self) -> bool:
        """Whether the present forward pass of an edge is one within `taught`, or the recomputation of one."""
        return self._taught_last if self._pass is None else self.distances is not None

    def collect(self, row: int, columns: Sequence[int], distances: Sequence[Tensor]) -> None:
        """Note what `taught` gives; not again what is computed again."""
        if self.distances is not None and self._pass is not None:
            for column, distance in zip(columns, distances, strict=True):
                self.distances.setdefault((row, column), []).append(distance)

    def row(self, row: int) -> tuple[Tensor, ...]:
        """The gates of one group in the order of the columns."""
        if self._pass is not None:
            return self._pass.gates[row]
        # Outside of a forward pass of the whole (a block called alone, recomputation by activation
        # checkpointing) they are computed afresh. Hooks of its own: a checkpoint expects what was kept within it
        # the first time, when the gates were there already.
        with saved_tensors_hooks(_as_it_is, _as_it_is):
            return self._rows()[row]
