"""Branches are dropped from a module's graph: their zeros vanish, and what fed nothing else goes with them."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from ..edges import ORIGINAL, Edge
from ..tracing import GATHERING, Program, State, behaviour
from .graphs import function_name, graph_of
from .inputs import CannotRewriteError, Inputs, Values
from .modules import replaced, submodule
from .ways import enclosing, way_of


@dataclass
class Outcome:
    """What became of choices while they were made.

    Attributes:
        choices: as they were made.
        undone: {edge key: why} of those that could not be made.
        partial: {edge key: why} of branches that were dropped, while what fed only them is still computed.
    """

    choices: dict[Edge, str]
    undone: dict[str, str]
    partial: dict[str, str]


def drop(
    network: nn.Module,
    place: str,
    edges: Sequence[Edge],
    outcome: Outcome,
    inputs: Inputs,
) -> nn.Module:
    """Drop branches inside the module at `place`: all at once, or if that fails one by one.

    Args:
        network: is changed, and returned (or what takes its place).
        place: from `branch_places`.
        edges: those that become none, all of them at this place.
        outcome: of all edges; what could not be done is noted there.
        inputs: of the network's modules.
    """
    root = submodule(network, place)
    if root is None:
        return network  # gone with a block around it
    try:
        return replaced(network, place, without_branches(root, place, edges, outcome.choices, inputs))
    except CannotRewriteError as error:
        reason = str(error)
    if len(edges) > 1:
        for edge in edges:
            network = drop(network, place, [edge], outcome, inputs)
        return network
    (edge,) = edges
    narrow = enclosing(edge.program, way_of(edge, outcome.choices).zeros)
    if narrow != place:  # without removing all that fed only the branch: it computes the same, but costs more
        network = drop(network, narrow, edges, outcome, inputs)
        if edge.key not in outcome.undone:
            outcome.partial[edge.key] = reason
        return network
    if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
        outcome.undone[edge.key], outcome.choices[edge] = reason, ORIGINAL
    return network


def without_branches(
    root: nn.Module, place: str, edges: Iterable[Edge], choices: Mapping[Edge, str], inputs: Inputs
) -> nn.Module:
    """The module at `place`, traced and rewritten without some of its branches."""
    prefix = f"{place}." if place else ""
    edges = list(edges)
    program = edges[0].program
    ends = {edge.exit[len(prefix) :] for edge in edges}
    names = frozenset().union(*(way_of(edge, choices).opened for edge in edges))
    # An edge within one that is dropped, too, would open that one, and its zero would not be seen as one.
    arguments = inputs.of(place)
    opened = lambda name: prefix + name in names and name not in ends  # noqa: E731
    graph = graph_of(root, place, opened, program, arguments)
    values = Values(root, arguments)
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target) in ends:
            zero.add(node)
            continue
        lost = [n for n in node.all_input_nodes if n in zero]
        if not lost or node.op == "output":
            continue
        if function_name(node) in GATHERING and len(lost) < len(node.all_input_nodes):
            _fill_zeros(node, zero, values)
            continue
        other = _vanishes(node, zero, lambda name: _keeps_zero(program, prefix + name))
        if other is node:
            zero.add(node)
        else:
            node.replace_all_uses_with(other)
    _spell_nothing(graph, values)
    graph._tracer_cls = None  # or pickling would want this module's tracer where the network is loaded
    module = fx.GraphModule(root, graph, class_name=type(root).__name__)
    # Others may read them. Under this key fx keeps them when a module is copied.
    plain = (bool, int, float, str, tuple, list)
    rest = {k: v for k, v in vars(root).items() if isinstance(v, plain) and not hasattr(module, k)}
    module.meta["_user_preserved_attributes"] = rest
    for name, value in rest.items():
        setattr(module, name, value)
    module.graph.eliminate_dead_code()
    if any(node.op == "call_module" and str(node.target) in ends for node in module.graph.nodes):
        raise CannotRewriteError(f"{place or 'the network'} reads the branch elsewhere, too")
    module.delete_all_unused_submodules()
    module.recompile()
    for path, inner in module.named_modules():  # each in its own mode; fx makes containers anew
        old = submodule(root, path)
        inner.training = root.training if old is None else old.training
    return module


def _vanishes(node: fx.Node, zero: set[fx.Node], keeps_zero: Callable[[str], bool]) -> fx.Node:
    """What takes a node's place when some of its inputs are zero: itself if it is zero as well, or an operand."""
    inputs = node.all_input_nodes
    if node.op == "call_module":
        if all(n in zero for n in inputs) and keeps_zero(str(node.target)):
            return node
        raise CannotRewriteError(f"{node.target} would be given zeros")
    name = function_name(node)
    how = behaviour(name, node.args, node.kwargs, lambda a: isinstance(a, fx.Node))
    if how == "add":
        rest = [n for n in inputs if n not in zero]
        return rest[0] if rest else node
    if how == "multiply" or (how == "homogeneous" and inputs[0] in zero):
        return node
    if how == "gather" and all(n in zero for n in inputs):
        return node
    raise CannotRewriteError(f"{name} would join data with zeros")


def _keeps_zero(program: Program, path: str) -> bool:
    """Whether a module, given zeros, gives zeros, in every call that was seen."""
    for trace in program.traces:
        for call in (trace.calls[i] for i in trace.calls_of(path)):
            states = trace.propagate(call.inputs)
            if any(states[v] is not State.ZERO for v in call.outputs):
                return False
    return True


def _fill_zeros(node: fx.Node, zero: set[fx.Node], values: Values) -> None:
    """Put zeros that cost nothing in the place of a gathering's zero operands."""
    operands = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(operands, list | tuple) or not all(isinstance(n, fx.Node) for n in operands):
        raise CannotRewriteError(f"{function_name(node)} gathers something else than a list of tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    like = next(n for n in operands if n not in zero)
    parts = []
    for operand in operands:
        if operand not in zero:
            parts.append(operand)
            continue
        size = values.of(operand).shape
        with node.graph.inserting_before(node):
            if function_name(node) == "stack":
                zeros = node.graph.call_function(torch.zeros_like, (like,))
            else:
                # Batch and pixels may change from call to call; only the gathered dimension is fixed.
                shape = [-1] * len(size)
                shape[dim] = size[dim]
                thin = node.graph.call_function(torch.narrow, (like, dim, 0, 1))
                zeros = node.graph.call_method(
                    "expand", (node.graph.call_function(torch.zeros_like, (thin,)), shape)
                )
        parts.append(zeros)
    if node.args:
        node.args = (type(operands)(parts), *node.args[1:])
    else:
        node.kwargs = node.kwargs | {"tensors": type(operands)(parts)}


def _spell_nothing(graph: fx.Graph, values: Values) -> None:
    """Write None for parts of what a module gives that are None: to hand them on would keep the module alive."""
    for node in graph.nodes:
        source = node.args[0] if function_name(node) == "getitem" else None
        if isinstance(source, fx.Node) and source.op == "call_module" and values.of(node) is None:
            for user in list(node.users):
                user.args = fx.node.map_arg(user.args, functools.partial(_unless, node))
                user.kwargs = fx.node.map_arg(user.kwargs, functools.partial(_unless, node))


def _unless(nothing: fx.Node, node: fx.Node) -> fx.Node | None:
    return None if node is nothing else node
