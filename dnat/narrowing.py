"""How a network becomes narrower: which channels stay, and what is cut with those that go.

The channels of a width are ordered once, and a narrower self keeps the first of them: widths are nested, so that
all of them share the original's weights. What a width leaves out is cut from every weight, bias, norm and buffer
that `dnat.channels` found to belong to it, and the numbers that modules hold of their own sizes follow.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .channels import Place
from .edges import ORIGINAL, Edge
from .rewriting import close, submodule
from .tracing import Program, copied, fixed_randomness, in_mode, tensors_of

Orders = Mapping[str, Sequence[int]]
"""{key of a width: its channels, those that matter most first}."""

HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads", "nhead", "num_head")
"""Under these names modules hold how many heads they have."""

ALL_HEADS = ("all_head_size", "attn_dim", "inner_dim", "inner_size", "attention_dim")
"""Under these names they hold how many channels all heads have together."""

TOLERANCE = 1e-3
"""How far a narrow network may be from the original with zeros in the place of what was cut, as a share."""


def by_weights(network: nn.Module, edges: Iterable[Edge]) -> dict[str, tuple[int, ...]]:
    """The order of the channels of each width: by the norm of the weights that make a channel times that of those
    that read it, the largest first.

    No image is needed, so that a network and its choices alone say what is made. Held against what a narrower
    width does to the answers of trained ResNets, nothing that was measured on images (variances, gradients, each
    channel left out alone) orders channels better (docs/log.md).
    """
    state = _state(network)
    orders = {}
    for edge in edges:
        if edge.place:
            making, reading = (_squares(edge.place, state, n) for n in (edge.place.makers, edge.place.readers))
            orders[edge.key] = tuple((making * reading).argsort(descending=True, stable=True).tolist())
    return orders


def _squares(place: Place, state: Mapping[str, Tensor], names: Iterable[str]) -> Tensor:
    """For each channel (class) the sum of the squares of its part of some weights."""
    sums = torch.zeros(place.classes, dtype=torch.float64)
    for name, dim, row in place.cuts:
        if name in names:
            squares = state[name].detach().double().cpu().square().movedim(dim, 0).reshape(len(row), -1).sum(1)
            sums.index_add_(0, torch.tensor(row), squares)
    return sums


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def staying(edge: Edge, choice: str, order: Sequence[int]) -> list[int]:
    """The channels (classes) that a choice keeps, ascending."""
    return sorted(order[: edge.kept(choice)])


def slices(edge: Edge, stays: Iterable[int]) -> dict[str, tuple[int, Tensor]]:
    """{name of a parameter or buffer: (dimension, indices that stay)}."""
    assert edge.place
    kept = set(stays)
    return {
        name: (dim, torch.tensor([i for i, number in enumerate(row) if number in kept]))
        for name, dim, row in edge.place.cuts
    }


def cut(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """A tensor's slices, in its memory layout."""
    remaining = tensor.detach().index_select(dim, index.to(tensor.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        remaining = remaining.contiguous(memory_format=torch.channels_last)
    return remaining


def narrowed(choices: Mapping[Edge, str], orders: Orders) -> list[tuple[Edge, list[int]]]:
    """The widths that shrink, and which of their channels stay."""
    return [(e, staying(e, c, orders[e.key])) for e, c in choices.items() if e.place and c != ORIGINAL]


def cutter(choices: Mapping[Edge, str], orders: Orders) -> Callable[[str, Tensor], Tensor]:
    """What remains of a tensor that belongs to a parameter or buffer, by its name, when widths shrink."""
    places: dict[str, list[tuple[int, Tensor]]] = {}
    for edge, stays in narrowed(choices, orders):
        for name, place in slices(edge, stays).items():
            places.setdefault(name, []).append(place)

    def remaining(name: str, tensor: Tensor) -> Tensor:
        for dim, index in places.get(name, ()):
            tensor = cut(tensor, dim, index)
        return tensor

    return remaining


def cut_along(tensors: Mapping[str, Tensor], choices: Mapping[Edge, str], orders: Orders) -> dict[str, Tensor]:
    """The same of several tensors."""
    remaining = cutter(choices, orders)
    return {name: remaining(name, tensor) for name, tensor in tensors.items()}


def narrow(network: nn.Module, edge: Edge, stays: Sequence[int]) -> None:
    """Cut all that goes with the channels that do not stay; what is not there any more is passed by.

    Args:
        network: is changed.
        edge: a width.
        stays: from `staying`.
    """
    place = edge.place
    assert place
    changed: dict[nn.Module, None] = {}
    for name, (dim, index) in slices(edge, stays).items():
        path, _, own = name.rpartition(".")
        module = submodule(network, path)
        if module is None or not isinstance(getattr(module, own, None), Tensor):
            continue
        old = getattr(module, own)
        new = cut(old, dim, index)
        setattr(module, own, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
        changed[module] = None
    for module in changed:
        _resize(module)
    _behead(network, place, len(stays))


def _resize(module: nn.Module) -> None:
    """Let the numbers that a module holds of its sizes be those of its tensors."""
    anything: Any = module
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvNd):
        assert isinstance(weight, Tensor)
        if module.groups > 1:
            module.groups = module.groups * weight.shape[0] // module.out_channels
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif hasattr(module, "nf") and isinstance(weight, Tensor):  # a linear layer of transformers
        anything.nx, anything.nf = weight.shape
    for name in ("num_features", "num_parameters"):
        if isinstance(getattr(module, name, None), int):
            own = next(t for t in [*module.parameters(recurse=False), *module.buffers(recurse=False)] if t.dim())
            setattr(module, name, len(own))


def _behead(network: nn.Module, place: Place, stays: int) -> None:
    """Where channels go by heads, the module around tells how many there are."""
    each = next(len(row) for name, _, row in place.cuts if name == place.readers[0]) // place.classes
    if each == 1:
        return
    paths = [name.split(".") for name in (*place.makers, *place.readers)]
    around = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        around.append(parts[0])
    for path in {".".join(around), *(name.rpartition(".")[0].rpartition(".")[0] for name in place.makers)}:
        module = submodule(network, path)
        for names, before, after in (
            (HEADS, place.classes, stays),
            (ALL_HEADS, place.classes * each, stays * each),
        ):
            for name in names:
                if module is not None and getattr(module, name, None) == before:
                    setattr(module, name, after)


def narrowable(program: Program, edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges without the widths that could not be made: all are tried together on a copy of the network, and only
    where that computes something else than zeros in their place, fewer at a time."""
    edges, trials = tuple(edges), program.trials
    new = [e for e in edges if e.place and len(e.choices) > 1 and (e.key, "width") not in trials]
    trials |= {(edge.key, "width"): why for edge, why in _obstacles(program, new).items()}
    tried = []
    for edge in edges:
        why = trials.get((edge.key, "width"), "")
        if why:
            refused = (*edge.refused, *((choice, why) for choice in edge.choices[1:]))
            edge = replace(edge, choices=(ORIGINAL,), refused=refused)
        tried.append(edge)
    return tuple(tried)


def _obstacles(program: Program, edges: Sequence[Edge]) -> dict[Edge, str]:
    if not edges:
        return {}
    why = _obstacle(program, edges)
    if not why or len(edges) == 1:
        return dict.fromkeys(edges, why)
    half = len(edges) // 2
    return _obstacles(program, edges[:half]) | _obstacles(program, edges[half:])


def _obstacle(program: Program, edges: Sequence[Edge]) -> str:
    """Why widths cannot shrink, tried at about a half; empty if they can."""
    small, large = copied(program.network), copied(program.network)
    state = _state(large)
    with torch.no_grad():
        for edge in edges:
            assert edge.place
            stays = staying(edge, edge.choices[len(edge.choices) // 2], range(edge.place.classes))
            goes = set(range(edge.place.classes)) - set(stays)
            for name, (dim, index) in slices(edge, goes).items():
                if name in edge.place.readers:
                    state[name].index_fill_(dim, index.to(state[name].device), 0.0)
            narrow(small, edge, stays)
    args, kwargs = program.examples[0]
    outputs = []
    for network in (large, small):
        try:
            with torch.no_grad(), in_mode(network, False), fixed_randomness():
                outputs.append(tensors_of(network(*args, **kwargs)))
        except Exception as error:  # whatever a user's forward does when a size is not what it expects
            return f"other code counts on its size: {str(error).splitlines()[0] if str(error) else error!r}"
    alike = close(outputs[0], outputs[1], relative=TOLERANCE, absolute=TOLERANCE)
    return "" if alike else "other code reads the channels"
