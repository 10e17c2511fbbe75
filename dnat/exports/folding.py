"""Batch norms go into the convolutions and linear layers before them, as they compute in eval mode.

A norm in eval mode is a factor and an offset for each channel. Where a layer feeds it alone, both can be
multiplied into the layer's weights (Jacob et al. 2018, section 3.2, arXiv 1712.05877).
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_map_only

from ..errors import WrongTypeError
from ..tracing import Example, Trace, copied, doubled, examples_of, fixed_randomness, has_hooks, recorded
from ..tracing.steps import Attribute, Body, Description, Ref, changed_body, parts, renamed
from .construction import base
from .recording import Recording
from .verification import apart

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


@dataclass(frozen=True)
class Folding:
    """A network without the batch norms that could be folded.

    Attributes:
        network: the network, in eval mode; in a folded norm's place is an `nn.Identity`, or the activation that
            timm has in its norms.
        norms: {path of a norm that is gone: path of the layer that computes it}.
        kept: {path of a norm that stays: why}.
        difference: the largest difference between what it computes on the example and what the network does.
    """

    network: nn.Module
    norms: dict[str, str]
    kept: dict[str, str]
    difference: float


def fold(network: nn.Module, example: Example) -> Folding:
    """Fold batch norms into the layers that feed them alone, for use in eval mode.

    Args:
        network: any module; it is left unchanged.
        example: see `dnat.trace`; the first batch counts, and twice as many images are tried, too.

    Returns:
        A copy with the norms folded, and why others are not. It is not meant for training on: the norms are gone.

    Raises:
        RuntimeError: it does not compute what the network does in eval mode.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    >>> folding = fold(network, torch.zeros(2, 3, 8, 8))
    >>> folding.norms, folding.kept
    ({'1': '0'}, {'3': 'what feeds it, 2 (ReLU), is no plain convolution or linear layer'})
    """
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    twin = twin_of(network).eval()
    arguments = examples_of(example)[0]
    with fixed_randomness():
        args, kwargs = tree_map_only(torch.Tensor, torch.clone, arguments)
        trace = recorded(copied(twin), args, kwargs)
    norms: dict[str, str] = {}
    kept: dict[str, str] = {}
    for path, module in twin.named_modules():
        if isinstance(module, _NORMS):
            layer, why = _feeder(twin, trace, path)
            if why:
                kept[path] = why
            else:
                norms[path] = layer
    for path, layer in norms.items():
        fused = _fused(twin.get_submodule(layer), twin.get_submodule(path))
        _replace(twin, twin.get_submodule(layer), fused)
        _replace(twin, twin.get_submodule(path), _rest(twin.get_submodule(path)))
    cases = [arguments, doubled(arguments)]
    largest = max((apart(network, twin, args, kwargs) for args, kwargs in cases[: 2 if norms else 0]), default=0.0)
    return Folding(twin, norms, kept, largest)


def twin_of(network: nn.Module) -> nn.Module:
    """A copy, in which rewritten modules are called what they are called in the network."""
    twin = copied(network)
    for ours, theirs in zip(network.modules(), twin.modules(), strict=True):
        if isinstance(ours, fx.GraphModule):  # each has a class of its own, and a copy forgets its name
            type(theirs).__name__ = type(ours).__name__
    return twin


def _feeder(network: nn.Module, trace: Trace, path: str) -> tuple[str, str]:
    """The path of the layer that a norm can be folded into, or why there is none."""
    norm = network.get_submodule(path)
    calls = trace.calls_of(path)
    if not calls:
        return "", "it is not called on the example"
    if base(norm) not in _NORMS and not _is_timms(norm):
        return "", f"{type(norm).__name__} does more than a batch norm"
    if norm.running_mean is None or norm.running_var is None:
        return "", "it has no running statistics: it computes by each batch"
    feeder, *others = {_maker(trace, v) for c in calls for v in trace.calls[c].inputs}
    if others:
        return "", "it is shared: several layers feed it"
    if feeder is None:
        return "", "what feeds it is no convolution or linear layer"
    return feeder, _refusal(network, trace, feeder, path)


def _refusal(network: nn.Module, trace: Trace, feeder: str, path: str) -> str:
    """Why a norm cannot be folded into the one module that feeds it; empty if it can."""
    layer = network.get_submodule(feeder)
    if base(layer) not in _LAYERS or is_parametrized(layer):
        return f"what feeds it, {feeder} ({type(layer).__name__}), is no plain convolution or linear layer"
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:  # torch's fusion has no case for it
        return f"{feeder} is a transposed convolution in groups"
    if has_hooks(layer) or has_hooks(network.get_submodule(path)):
        return f"it or {feeder} has hooks"
    outputs = [v for c in trace.calls_of(feeder) for v in trace.calls[c].outputs]
    if isinstance(layer, nn.Linear) and any(len(trace.values[v].shape) != 2 for v in outputs):
        return f"its channels are not the features of {feeder}"
    if any(v in trace.outputs or not _read_within(trace, v, trace.calls_of(path)) for v in outputs):
        return f"what {feeder} gives is read by others, too"
    used = [name for name in (feeder, path) if _used_elsewhere(trace, name)]
    return f"the weights of {used[0]} are used elsewhere, too" if used else ""


def _maker(trace: Trace, value: int) -> str | None:
    """The path of the module without parts that gave a value, as it is."""
    producer = trace.values[value].producer
    scope = trace.operations[producer].scope if producer is not None else ()
    makers = [c for c in scope if trace.calls[c].outputs == (value,)]
    return trace.calls[makers[-1]].path or None if makers else None


def _read_within(trace: Trace, value: int, calls: list[int]) -> bool:
    """Whether nothing but some calls reads a value."""
    return all(not set(calls).isdisjoint(trace.operations[user].scope) for user in trace.users[value])


def _used_elsewhere(trace: Trace, path: str) -> bool:
    """Whether a forward other than its own reads a module's tensors."""
    for call in trace.calls:
        if call.path != path:
            given = (d for s in call.body.steps for d in (*s.args, *(v for _, v in s.kwargs)))
            read = parts((*given, call.body.result), Attribute)
            if any(attribute.path.rpartition(".")[0] == path for attribute in read):
                return True
    return False


