"""The choices of a run: by what it judges them, within its budget as the result is measured, the same everywhere.

A judge is a function (limit, ruled out) -> decisions. What it decides is made, the network that comes out is
measured, and where that exceeds the limit, it is asked again.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .answers import count_of
from .budget import Costs, InfeasibleError
from .costs import cost, seconds_beside
from .discretization import Discretization, discretization
from .distributed import from_first, world
from .edges import ORIGINAL, Edge
from .measurement import digest_of, measured
from .planning import Plan
from .relaxation import RelaxedNetwork
from .selection import Decision, decide, decisions_by_damage, decisions_made
from .sensitivity import Judge, affordable_images, batch_size, least_damage, shown_batches
from .session import Session, weights_digest
from .settings import Amount, Config
from .training import NonFiniteError, effects

ATTEMPTS = 8
"""How often the choices are made again when the network that they make turns out to exceed its budget."""

Judged = Callable[[float | None, Mapping[str, str]], tuple[Decision, ...]]
"""Makes the decisions within a limit, without the choices, {edge key: choice}, that are ruled out."""


@dataclass(frozen=True)
class Agreement:
    """The choices, and the network that they make.

    Attributes:
        decisions: of every edge.
        made: the network.
        notes: what else is worth knowing.
    """

    decisions: tuple[Decision, ...]
    made: Discretization
    notes: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """For a checkpoint; what could not be carried out is the original's there."""
        rows = rows_of(self.decisions)
        for row in rows:
            if row["key"] in self.made.undone:
                row |= {"choice": ORIGINAL, "reason": self.made.undone[row["key"]], "by": "rewriting"}
        return rows


def agreed(
    relaxed: RelaxedNetwork,
    judged: Callable[[], Judged],
    plan: Plan,
    example: Any,
    price: Callable[[nn.Module], float],
) -> Agreement:
    """The choices and the network that they make, in all processes those of the first: times are measured.

    Args:
        relaxed: the network.
        judged: makes the judge, in the process that asks it.
        plan: what may change, within what.
        example: inputs for the network.
        price: what a network costs, as measured, in the unit of the plan's limit.

    Raises:
        InfeasibleError: no choices keep the limit, as far as they can be made.
    """
    if world().size == 1:
        return _within_limit(relaxed, judged(), plan, example, price)

    def decided() -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        agreement = _within_limit(relaxed, judged(), plan, example, price)
        return rows_of(agreement.decisions), agreement.notes

    rows, notes = from_first(decided)
    decisions = decisions_of(rows, plan.edges)
    return Agreement(decisions, discretization(relaxed, choices_of(decisions), example), notes)


def _within_limit(
    relaxed: RelaxedNetwork,
    judged: Judged,
    plan: Plan,
    example: Any,
    price: Callable[[nn.Module], float],
) -> Agreement:
    """Choices and the network that they make, so that the network, as it is then measured, keeps the limit."""
    limit, last = plan.limit, None
    ruled_out: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        try:
            decisions = judged(limit, ruled_out)
        except InfeasibleError:
            if last is None or plan.times is None:
                raise
            break
        choices = choices_of(decisions)
        last = Agreement(decisions, discretization(relaxed, choices, example))
        if plan.limit is None:
            return last
        assert limit is not None
        real = price(last.made.network)
        if real <= plan.limit:
            return last
        missed = list(last.made.undone)
        if missed and plan.times is None:  # what could not be carried out must not be counted on
            ruled_out |= {key: choices[key] for key in missed}
        else:
            limit *= min(plan.limit / real, 0.995)
    assert last is not None
    assert plan.limit is not None
    if plan.times is None:
        raise InfeasibleError(f"no network within {plan.limit:.6g} multiply-adds could be made")
    return Agreement(last.decisions, last.made, (f"the time budget of {plan.limit * 1e3:.2f} ms was not reached",))


def price_of(session: Session, plan: Plan) -> Callable[[nn.Module], float]:
    """Measures what a network costs in the unit of a run's budget: multiply-adds, or seconds for a batch."""
    example = session.example
    if plan.times is None:
        return lambda network: float(cost(network, example, batch=count_of(example)).madds)
    batch = session.data.example(session.config.limit.latency_batch)
    return lambda network: seconds_beside(network, session.original, plan.costs.total, batch)


