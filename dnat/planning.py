"""Before anything is trained: what may change in a network, and whether the budget can be kept."""

import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .budget import Costs, Groups, InfeasibleError, Parts, cheapest, is_hard
from .costs import operation_seconds
from .distributed import from_first
from .edges import (
    ORIGINAL,
    Edge,
    EdgeSet,
    Space,
    common_choices,
    everything_else,
    groups_of,
    in_order,
    legal_edges,
    nones_once,
    parts_of,
    problems,
)
from .errors import UsageError
from .naming import unknown
from .narrowing import narrow, narrowable, staying
from .relaxation import RelaxedNetwork, relax
from .rewriting import rewritable
from .settings import Amount, Config, parse_amount
from .tracing import Example, Program, copied


def find_edges(
    program: Program,
    space: Space = "dnat",
    *,
    everything: bool = False,
    only: Collection[str] | None = None,
) -> EdgeSet:
    """The edges of a network, in order of execution; all that they offer can be made, exactly, in both modes.

    Nested edges are found too (a branch and the units in it). In a network of genotype cells the edges are those
    of its genotype alone. Where the none of one edge would do what that of another does (in a series, or in one
    another), it is offered once: by the last, and by the outer. Each none is looked for in the recorded steps.

    Args:
        program: from `dnat.trace`.
        space: "dnat": original, identity and none. "nat++", or a table of yours (`transitions.read_transitions`):
            operations of searched cells and convolutions may also become those that the table says. "width": the
            channels between layers may become fewer, each width tried on a copy; alone, or with another
            ("dnat,width").
        everything: list all that has weights or multiplies, also what has no choice but "original"; `Edge.refused`
            says why.
        only: patterns (`fnmatch.fnmatchcase`) of the keys of those that may change; None: all. A none that would
            be offered once, and by an edge that may not change, is offered by another that may.

    Raises:
        ValueError: an unknown space, or no table.

    >>> import dnat, torch
    >>> edges = find_edges(dnat.trace(dnat.build("resnet8"), torch.zeros(2, 3, 32, 32)))
    >>> [(e.key, e.choices) for e in edges][:2]
    [('layer1.0.conv1>layer1.0.bn1', ('original', 'identity')), ('layer1.0.conv2>layer1.0.bn2', \
('original', 'identity', 'none'))]
    """
    legal = rewritable(program, legal_edges(program, space, only=only))
    edges: Sequence[Edge] = nones_once(narrowable(program, legal))
    if everything:
        edges = in_order([*edges, *everything_else(program, [e for e in edges if not e.place])])
    groups = groups_of(program, [e for e in edges if len(e.choices) > 1])
    listed = (replace(e, group=groups.get(e.key, e.key)) for e in edges)
    return EdgeSet(e for e in listed if everything or len(e.choices) > 1)


@dataclass(frozen=True)
class Times:
    """What operations take, in seconds, as measured: of the network, and of it with all widths at each step.

    Attributes:
        whole: of each operation of the program.
        narrow: {choice of widths: the same of the network in which all that may be are so narrow}.
    """

    whole: list[float]
    narrow: dict[str, list[float]]

    def parts(self, edges: Sequence[Edge]) -> Parts:
        """What of each operation remains with a choice of a width; where several widths work on it, each has an
        equal part in that."""
        parts: dict[tuple[Edge, str], dict[int, float]] = {}
        for choice, seconds in self.narrow.items():
            widths = [(e, e.place) for e in edges if e.place and choice in e.choices]
            sharing = Counter(number for _, place in widths for number in place.operations)
            for edge, place in widths:
                parts[edge, choice] = {
                    i: (seconds[i] / self.whole[i]) ** (1 / sharing[i])
                    for i in sorted(place.operations)
                    if self.whole[i]
                }
        return parts


def times(network: nn.Module, batch: Example, program: Program, edges: Sequence[Edge]) -> Times:
    """Measure what operations take, and what they take where widths are narrower; see `cost.operation_seconds`."""
    whole = operation_seconds(network, batch, program)
    narrow_: dict[str, list[float]] = {}
    for choice in dict.fromkeys(c for e in edges if e.place for c in e.choices[1:]):
        small = copied(network)
        for edge in edges:
            if edge.place and choice in edge.choices:
                narrow(small, edge, staying(edge, choice, range(edge.place.classes)))
        narrow_[choice] = operation_seconds(small, batch, program)
    return Times(whole, narrow_)


@dataclass(frozen=True)
class Plan:
    """What may change, and what it may cost.

    Attributes:
        edges: with the choices that can be carried out.
        fixed: what cannot change, with the reasons.
        costs: what choices cost: multiply-adds, or with a latency budget seconds.
        limit: what the result may cost, in the same unit; None without a budget.
        times: of the operations of the program; None without a latency budget.
    """

    edges: EdgeSet
    fixed: tuple[Edge, ...]
    costs: Costs
    limit: float | None
    times: Times | None

    def relaxed(self, network: nn.Module, config: Config) -> RelaxedNetwork:
        """The network with theta on the plan's edges, as the settings have it."""
        settings = config.relaxation
        return relax(
            network, self.edges, settings.mode, settings.gate, config.seed, warm_start=settings.warm_start
        )