def _fused(layer: Any, norm: Any) -> nn.Module:
    """One layer for both, computed in double precision."""
    one: Any = copied(layer).double()
    other: Any = copied(norm).double()
    if isinstance(layer, nn.Linear):
        fused: nn.Module = fuse_linear_bn_eval(one, other)
    else:
        fused = fuse_conv_bn_eval(one, other, transpose=isinstance(layer, _TRANSPOSED))
    return fused.to(layer.weight.dtype).requires_grad_(layer.weight.requires_grad).eval()


def _is_timms(norm: nn.Module) -> bool:
    """Whether a norm is timm's, with an activation behind it."""
    return type(norm).__name__ == "BatchNormAct2d" and type(norm).__module__.split(".")[0] == "timm"


def _rest(norm: Any) -> nn.Module:
    """What a norm does beside the norm: nothing, or what timm's has behind it."""
    behind = (norm.drop, norm.act) if _is_timms(norm) else ()
    parts_of = [module for module in behind if not isinstance(module, nn.Identity)]
    rest = nn.Identity() if not parts_of else parts_of[0] if len(parts_of) == 1 else nn.Sequential(*parts_of)
    return rest.eval()


def _replace(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put another module in all places where one stands."""
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if child is old:
                setattr(parent, name, new)


def without(network: nn.Module, recording: Recording, norms: Iterable[str]) -> tuple[nn.Module, Recording]:
    """A network and what it does without the calls of modules that give what they are given.

    Lists and dicts keep theirs, so that the places in them stay.

    Args:
        network: the network.
        recording: of it.
        norms: their paths.
    """
    network = twin_of(network)
    gone = {m for m in map(network.get_submodule, norms) if isinstance(m, nn.Identity)}
    lists = (nn.ModuleList, nn.ModuleDict)
    stay = {c for m in network.modules() if isinstance(m, lists) for c in m._modules.values()}
    paths = {p for p, m in network.named_modules(remove_duplicate=False) if m in gone - stay}
    bodies = {
        path: (_skipped(train, path, paths), _skipped(evaluation, path, paths))
        for path, (train, evaluation) in recording.bodies.items()
    }
    for parent in list(network.modules()):
        for name in [n for n, child in parent._modules.items() if child in gone - stay]:
            del parent._modules[name]
    return network, replace(recording, bodies=bodies)


def _skipped(body: Body | None, place: str, paths: set[str]) -> Body | None:
    """A body without the calls of some modules, whose results are what they were given."""
    if body is None:
        return None
    same: dict[Ref, Description] = {}
    steps = []
    for step in body.steps:
        if step.kind == "module" and f"{place}.{step.target}".lstrip(".") in paths:
            assert isinstance(step.result, Ref)
            given = [*step.args, *(v for _, v in step.kwargs)][0]
            same[step.result] = same.get(given, given) if isinstance(given, Ref) else given
        else:
            steps.append(step)
    return changed_body(Body(body.params, tuple(steps), body.result), renamed(same))
