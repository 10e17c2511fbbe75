"""Theta -> choices: argmax for each group of edges, a repair so that the network stays alive, and a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .budget import Costs, Groups, best, by_edge
from .config import Amount, parse_amount
from .edges import IDENTITY, NONE, ORIGINAL, Edge, problems
from .relaxation import CHOICES, RelaxedNetwork

THRESHOLDS = {"raw": (0.0, 1.0), "sigmoid": (0.5, 0.5)}
"""For each gate: what both gates must fall below for none (theta_none of the paper is 0, and stays there), and
what the identity's gate must exceed on a null edge (the paper's argmax compares it with theta's start, 1)."""


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
        gates: what none, identity and original were worth at the decision (`Theta.scores`, which is g(theta)
            where there are no other operations); for none it is the threshold.
        choice: "original", "identity", "none" or the name of another operation.
        margin: score of the choice minus the best other legal score; negative where a repair overruled.
        reason: empty, or why the choice is not the argmax.
        others: (name, what it was worth) of the other operations that it could become.
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

    Each group takes the choice with the largest score (`Theta.scores`) among those that are legal for all its
    edges, by sign and not by magnitude; ties prefer original, then others, identity, none (docs/methods.md C5).
    Then, where the choices together would disconnect an output from the input, leave a node without any input, or
    could not be made exactly, groups are restored: those whose originals weigh most, and none that had no part in
    it. If that costs more than the limit, the legal choices with the largest sum of scores within the limit are
    taken instead (`dnat.budget.best`). If they cost less than the floor, originals are restored, the most wanted
    first, as long as the floor is not exceeded: theta was charged for what lies above it, which is no wish to be
    cheaper still.

    Args:
        relaxed: the network and its theta.
        limit: what the choices may cost.
        costs: what they cost; by default their multiply-adds.
        skip_threshold: what the identity's gate must exceed on a null edge; by default see `THRESHOLDS`.
        ruled_out: {edge key: choice} that are not to be made.
        floor: in the unit of `costs`, what the choices need not go below.
        worths: what each choice of each group is worth, in the order of theta; by default `Theta.scores`. With
            those, thresholds count for none and for skips.

    Raises:
        InfeasibleError: no legal set of choices keeps the limit; the message tells the smallest reachable cost.
    """
    threshold, default_skip = THRESHOLDS[relaxed.architecture.gate]
    skip_threshold = default_skip if skip_threshold is None else skip_threshold
    values = relaxed.architecture.scores().detach().cpu().tolist() if worths is None else worths
    scores: dict[str, dict[str, float]] = {}
    reasons: Reasons = {}
    own: dict[str, str] = {}
    for group, row in zip(relaxed.groups, values, strict=True):
        gates = dict(zip(relaxed.architecture.columns, row, strict=True))
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
    if limit is not None:
        costs = costs or Costs(relaxed.edges)
        groups, most = relaxed.by_group(), limit.of(costs.total)
        if costs.of(by_edge(groups, choices)) > most:
            chosen = best(groups, scores, costs, most)
            changed = {g: c for g, c in chosen.items() if c != choices[g] or g not in reasons}
            reasons |= {
                g: ("budget", f"{own[g]} was changed to {c} to keep the budget") for g, c in changed.items()
            }
            choices = chosen
    if floor:
        reasons |= _restore(relaxed.by_group(), choices, scores, costs or Costs(relaxed.edges), floor)
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
        others=tuple((name, scores[name]) for name, _ in edge.others if name in scores),
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


def _restore(
    groups: Groups, choices: dict[str, str], scores: Mapping[str, Mapping[str, float]], costs: Costs, floor: float
) -> Reasons:
    """Restore originals in `choices`, those that lost by least first, while they cost no more than the floor."""
    restored: Reasons = {}
    paid, before = costs.of(by_edge(groups, choices)), -1.0
    while paid > before:  # what lies in a branch that comes back may come back, too
        before = paid
        changed = [g for g, c in choices.items() if c != ORIGINAL]
        for group in sorted(changed, key=lambda g: scores[g][choices[g]] - scores[g][ORIGINAL]):
            trial = by_edge(groups, {**choices, group: ORIGINAL})
            price = costs.of(trial)
            if paid < price <= floor and not problems(trial):
                restored[group] = (
                    "target",
                    f"{choices[group]} was restored to original: the cost that was asked for allows it",
                )
                choices[group], paid = ORIGINAL, price
    return restored
