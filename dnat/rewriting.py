"""How branches are taken out of a module: its forward as a `torch.fx` graph, in which zeros go and what fed them.

The smallest module around a branch, the additions that it feeds and all that fed only the branch is traced in
train and in eval mode, which must agree; the additions lose the branch, a concatenation gets zeros that cost
nothing, and what fed nothing else is removed. `rewritable` tries that before anything is offered.
"""

import functools
import inspect
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.jit import ScriptModule

from .edges import IDENTITY, NONE, ORIGINAL, Edge, replacements
from .operations import NullEdge, copying_identity, forgiving_identity
from .tracing import (
    GATHERING,
    Program,
    State,
    behaviour,
    copied,
    fixed_randomness,
    in_mode,
    in_reentrant_checkpoint,
    kept_buffers,
)


def replaced(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The network with another module at a path and at every other name of the same module."""
    if not path:
        return module
    old = submodule(network, path)
    if old is None:
        return network  # gone with a block around it
    for name, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
    return network


def close(
    some: Sequence[Tensor],
    others: Sequence[Tensor],
    least: float = 0.0,
    *,
    relative: float = 1e-4,
    absolute: float = 1e-5,
) -> bool:
    """Whether tensors are equal to rounding.

    Args:
        some, others: the tensors.
        least: the size by which rounding is measured where they may be 0 themselves.
        relative, absolute: how far they may differ, as a share of each number and of the largest. Exact choices
            differ by rounding at most; a wrong one differs by far more than this.
    """
    if len(some) != len(others):
        return False
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.is_floating_point():
            size = torch.nan_to_num(b.abs()).max().item() if b.numel() else 0.0
            bound = absolute * max(size, least, 1e-30)
            if not torch.allclose(a, b, rtol=relative, atol=bound, equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True


def submodule(network: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, if there is one."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


@dataclass(frozen=True)
class _Way:
    """The modules that none at an edge is about.

    Attributes:
        zeros: those in whose forward something happens to the zeros, from the edge's end to the additions.
        dead: those in which something heavy is left without use.
        opened: those that must be traced through, since only a part of what they do changes.
    """

    zeros: frozenset[str]
    dead: frozenset[str]
    opened: frozenset[str]


def _way(edge: Edge, wanted: Mapping[Edge, str]) -> _Way:
    zeros: set[str] = set()
    dead: set[str] = set()
    opened: set[str] = set()
    for trace_ in edge.program.traces:
        zero, same = replacements(trace_, wanted)
        reached = [out for _, out in edge.values(trace_)]
        # What this none alone makes useless, and what it does together with the other choices.
        needed = trace_.live(zero | set(reached), same)
        without = trace_.live(*replacements(trace_, {**wanted, edge: ORIGINAL}))
        gone = (trace_.live() - trace_.live(reached)) | (without - needed)
        states = trace_.propagate(zero | set(reached), same)
        around = [c for c in (trace_.calls[c].parent for c in trace_.calls_of(edge.exit)) if c is not None]
        zeros.update(trace_.calls[c].path for c in around)
        for value in reached:
            for user in trace_.users[value]:
                op = trace_.operations[user]
                zeros.add(trace_.calls[op.scope[-1]].path if op.scope else "")
                if any(states[v] is not State.ZERO for v in op.outputs):
                    around.extend(op.scope)
                reached.extend(v for v in op.outputs if states[v] is State.ZERO and v not in reached)
        for number in gone:
            op = trace_.operations[number]
            if op.madds:
                dead.add(trace_.calls[op.scope[-1]].path if op.scope else "")
                around.extend(c for c in op.scope if not trace_.within(c).isdisjoint(needed))
        while around:
            call = around.pop()
            opened.add(trace_.calls[call].path)
            parent = trace_.calls[call].parent
            if parent is not None:
                around.append(parent)
    return _Way(frozenset(zeros), frozenset(dead), frozenset(opened))


def _enclosing(program: Program, paths: Iterable[str]) -> str:
    """The path of the smallest module that is called and holds all of these."""
    parts = [path.split(".") if path else [] for path in paths]
    common: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    called = {call.path for trace_ in program.traces for call in trace_.calls}
    # A ModuleList has no forward of its own to trace.
    while ".".join(common) not in called:
        common.pop()
    return ".".join(common)


def branch_places(edges: Iterable[Edge], wanted: Mapping[Edge, str]) -> list[tuple[str, list[Edge]]]:
    """Edges by the module that must be rewritten to drop them, innermost modules first."""
    places: dict[str, list[Edge]] = {}
    for edge in edges:
        way = _way(edge, wanted)
        places.setdefault(_enclosing(edge.program, way.zeros | way.dead), []).append(edge)
    return sorted(places.items(), key=lambda item: -item[0].count(".") if item[0] else 1)


def drop(
    network: nn.Module,
    place: str,
    edges: Sequence[Edge],
    outcome: "Outcome",
    inputs: "Inputs",
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
        return replaced(network, place, _without(root, place, edges, outcome.choices, inputs))
    except CannotRewriteError as error:
        reason = str(error)
    if len(edges) > 1:
        for edge in edges:
            network = drop(network, place, [edge], outcome, inputs)
        return network
    (edge,) = edges
    narrow = _enclosing(edge.program, _way(edge, outcome.choices).zeros)
    if narrow != place:  # without removing all that fed only the branch: it computes the same, but costs more
        network = drop(network, narrow, edges, outcome, inputs)
        if edge.key not in outcome.undone:
            outcome.partial[edge.key] = reason
        return network
    if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
        outcome.undone[edge.key], outcome.choices[edge] = reason, ORIGINAL
    return network


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


def rewritable(program: Program, edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges without the nones and identities that could not be made, or only in part: nothing is offered in vain.

    Each none is tried alone on the copy of the network that the program was recorded from; identities are tried
    together. `Edge.refused` of the edges that are returned says what stands against them; edges that are left
    without a choice are returned, too.
    """
    edges, trials = tuple(edges), program.trials
    nones = [e for e in edges if NONE in e.choices and (e.key, NONE) not in trials]
    inputs = Inputs(program.network, *program.examples[0]) if nones else None
    for edge in nones:
        assert inputs is not None
        trials[edge.key, NONE] = _obstacle(edge, inputs)
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
    found: dict[Edge, str] = {}
    rest = [edge for edge in edges if IDENTITY not in edge.modules]  # a reduction is a module of its own
    while rest:
        paths = {edge.entry for edge in rest}
        outer = [e for e in rest if not any(e.entry.startswith(f"{path}.") for path in paths)]
        found |= _tried(program, outer)
        rest = [edge for edge in rest if edge not in outer]
    return {edge: found.get(edge, "") for edge in edges}


def _tried(program: Program, edges: Sequence[Edge]) -> dict[Edge, str]:
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
        return _tried(program, edges[:half]) | _tried(program, edges[half:])
    return {}


def identified(network: nn.Module, edge: Edge) -> nn.Module:
    """The network with an identity in an edge's place."""
    last: nn.Module = forgiving_identity(copies=edge.copies)
    if edge.lone:
        last = copying_identity() if edge.copies else nn.Identity()
    network = exchanged(network, edge.exit, last)
    if edge.entry == edge.exit:
        return network
    return exchanged(network, edge.entry, nn.Identity() if edge.lone else forgiving_identity())


def exchanged(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The network with a module that is in the mode of the one whose place it takes."""
    old = submodule(network, path)
    return network if old is None else replaced(network, path, module.train(old.training))


def _obstacle(edge: Edge, inputs: "Inputs") -> str:
    """Why a branch cannot be dropped with all that feeds only it; empty if it can."""
    way = _way(edge, {edge: NONE})
    place = _enclosing(edge.program, way.zeros | way.dead)
    root = edge.program.network.get_submodule(place)
    try:
        _without(root, place, [edge], {edge: NONE}, inputs)
    except CannotRewriteError as error:
        return str(error)
    return ""


class CannotRewriteError(Exception):
    """A module cannot be traced, or a zero reaches something that it cannot be dropped from."""


class Inputs:
    """What the modules of a network are given when it runs on an example, in eval mode.

    Args:
        network: it may be changed afterwards, as long as its modules are given the same.
        args, kwargs: of the example.
    """

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        calls: dict[str, tuple[Any, Any]] = {}
        handles = []
        for path, module in network.named_modules():
            if (path == "" or next(module.children(), None) is not None) and not isinstance(module, ScriptModule):
                note = functools.partial(_noted, calls, path)
                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            with torch.no_grad(), in_mode(network, False), kept_buffers(network.modules()), fixed_randomness():
                network(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.bound = {path: _bound(network.get_submodule(path), *call) for path, call in calls.items()}

    def of(self, path: str) -> dict[str, Any]:
        """The arguments of the first call of the module at a path, by the names in its forward.

        Raises:
            CannotRewriteError: it was not called.
        """
        if path not in self.bound:
            raise CannotRewriteError(f"{path or 'the network'} is not called in eval mode")
        return self.bound[path]


def _noted(calls: dict[str, tuple[Any, Any]], path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    calls.setdefault(path, (args, kwargs))


def _bound(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


class _Tracer(fx.Tracer):
    """Opens only the modules that lie on the way; everything else is a leaf.

    Args:
        opened: tells whether a module lies on the way.
        constants: arguments of the traced module's forward that had the same plain value in every call.
        arguments: what its forward is given on the example. Sizes and tuples can be unpacked, since their lengths
            are known from that; nothing else of the example goes into the graph.
    """

    def __init__(
        self, opened: Callable[[str], bool], constants: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.opened, self.constants, self.arguments = opened, constants, arguments
        self.context = _context()
        self.values: _Values | None = None
        self.evaluating = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        proxies: list[Any] = []
        for parameter in parameters:  # all of them first: a graph begins with its placeholders
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxies.append(
                self.create_proxy("placeholder", stars.get(parameter.kind, "") + parameter.name, default, {})
            )
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        for parameter, proxy in zip(parameters, proxies, strict=True):
            name = parameter.name
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(self._spread(name, proxy, range(len(self.arguments.get(name, ())))).values())
            elif parameter.kind is parameter.VAR_KEYWORD:
                keyword |= self._spread(name, proxy, list(self.arguments.get(name, {})))
            elif name in self.constants:
                value = self._constant(name, proxy, self.constants[name])
                if parameter.kind is parameter.KEYWORD_ONLY:
                    keyword[name] = value
                else:
                    positional.append(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                keyword[name] = proxy
            else:
                positional.append(proxy)
        return lambda: root_fn(self.root, *positional, **keyword), []

    def _spread(self, name: str, proxy: Any, places: Iterable[Any]) -> dict[Any, Any]:
        """What came in by *args or **kwargs: values that can be unpacked, as a placeholder cannot."""
        made = {}
        for place in places:
            value = self.arguments[name][place]
            fixed = isinstance(value, bool | int | float | str | None)
            made[place] = self._constant(f"{name}[{place!r}]", proxy[place], value) if fixed else proxy[place]
        return made

    def _constant(self, name: str, proxy: fx.Proxy, value: Any) -> Any:
        """A value that the graph is for; another one is refused when the graph runs."""
        # operator.is_ cannot be used: fx prints it as a keyword.
        same = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        text = f"{name} was {value!r} when the network was transformed, and must be that"
        self.create_proxy("call_function", torch._assert, (same, text), {})
        return value

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        if _context() != self.context and not in_reentrant_checkpoint():
            raise CannotRewriteError("it switches gradients or precision, which a graph does not")
        if target == "self":  # a module of this name would take the place of the forward's own self
            name = "self_"
        return super().create_node(kind, target, args, kwargs, name, type_expr)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # The zeros of a null edge take their shape from its input, which means nothing to a graph.
        return isinstance(m, NullEdge) or not self.opened(module_qualified_name)

    def iter(self, obj: Any) -> Iterator[Any]:
        """Unpack sizes and tuples; how many there are is known from the example."""
        self.evaluating = True  # modules are called and weights read as they are
        try:
            self.values = self.values or _Values(self.root, self.arguments)
            value = self.values.of(obj.node)
        finally:
            self.evaluating = False
        if isinstance(value, tuple | list):
            return iter([obj[i] for i in range(len(value))])
        return super().iter(obj)

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)


def _context() -> tuple[bool, bool, bool]:
    """What a forward may switch by a `with`, and fx does not see."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


class _Values:
    """What the nodes of a module's graph are when it is given what it is given on the example, in eval mode."""

    def __init__(self, root: nn.Module, arguments: Mapping[str, Any]) -> None:
        self.root, self.arguments = root, arguments
        self.known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """The value of a node, and of those that it is made of.

        Raises:
            CannotRewriteError: something on the way fails.
        """
        missing, waiting = set(), [node]
        while waiting:
            each = waiting.pop()
            if each not in self.known and each not in missing:
                missing.add(each)
                waiting.extend(each.all_input_nodes)
        with torch.no_grad(), in_mode(self.root, False), kept_buffers(self.root.modules()):
            for each in node.graph.nodes:
                if each in missing:
                    try:
                        self.known[each] = self._value(each)
                    except Exception as error:  # whatever a user's module does
                        kind = type(self.root).__name__
                        raise CannotRewriteError(f"{kind} cannot be interpreted: {error}") from error
        return self.known[node]

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.known[n])
        target: Any = node.target
        if node.op == "placeholder":
            return self.arguments[target.lstrip("*")]
        if node.op == "get_attr":
            value = operator.attrgetter(target)(self.root)
            return value.clone() if isinstance(value, Tensor) else value  # it may be written into
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        return (
            getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
        )


def _without(
    root: nn.Module, place: str, edges: Iterable[Edge], wanted: Mapping[Edge, str], inputs: Inputs
) -> nn.Module:
    """The module at `place`, traced and rewritten without some of its branches."""
    prefix = f"{place}." if place else ""
    edges = list(edges)
    program = edges[0].program
    ends = {edge.exit[len(prefix) :] for edge in edges}
    names = frozenset().union(*(_way(edge, wanted).opened for edge in edges))
    # An edge within one that is dropped, too, would open that one, and its zero would not be seen as one.
    arguments = inputs.of(place)
    opened = lambda name: prefix + name in names and name not in ends  # noqa: E731
    graph = _graph(root, place, opened, program, arguments)
    values = _Values(root, arguments)
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target) in ends:
            zero.add(node)
            continue
        lost = [n for n in node.all_input_nodes if n in zero]
        if not lost or node.op == "output":
            continue
        if _function(node) in GATHERING and len(lost) < len(node.all_input_nodes):
            _gather_zeros(node, zero, values)
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


