"""Whether each none and identity can be made, before it is offered."""

from collections.abc import Iterable, Sequence

import torch

from ..edges import IDENTITY, NONE, Edge
from ..edges.edge import prefixes
from ..tracing import Program, copied, fixed_randomness, in_mode
from .bodies import CannotRewriteError
from .branches import without_branches
from .modules import identified
from .places import area_of


def rewritable(program: Program, edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges without the nones and identities that could not be made, or only in part: nothing is offered in vain.

    Each none is looked for in the recorded steps; identities are tried together on a copy of the network.
    `Edge.refused` of the edges that are returned says what stands against them; edges left without a choice
    are returned, too.
    """
    edges, trials = tuple(edges), program.trials
    nones = [e for e in edges if NONE in e.choices and (e.key, NONE) not in trials]
    for edge in nones:
        trials[edge.key, NONE] = _obstacle(edge)
    identities = [e for e in edges if IDENTITY in e.choices and (e.key, IDENTITY) not in trials]
    trials |= {(edge.key, IDENTITY): why for edge, why in _obstacles(program, identities).items()}
    for choice in (NONE, IDENTITY):
        why = {e.key: trials[e.key, choice] for e in edges if choice in e.choices}
        edges = tuple(e.without(choice, why[e.key]) if why.get(e.key) else e for e in edges)
    return edges


def _obstacles(program: Program, edges: Sequence[Edge]) -> dict[Edge, str]:
    """Why identities at these edges cannot be made, for each; empty texts where they can.

    Those that do not lie in one another are put in together; only where the network then fails, fewer at a time.
    """
    reasons: dict[Edge, str] = {}
    rest = [edge for edge in edges if IDENTITY not in edge.modules]  # a reduction is a module of its own
    while rest:
        paths = {edge.entry for edge in rest}
        outer = [e for e in rest if paths.isdisjoint(prefixes(e.entry)[:-1])]
        reasons |= _obstacles_together(program, outer)
        inner = set(rest) - set(outer)
        rest = [edge for edge in rest if edge in inner]
    return {edge: reasons.get(edge, "") for edge in edges}


def _obstacles_together(program: Program, edges: Sequence[Edge]) -> dict[Edge, str]:
    network = copied(program.network)
    for edge in edges:
        network = identified(network, edge)
    args, kwargs = program.examples[0]
    try:
        with torch.no_grad(), in_mode(network, False), fixed_randomness():
            network(*args, **kwargs)
    except Exception as error:  # whatever a user's forward does when it does not find what it looks for
        if len(edges) == 1:
            return {edges[0]: f"other code needs what it has: {error}"}
        half = len(edges) // 2
        return _obstacles_together(program, edges[:half]) | _obstacles_together(program, edges[half:])
    return {}


def _obstacle(edge: Edge) -> str:
    """Why a branch cannot be dropped with all that feeds only it; empty if it can."""
    try:
        area = area_of(edge, {edge: NONE})
        without_branches(edge.program, area.place, area.opened, [edge.exit])
    except CannotRewriteError as error:
        return str(error)
    return ""
