"""Theta -> choices: argmax for each group of edges, a repair so that the network stays alive, and a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .budget import Costs, Groups, best, by_edge
from .edges import IDENTITY, NONE, ORIGINAL, Edge, problems
from .relaxation import CHOICES, RelaxedNetwork
from .settings import Amount, parse_amount

THRESHOLDS = {"raw": (0.0, 1.0), "sigmoid": (0.5, 0.5)}
"""For each gate: what both gates must fall below for none (theta_none of the paper is 0, and stays there), and
what the identity's gate must exceed on a null edge (the paper's argmax compares it with theta's start, 1)."""


SMALL = 1e-3
"""What an original is worth that theta would rather lose, per unit of its scores: little, but not nothing."""

WORTH_OF_COST = 0.1
"""What an original is worth beside its scores that has all of the network's cost: of sets that theta hardly tells
apart the one that costs more is the larger network."""

BEYOND = 1e9
"""A damage that stands for an infinite one."""


def none_threshold(relaxed: RelaxedNetwork) -> float:
    """What both gates of an edge must fall below for none."""
    return THRESHOLDS[relaxed.architecture.gate][0]


@dataclass(frozen=True)
class Decision:
    """What becomes of one edge, and why.

    Attributes:
        edge: the edge.
        gates: what none, identity and original were worth at the decision (`Theta.worths`, which is g(theta)
            where there are no other operations); for none it is the threshold.
        choice: "original", "identity", "none" or the name of another operation.
        margin: score of the choice minus the best other legal score; negative where a repair overruled.
        reason: empty, or why the choice is not the argmax.
        others: (name, what it was worth) of the other operations, or widths, that it could become.
        by: what decided: "theta" (or "loss", another judge) where the choice is the argmax; "answers" where the
            set within the budget was chosen by what it does to them; "plan" of choices that were made
            before; otherwise "budget", "target" (the cost that
            was asked for allows more), "legality" (the choices together could not have been made) or "rewriting"
            (this one could not).
    """

    edge: Edge
    gates: tuple[float, float, float]
    choice: str
    margin: float
    reason: str = ""
    others: tuple[tuple[str, float], ...] = ()
    by: str = "theta"


Reasons = dict[str, tuple[str, str]]
"""Of groups whose choice is not the argmax: (what decided, why in words)."""


def select(relaxed: RelaxedNetwork, budget: str | float | None = None) -> dict[str, str]:
    """One choice for every edge: {edge key: "original", "identity", "none" or the name of another operation}.

    Args:
        relaxed: the network and its theta.
        budget: the most multiply-adds that the choices may leave: a share of the original's (0.7, "70%") or a
            number ("120M", 120e6).

    Raises:
        ValueError: no legal set of choices keeps the budget; the message tells the smallest reachable cost.
    """
    limit = None if budget is None else parse_amount(budget)
    return {d.edge.key: d.choice for d in decide(relaxed, limit=limit)}


