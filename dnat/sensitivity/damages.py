"""The damages of choices, and the set of choices with the least sum of them within a budget."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..budget import Costs, Groups, best
from ..edges import ORIGINAL
from ..relaxation import RelaxedNetwork

Distances = dict[str, dict[str, float]]
"""How far the answers to one batch are from the network's own, by group and choice; with those of "original"."""


@dataclass(frozen=True)
class Sensitivity:
    """The damage of every choice, alone.

    Attributes:
        damages: {group: {choice: damage}}; 0 for "original".
        images: how many were shown.
    """

    damages: dict[str, dict[str, float]]
    images: int

    def without(self, ruled_out: Mapping[str, str], relaxed: RelaxedNetwork) -> "Sensitivity":
        """The same without choices that cannot be made: {edge key: choice}."""
        barred = {(g, ruled_out[e.key]) for g, m in relaxed.by_group().items() for e in m if e.key in ruled_out}
        rows = {g: {c: d for c, d in row.items() if (g, c) not in barred} for g, row in self.damages.items()}
        return Sensitivity(rows, self.images)

    def sum_of(self, choices: Mapping[str, str]) -> float:
        """The sum of the damages of groups' choices, each alone."""
        return math.fsum(self.damages[group][choice] for group, choice in choices.items())


def least_damage(
    groups: Groups, sensitivity: Sensitivity, costs: Costs, limit: float, floor: float = 0.0
) -> dict[str, str]:
    """The legal choices of groups with the least sum of damages that cost at most `limit`, and at least `floor`.

    Where none cost as much as the floor, it is what those do that cost most within the limit.

    Where damages are equal, originals are kept as far as the limit goes: no changed group could be original again
    within it.

    Raises:
        InfeasibleError: no legal set is so cheap.
    """
    worst = max((d for row in sensitivity.damages.values() for d in row.values() if math.isfinite(d)), default=1.0)
    worst = worst or 1.0

    def score(group: str, choice: str, damage: float) -> float:
        if choice == ORIGINAL:
            return 0.0
        saved = max(costs.total - costs.of(dict.fromkeys(groups[group], choice)), 0.0)
        # The solver takes what differs by 1e-6 for equal: ties are to differ by more.
        return -1e4 * (min(damage / worst, 1e3) + 1e-6 * (0.01 + saved / max(costs.total, 1e-30)))

    scores = {g: {c: score(g, c, d) for c, d in row.items()} for g, row in sensitivity.damages.items()}
    return best(groups, scores, costs, limit, floor)
