"""Network + choices -> a plain network: the operations that were not kept are gone from it.

identity  the edge's modules are replaced by `nn.Identity`;
none      the smallest module around the branch, the additions that it feeds and all that fed only the branch is
          traced by `torch.fx` (in train and in eval mode, which must agree); the additions lose the branch, a
          concatenation gets zeros that cost nothing, and what fed nothing else is removed.

Everything is done on a copy, and the copy is compared with the one-hot relaxed network in both modes before it is
returned. What cannot be done safely is left as it was, and reported.
"""

import inspect
import operator
import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .edges import IDENTITY, NONE, ORIGINAL, Edge, find_edges, problems, replacements
from .errors import UsageError
from .naming import unknown
from .operations import NullEdge, copying_identity, forgiving_identity
from .relaxation import RelaxedNetwork, module_name, relax
from .tracing import (
    GATHERING,
    Example,
    Program,
    State,
    behaviour,
    copied,
    examples_of,
    fixed_randomness,
    in_mode,
    trace,
)


@dataclass
class Discretization:
    """A plain network and how it came about.

    Attributes:
        network: the plain network.
        choices: what was done, for every edge.
        kept: {edge key: why} for choices that could not be carried out; the operation is still there.
        removed: paths of the modules that are gone, because they were dropped or fed nothing any more.
        partial: {edge key: why} for branches that were dropped, but what only fed them is still computed, because
            the module around it cannot be traced.
        notes: what else is worth knowing.
    """

    network: nn.Module
    choices: dict[str, str]
    kept: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    partial: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def discretize(
    network: nn.Module, choices: Mapping[str, str], example: Example, *, scales: str = "reset"
) -> nn.Module:
    """A plain network in which the choices are made; see `discretization` for a report beside it."""
    return discretization(network, choices, example, scales=scales).network


def discretization(
    network: nn.Module,
    choices: Mapping[str, str],
    example: Example,
    *,
    scales: str = "reset",
    edges: Sequence[Edge] | None = None,
) -> Discretization:
    """Make the choices in a copy of a network.

    Args:
        network: a network, or a `RelaxedNetwork` with trained weights. It is left unchanged. Theta of what is kept
            becomes 1.
        choices: {edge key: "original" | "identity" | "none"}; edges that are missing stay original.
        example: see `dnat.trace`.
        edges: the network's edges where they are known; otherwise they are found.

    Returns:
        The plain network (same class or a `torch.fx.GraphModule`, same names and `state_dict` keys for everything
        that was kept) and the report.

    Raises:
        ValueError: an unknown edge, an illegal choice, choices that cannot be made together.
    """
    relaxed = network if isinstance(network, RelaxedNetwork) else None
    plain = relaxed.detached() if relaxed else copied(network)
    named = set(choices.values()) - {ORIGINAL, IDENTITY, NONE}
    space = "nat++" if named else "dnat"
    edges = relaxed.edges if relaxed else tuple(edges or find_edges(trace(network, example), space))
    wanted = _checked(choices, edges)
    added = _added(relaxed) if relaxed else {}
    reference = _one_hot(plain, added, edges, wanted)
    attempt = _build(plain, reference, wanted, example)
    if attempt.kept:
        reference = _one_hot(plain, added, edges, {e: attempt.choices[e.key] for e in edges})
    if not _agree(attempt.network, reference, example):
        culprits = _culprits(plain, added, wanted, example)
        for edge in culprits:
            wanted[edge] = ORIGINAL
        attempt = _build(plain, reference, wanted, example)
        reference = _one_hot(plain, added, edges, {e: attempt.choices[e.key] for e in edges})
        for edge in culprits:
            attempt.kept[edge.key] = "the rewritten network computed something else"
        if not culprits or not _agree(attempt.network, reference, example):
            raise RuntimeError("the discretized network does not compute what the relaxed one does: please report")
    before = {p for p, _ in plain.named_modules()}
    after = {p for p, m in attempt.network.named_modules() if not isinstance(m, nn.Identity)}
    attempt.removed = tuple(p for p, _ in plain.named_modules() if p in before - after)
    attempt.notes += [f"what fed only {key} is still computed: {why}" for key, why in attempt.partial.items()]
    attempt.network.train(network.training)
    return attempt


def _checked(choices: Mapping[str, str], edges: Sequence[Edge]) -> dict[Edge, str]:
    by_key = {edge.key: edge for edge in edges}
    for key, choice in choices.items():
        if key not in by_key:
            raise unknown("edge", key, by_key)
        if choice not in by_key[key].choices:
            legal = ", ".join(by_key[key].choices)
            raise UsageError(f"{key} cannot become {choice!r}; legal: {legal}")
    wanted = {edge: choices.get(edge.key, ORIGINAL) for edge in edges}
    found = problems(wanted)
    if found:
        raise UsageError(f"these choices cannot be made together: {'; '.join(found)}")
    return wanted