def decide(
    relaxed: RelaxedNetwork,
    *,
    limit: Amount | None = None,
    costs: Costs | None = None,
    skip_threshold: float | None = None,
    ruled_out: Mapping[str, str] | None = None,
    floor: float = 0.0,
    worths: Sequence[Sequence[float]] | None = None,
) -> tuple[Decision, ...]:
    """One decision for every edge.

    Each group takes the choice with the largest score (`Theta.worths`) among those that are legal for all its
    edges, by sign and not by magnitude; ties prefer original, then others, identity, none (docs/methods.md C5).
    Then, where the choices together would disconnect an output from the input, leave a node without any input, or
    could not be made exactly, groups are restored: those whose originals weigh most, and none that had no part in
    it. If that costs more than the limit, the legal choices with the largest sum of scores within the limit are
    taken instead (`dnat.budget.best`). With a floor it is those that also use it, and so it is where the choices
    cost less than the floor: theta was charged for what lies above it, which is no wish to be cheaper still. A
    choice then loses what it is behind the original; one that is ahead loses next to nothing, but something, so
    that no other set with more originals would fit. Where the choices cost little less than the floor, originals
    are restored and nothing else is changed.

    Args:
        relaxed: the network and its theta.
        limit: what the choices may cost.
        costs: what they cost; by default their multiply-adds.
        skip_threshold: what the identity's gate must exceed on a null edge; by default see `THRESHOLDS`.
        ruled_out: {edge key: choice} that are not to be made.
        floor: in the unit of `costs`, what the choices need not go below; with a limit, the same.
        worths: what each choice of each group is worth, in the order of theta; by default `Theta.worths`. With
            those, thresholds count for none and for skips.

    Raises:
        InfeasibleError: no legal set of choices keeps the limit; the message tells the smallest reachable cost.
    """
    threshold, default_skip = THRESHOLDS[relaxed.architecture.gate]
    skip_threshold = default_skip if skip_threshold is None else skip_threshold
    values = relaxed.worths().detach().cpu().tolist() if worths is None else worths
    scores: dict[str, dict[str, float]] = {}
    reasons: Reasons = {}
    own: dict[str, str] = {}
    for group, row in zip(relaxed.groups, values, strict=True):
        gates = dict(zip(relaxed.columns, row, strict=True))
        if worths is None:
            gates[NONE] = threshold
            if relaxed.members(group)[0].kind == "skip":
                gates[ORIGINAL] = skip_threshold
        barred = {(ruled_out or {}).get(edge.key) for edge in relaxed.members(group)}
        legal = [c for c in relaxed.choices_of(group) if c not in barred]
        scores[group] = {c: gates[c] for c in legal}
        # max takes the first of equals, and the order of the keys is that of the ties.
        own[group] = max(relaxed.choices_of(group), key=lambda c: gates[c])
        if own[group] in barred:
            reasons[group] = ("rewriting", f"{own[group]} could not be carried out in full")
    choices = {group: max(score, key=lambda c: score[c]) for group, score in scores.items()}
    reasons |= _repair(relaxed, choices, scores)
    if limit is not None or floor:
        costs = costs or Costs(relaxed.edges)
        most = math.inf if limit is None else limit.of(costs.total)
        chosen = _affordable(relaxed.by_group(), choices, scores, costs, most, floor)
        above = costs.of(by_edge(relaxed.by_group(), choices)) > most
        for group, choice in chosen.items():
            if choice != choices[group] or (above and group not in reasons):
                reasons[group] = _why(choices[group], own[group], choice, above)
        choices = chosen
    reasons = {group: reason for group, reason in reasons.items() if choices[group] != own[group]}
    judge = "theta" if worths is None else "loss"
    return tuple(
        _decision(
            edge,
            (
                threshold if worths is None else row[CHOICES.index(NONE)],
                row[CHOICES.index(IDENTITY)],
                row[CHOICES.index(ORIGINAL)],
            ),
            scores[group],
            choices[group],
            *reasons.get(group, (judge, "")),
        )
        for edge, group, row in (
            (e, relaxed.groups[relaxed.row(e)], values[relaxed.row(e)]) for e in relaxed.edges
        )
    )


def decisions_by_damage(
    relaxed: RelaxedNetwork, choices: Mapping[str, str], damages: Mapping[str, Mapping[str, float]]
) -> tuple[Decision, ...]:
    """One decision for every edge, of choices {group: choice} with the least damage within a budget.

    What a choice is worth is minus its damage, alone (`BEYOND` where that is infinite: JSON knows no infinity);
    what a group cannot become has the damage 0.
    """
    decisions = []
    for edge in relaxed.edges:
        group = relaxed.groups[relaxed.row(edge)]
        scores = {choice: -min(damage, BEYOND) for choice, damage in damages[group].items()}
        choice = choices[group]
        reason = f"alone it does {-scores[choice]:.3g} to the answers" if choice != ORIGINAL else ""
        gates = tuple(scores.get(c, 0.0) for c in CHOICES)
        assert len(gates) == 3
        decisions.append(_decision(edge, gates, scores, choice, "answers", reason))
    return tuple(decisions)