def make_plan(
    network: nn.Module,
    program: Program,
    example: Tensor,
    config: Config,
    known: Times | None = None,
) -> Plan:
    """Find what may change, and whether the budget can be kept.

    Args:
        network, program: the network, and what it does.
        example: a batch for it.
        config: the method's settings.
        known: times of operations, where a latency budget counts and they were measured before.

    Raises:
        ValueError: nothing may change, a pattern of `edges` is that of nothing that may, or no legal set of
            choices keeps the budget.
    """
    places = find_edges(program, config.relaxation.moves, everything=True, only=config.relaxation.edges)
    edges = EdgeSet(edge for edge in places if len(edge.choices) > 1)
    for pattern in config.relaxation.edges or ():
        if not any(fnmatchcase(edge.key, pattern) for edge in edges):
            raise _no_such_edge(pattern, program, config)
    check_choices(edges, program, config)
    if not edges:
        raise UsageError(
            f"{type(network).__name__} has no operation that could be changed; `dnat edges --all` tells why"
        )
    if parts_of(config.relaxation.moves)[0] is not None and not any(edge.others for edge in edges):
        raise UsageError(
            f"space {config.relaxation.space!r} offers {type(network).__name__} nothing beyond "
            f"identity and none: it has no "
            "operations of searched cells and no plain 2d convolutions larger than 1x1; use space 'dnat'"
        )
    asked: Amount | None = None
    taken: Times | None = None
    if config.limit.latency_budget is not None:
        asked = parse_amount(config.limit.latency_budget, seconds=True)
        batch = example[:1].expand(config.limit.latency_batch, *example.shape[1:]).contiguous()
        taken = known or from_first(lambda: times(network, batch, program, edges))
    elif config.limit.budget is not None:
        asked = parse_amount(config.limit.budget)
    costs = Costs(edges, taken.whole, taken.parts(edges)) if taken else Costs(edges)
    limit = asked.of(costs.total) if asked else None
    if limit is not None and limit < costs.total:
        check_limit(edges.groups(config.relaxation.mode), costs, limit, config.seed)
    return Plan(edges, tuple(edge for edge in places if len(edge.choices) < 2), costs, limit, taken)


def _no_such_edge(pattern: str, program: Program, config: Config) -> UsageError:
    """The error for a pattern of the setting `edges` that is that of no edge that may change."""
    places = find_edges(program, config.relaxation.moves, everything=True)
    fixed = [edge for edge in places if fnmatchcase(edge.key, pattern) and len(edge.choices) < 2]
    if fixed:
        why = "; ".join(f"{choice}: {reason}" for choice, reason in fixed[0].refused)
        return UsageError(f"the setting edges has {pattern!r}, but {fixed[0].key} may not change: {why}")
    return unknown("edge that may change", pattern, (e.key for e in places if len(e.choices) > 1))


def check_choices(edges: Sequence[Edge], program: Program, config: Config) -> None:
    """Refuse choices that are made already (`config.limit.choices`), but not for this network.

    Raises:
        ValueError: it is another network, or has no such edge or choice; or they cannot be made together.
    """
    if config.limit.choices is None:
        return
    if config.limit.choices_for is not None and config.limit.choices_for != program.fingerprint:
        raise UsageError(
            "the choices are for another network, or images of another size: "
            f"for the program {config.limit.choices_for}, and this one is {program.fingerprint}"
        )
    by_key = {edge.key: edge for edge in edges}
    for key, choice in config.limit.choices.items():
        if key not in by_key:
            raise unknown("edge in choices", key, by_key)
        if choice not in by_key[key].choices:
            raise unknown(f"choice for {key}", choice, by_key[key].choices)
    choices = {edge: config.limit.choices.get(edge.key, ORIGINAL) for edge in edges}
    reasons = problems(choices)
    if config.relaxation.mode == "cell":
        groups: dict[str, set[str]] = {}
        for edge, choice in choices.items():
            groups.setdefault(edge.group, set()).add(choice)
        reasons += [f"in cell mode {group} can have one choice only" for group, c in groups.items() if len(c) > 1]
    if reasons:
        raise UsageError(f"the choices cannot be made together: {'; '.join(reasons)}")


FEW = 60
"""Up to so many groups of edges the best set within a budget was always found: it is not looked for beforehand."""


def check_limit(groups: Groups, costs: Costs, limit: float, seed: int) -> None:
    """Raise `InfeasibleError` where no legal set of choices keeps the limit; warn where the best may not be found.

    Args:
        groups, costs, limit: see `budget.best`.
        seed: of the scores for which the best set is looked for.
    """
    legal = {group: common_choices(members) for group, members in groups.items()}
    least = cheapest(groups, legal, costs)[1]
    if least > limit:
        raise InfeasibleError(
            f"the budget cannot be kept: the smallest reachable cost is {least:.6g} "
            f"({least / costs.total:.1%} of the original's {costs.total:.6g}), above {limit:.6g}"
        )
    if len(groups) > FEW and is_hard(groups, legal, costs, limit, seed):
        warnings.warn(
            f"with {len(groups)} edges the best set within this budget may not be found: the one that is made "
            "will then be the best of those tried, and the run says how much another may be worth. Fewer edges "
            "(the setting edges), mode cell or another budget are easier",
            stacklevel=3,
        )
