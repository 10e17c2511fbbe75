"""A network with all that it may become, what that costs in each unit, and the best sets within a budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..budget import Costs, Groups, InfeasibleError, by_edge, cheapest
from ..costs import Cost, cost, seconds_beside
from ..discretization import Discretization, discretization
from ..edges import Edge
from ..errors import UsageError
from ..planning import make_plan, times
from ..relaxation import relax
from ..seeds import check_seed
from ..sensitivity import Judge, Sensitivity, least_damage
from ..settings import Config
from ..tracing import Example, Program, copied, trace
from .batches import resized
from .budgets import Budget, amount
from .result import Proposal

ATTEMPTS = 4
"""How often a set is chosen again when the network that it makes turns out to exceed its budget."""


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


@dataclass(frozen=True)
class _Attempt:
    """A set of choices carried out, and what came of it."""

    chosen: dict[str, str]
    report: Discretization
    choices: dict[str, str]
    counted: Cost
    seconds: float | None
    real: float

    @property
    def missed(self) -> dict[str, str]:
        """Choices that could not be carried out in full, so that they save less than was counted on."""
        return {key: self.choices[key] for key in self.report.undone}

    @property
    def notes(self) -> list[str]:
        undone = [f"{key} stays original: {why}" for key, why in self.report.undone.items()]
        return undone


class Place:
    """A network with all that it may become, and what that costs; made by `of`.

    Attributes:
        program, edges, fixed: see `dnat.planning`.
        relaxed: the network with theta.
        batch: images of the batch whose time is measured; 0: none is.
    """

    def __init__(self, network: nn.Module, example: Example, program: Program, config: Config) -> None:
        self.network, self.example, self.program = network, example, program
        plan = make_plan(network, program, torch.empty(0), config)
        self.edges = plan.edges
        self.fixed = sorted(plan.fixed, key=lambda e: -e.madds)
        self.relaxed = relax(network, self.edges, config.relaxation.mode, config.relaxation.gate, config.seed)
        self.groups = self.relaxed.by_group()
        self.rows = program.traces[0].batch
        self.before = cost(network, example, batch=self.rows)
        weights = parameters(network, program, self.edges)
        self.amounts = {
            "madds": _Amounts(plan.costs),
            "params": _Amounts(weights, self.before.params - weights.total),
        }
        self.batch = 0
        self.seconds: float | None = None

    @classmethod
    def of(
        cls, network: nn.Module, example: Example, space: str, mode: str, seed: int, *, batch: int | None = None
    ) -> "Place":
        """Trace a network, find its edges and relax them; the network itself is left as it is."""
        config = Config(space=space, mode=mode, seed=check_seed(seed), threads=1)
        twin = copied(network)
        return cls(twin, example, trace(twin, example, batch=batch), config)

    def time(self, batch: int) -> None:
        """Measure the network's time for a batch of so many images, and the part that each operation has in it."""
        self.batch = batch
        taken = times(self.network, self.timed_example(), self.program, self.edges)
        self.amounts["seconds"] = _Amounts(Costs(self.edges, taken.whole, taken.parts(self.edges)))
        self.seconds = self.amounts["seconds"].total  # operations' times are scaled to the whole network's

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
        chosen = self.least(budget, sensitivity, limit)
        return Proposal(
            budget=budget.text,
            unit=budget.unit,
            limit=limit,
            choices=self.keys(chosen),
            madds=round(self.amounts["madds"].of(self.groups, chosen)),
            params=round(self.amounts["params"].of(self.groups, chosen)),
            seconds=None,
            expected=sensitivity.sum_of(chosen),
            damage=None,
        )

    def judged(self, budget: Budget, sensitivity: Sensitivity, judge: Judge) -> Proposal:
        """The same, made and counted, judged as a whole, and its time measured.

        It is chosen again within less where the network that is made exceeds the budget.
        """
        limit = asked = self.limit(budget)
        allowed = sensitivity
        last: _Attempt | None = None
        for _ in range(ATTEMPTS):
            try:
                chosen = self.least(budget, allowed, asked)
            except InfeasibleError:
                if last is None or budget.unit != "seconds":
                    raise
                break
            last = self._carried_out(chosen, budget.unit)
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
        choices = last.report.choices
        return Proposal(
            budget=budget.text,
            unit=budget.unit,
            limit=limit,
            choices={**self.keys(last.chosen), **choices},
            madds=last.counted.madds,
            params=last.counted.params,
            seconds=last.seconds,
            expected=sensitivity.sum_of(last.chosen),
            damage=judge.damage(choices),
            notes=tuple(notes),
        )

    def _carried_out(self, chosen: dict[str, str], unit: str) -> _Attempt:
        """The network that choices of groups make, counted, and timed where times are measured."""
        choices = self.keys(chosen)
        report = discretization(self.relaxed, choices, self.example)
        counted = cost(report.network, self.example, batch=self.rows)
        seconds = None
        if self.seconds is not None:
            seconds = seconds_beside(report.network, self.network, self.seconds, self.timed_example())
        real = {"madds": counted.madds, "params": counted.params, "seconds": seconds or 0.0}[unit]
        return _Attempt(chosen, report, choices, counted, seconds, real)

    def keys(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Choices of groups as {edge key: choice}, in the order of the edges."""
        choices = by_edge(self.groups, chosen)
        return {edge.key: choices[edge] for edge in self.edges}

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
