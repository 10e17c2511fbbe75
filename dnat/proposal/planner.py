"""A network and data -> what would go from it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..budget import Costs, Groups, InfeasibleError, by_edge, cheapest
from ..config import Config, shown
from ..costs import Cost, cost, latency
from ..data import Data
from ..discretization import Discretization, discretization
from ..edges import Edge
from ..errors import UsageError, WrongTypeError, users_code
from ..measurement import batches_in, digest_of, measured
from ..planning import make_plan, times
from ..relaxation import relax
from ..seeds import check_seed
from ..sensitivity import (
    Judge,
    Sensitivity,
    affordable_images,
    batch_size,
    divided,
    least_damage,
    shown_images,
)
from ..tracing import Example, Program, copied, trace
from ..transformation import FixedReport, weights_digest
from .batches import first_batch, on_device, resized, so_many
from .budgets import Budget, amount, parse_budget
from .result import Proposal, Proposals, Tried

ATTEMPTS = 4
"""How often a set is chosen again when the network that it makes turns out to exceed its budget."""

Tell = Callable[[str, int, int], None]
"""Is told what is done, how much of it, of how much."""


@dataclass(frozen=True)
class _Amounts:
    """What sets of choices cost in one unit.

    Attributes:
        costs: of operations.
        rest: what no operation has and every set keeps.
    """

    costs: Costs
    rest: float = 0.0

    @property
    def total(self) -> float:
        return self.costs.total + self.rest

    def of(self, groups: Groups, chosen: Mapping[str, str]) -> float:
        return self.costs.of(by_edge(groups, chosen)) + self.rest


def parameters(network: nn.Module, program: Program, edges: Sequence[Edge]) -> Costs:
    """What sets of choices cost in parameters, of modules that run in a program's first trace.

    A module's own belong to the last operation of its first call, those of a module that is not called itself to
    the nearest around it that is. Each parameter counts once.
    """
    first, seen = program.traces[0], set[int]()
    names: list[str] = []
    sizes: list[float] = []
    owners: list[int] = []
    for path, module in network.named_modules():
        own = [
            (f"{path}.{n}" if path else n, p)
            for n, p in module.named_parameters(recurse=False)
            if id(p) not in seen
        ]
        seen.update(id(p) for _, p in own)
        while path and not first.calls_of(path):
            path = path.rpartition(".")[0]
        inside = first.within(first.calls_of(path)[0]) if first.calls_of(path) else frozenset()
        if inside:
            names += [name for name, _ in own]
            sizes += [float(p.numel()) for _, p in own]
            owners += [max(inside)] * len(own)
    place = {name: number for number, name in enumerate(names)}
    parts = {
        (edge, choice): {place[name]: edge.remaining(choice) for name, _, _ in edge.place.cuts if name in place}
        for edge in edges
        if edge.place
        for choice in edge.choices[1:]
    }
    return Costs(edges, sizes, parts, owners)


class _Place:
    """A network with all that it may become, and what that costs; made by `of`.

    Attributes:
        program, edges, fixed: see `dnat.planning`.
        relaxed: the network with theta.
        batch: images of the batch whose time is measured; 0: none is.
    """

    def __init__(self, network: nn.Module, example: Example, program: Program, config: Config) -> None:
        self.network, self.example, self.program = network, example, program
        found = make_plan(network, program, torch.empty(0), config)
        self.edges = found.edges
        self.fixed = sorted(found.fixed, key=lambda e: -e.madds)
        self.relaxed = relax(network, self.edges, config.mode, config.gate, config.seed)
        self.groups = self.relaxed.by_group()
        self.rows = program.traces[0].batch
        self.before = cost(network, example, batch=self.rows)
        weights = parameters(network, program, self.edges)
        self.amounts = {
            "madds": _Amounts(found.costs),
            "params": _Amounts(weights, self.before.params - weights.total),
        }
        self.batch = 0
        self.seconds: float | None = None

    @classmethod
    def of(
        cls, network: nn.Module, example: Example, space: str, mode: str, seed: int, *, batch: int | None = None
    ) -> "_Place":
        """Trace a network, find its edges and relax them; the network itself is left as it is."""
        config = Config(space=space, mode=mode, seed=check_seed(seed), threads=1)
        twin = copied(network)
        return cls(twin, example, trace(twin, example, batch=batch), config)

    def time(self, batch: int) -> None:
        """Measure the network's time for a batch of so many images, and the part that each operation has in it."""
        self.batch = batch
        shown_ = self.timed_example()
        taken = times(self.network, shown_, self.program, self.edges)
        self.seconds = latency(self.network, shown_).seconds
        self.amounts["seconds"] = _Amounts(Costs(self.edges, taken.whole, taken.parts(self.edges)))

    def timed_example(self) -> Example:
        """The batch whose time is measured."""
        return resized(self.example, self.batch)

    def limit(self, budget: Budget) -> float:
        """A budget as an amount."""
        if budget.unit not in self.amounts:
            raise UsageError(f"the budget {budget.text} is a time, and no times were measured: give measure=1")
        if budget.unit != "madds" and any(edge.others for edge in self.edges):
            raise UsageError(f"what other operations take is known in multiply-adds alone, not in {budget.unit}")
        return budget.amount.of(self.amounts[budget.unit].total)

    def least(self, budget: Budget, sensitivity: Sensitivity, limit: float) -> dict[str, str]:
        """The choices of groups with the least sum of damages that use what the budget allows.

        Raises:
            InfeasibleError: no legal set keeps the budget; says how far it goes.
        """
        amounts = self.amounts[budget.unit]
        floor = max(amounts.costs.full * limit - amounts.rest, 0.0)
        try:
            return least_damage(self.groups, sensitivity, amounts.costs, limit - amounts.rest, floor)
        except InfeasibleError as error:
            legal = {group: list(row) for group, row in sensitivity.damages.items()}
            least = cheapest(self.groups, legal, amounts.costs)[1] + amounts.rest
            raise InfeasibleError(
                f"the budget {budget.text} cannot be kept: at least {amount(least, budget.unit)} remain "
                f"({least / amounts.total:.1%} of {amount(amounts.total, budget.unit)})"
            ) from error

    def proposal(self, budget: Budget, sensitivity: Sensitivity) -> Proposal:
        """The set with the least sum of damages, as the program counts it."""
        limit = self.limit(budget)
        found = self.least(budget, sensitivity, limit)
        return Proposal(
            budget=budget.text,
            unit=budget.unit,
            limit=limit,
            choices=self.keys(found),
            madds=round(self.amounts["madds"].of(self.groups, found)),
            params=round(self.amounts["params"].of(self.groups, found)),
            seconds=None,
            expected=sensitivity.sum_of(found),
            damage=None,
        )

    def judged(self, budget: Budget, sensitivity: Sensitivity, judge: Judge) -> Proposal:
        """The same, made and counted, judged as a whole, and its time measured.

        It is chosen again within less where the network that is made exceeds the budget.
        """
        limit = asked = self.limit(budget)
        allowed = sensitivity
        last: _Made | None = None
        for _ in range(ATTEMPTS):
            try:
                found = self.least(budget, allowed, asked)
            except InfeasibleError:
                if last is None or budget.unit != "seconds":
                    raise
                break
            last = self._made(found, budget.unit)
            if last.real <= limit:
                break
            if last.missed:
                allowed = allowed.without(last.missed, self.relaxed)
            else:
                asked *= min(limit / last.real, 0.995)
        assert last is not None
        if last.real > limit and budget.unit != "seconds":
            raise InfeasibleError(f"no network within the budget {budget.text} could be made")
        notes = list(last.notes)
        if last.real > limit:
            notes.append(f"the time that was measured ({amount(last.real, 'seconds')}) is above the budget")
        made = last.report.choices
        return Proposal(
            budget=budget.text,
            unit=budget.unit,
            limit=limit,
            choices={**self.keys(last.chosen), **made},
            madds=last.counted.madds,
            params=last.counted.params,
            seconds=last.seconds,
            expected=sensitivity.sum_of(last.chosen),
            damage=judge.damage(made),
            notes=tuple(notes),
        )

    def _made(self, chosen: dict[str, str], unit: str) -> "_Made":
        """The network that choices of groups make, counted, and timed where times are measured."""
        wanted = self.keys(chosen)
        report = discretization(self.relaxed, wanted, self.example)
        counted = cost(report.network, self.example, batch=self.rows)
        seconds = latency(report.network, self.timed_example()).seconds if self.batch else None
        real = {"madds": counted.madds, "params": counted.params, "seconds": seconds or 0.0}[unit]
        return _Made(chosen, report, wanted, counted, seconds, real)

    def keys(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Choices of groups as {edge key: choice}, in the order of the edges."""
        found = {edge.key: choice for edge, choice in by_edge(self.groups, chosen).items()}
        return {edge.key: found[edge.key] for edge in self.edges}

    def order(self) -> tuple[str, ...]:
        """The keys of all that may and cannot change, as the network comes to them; what is around comes first."""
        first = self.program.traces[0]
        calls = {e.key: min(first.calls_of(e.entry), default=len(first.calls)) for e in (*self.edges, *self.fixed)}
        return tuple(sorted(calls, key=lambda key: calls[key]))

    def curve(self, sensitivity: Sensitivity) -> tuple[tuple[float, float], ...]:
        """(multiply-adds, sum of damages) of the best sets at every tenth of the cost, down to the smallest."""
        amounts, points = self.amounts["madds"], [(self.amounts["madds"].total, 0.0)]
        legal = {group: list(row) for group, row in sensitivity.damages.items()}
        smallest = cheapest(self.groups, legal, amounts.costs)[1]
        tenths = [amounts.total * i / 10 for i in range(9, 0, -1)]
        for limit in [*(t for t in tenths if t > smallest), smallest]:
            chosen = least_damage(self.groups, sensitivity, amounts.costs, limit)
            points.append((amounts.of(self.groups, chosen), sensitivity.sum_of(chosen)))
        return tuple(dict.fromkeys(points))


@dataclass(frozen=True)
class _Made:
    """A set of choices carried out, and what came of it."""

    chosen: dict[str, str]
    report: Discretization
    wanted: dict[str, str]
    counted: Cost
    seconds: float | None
    real: float

    @property
    def missed(self) -> dict[str, str]:
        """Choices that could not be carried out in full, so that they save less than was counted on."""
        return {key: self.wanted[key] for key in (*self.report.undone, *self.report.partial)}

    @property
    def notes(self) -> list[str]:
        undone = [f"{key} stays original: {why}" for key, why in self.report.undone.items()]
        return undone + self.report.notes


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
    ) -> None:
        if images is not None and (isinstance(images, bool) or not isinstance(images, int) or images < 1):
            raise UsageError(f"images must be an integer of at least 1, not {shown(images)}")
        if not isinstance(network, nn.Module):
            raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
        self.space, self.mode, self.seed = space, mode, seed
        device = next((p.device for p in network.parameters()), torch.device("cpu"))
        first, batches = first_batch(data)
        example = on_device(resized(first, 2), device)
        self.place = _Place.of(network, example, space, mode, seed, batch=2 if isinstance(data, Data) else None)
        most = images or affordable_images(self.place.relaxed, self.place.amounts["madds"].total)
        size = batch_size(self.place.relaxed)
        if isinstance(data, Data):
            batches = [shown_images(data, most, seed)]
        self.batches = [
            part for batch in so_many(batches, most) for part in divided(on_device(batch, device), size)
        ]
        weights = weights_digest(self.place.network)
        self.digest = digest_of(self.place.relaxed, weights, seed, self.batches)

    @functools.cached_property
    def judge(self) -> Judge:
        """Compares answers on what is shown."""
        return Judge(self.place.relaxed, self.batches)

    def measured(
        self, tell: Tell = lambda what, done, of: None, path: Path | None = None, elsewhere: Path | None = None
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
    ) -> Proposals:
        """What is proposed for each budget; those of which a proposal is known are not judged again."""
        place, found = self.place, {proposal.budget: proposal for proposal in known}
        if measure or any(budget.unit == "seconds" for budget in budgets):
            place.time(int(measure) or 1)
        proposals, refused = [], []
        for budget in budgets:
            try:
                again = found.get(budget.text) if not place.batch else None
                proposals.append(again or place.judged(budget, sensitivity, self.judge))
            except InfeasibleError as error:
                refused.append((budget.text, str(error)))
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
        data: a `dnat.Data`, of which training images are shown, without augmentation; or batches of whatever the
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
    listening = tell or (lambda what, done, of: None)
    name = type(network).__name__
    with users_code(f"{name}'s code failed", alone=False):
        planner = Planner(network, data, space=space, mode=mode, images=images, seed=seed)
        return planner.result(planner.measured(listening), budgets, measure)


def _asked(place: _Place, sensitivity: Sensitivity, budget: str | float) -> Proposal:
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
    place = _Place.of(network, example, result.space, result.mode, result.seed)
    result.check(place.program, [edge.key for edge in place.edges])
    return replace(result, _ask=functools.partial(_asked, place, result.sensitivity))
