"""What may change in a network, and what that would save: for `dnat edges` and `dnat networks`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...budget import Costs
from ...costs import Latency, cost, latency, operation_seconds
from ...edges import Edge
from ...networks import build, definition, usual_size
from ...planning import find_edges
from ...tracing import trace
from ..catalogue import NetworkSize


def sized(name: str, options: Mapping[str, Any], image_size: int | None = None) -> NetworkSize:
    """Count a network by name, without computing anything: see `NetworkSize`.

    Args:
        name: of the network.
        options: arguments of its constructor.
        image_size: height and width of the images; by default the network's usual ones, or 224.
    """
    known, size = definition(name), image_size or usual_size(name)
    with torch.device("meta"):
        network, example = build(name, **options), torch.zeros(2, 3, size, size)
        edges = find_edges(trace(network, example, batch=len(example)))
        found = cost(network, example, batch=len(example))
    modes = known.modes if known else ("full", "cell")
    return NetworkSize(
        found.params, found.madds, len(edges), len({e.group for e in edges}) if "cell" in modes else None
    )


@dataclass(frozen=True)
class Survey:
    """What `dnat edges` shows of a network.

    Attributes:
        edges: what may change.
        fixed: what may not; each says why.
        saved: multiply-adds that the cheapest choice of each edge saves, alone and with all that goes with it.
        latency: of the whole network; None where nothing was measured.
        seconds: time that the same choice of each edge saves; None where nothing was measured.
    """

    edges: tuple[Edge, ...]
    fixed: tuple[Edge, ...]
    saved: dict[str, float]
    latency: Latency | None = None
    seconds: dict[str, float] | None = None


def survey(network: nn.Module, example: Tensor, measured_batch: int | None = None, space: str = "dnat") -> Survey:
    """Find out what may change in a network and what that would save.

    Args:
        network: any module that takes images.
        example: a batch of them.
        measured_batch: also measure the time of a batch of so many images, on the example's device. What other
            operations would take is not known, so that their savings are not measured.
        space: of choices; see `find_edges`.
    """
    program = trace(network, example, batch=len(example))
    found = find_edges(program, space, everything=True)
    edges = tuple(e for e in found if len(e.choices) > 1)
    fixed = tuple(e for e in found if len(e.choices) == 1)

    def savings(costs: Costs) -> dict[str, float]:
        known = {e: [c for c in e.choices if costs.counted or c not in dict(e.others)] for e in edges}
        return {e.key: costs.total - min(costs.of({e: c}) for c in known[e]) for e in edges}

    if not edges:
        return Survey(edges, fixed, {})
    if measured_batch is None:
        return Survey(edges, fixed, savings(Costs(edges)))
    batch = example[:1].expand(measured_batch, *example.shape[1:]).contiguous()
    seconds = operation_seconds(network, batch, program)
    return Survey(edges, fixed, savings(Costs(edges)), latency(network, batch), savings(Costs(edges, seconds)))
