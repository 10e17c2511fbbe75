"""Network + choices -> a plain network: the operations that were not kept are gone from it.

identity  the edge's modules are replaced by `nn.Identity`;
none      the smallest module around the branch and the additions that it feeds is traced by `torch.fx` (in train
          and in eval mode, which must agree), the additions lose the branch, and what fed nothing else is removed.

Everything is done on a copy, and the copy is compared with the one-hot relaxed network in both modes before it is
returned. What cannot be done safely is left as it was, and reported.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .edges import IDENTITY, NONE, ORIGINAL, Edge, find_edges, problems, replacements
from .naming import unknown
from .operations import FactorizedReduce, copying_identity
from .relaxation import IDENTITY_NAME, RelaxedNetwork, relax
from .tracing import Example, Program, State, behaviour, copied, examples_of, trace


@dataclass
class Discretization:
    """A plain network and how it came about.

    Attributes:
        network: the plain network.
        choices: what was done, for every edge.
        kept: {edge key: why} for choices that could not be carried out; the operation is still there.
        removed: paths of the modules that are gone, because they were dropped or fed nothing any more.
        notes: what else is worth knowing (a theta that could not be folded).
    """

    network: nn.Module
    choices: dict[str, str]
    kept: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
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
        network: a network, or a `RelaxedNetwork` with trained weights. It is left unchanged.
        choices: {edge key: "original" | "identity" | "none"}; edges that are missing stay original.
        example: see `dnat.trace`.
        scales: what becomes of theta of kept operations of a relaxed network: "reset" (to 1) or "fold" (multiplied
            into the norm, convolution or linear layer at the edge's end, which computes the same).
        edges: the network's edges where they are known; otherwise they are found.

    Returns:
        The plain network (same class or a `torch.fx.GraphModule`, same names and `state_dict` keys for everything
        that was kept) and the report.

    Raises:
        ValueError: an unknown edge, an illegal choice, choices that cannot be made together, unknown scales.
    """
    if scales not in ("reset", "fold"):
        raise unknown("scales", scales, ["reset", "fold"])
    relaxed = network if isinstance(network, RelaxedNetwork) else None
    plain = relaxed.detached() if relaxed else copied(network)
    edges = relaxed.edges if relaxed else tuple(edges or find_edges(trace(network, example)))
    wanted = _checked(choices, edges)
    notes = _fold(plain, relaxed, wanted) if relaxed and scales == "fold" else []
    reference = _one_hot(plain, relaxed, edges, wanted)
    attempt = _build(plain, reference, wanted)
    if attempt.kept:
        reference = _one_hot(plain, relaxed, edges, {e: attempt.choices[e.key] for e in edges})
    if not _agree(attempt.network, reference, example):
        culprits = _culprits(plain, reference, wanted, example)
        for edge in culprits:
            wanted[edge] = ORIGINAL
        attempt = _build(plain, reference, wanted)
        reference = _one_hot(plain, relaxed, edges, {e: attempt.choices[e.key] for e in edges})
        for edge in culprits:
            attempt.kept[edge.key] = "the rewritten network computed something else"
        if not culprits or not _agree(attempt.network, reference, example):
            raise RuntimeError("the discretized network does not compute what the relaxed one does: please report")
    before = {p for p, _ in plain.named_modules()}
    after = {p for p, m in attempt.network.named_modules() if not isinstance(m, nn.Identity)}
    attempt.removed = tuple(p for p, _ in plain.named_modules() if p in before - after)
    attempt.notes = notes
    attempt.network.train(network.training)
    return attempt


def _checked(choices: Mapping[str, str], edges: Sequence[Edge]) -> dict[Edge, str]:
    by_key = {edge.key: edge for edge in edges}
    for key, choice in choices.items():
        if key not in by_key:
            raise unknown("edge", key, by_key)
        if choice not in by_key[key].choices:
            legal = ", ".join(by_key[key].choices)
            raise ValueError(f"{key} cannot become {choice!r}; legal: {legal}")
    wanted = {edge: choices.get(edge.key, ORIGINAL) for edge in edges}
    found = problems(wanted)
    if found:
        raise ValueError(f"these choices cannot be made together: {'; '.join(found)}")
    return wanted