Added = Mapping[str, nn.Module]
"""The modules of choices that have one, by their path in the relaxed network."""


def _added(relaxed: RelaxedNetwork) -> Added:
    """Copies of a relaxed network's trained operations: those that stand beside the original ones."""
    paths = (f"{edge.entry}.{module_name(choice)}" for edge in relaxed.edges for choice in edge.modules)
    return {path: copied(relaxed.network.get_submodule(path)) for path in paths}


def _one_hot(plain: nn.Module, added: Added, edges: Sequence[Edge], wanted: Mapping[Edge, str]) -> RelaxedNetwork:
    """The oracle: the relaxed network with theta one-hot, and with the trained operations."""
    twin = relax(plain, edges, warm_start=not added)
    twin.set_one_hot({edge.key: choice for edge, choice in wanted.items()})
    for path, trained in added.items():
        twin.network.get_submodule(path).load_state_dict(trained.state_dict())
    return twin


def _build(
    plain: nn.Module, reference: RelaxedNetwork, wanted: Mapping[Edge, str], example: Example
) -> Discretization:
    """Make the choices in a copy, without checking the result."""
    network = copied(plain)
    done = dict(wanted)
    kept: dict[str, str] = {}
    for edge, choice in wanted.items():
        if choice in edge.passes:
            network = _passed(network, reference, edge, choice)
    if set(wanted.values()) != {ORIGINAL}:
        # What an activation may overwrite was its own; behind an identity or a lost branch others read it, too.
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
    # A null edge that stays is dropped like a branch, so that nothing of dnat is left in the network.
    dropped = [e for e, c in wanted.items() if c == NONE or (e.kind == "skip" and c == ORIGINAL)]
    partial: dict[str, str] = {}
    for place, edges in _places(dropped, done):
        network = _drop(network, place, edges, done, kept, partial, example)
    return Discretization(network, {e.key: c for e, c in done.items()}, kept, partial=partial)


def _passed(network: nn.Module, reference: RelaxedNetwork, edge: Edge, choice: str) -> nn.Module:
    """The network with an identity or another operation in the edge's place."""
    if choice in edge.modules:
        added = copied(reference.network.get_submodule(f"{edge.entry}.{module_name(choice)}"))
        if isinstance(added, nn.Identity):
            return _replaced(network, edge.entry, added)
        # Under its own name inside a Sequential, so that the weights keep the names they were trained under.
        parts = OrderedDict({module_name(choice): added})
        drop_path = _found(network, f"{edge.entry}.drop_path")
        if drop_path is not None:
            parts["drop_path"] = drop_path
        if edge.entry != edge.exit:  # it has a norm of its own
            network = _replaced(network, edge.exit, nn.Identity())
        return _replaced(network, edge.entry, nn.Sequential(parts))
    if edge.lone:
        last = copying_identity() if edge.copies else nn.Identity()
        network = _replaced(network, edge.exit, last)
        return network if edge.entry == edge.exit else _replaced(network, edge.entry, nn.Identity())
    network = _replaced(network, edge.exit, forgiving_identity(copies=edge.copies))
    return network if edge.entry == edge.exit else _replaced(network, edge.entry, forgiving_identity())


