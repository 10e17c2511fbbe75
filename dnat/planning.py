"""Before anything is trained: what may change in a network, and whether the budget can be kept."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from .budget import Costs, Groups, InfeasibleError, cheapest
from .config import Amount, Config, parse_amount
from .cost import operation_seconds
from .discretization import rewritable
from .distributed import from_first
from .edges import Edge, find_edges
from .errors import UsageError
from .naming import unknown
from .tracing import Program


@dataclass(frozen=True)
class Plan:
    """What may change, and what it may cost.

    Attributes:
        edges: with the choices that can be carried out.
        fixed: what cannot change, with the reasons.
        costs: what choices cost: multiply-adds, or with a latency budget seconds.
        limit: what the result may cost, in the same unit; None without a budget.
        seconds: of each operation of the program; None without a latency budget.
    """

    edges: tuple[Edge, ...]
    fixed: tuple[Edge, ...]
    costs: Costs
    limit: float | None
    seconds: list[float] | None


def make_plan(
    network: nn.Module,
    program: Program,
    example: Tensor,
    config: Config,
    seconds: list[float] | None = None,
) -> Plan:
    """Find what may change, and whether the budget can be kept.

    Args:
        network, program: the network, and what it does.
        example: a batch for it.
        config: the method's settings.
        seconds: of each operation, where a latency budget counts and they were measured before.

    Raises:
        ValueError: nothing may change, a pattern of `config.edges` is that of nothing that may, or no legal set of
            choices keeps the budget.
    """
    found = rewritable(network, find_edges(program, config.moves, everything=True, only=config.edges), example)
    edges = tuple(edge for edge in found if len(edge.choices) > 1)
    for pattern in config.edges or ():
        if not any(fnmatchcase(edge.key, pattern) for edge in edges):
            raise _no_such_edge(pattern, network, program, example, config)
    if not edges:
        raise UsageError(
            f"{type(network).__name__} has no operation that could be changed; `dnat edges --all` tells why"
        )
    if config.space != "dnat" and not any(edge.others for edge in edges):
        raise UsageError(
            f"space {config.space!r} offers {type(network).__name__} nothing beyond identity and none: it has no "
            "operations of searched cells and no plain 2d convolutions larger than 1x1; use space 'dnat'"
        )
    asked: Amount | None = None
    if config.latency_budget is not None:
        asked = parse_amount(config.latency_budget, seconds=True)
        batch = example[:1].expand(config.latency_batch, *example.shape[1:]).contiguous()
        seconds = seconds or from_first(lambda: operation_seconds(network, batch, program))
    elif config.budget is not None:
        asked = parse_amount(config.budget)
    costs = Costs(edges, seconds)
    limit = asked.of(costs.total) if asked else None
    if limit is not None and limit < costs.total:
        groups: dict[str, list[Edge]] = {}
        for edge in edges:
            groups.setdefault(edge.key if config.mode == "full" else edge.group, []).append(edge)
        check_limit(groups, costs, limit)
    return Plan(edges, tuple(edge for edge in found if len(edge.choices) < 2), costs, limit, seconds)


def _no_such_edge(
    pattern: str, network: nn.Module, program: Program, example: Tensor, config: Config
) -> UsageError:
    """The error for a pattern of the setting `edges` that is that of no edge that may change."""
    found = rewritable(network, find_edges(program, config.moves, everything=True), example)
    fixed = [edge for edge in found if fnmatchcase(edge.key, pattern) and len(edge.choices) < 2]
    if fixed:
        why = "; ".join(f"{choice}: {reason}" for choice, reason in fixed[0].refused)
        return UsageError(f"the setting edges has {pattern!r}, but {fixed[0].key} may not change: {why}")
    return unknown("edge that may change", pattern, (e.key for e in found if len(e.choices) > 1))


def check_limit(groups: Groups, costs: Costs, limit: float) -> None:
    """Raise `InfeasibleError` where no legal set of choices keeps the limit."""
    legal = {g: [c for c in m[0].choices if all(c in e.choices for e in m)] for g, m in groups.items()}
    least = cheapest(groups, legal, costs)[1]
    if least > limit:
        raise InfeasibleError(
            f"the budget cannot be kept: the smallest reachable cost is {least:.6g} "
            f"({least / costs.total:.1%} of the original's {costs.total:.6g}), above {limit:.6g}"
        )