def _one_hot(
    plain: nn.Module, relaxed: RelaxedNetwork | None, edges: Sequence[Edge], wanted: Mapping[Edge, str]
) -> RelaxedNetwork:
    """The oracle: the relaxed network with theta one-hot, and with the trained operations on null edges."""
    twin = relax(plain, edges)
    twin.set_one_hot({edge.key: choice for edge, choice in wanted.items()})
    if relaxed is not None:
        for edge in edges:
            if edge.kind == "skip":
                source = relaxed.network.get_submodule(edge.entry)
                twin.network.get_submodule(edge.entry).load_state_dict(source.state_dict())
    return twin


def _fold(plain: nn.Module, relaxed: RelaxedNetwork, wanted: Mapping[Edge, str]) -> list[str]:
    """Multiply each kept operation's gate into the module at its end; returns what could not be folded."""
    notes = []
    pairs = [(original.detach(), identity.detach()) for original, identity in relaxed.architecture.pairs()]
    for edge, choice in wanted.items():
        original, identity = pairs[relaxed.row(edge)]
        target: nn.Module | None = None
        scale = original
        if choice == ORIGINAL and edge.kind != "skip":
            target = _scalable(plain, edge)
        elif choice == IDENTITY and edge.kind == "skip":
            added = relaxed.network.get_submodule(f"{edge.entry}.{IDENTITY_NAME}")
            # The relaxed network's own norm is scaled: it is about to be replaced by the plain one.
            target, scale = (added.bn if isinstance(added, FactorizedReduce) else None), identity
        else:
            continue
        if target is None:
            if float(scale) != 1:
                notes.append(f"theta {float(scale):.3f} of {edge.key} has nothing to be folded into and becomes 1")
            continue
        with torch.no_grad():
            for parameter in (target.weight, target.bias):
                if isinstance(parameter, Tensor):
                    parameter.mul_(scale)
    return notes


def _scalable(plain: nn.Module, edge: Edge) -> nn.Module | None:
    """The module with weight and bias whose output is the edge's output."""
    first = edge.program.traces[0]
    _, out = edge.values(first)[0]
    for call in reversed(first.calls):
        if call.outputs == (out,) and edge.program.modules[call.path].kind in (
            "convolution",
            "linear",
            "norm",
        ):
            module = plain.get_submodule(call.path)
            return module if isinstance(getattr(module, "weight", None), Tensor) else None
    return None


def _build(plain: nn.Module, reference: RelaxedNetwork, wanted: Mapping[Edge, str]) -> Discretization:
    """Make the choices in a copy, without checking the result."""
    network = copied(plain)
    done = dict(wanted)
    kept: dict[str, str] = {}
    for edge, choice in wanted.items():
        if choice == IDENTITY:
            network = _identity(network, reference, edge)
    if set(wanted.values()) != {ORIGINAL}:
        # What an activation may overwrite was its own; behind an identity or a lost branch others read it, too.
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
    # A null edge that stays is dropped like a branch, so that nothing of dnat is left in the network.
    dropped = [e for e, c in wanted.items() if c == NONE or (e.kind == "skip" and c == ORIGINAL)]
    places: dict[str, list[Edge]] = {}
    for edge in dropped:
        places.setdefault(_enclosing(edge, done), []).append(edge)
    for place in sorted(places, key=lambda p: -p.count(".") if p else 1):
        network = _drop(network, place, places[place], done, kept)
    return Discretization(network, {e.key: c for e, c in done.items()}, kept)