def _spell_nothing(graph: fx.Graph, values: _Values) -> None:
    """Write None for parts of what a module gives that are None: to hand them on would keep the module alive."""
    for node in graph.nodes:
        source = node.args[0] if _function(node) == "getitem" else None
        if isinstance(source, fx.Node) and source.op == "call_module" and values.of(node) is None:
            for user in list(node.users):
                user.args = fx.node.map_arg(user.args, functools.partial(_unless, node))
                user.kwargs = fx.node.map_arg(user.kwargs, functools.partial(_unless, node))


def _unless(nothing: fx.Node, node: fx.Node) -> fx.Node | None:
    return None if node is nothing else node


def _gather_zeros(node: fx.Node, zero: set[fx.Node], values: _Values) -> None:
    """Put zeros that cost nothing in the place of a gathering's zero operands."""
    operands = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(operands, list | tuple) or not all(isinstance(n, fx.Node) for n in operands):
        raise CannotRewriteError(f"{_function(node)} gathers something else than a list of tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    like = next(n for n in operands if n not in zero)
    made = []
    for operand in operands:
        if operand not in zero:
            made.append(operand)
            continue
        size = values.of(operand).shape
        with node.graph.inserting_before(node):
            if _function(node) == "stack":
                zeros = node.graph.call_function(torch.zeros_like, (like,))
            else:
                # Batch and pixels may change from call to call; only the gathered dimension is fixed.
                shape = [-1] * len(size)
                shape[dim] = size[dim]
                thin = node.graph.call_function(torch.narrow, (like, dim, 0, 1))
                zeros = node.graph.call_method(
                    "expand", (node.graph.call_function(torch.zeros_like, (thin,)), shape)
                )
        made.append(zeros)
    if node.args:
        node.args = (type(operands)(made), *node.args[1:])
    else:
        node.kwargs = node.kwargs | {"tensors": type(operands)(made)}


def _graph(
    root: nn.Module, place: str, opened: Callable[[str], bool], program: Program, arguments: Mapping[str, Any]
) -> fx.Graph:
    """The graph of a module that is right in both modes."""
    constants = _constants(program, place)
    what = place or "the network"
    graphs = []
    with fixed_randomness():
        before = _noticed(root)
        for training in (True, False):
            try:
                with in_mode(root, training):
                    graphs.append(_Tracer(opened, constants, arguments).trace(root))
            except Exception as error:  # whatever a user's forward does with a proxy
                why = str(error).split(". ")[0]
                raise CannotRewriteError(f"{type(root).__name__} cannot be traced: {why}") from error
        if _noticed(root) != before:
            raise CannotRewriteError(f"{what} draws random numbers of Python or changes its attributes")
    one, other = (list(graph.nodes) for graph in graphs)
    if any(_writes_state(node) for node in other):
        raise CannotRewriteError(f"{what} writes into its buffers")
    if [(n.op, n.name, n.target) for n in one] != [(n.op, n.name, n.target) for n in other]:
        raise CannotRewriteError(f"{what} does other things in train than in eval mode")
    unlike = [node for twin, node in zip(one, other, strict=True) if _given(twin) != _given(node)]
    for node in unlike:
        if not _as_module(root, node):
            raise CannotRewriteError(f"{what} calls {_function(node)} otherwise in train than in eval mode")
    return graphs[1]


def _noticed(root: nn.Module) -> tuple[Any, ...]:
    """What a forward may change beside computing, and fx does not see: generators, plain attributes."""
    plain = (bool, int, float, str, type(None))
    attributes = [
        (path, name, value)
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain) and name != "training"
    ]
    return random.getstate(), str(np.random.get_state()), attributes  # noqa: NPY002