def decisions_made(relaxed: RelaxedNetwork, choices: Mapping[str, str]) -> tuple[Decision, ...]:
    """One decision for every edge, of choices {edge key: choice} that are made already; others stay original.

    A choice is worth 1, and all others 0.
    """
    decisions = []
    for edge in relaxed.edges:
        choice = choices.get(edge.key, ORIGINAL)
        scores = {c: float(c == choice) for c in edge.choices}
        none, identity, original = (scores.get(c, 0.0) for c in CHOICES)
        decisions.append(_decision(edge, (none, identity, original), scores, choice, "plan", ""))
    return tuple(decisions)


def _decision(
    edge: Edge,
    gates: tuple[float, float, float],
    scores: Mapping[str, float],
    choice: str,
    by: str,
    reason: str,
) -> Decision:
    rest = [score for c, score in scores.items() if c != choice]
    return Decision(
        edge=edge,
        gates=gates,
        choice=choice,
        margin=scores[choice] - max(rest) if rest else float("inf"),
        reason=reason,
        by=by,
        others=tuple((name, scores[name]) for name in edge.beside if name in scores),
    )


def _repair(
    relaxed: RelaxedNetwork, choices: dict[str, str], scores: Mapping[str, Mapping[str, float]]
) -> Reasons:
    """Restore groups in `choices` until the choices can be made together; returns why.

    Those whose originals weigh most come first, and those that had no part in the trouble get their choice back:
    each that stays restored is needed.
    """
    wanted = dict(choices)

    def trouble(changed: Mapping[str, str]) -> list[str]:
        return problems({e: changed[relaxed.groups[relaxed.row(e)]] for e in relaxed.edges})

    changed = [g for g, c in wanted.items() if c != ORIGINAL]
    tried: list[str] = []
    for group in sorted(changed, key=lambda g: scores[g][ORIGINAL], reverse=True):
        if not trouble(choices):
            break
        tried.append(group)
        choices[group] = ORIGINAL
    restored: Reasons = {}
    for group in reversed(tried):
        if why := trouble({**choices, group: wanted[group]}):
            restored[group] = ("legality", f"{wanted[group]} was restored to original: {why[0]}")
        else:
            choices[group] = wanted[group]
    return restored


def _affordable(
    groups: Groups,
    wanted: Mapping[str, str],
    scores: Mapping[str, Mapping[str, float]],
    costs: Costs,
    most: float,
    floor: float,
) -> dict[str, str]:
    """The choices that are wanted, or those in their place that keep the limit and use the floor; see `decide`."""
    paid = costs.of(by_edge(groups, wanted))
    if floor and (paid <= floor or paid > most):
        losses = _losses(groups, scores, costs)
        if costs.full * floor <= paid <= floor:
            losses = {g: {c: v for c, v in row.items() if c in (ORIGINAL, wanted[g])} for g, row in losses.items()}
        most = min(floor, most)
        return best(groups, losses, costs, most, costs.full * most)
    return best(groups, scores, costs, most) if paid > most else dict(wanted)


def _losses(
    groups: Groups, scores: Mapping[str, Mapping[str, float]], costs: Costs
) -> dict[str, dict[str, float]]:
    """What each choice is ahead of the original (a negative number of most), below 0 of all that are cheaper."""
    leads = {g: {c: score[c] - score[ORIGINAL] for c in score} for g, score in scores.items()}
    saved = {
        (g, c): 1 - costs.of(dict.fromkeys(groups[g], c)) / max(costs.total, 1e-30)
        for g, row in leads.items()
        for c in row
    }
    largest = max([leads[g][c] for (g, c), share in saved.items() if share > 0], default=0.0)

    def loss(lead: float, share: float) -> float:
        return min(lead, 0.0) - SMALL * (1 + largest - lead) - WORTH_OF_COST * share if share > 0 else lead

    return {g: {c: loss(lead, saved[g, c]) for c, lead in row.items()} for g, row in leads.items()}


def _why(wanted: str, own: str, choice: str, above: bool) -> tuple[str, str]:
    """What decided, and why, where a choice is not the one that was wanted."""
    if above:
        return "budget", f"{own} was changed to {choice} to keep the budget"
    if choice == ORIGINAL:
        return "target", f"{wanted} was restored to original: the cost that was asked for allows it"
    return "target", f"{own} was changed to {choice}: so the set uses the cost that was asked for"