def _identity(network: nn.Module, reference: RelaxedNetwork, edge: Edge) -> nn.Module:
    if edge.kind == "skip":
        added = copied(reference.network.get_submodule(f"{edge.entry}.{IDENTITY_NAME}"))
        # Under its own name inside a Sequential, so that the weights keep the names they were trained under.
        fits = isinstance(added, nn.Identity)
        return _replaced(
            network, edge.entry, added if fits else nn.Sequential(OrderedDict({IDENTITY_NAME: added}))
        )
    network = _replaced(network, edge.exit, copying_identity() if edge.copies else nn.Identity())
    return network if edge.entry == edge.exit else _replaced(network, edge.entry, nn.Identity())


def _replaced(network: nn.Module, path: str, module: nn.Module) -> nn.Module:
    """The network with another module at a path and at every other name of the same module."""
    if not path:
        return module
    try:
        old = network.get_submodule(path)
    except AttributeError:
        return network  # gone with a block around it
    for name, found in list(network.named_modules(remove_duplicate=False)):
        if found is old:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
    return network


def _way(edge: Edge, wanted: Mapping[Edge, str]) -> tuple[set[str], set[str]]:
    """Where zeros go from the edge's end to the additions that lose them.

    Returns:
        The paths of all modules in whose forward something happens on the way, and of those among them that must
        be traced through: the ones around the edge's end and around the additions.
    """
    everywhere: set[str] = set()
    opened: set[str] = set()
    for trace_ in edge.program.traces:
        zero, same = replacements(trace_, wanted)
        reached = [out for _, out in edge.values(trace_)]
        states = trace_.propagate(zero | set(reached), same)
        calls = [trace_.calls[c].parent for c in trace_.calls_of(edge.exit)]
        everywhere.update(trace_.calls[c].path for c in calls if c is not None)
        for value in reached:
            for user in trace_.users[value]:
                op = trace_.operations[user]
                everywhere.add(trace_.calls[op.scope[-1]].path if op.scope else "")
                if any(states[v] is not State.ZERO for v in op.outputs) and op.scope:
                    calls.append(op.scope[-1])
                reached.extend(v for v in op.outputs if states[v] is State.ZERO and v not in reached)
        while calls:
            call = calls.pop()
            if call is not None:
                opened.add(trace_.calls[call].path)
                calls.append(trace_.calls[call].parent)
    return everywhere, opened


