"""Network + choices -> a plain network: the operations that were not kept are gone from it.

identity  the edge's modules are replaced by `nn.Identity`;
none      the smallest module around the branch, the additions that it feeds and all that fed only the branch is
          traced by `torch.fx` (in train and in eval mode, which must agree); the additions lose the branch, a
          concatenation gets zeros that cost nothing, and what fed nothing else is removed.

Everything is done on a copy, and the copy is compared with the one-hot relaxed network in both modes before it is
returned. What cannot be done safely is left as it was, and reported.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .edges import ORIGINAL, Edge, possible_edges, problems
from .errors import UsageError
from .naming import unknown
from .narrowing import Orders, by_weights, cut_along, narrow, narrowed
from .relaxation import RelaxedNetwork, module_name, relax
from .rewriting import close, drop_branches, exchanged, identified, overwrite, submodule
from .tracing import Example, Program, copied, examples_of, fixed_randomness, gpus_of, in_mode, trace


@dataclass
class Discretization:
    """A plain network and how it came about.

    Attributes:
        network: the plain network.
        choices: what was done, for every edge.
        undone: {edge key: why} for choices that could not be carried out; the operation is still there.
        removed: paths of the modules that are gone, because they were dropped or fed nothing any more.
    """

    network: nn.Module
    choices: dict[str, str]
    undone: dict[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


class IncompleteError(UsageError):
    """Choices that were not carried out; `report` holds the network that was made anyway."""

    def __init__(self, report: Discretization) -> None:
        lost = [f"{key} stays original: {why}" for key, why in report.undone.items()]
        super().__init__(
            f"{len(lost)} of the choices cannot be carried out ({'; '.join(lost)}); leave them out, "
            "or ask for the report, which holds the network as far as it was made"
        )
        self.report = report


@overload
def discretize(network: nn.Module, choices: Mapping[str, str], example: Example) -> nn.Module: ...


@overload
def discretize(
    network: nn.Module, choices: Mapping[str, str], example: Example, *, report: Literal[True]
) -> Discretization: ...


@overload
def discretize(
    network: nn.Module, choices: Mapping[str, str], example: Example, *, report: Literal[False]
) -> nn.Module: ...


def discretize(
    network: nn.Module, choices: Mapping[str, str], example: Example, *, report: bool = False
) -> nn.Module | Discretization:
    """A plain network in which the choices are made.

    Args:
        network: a network, or a `RelaxedNetwork` with trained weights. It is left unchanged. Theta of what is kept
            becomes 1.
        choices: {edge key: "original" | "identity" | "none" | the name of another operation}; edges that are
            missing stay original.
        example: see `dnat.trace`.
        report: give a `Discretization` back, which holds the network and what became of each choice, whatever
            could be carried out.

    Returns:
        The plain network: the same class, or `torch.fx.GraphModule`s in it; names and `state_dict` keys of all
        that was kept stay. Every module is in the mode in which it was.

    Raises:
        IncompleteError: without a report, where a choice could not be carried out.
        ValueError: an unknown edge, an illegal choice, choices that cannot be made together.

    >>> import dnat
    >>> network, x = dnat.build("resnet8"), torch.randn(2, 3, 32, 32)
    >>> compact = discretize(network, {"layer2.0.conv2>layer2.0.bn2": "none"}, x)
    >>> dnat.cost(compact, x).madds / dnat.cost(network, x).madds < 0.8
    True
    """
    made = discretization(network, choices, example)
    if report:
        return made
    if made.undone:
        raise IncompleteError(made)
    return made.network


def discretization(
    network: nn.Module, choices: Mapping[str, str], example: Example, program: Program | None = None
) -> Discretization:
    """Make the choices in a copy of a network as far as they can be made, and tell; see `discretize`.

    With the network's program, where it is known, it is not traced again.
    """
    relaxed = network if isinstance(network, RelaxedNetwork) else None
    plain = relaxed.detached() if relaxed else copied(network)
    edges = relaxed.edges if relaxed else _edges_for(program or trace(network, example), choices)
    wanted = _checked(choices, edges)
    added = _added(relaxed) if relaxed else {}
    given = _Given(plain, added, relaxed.orders if relaxed else by_weights(plain, edges))
    reference = _one_hot(given, wanted)
    attempt, done = _build(given, reference, wanted)
    if attempt.undone:
        reference = _one_hot(given, done)
    if not _agree(attempt.network, reference, example):
        culprits = _culprits(given, wanted, example)
        attempt, done = _build(given, reference, wanted | dict.fromkeys(culprits, ORIGINAL))
        reference = _one_hot(given, done)
        for edge in culprits:
            attempt.undone[edge.key] = "the rewritten network computed something else"
        if not culprits or not _agree(attempt.network, reference, example):
            raise RuntimeError("the discretized network does not compute what the relaxed one does: please report")
    if set(done.values()) != {ORIGINAL}:
        overwrite(attempt.network, [p for p, m in plain.named_modules() if getattr(m, "inplace", False)], example)
    after = {p for p, m in attempt.network.named_modules() if not isinstance(m, nn.Identity)}
    attempt.removed = tuple(p for p, _ in plain.named_modules() if p not in after)
    return attempt


def _edges_for(program: Program, choices: Mapping[str, str]) -> tuple[Edge, ...]:
    """Every place of a network, with all that it could become, whatever a space would offer."""
    return possible_edges(program, choices)


def _checked(choices: Mapping[str, str], edges: Sequence[Edge]) -> dict[Edge, str]:
    by_key = {edge.key: edge for edge in edges}
    for key, choice in choices.items():
        if key not in by_key:
            raise unknown("edge", key, by_key)
        edge = by_key[key]
        if choice not in edge.choices:
            why = dict(edge.refused).get(choice)
            raise UsageError(
                f"{key} cannot become {choice!r}{f' ({why})' if why else ''}; legal: {', '.join(edge.choices)}"
            )
    wanted = {edge: choices.get(edge.key, ORIGINAL) for edge in edges}
    found = problems(wanted)
    if found:
        raise UsageError(f"these choices cannot be made together: {'; '.join(found)}")
    return wanted


Added = Mapping[str, nn.Module]
"""The modules of choices that have one, by their path in the relaxed network."""


@dataclass(frozen=True)
class _Given:
    """What choices are made in: the network, trained operations that may stand in it, its channels in order."""

    plain: nn.Module
    added: Added
    orders: Orders


def _added(relaxed: RelaxedNetwork) -> Added:
    """Copies of a relaxed network's trained operations: those that stand beside the original ones."""
    paths = (f"{edge.entry}.{module_name(choice)}" for edge in relaxed.edges for choice in edge.modules)
    return {path: copied(relaxed.network.get_submodule(path)) for path in paths}