def _replaced(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The network with another module at a path and at every other name of the same module."""
    if not path:
        return module
    old = _found(network, path)
    if old is None:
        return network  # gone with a block around it
    for name, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
    return network


def _found(network: nn.Module, path: str) -> nn.Module | None:
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
        replaced, same = replacements(trace_, wanted)
        reached = [out for _, out in edge.values(trace_)]
        # What this none alone makes useless, and what it does together with the other choices.
        needed = trace_.live(replaced | set(reached), same)
        without = trace_.live(*replacements(trace_, {**wanted, edge: ORIGINAL}))
        gone = (trace_.live() - trace_.live(reached)) | (without - needed)
        states = trace_.propagate(replaced | set(reached), same)
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


def _places(edges: Iterable[Edge], wanted: Mapping[Edge, str]) -> list[tuple[str, list[Edge]]]:
    """Edges by the module that must be rewritten to drop them, innermost modules first."""
    places: dict[str, list[Edge]] = {}
    for edge in edges:
        way = _way(edge, wanted)
        places.setdefault(_enclosing(edge.program, way.zeros | way.dead), []).append(edge)
    return sorted(places.items(), key=lambda item: -item[0].count(".") if item[0] else 1)


def _drop(
    network: nn.Module,
    place: str,
    edges: Sequence[Edge],
    done: dict[Edge, str],
    kept: dict[str, str],
    partial: dict[str, str],
    example: Example,
) -> nn.Module:
    """Drop branches inside the module at `place`: all at once, or if that fails one by one."""
    try:
        root = network.get_submodule(place)
    except AttributeError:
        return network  # gone with a block around it
    try:
        shapes = _Shapes(network, root, example)
        return _replaced(network, place, _without(root, place, edges, done, shapes))
    except _CannotRewriteError as error:
        reason = str(error)
    if len(edges) > 1:
        for edge in edges:
            network = _drop(network, place, [edge], done, kept, partial, example)
        return network
    (edge,) = edges
    narrow = _enclosing(edge.program, _way(edge, done).zeros)
    if narrow != place:  # without removing all that fed only the branch: it computes the same, but costs more
        network = _drop(network, narrow, edges, done, kept, partial, example)
        if edge.key not in kept:
            partial[edge.key] = reason
        return network
    if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
        kept[edge.key], done[edge] = reason, ORIGINAL
    return network


def rewritable(network: nn.Module, edges: Sequence[Edge], example: Example) -> tuple[Edge, ...]:
    """Edges without the choices that could not be carried out, so that nothing is trained in vain.

    Each none is tried alone on a copy. `Edge.refused` of the edges that are returned says what stands against it;
    edges that are left without a choice are returned, too.
    """
    twin = copied(network)
    found = []
    for edge in edges:
        if NONE in edge.choices:
            wanted = {e: NONE if e is edge else ORIGINAL for e in edges}
            way = _way(edge, wanted)
            reason = ""
            for place in dict.fromkeys(_enclosing(edge.program, p) for p in (way.zeros | way.dead, way.zeros)):
                root = twin.get_submodule(place)
                try:
                    _without(root, place, [edge], wanted, _Shapes(twin, root, example))
                except _CannotRewriteError as error:
                    reason = reason or str(error)
                else:
                    reason = ""
                    break
            edge = edge.without(NONE, reason) if reason else edge
        found.append(edge)
    return tuple(found)


class _CannotRewriteError(Exception):
    """A module cannot be traced, or a zero reaches something that it cannot be dropped from."""


class _Tracer(fx.Tracer):
    """Opens only the modules that lie on the way; everything else is a leaf."""

    def __init__(self, opened: Callable[[str], bool], empty: Collection[str]) -> None:
        super().__init__()
        self.opened = opened
        self.empty = empty
        self.context = _context()

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        # Where nothing came in by *args and **kwargs the forward gets nothing: a placeholder cannot be unpacked.
        place = len(args)
        for kind, nothing in ((inspect.Parameter.VAR_KEYWORD, {}), (inspect.Parameter.VAR_POSITIONAL, ())):
            for name, parameter in inspect.signature(root_fn).parameters.items():
                if parameter.kind is kind:
                    place -= 1
                    args[place] = nothing if name in self.empty else args[place]
        return function, args

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _context() != self.context:
            raise _CannotRewriteError("it switches gradients or precision, which a graph does not")
        return super().create_node(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # The zeros of a null edge take their shape from its input, which means nothing to a graph.
        return isinstance(m, NullEdge) or not self.opened(module_qualified_name)


def _context() -> tuple[bool, bool, bool]:
    """What a forward may switch by a `with`, and fx does not see."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


class _Shapes(fx.Interpreter):
    """The shapes of a graph's nodes when the whole network runs on the first example; found when first asked."""

    def __init__(self, network: nn.Module, root: nn.Module, example: Example) -> None:
        self.network, self.root, self.example = network, root, example

    def of(self, graph: fx.Graph) -> dict[str, torch.Size]:
        """{node name: shape}."""
        calls: list[Any] = []
        handle = self.root.register_forward_pre_hook(lambda m, a, k: calls.append((a, k)), with_kwargs=True)
        args, kwargs = examples_of(self.example)[0]
        try:
            with torch.no_grad(), in_mode(self.network, False):
                self.network(*args, **kwargs)
                handle.remove()
                self.found: dict[str, torch.Size] = {}
                super().__init__(fx.GraphModule(self.root, graph), garbage_collect_values=False)
                bound = inspect.signature(self.root.forward).bind(*calls[0][0], **calls[0][1])
                bound.apply_defaults()
                self.run(*bound.arguments.values())
        except Exception as error:
            raise _CannotRewriteError(f"{type(self.root).__name__} cannot be interpreted: {error}") from error
        finally:
            handle.remove()
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n.name] = result.shape
        return result