def _enclosing(edge: Edge, wanted: Mapping[Edge, str]) -> str:
    """The path of the smallest module that holds the edge's end and every addition that would lose it."""
    parts = [path.split(".") if path else [] for path in _way(edge, wanted)[0]]
    common: list[str] = []
    for names in zip(*parts, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    called = {call.path for trace_ in edge.program.traces for call in trace_.calls}
    # A ModuleList has no forward of its own to trace.
    while ".".join(common) not in called:
        common.pop()
    return ".".join(common)


def _drop(
    network: nn.Module, place: str, edges: Sequence[Edge], done: dict[Edge, str], kept: dict[str, str]
) -> nn.Module:
    """Drop branches inside the module at `place`: all at once, or if that fails one by one."""
    try:
        root = network.get_submodule(place)
    except AttributeError:
        return network  # gone with a block around it
    try:
        return _replaced(network, place, _without(root, place, edges, done))
    except _CannotRewriteError as error:
        reason = str(error)
    if len(edges) == 1:
        (edge,) = edges
        if edge.kind != "skip":  # a null edge that cannot be taken out just goes on adding nothing
            kept[edge.key], done[edge] = reason, ORIGINAL
        return network
    for edge in edges:
        network = _drop(network, place, [edge], done, kept)
    return network


class _CannotRewriteError(Exception):
    """A module cannot be traced, or a zero reaches something that it cannot be dropped from."""


class _Tracer(fx.Tracer):
    """Opens only the modules that lie on the way; everything else is a leaf."""

    def __init__(self, opened: Callable[[str], bool]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.opened(module_qualified_name)


def _without(root: nn.Module, place: str, edges: Iterable[Edge], wanted: Mapping[Edge, str]) -> nn.Module:
    """The module at `place`, traced and rewritten without some of its branches."""
    prefix = f"{place}." if place else ""
    edges = list(edges)
    program = edges[0].program
    ends = {edge.exit[len(prefix) :] for edge in edges}
    names = set().union(*(_way(edge, wanted)[1] for edge in edges))
    graphs = [_graph(root, lambda name: prefix + name in names, training) for training in (True, False)]
    if str(graphs[0]) != str(graphs[1]):
        raise _CannotRewriteError(f"{place or 'the network'} does other things in train than in eval mode")
    graph = graphs[1]
    zero: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op == "call_module" and str(node.target) in ends:
            zero.add(node)
            continue
        lost = [n for n in node.all_input_nodes if n in zero]
        if not lost or node.op == "output":
            continue
        other = _vanishes(node, zero, lambda name: _keeps_zero(program, prefix + name))
        if other is node:
            zero.add(node)
        else:
            node.replace_all_uses_with(other)
    graph._tracer_cls = None  # or pickling would want this module's tracer where the network is loaded
    module = fx.GraphModule(root, graph, class_name=type(root).__name__)
    module.graph.eliminate_dead_code()
    if any(node.op == "call_module" and str(node.target) in ends for node in module.graph.nodes):
        raise _CannotRewriteError(f"{place or 'the network'} reads the branch elsewhere, too")
    module.delete_all_unused_submodules()
    module.recompile()
    return module.train(root.training)


def _graph(root: nn.Module, opened: Callable[[str], bool], training: bool) -> fx.Graph:
    modes = {module: module.training for module in root.modules()}
    for module in modes:
        module.training = training
    try:
        return _Tracer(opened).trace(root)
    except Exception as error:  # whatever a user's forward does with a proxy
        raise _CannotRewriteError(f"{type(root).__name__} cannot be traced: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode


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
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    how = behaviour(str(name), node.args, node.kwargs, lambda a: isinstance(a, fx.Node))
    if how == "add":
        rest = [n for n in inputs if n not in zero]
        return rest[0] if rest else node
    gathers = str(name).strip("_") in ("cat", "concat", "stack")
    if how == "multiply" or (how == "homogeneous" and (inputs[0] in zero) and not gathers):
        return node
    if how == "homogeneous" and all(n in zero for n in inputs):
        return node
    raise _CannotRewriteError(f"{name} would join data with zeros")


def _culprits(
    plain: nn.Module, reference: RelaxedNetwork, wanted: Mapping[Edge, str], example: Example
) -> list[Edge]:
    """The edges whose choice, made alone, gives another function than the relaxed network has."""
    found = []
    for edge, choice in wanted.items():
        if choice == ORIGINAL:
            continue
        alone = {e: choice if e is edge else ORIGINAL for e in wanted}
        oracle = _one_hot(plain, reference, list(wanted), alone)
        try:
            agrees = _agree(_build(plain, oracle, alone).network, oracle, example)
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
                for part in twin.modules():
                    if "drop" in type(part).__name__.lower() or "stochastic" in type(part).__name__.lower():
                        part.eval()  # what was removed drew random numbers, too
                with torch.random.fork_rng(devices=devices), torch.no_grad():
                    torch.manual_seed(0)
                    try:
                        result = twin(*args, **kwargs)
                    except ValueError as error:
                        if training and "more than 1 value per channel" in str(error):
                            break
                        raise
                    outputs.append([t for t in tree_leaves(result) if isinstance(t, Tensor)])
            if len(outputs) == 2 and not _close(*outputs):
                return False
    return True


def _close(some: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    if len(some) != len(others):
        return False
    for a, b in zip(some, others, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.is_floating_point():
            size = torch.nan_to_num(b.abs()).max().item() if b.numel() else 0.0
            # Exact choices differ by rounding at most; a wrong one differs by far more than this.
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-5 * max(size, 1e-6), equal_nan=True):
                return False
        elif not torch.equal(a, b):
            return False
    return True
