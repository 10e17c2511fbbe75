"""A network and data -> what would go from it."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..budget import Costs, InfeasibleError
from ..data import Source
from ..edges import Edge
from ..errors import UsageError, WrongTypeError, users_code
from ..measurement import batches_in, digest_of, measured
from ..results import FixedReport
from ..sensitivity import Judge, Sensitivity, affordable_images, batch_size, divided, shown_batches
from ..session import weights_digest
from ..settings import shown
from ..tasks import Task
from ..tracing import Example
from .batches import first_batch, on_device, resized, so_many
from .budgets import Budget, parse_budget
from .place import Place
from .result import Proposal, Proposals, Tried

Tell = Callable[[str, int, int], None]
"""Is told what is done, how much of it, of how much."""


def untold(what: str, done: int, of: int) -> None:
    """Where nobody listens."""


class Planner:
    """A network and what it is shown: measures, and proposes. `plan` is this in one call.

    Args:
        network: any module; it is left as it is.
        data: see `plan`.
        space, mode, images, seed: see `plan`.

    Attributes:
        digest: of all that damages depend on.
    """

    def __init__(
        self,
        network: nn.Module,
        data: Any,
        *,
        space: str = "dnat,width",
        mode: str = "full",
        images: int | None = None,
        seed: int = 0,
        task: Task | None = None,
    ) -> None:
        if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
            raise UsageError(f"images must be an integer of at least 1, not {shown(images)}")
        if not isinstance(network, nn.Module):
            raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
        self.space, self.mode, self.seed, self.task = space, mode, seed, task
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        first, batches = first_batch(data)
        example = on_device(resized(first, 2), device)
        self.place = Place.of(network, example, space, mode, seed, batch=2 if isinstance(data, Source) else None)
        most = images or affordable_images(self.place.relaxed, self.place.amounts["madds"].total)
        size = batch_size(self.place.relaxed)
        if isinstance(data, Source):
            batches = shown_batches(data, most, size, seed)
        self.batches = [
            part for batch in so_many(batches, most) for part in divided(on_device(batch, device), size)
        ]
        weights = weights_digest(self.place.network)
        self.digest = digest_of(self.place.relaxed, weights, seed, self.batches, task)

    @functools.cached_property
    def judge(self) -> Judge:
        """Compares answers on what is shown."""
        return Judge(self.place.relaxed, self.batches, self.task)

    def measured(
        self, tell: Tell = untold, path: Path | None = None, elsewhere: Path | None = None
    ) -> Sensitivity:
        """Try every choice; what one of two files holds is not tried again, and the first is written."""
        known = batches_in(elsewhere, self.digest) if elsewhere else []
        trying = functools.partial(tell, "trying choices")
        return measured(self.judge, path, self.digest, trying, known=known)

    def result(
        self,
        sensitivity: Sensitivity,
        budgets: Sequence[Budget],
        measure: int = 0,
        known: Sequence[Proposal] = (),
        tell: Tell = untold,
    ) -> Proposals:
        """What is proposed for each budget; those of which a proposal is known are not judged again."""
        place, judged = self.place, {proposal.budget: proposal for proposal in known}
        if measure or any(budget.unit == "seconds" for budget in budgets):
            place.time(int(measure) or 1)
        proposals, refused = [], []
        for number, budget in enumerate(budgets):
            tell("choosing sets", number, len(budgets))
            try:
                again = judged.get(budget.text) if not place.batch else None
                proposals.append(again or place.judged(budget, sensitivity, self.judge))
            except InfeasibleError as error:
                refused.append((budget.text, str(error)))
        tell("choosing sets", len(budgets), len(budgets))
        costs = place.amounts["madds"].costs
        return Proposals(
            network=type(place.network).__name__,
            fingerprint=place.program.fingerprint,
            digest=self.digest,
            space=self.space,
            mode=place.relaxed.mode,  # type: ignore[arg-type]
            seed=self.seed,
            images=sensitivity.images,
            compared="class scores" if self.judge.sees_classes else "outputs",
            madds=place.before.madds,
            params=place.before.params,
            seconds=place.seconds,
            timed=place.batch,
            device=str(next((p.device for p in place.network.parameters()), "cpu")),
            edges=tuple(_tried(edge, self.mode, sensitivity, costs) for edge in place.edges),
            fixed=tuple(FixedReport(e.key, e.kind, e.operation, e.madds, e.refused) for e in place.fixed),
            proposals=tuple(proposals),
            refused=tuple(refused),
            curve=place.curve(sensitivity),
            order=place.order(),
            _ask=functools.partial(_asked, place, sensitivity),
        )


def _tried(edge: Edge, mode: str, sensitivity: Sensitivity, costs: Costs) -> Tried:
    row = sensitivity.damages[edge.key if mode == "full" else edge.group]
    saved = {choice: costs.total - costs.of({edge: choice}) for choice in row}
    return Tried(edge.key, edge.kind, edge.operation, edge.group, edge.madds, dict(row), saved)


def plan(
    network: nn.Module,
    data: Any,
    budget: str | float | Sequence[str | float] = 0.7,
    *,
    space: str = "dnat,width",
    mode: str = "full",
    images: int | None = None,
    seed: int = 0,
    measure: int = 0,
    tell: Tell | None = None,
) -> Proposals:
    """What would go from a trained network at each budget, and what that does to its answers; trains nothing.

    Args:
        network: any module; it is left as it is, in all that it holds.
        data: a `dnat.Data` or loaders, of which training examples are shown; or batches of whatever the
            network takes, each a tensor, a tuple or a dict of keyword arguments; or one such batch. No labels.
        budget: one, or several: a share of the multiply-adds (0.7) or a number of them ("120M"); a time ("5ms",
            "0.7 time"), measured here; or parameters ("0.7 params", "1.2M params").
        space: what an edge may become: "dnat", "nat++", and "width" with either or alone (see `dnat.find_edges`).
        mode: "full", or "cell": edges of a group change alike.
        images: how many to show, at most; by default from 64 to 1,000, as many as take a few minutes
            (`sensitivity.affordable_images`).
        seed: which of the `Data` are shown.
        measure: images of a batch whose time is measured, before and after; 0: no time is measured, unless a
            budget is one.
        tell: is told what is done, how much of it, of how much.

    Returns:
        The result; budgets that cannot be kept are in its `refused`.

    Raises:
        ValueError, TypeError: a network that cannot change, or answers nothing that could be compared; data or
            budgets that are none.

    >>> import dnat
    >>> result = plan(dnat.build("resnet8"), torch.randn(16, 3, 32, 32), 0.7)
    >>> result.proposals[0].madds <= 0.7 * result.madds, result.at(0.6).madds <= 0.6 * result.madds
    (True, True)
    """
    several = list(budget) if isinstance(budget, Sequence) and not isinstance(budget, str) else [budget]
    budgets = list(dict.fromkeys(map(parse_budget, several)))
    if not budgets:
        raise UsageError("budget is empty: give at least one, such as 0.7")
    listening = tell or untold
    name = type(network).__name__
    with users_code(f"{name}'s code failed", alone=False):
        planner = Planner(network, data, space=space, mode=mode, images=images, seed=seed)
        return planner.result(planner.measured(listening), budgets, measure, tell=listening)


def _asked(place: Place, sensitivity: Sensitivity, budget: str | float) -> Proposal:
    return place.proposal(parse_budget(budget), sensitivity)


def tied(result: Proposals, network: nn.Module, example: Example) -> Proposals:
    """A result that was read from a file, tied to its network again, so that `Proposals.at` works.

    Args:
        result: of `plan`, or read.
        network: that it was made for; its weights do not count.
        example: see `dnat.trace`.

    Raises:
        ValueError: it is of another network, or for inputs of other shapes.
    """
    place = Place.of(network, example, result.space, result.mode, result.seed)
    result.check(place.program, [edge.key for edge in place.edges])
    return replace(result, _ask=functools.partial(_asked, place, result.sensitivity))
