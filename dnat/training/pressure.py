"""What theta pays for: the cost of what it keeps, and how far its gates are from 0 and 1."""

import torch
from torch import Tensor

from ..budget import Costs
from ..edges import NONE, ORIGINAL
from ..relaxation import CHOICES, RelaxedNetwork
from ..selection import none_threshold
from ..settings import Relaxation


class ArchitectureLoss:
    """What is added to the loss for theta's sake: `cost_weight * expected cost - zero_one_weight * distance`.

    The expected cost is what would remain of the cost that choices can take away, if each group chose by a
    softmax of its scores (`Theta.scores`) over its legal choices (none counts with its threshold), at a
    temperature of 1/4. It compares choices, so it also works where a gate alone means nothing because a norm
    undoes every scale; an operation inside a block or before a dropped branch counts as gone with it. Only what
    lies above the limit is charged. The distance is the sum over free gates (no shares of other operations) of
    (g - 1/2)^2, which pulls gates to 0 or 1 (FairDARTS takes its mean; with a sum a gate feels the same pull in
    any network).

    Args:
        relaxed: the network.
        settings: with the weights.
        costs: what choices cost; by default their multiply-adds.
        limit: in the unit of the costs, nothing below it is charged; by default `cost_target` of all.
    """

    TEMPERATURE = 0.25

    def __init__(
        self,
        relaxed: RelaxedNetwork,
        settings: Relaxation,
        costs: Costs | None = None,
        limit: float | None = None,
    ) -> None:
        self.relaxed, self.settings = relaxed, settings
        theta = next(relaxed.thetas())
        self.columns = relaxed.columns
        legal = torch.zeros(*theta.shape, dtype=torch.bool)
        for row, group in enumerate(relaxed.groups):
            legal[row] = torch.tensor([choice in relaxed.choices_of(group) for choice in self.columns])
        self.illegal = ~legal.to(theta.device)
        column = torch.arange(len(self.columns))
        free = legal & (column != CHOICES.index(NONE))
        skips = torch.tensor([relaxed.members(group)[0].kind == "skip" for group in relaxed.groups])
        free[skips, CHOICES.index(ORIGINAL)] = False  # of a null edge: it weighs nothing
        free[:, len(CHOICES) :] = False  # shares begin closed, and would never leave it
        self.free = free.to(theta)
        self.none = (column == CHOICES.index(NONE)).to(theta.device)
        self.null = (skips[:, None] & (column == CHOICES.index(ORIGINAL))).to(theta.device)
        groups = relaxed.by_group()
        table = (costs or Costs(relaxed.edges)).expectation(groups, {g: relaxed.choices_of(g) for g in groups})
        place = {group: row for row, group in enumerate(groups)}
        killers = torch.zeros(len(table.shares), *theta.shape)
        for i, (_, pairs) in enumerate(table.shares):
            for group, choice, part in pairs:
                killers[i, place[group], self.columns.index(choice)] += part
        added = torch.zeros(*theta.shape)
        for group, choice, amount in table.added:
            added[place[group], self.columns.index(choice)] = amount
        changeable = max(table.total - table.fixed, 1e-30)
        self.killers = killers.to(theta)
        self.shares = torch.tensor([share / changeable for share, _ in table.shares]).to(theta)
        self.added = (added / changeable).to(theta)
        limit = settings.cost_target * table.total if limit is None else limit
        self.free_of_charge = max(limit - table.fixed, 0.0) / changeable

    def __call__(self) -> Tensor:
        """The loss of theta as it is now, 0-dim."""
        gates = self.relaxed.architecture.open_gates()
        zero_one = ((gates - 0.5) ** 2 * self.free).sum()
        charged = (self.expected_cost() - self.free_of_charge).clamp(min=0)
        return self.settings.cost_weight * charged - self.settings.zero_one_weight * zero_one

    def expected_cost(self) -> Tensor:
        """The expected share of the changeable cost that is kept, 0-dim; from 0 to 1, or more with reductions."""
        scores = self.relaxed.worths()
        scores = torch.where(self.none, none_threshold(self.relaxed), scores)
        scores = torch.where(self.null, self.settings.skip_threshold, scores)
        chances = (scores / self.TEMPERATURE).masked_fill(self.illegal, -torch.inf).softmax(1)
        kept = (1 - (self.killers * chances).sum(2)).prod(1)
        return (self.shares * kept).sum() + (self.added * chances).sum()