def _one_hot(given: _Given, wanted: Mapping[Edge, str]) -> nn.Module:
    """The oracle: the relaxed network with theta one-hot, and with the trained operations."""
    plain, added = given.plain, given.added
    changed = {edge: choice for edge, choice in wanted.items() if choice != ORIGINAL}
    if not changed:
        return copied(plain)
    twin = relax(plain, changed, warm_start=not added, orders=given.orders)
    twin.set_one_hot({edge.key: choice for edge, choice in changed.items()})
    for edge in changed:
        for path in (f"{edge.entry}.{module_name(choice)}" for choice in edge.modules):
            if path in added:
                twin.network.get_submodule(path).load_state_dict(added[path].state_dict())
    return twin


def _build(
    given: _Given, reference: nn.Module, wanted: Mapping[Edge, str]
) -> tuple[Discretization, dict[Edge, str]]:
    """Make the choices in a copy, without checking the result; also tells which were made."""
    network = copied(given.plain)
    for edge, stays in narrowed(wanted, given.orders):
        narrow(network, edge, stays)
    for edge, choice in wanted.items():
        if choice in edge.passes:
            assert isinstance(reference, RelaxedNetwork)
            network = _passed(network, reference, edge, choice)
    if set(wanted.values()) != {ORIGINAL}:
        # What an activation may overwrite was its own; behind an identity or a lost branch others read it, too.
        for module in network.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False  # type: ignore[assignment]
    # A null edge that stays is dropped like a branch, so that nothing of dnat is left in the network.
    network, undone = drop_branches(network, wanted)
    done = {edge: ORIGINAL if edge.key in undone else choice for edge, choice in wanted.items()}
    choices = {edge.key: choice for edge, choice in done.items() if len(edge.choices) > 1}
    return Discretization(network, choices, undone), done