def judge_of(
    session: Session,
    relaxed: RelaxedNetwork,
    plan: Plan,
    *,
    epoch: int,
    path: Path | None = None,
    kept: Callable[[], None] | None = None,
) -> Judged:
    """The judge that a run's settings ask for.

    Args:
        session: of the run.
        relaxed: the network.
        plan: what may change, within what.
        epoch: epochs that are done: where the loss judges, it is that of the next one's images.
        path: of the file in which damages are kept, where the answers judge.
        kept: is called whenever a part of them was kept.
    """
    config = session.config
    choices = config.limit.choices
    if choices is not None:
        return lambda limit, ruled_out: decisions_made(relaxed, choices)
    if config.limit.judge == "answers":
        return by_answers(session, relaxed, plan, path, kept)
    worths = None
    if config.limit.judge == "loss":
        worths = effects(relaxed, session.data, config, epoch, session.task)
    return by_theta(relaxed, plan, config, worths)


def by_theta(
    relaxed: RelaxedNetwork, plan: Plan, config: Config, worths: list[list[float]] | None = None
) -> Judged:
    """Judges by theta, or by what each choice is worth to the loss.

    Raises:
        NonFiniteError: theta is not finite any more.
    """
    if not torch.isfinite(relaxed.architecture.theta).all():  # between two looks at the loss
        raise NonFiniteError("theta is not finite any more: lower its rate, or the learning rate")

    def floor(limit: float | None) -> float:
        """What the choices need not go below: where theta is charged for its cost, what is free of charge."""
        if not config.relaxation.cost_weight:
            return 0.0
        return config.relaxation.cost_target * plan.costs.total if limit is None else limit

    return lambda limit, ruled_out: decide(
        relaxed,
        limit=None if limit is None else Amount(limit, relative=False),
        costs=plan.costs,
        skip_threshold=config.relaxation.skip_threshold,
        ruled_out=ruled_out,
        floor=floor(limit),
        worths=worths,
    )


def by_answers(
    session: Session,
    relaxed: RelaxedNetwork,
    plan: Plan,
    path: Path | None,
    kept: Callable[[], None] | None,
) -> Judged:
    """Judges by what each choice alone does to the answers; see `dnat.sensitivity`."""
    config = session.config
    asked = config.limit.judge_images
    number = affordable_images(relaxed, Costs(plan.edges).total) if asked == "auto" else asked
    shown = shown_batches(session.data, number, batch_size(relaxed), config.seed)
    judge = Judge(relaxed, shown, session.task)
    digest = digest_of(relaxed, weights_digest(relaxed.detached()), config.seed, judge.batches, session.task)
    sensitivity = measured(judge, path, digest, kept=kept)

    def decisions(limit: float | None, ruled_out: Mapping[str, str]) -> tuple[Decision, ...]:
        assert limit is not None, "the answers judge within a budget alone"
        allowed = sensitivity.without(ruled_out, relaxed)
        choices = least_damage(relaxed.by_group(), allowed, plan.costs, limit, plan.costs.full * limit)
        return decisions_by_damage(relaxed, choices, allowed.damages)

    return decisions


_KEPT = ("gates", "choice", "margin", "reason", "others", "by")


def rows_of(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """Decisions as they are kept with a checkpoint."""
    return [{"key": d.edge.key, **{k: getattr(d, k) for k in _KEPT}} for d in decisions]


def decisions_of(rows: Iterable[Mapping[str, Any]], edges: Iterable[Edge]) -> tuple[Decision, ...]:
    """The inverse of `rows_of`."""
    by_key = {edge.key: edge for edge in edges}
    return tuple(
        Decision(
            by_key[row["key"]],
            tuple(row["gates"]),
            row["choice"],
            row["margin"],
            row["reason"],
            tuple((name, gate) for name, gate in row.get("others", ())),
            row.get("by", "theta"),
        )
        for row in rows
    )


def choices_of(decisions: Iterable[Decision]) -> dict[str, str]:
    """{edge key: choice}."""
    return {d.edge.key: d.choice for d in decisions}