def _without(
    root: nn.Module, place: str, edges: Iterable[Edge], wanted: Mapping[Edge, str], shapes: _Shapes
) -> nn.Module:
    """The module at `place`, traced and rewritten without some of its branches."""
    prefix = f"{place}." if place else ""
    edges = list(edges)
    program = edges[0].program
    ends = {edge.exit[len(prefix) :] for edge in edges}
    names = frozenset().union(*(_way(edge, wanted).opened for edge in edges))
    # An edge within one that is dropped, too, would open that one, and its zero would not be seen as one.
    graph = _graph(root, place, lambda name: prefix + name in names and name not in ends, program)
    sizes: dict[str, torch.Size] = {}
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target) in ends:
            zero.add(node)
            continue
        lost = [n for n in node.all_input_nodes if n in zero]
        if not lost or node.op == "output":
            continue
        if _function(node) in GATHERING and len(lost) < len(node.all_input_nodes):
            sizes = sizes or shapes.of(graph)
            _gather_zeros(node, zero, sizes)
            continue
        other = _vanishes(node, zero, lambda name: _keeps_zero(program, prefix + name))
        if other is node:
            zero.add(node)
        else:
            node.replace_all_uses_with(other)
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
        raise _CannotRewriteError(f"{place or 'the network'} reads the branch elsewhere, too")
    module.delete_all_unused_submodules()
    module.recompile()
    return module.train(root.training)