def _writes_state(node: fx.Node) -> bool:
    """Whether a node changes a weight or a buffer in place."""
    if node.op == "call_method":
        in_place = str(node.target).endswith("_") and not str(node.target).startswith("__")
    else:
        name = getattr(node.target, "__name__", "")
        in_place = node.op == "call_function" and (name in _IN_PLACE or "out" in node.kwargs)
    first = node.args[0] if node.args else None
    while isinstance(first, fx.Node) and first.op == "call_method" and first.args:
        first = first.args[0]  # a view, or what another writing method gave back
    return in_place and isinstance(first, fx.Node) and first.op == "get_attr"


_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ipow", "setitem", "iand", "ior", "ixor", "ifloordiv"}


def _constants(program: Program, path: str) -> dict[str, Any]:
    """The arguments that had the same plain value in every call of a module: None masks, switches."""
    found = [dict(t.calls[i].constants) for t in program.traces for i in t.calls_of(path)]
    first = found[0] if found else {}
    same = {k: v for k, v in first.items() if all(k in f and f[k] == v for f in found)}
    return {k: v for k, v in same.items() if v is None or isinstance(v, bool | int | float | str)}


def _given(node: fx.Node) -> str:
    return f"{node.args} {sorted(node.kwargs.items())}"


_DROPOUTS = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
}