def _passed(network: nn.Module, reference: RelaxedNetwork, edge: Edge, choice: str) -> nn.Module:
    """The network with an identity or another operation in the edge's place."""
    if choice in edge.modules:
        added = copied(reference.network.get_submodule(f"{edge.entry}.{module_name(choice)}"))
        if isinstance(added, nn.Identity):
            return exchanged(network, edge.program, edge.entry, added)
        # Under its own name inside a Sequential, so that the weights keep the names they were trained under.
        parts = OrderedDict({module_name(choice): added})
        drop_path = submodule(network, f"{edge.entry}.drop_path")
        if drop_path is not None:
            parts["drop_path"] = drop_path
        if edge.entry != edge.exit:  # it has a norm of its own
            network = exchanged(network, edge.program, edge.exit, nn.Identity())
        return exchanged(network, edge.program, edge.entry, nn.Sequential(parts))
    return identified(network, edge)


def _culprits(given: _Given, wanted: Mapping[Edge, str], example: Example) -> list[Edge]:
    """The edges whose choice, made alone, gives another function than the relaxed network has."""
    found = []
    for edge, choice in wanted.items():
        if choice == ORIGINAL:
            continue
        alone = {e: choice if e is edge else ORIGINAL for e in wanted}
        oracle = _one_hot(given, alone)
        try:
            agrees = _agree(_build(given, oracle, alone)[0].network, oracle, example)
        except Exception:
            agrees = False
        if not agrees:
            found.append(edge)
    return found


def _agree(network: nn.Module, reference: nn.Module, example: Example) -> bool:
    """Whether two networks give the same on the examples, in eval and in train mode, to rounding.

    Norms over a few numbers make rounding large: what differs must do so in double precision, too.
    """
    for arguments in examples_of(example):
        for training in (False, True):
            same = _agree_once(network, reference, arguments, training)
            if not same and not _agree_widely(network, reference, arguments, training):
                return False
    return True


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _agree_widely(network: nn.Module, reference: nn.Module, arguments: Call, training: bool) -> bool:
    try:
        return _agree_once(_wide(network), _wide(reference), _wide(arguments), training)
    except Exception:  # it does not run in double precision
        return False


def _wide(something: Any) -> Any:
    """A copy of a network, or of arguments, in double precision."""
    if isinstance(something, nn.Module):
        return copied(something).double()
    return tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, something)


def _agree_once(network: nn.Module, reference: nn.Module, arguments: Call, training: bool) -> bool:
    args, kwargs = arguments
    devices = gpus_of(network)
    outputs = []
    for module in (network, reference):
        twin = copied(module)
        # What was removed drew random numbers, too: nothing is drawn while the two are compared.
        with in_mode(twin, training), fixed_randomness(devices), torch.no_grad(), _NoDropping():
            try:
                result = twin(*args, **kwargs)
            except Exception as error:
                if training and "more than 1 value per channel" in str(error):
                    return True
                if module is reference:
                    raise
                return False  # for example, because others use what is gone
            outputs.append((_tensors_of(result), _buffers(twin)))
    return _same(*outputs)


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
    """Buffers by name; of a relaxed network without what its widths leave out."""
    if not isinstance(network, RelaxedNetwork):
        return dict(network.named_buffers())
    columns, gates = network.columns, network.gates()
    choices = {e: columns[int(gates[network.row(e)].argmax())] for e in network.edges if e.place}
    return cut_along(dict(network.network.named_buffers()), choices, network.orders)


def _same(one: tuple[list[Tensor], dict[str, Tensor]], other: tuple[list[Tensor], dict[str, Tensor]]) -> bool:
    """Whether two runs gave the same, and left the same in the buffers that both have."""
    common = one[1].keys() & other[1].keys()
    buffers = (close([one[1][k]], [other[1][k]], _deviation(k, other[1])) for k in common)
    return close(one[0], other[0]) and all(buffers)


def _deviation(name: str, buffers: Mapping[str, Tensor]) -> float:
    """What rounding in a running mean is measured by: the mean itself may be 0. Of other buffers, 0."""
    variance = buffers.get(f"{name.removesuffix('running_mean')}running_var")
    if not name.endswith("running_mean") or variance is None or not variance.numel():
        return 0.0
    return float(variance.max().sqrt())