def _gather_zeros(node: fx.Node, zero: set[fx.Node], sizes: Mapping[str, torch.Size]) -> None:
    """Put zeros that cost nothing in the place of a gathering's zero operands."""
    operands = node.args[0] if node.args else node.kwargs.get("tensors")
    if not isinstance(operands, list | tuple) or not all(isinstance(n, fx.Node) for n in operands):
        raise _CannotRewriteError(f"{_function(node)} gathers something else than a list of tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    assert isinstance(dim, int)
    like = next(n for n in operands if n not in zero)
    made = []
    for operand in operands:
        if operand not in zero:
            made.append(operand)
            continue
        if operand.name not in sizes:
            raise _CannotRewriteError(f"the shape of {operand.name} is not known")
        with node.graph.inserting_before(node):
            if _function(node) == "stack":
                zeros = node.graph.call_function(torch.zeros_like, (like,))
            else:
                # Batch and pixels may change from call to call; only the gathered dimension is fixed.
                shape = [-1] * len(sizes[operand.name])
                shape[dim] = sizes[operand.name][dim]
                thin = node.graph.call_function(torch.narrow, (like, dim, 0, 1))
                zeros = node.graph.call_method(
                    "expand", (node.graph.call_function(torch.zeros_like, (thin,)), shape)
                )
        made.append(zeros)
    if node.args:
        node.args = (type(operands)(made), *node.args[1:])
    else:
        node.kwargs = node.kwargs | {"tensors": type(operands)(made)}


def _graph(root: nn.Module, place: str, opened: Callable[[str], bool], program: Program) -> fx.Graph:
    """The graph of a module that is right in both modes."""
    constants = _constants(program, place)
    empty = [name for name, value in constants.items() if value == ()]
    given = {name: value for name, value in constants.items() if value != ()}
    what = place or "the network"
    graphs = []
    with fixed_randomness():
        before = _noticed(root)
        for training in (True, False):
            try:
                with in_mode(root, training):
                    graphs.append(_named(_Tracer(opened, empty).trace(root, given), root))
            except Exception as error:  # whatever a user's forward does with a proxy
                why = str(error).split(". ")[0]
                raise _CannotRewriteError(f"{type(root).__name__} cannot be traced: {why}") from error
        if _noticed(root) != before:
            raise _CannotRewriteError(f"{what} draws random numbers of Python or changes its attributes")
    one, other = (list(graph.nodes) for graph in graphs)
    if any(_writes_state(node) for node in other):
        raise _CannotRewriteError(f"{what} writes into its buffers")
    if [(n.op, n.name, n.target) for n in one] != [(n.op, n.name, n.target) for n in other]:
        raise _CannotRewriteError(f"{what} does other things in train than in eval mode")
    unlike = [node for twin, node in zip(one, other, strict=True) if _given(twin) != _given(node)]
    for node in unlike:
        if not _as_module(root, node):
            raise _CannotRewriteError(f"{what} calls {_function(node)} otherwise in train than in eval mode")
    return graphs[1]


def _named(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """The graph with the forward's own argument names; fx numbers those that were given a value."""
    # In the order of fx, which is that of the code: *args and **kwargs come last.
    names = inspect.unwrap(type(root).forward).__code__.co_varnames[1:]
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=False):
        if not str(node.target).startswith("*"):
            node.target = name
    for node in list(graph.nodes):
        if _function(node) == "assert_is_none":
            # fx's own check that an argument is None is no effect to fx, and cannot be pickled.
            with graph.inserting_before(node):
                is_none = graph.call_function(operator.eq, (node.args[0], None))
                graph.call_function(torch._assert, (is_none, node.args[1]))
            graph.erase_node(node)
    return graph


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
    return {k: v for k, v in same.items() if v is None or isinstance(v, bool | int | float | tuple)}


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
    root.add_module(name, kind(share))
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
        raise _CannotRewriteError(f"{node.target} would be given zeros")
    name = _function(node)
    how = behaviour(name, node.args, node.kwargs, lambda a: isinstance(a, fx.Node))
    if how == "add":
        rest = [n for n in inputs if n not in zero]
        return rest[0] if rest else node
    if how == "multiply" or (how == "homogeneous" and inputs[0] in zero):
        return node
    if how == "gather" and all(n in zero for n in inputs):
        return node
    raise _CannotRewriteError(f"{name} would join data with zeros")


def _culprits(plain: nn.Module, added: Added, wanted: Mapping[Edge, str], example: Example) -> list[Edge]:
    """The edges whose choice, made alone, gives another function than the relaxed network has."""
    found = []
    for edge, choice in wanted.items():
        if choice == ORIGINAL:
            continue
        alone = {e: choice if e is edge else ORIGINAL for e in wanted}
        oracle = _one_hot(plain, added, list(wanted), alone)
        try:
            agrees = _agree(_build(plain, oracle, alone, example).network, oracle, example)
        except Exception:
            agrees = False
        if not agrees:
            found.append(edge)
    return found


def _agree(network: nn.Module, reference: nn.Module, example: Example) -> bool:
    """Whether two networks give the same on the examples, in eval and in train mode, to rounding."""
    devices = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    for args, kwargs in examples_of(example):
        for training in (False, True):
            outputs = []
            for module in (network, reference):
                twin = copied(module).train(training)
                # What was removed drew random numbers, too: nothing is drawn while the two are compared.
                with fixed_randomness(devices), torch.no_grad(), _NoDropping():
                    try:
                        result = twin(*args, **kwargs)
                    except Exception as error:
                        if training and "more than 1 value per channel" in str(error):
                            break
                        if module is reference:
                            raise
                        return False  # for example, because others use what is gone
                    outputs.append((_tensors_of(result), _buffers(twin)))
            if len(outputs) == 2 and not _same(*outputs):
                return False
    return True


class _NoDropping(TorchFunctionMode):
    """Within, nothing is dropped at random, neither by modules nor by functions."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if "dropout" in name and args:
            return args[0]
        if name == "bernoulli_":
            return args[0].fill_(1.0)
        if name == "scaled_dot_product_attention" and kwargs.get("dropout_p"):
            kwargs["dropout_p"] = 0.0
        if name == "multi_head_attention_forward" and "training" in kwargs:
            kwargs["training"] = False
        return func(*args, **kwargs)


def _tensors_of(result: Any) -> list[Tensor]:
    return [t for t in tree_leaves(result) if isinstance(t, Tensor)]


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    network = network.network if isinstance(network, RelaxedNetwork) else network
    return dict(network.named_buffers())


def _same(one: tuple[list[Tensor], dict[str, Tensor]], other: tuple[list[Tensor], dict[str, Tensor]]) -> bool:
    """Whether two runs gave the same, and left the same in the buffers that both have."""
    common = one[1].keys() & other[1].keys()
    buffers = (_close([one[1][k]], [other[1][k]], _deviation(k, other[1])) for k in common)
    return _close(one[0], other[0]) and all(buffers)


def _deviation(name: str, buffers: Mapping[str, Tensor]) -> float:
    """What rounding in a running mean is measured by: the mean itself may be 0. Of other buffers, 0."""
    variance = buffers.get(f"{name.removesuffix('running_mean')}running_var")
    if not name.endswith("running_mean") or variance is None or not variance.numel():
        return 0.0
    return float(variance.max().sqrt())


def _close(some: Sequence[Tensor], others: Sequence[Tensor], least: float = 0.0) -> bool:
    """Whether tensors are equal to rounding, of which `least` says the size where they may be 0 themselves."""
    if len(some) != len(others):
        return False
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.is_floating_point():
            size = torch.nan_to_num(b.abs()).max().item() if b.numel() else 0.0
            # Exact choices differ by rounding at most; a wrong one differs by far more than this.
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(size, least, 1e-30), equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True