def _as_module(root: nn.Module, node: fx.Node) -> bool:
    """Turn a call of a dropout function, whose `training` was fixed by the trace, into one of a module."""
    kind = _DROPOUTS.get(_function(node))
    if kind is None or node.op != "call_function" or not node.args:
        return False
    share = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    if not isinstance(share, float | int):
        return False
    name = node.name
    while hasattr(root, name):
        name += "_"
    root.add_module(name, kind(share).train(root.training))
    with node.graph.inserting_before(node):
        node.replace_all_uses_with(node.graph.call_module(name, (node.args[0],)))
    node.graph.erase_node(node)
    return True


def _function(node: fx.Node) -> str:
    """The name of the function that a node calls, without underscores; empty for a module."""
    if node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_")


def _keeps_zero(program: Program, path: str) -> bool:
    """Whether a module, given zeros, gives zeros, in every call that was seen."""
    for trace_ in program.traces:
        for call in (trace_.calls[i] for i in trace_.calls_of(path)):
            states = trace_.propagate(call.inputs)
            if any(states[v] is not State.ZERO for v in call.outputs):
                return False
    return True


def _vanishes(node: fx.Node, zero: set[fx.Node], keeps_zero: Callable[[str], bool]) -> fx.Node:
    """What takes a node's place when some of its inputs are zero: itself if it is zero as well, or an operand."""
    inputs = node.all_input_nodes
    if node.op == "call_module":
        if all(n in zero for n in inputs) and keeps_zero(str(node.target)):
            return node
        raise CannotRewriteError(f"{node.target} would be given zeros")
    name = _function(node)
    how = behaviour(name, node.args, node.kwargs, lambda a: isinstance(a, fx.Node))
    if how == "add":
        rest = [n for n in inputs if n not in zero]
        return rest[0] if rest else node
    if how == "multiply" or (how == "homogeneous" and inputs[0] in zero):
        return node
    if how == "gather" and all(n in zero for n in inputs):
        return node
    raise CannotRewriteError(f"{name} would join data with zeros")
