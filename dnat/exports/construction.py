"""A module -> the call of its constructor: `nn.Conv2d(3, 64, 3, padding=1, bias=False)`.

Arguments are read from the constructor's signature and the module's attributes, and the call is made once (on the
meta device) to see that it gives the same module. Where it does not, the module's forward is written out instead.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..tracing.literals import NotConstructibleError, text

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)

_SKIPPED = {"device", "dtype", "size_average", "reduce", "min_value", "max_value", "_weight", "_freeze", "init"}
_PAIRED = (nn.modules.conv._ConvNd,)
# What a subclass may have of its own and still compute the same.
_HARMLESS = {"extra_repr", "reset_parameters", "training", "_version", "_load_from_state_dict"}


@dataclass(frozen=True)
class Call:
    """A constructor's name in the written file and the text of its arguments."""

    name: str
    arguments: tuple[str, ...]
    suffix: str = ""


def construction(module: nn.Module) -> Call:
    """The constructor call that makes a module like this one (with other weights).

    Raises:
        NotConstructibleError: there is none; the reason is the message.

    >>> construction(nn.Conv2d(3, 8, 3, padding="same", bias=False)).arguments
    ('3', '8', '3', 'padding="same"', 'bias=False')
    """
    branch = dropped_branch(module)
    if branch is not None:
        return branch
    cls = base(module)
    if cls is None or issubclass(cls, CONTAINERS) or cls is nn.Module:
        raise NotConstructibleError(f"{type(module).__name__} is not one of torch's layers")
    if module._modules and cls is not nn.MultiheadAttention:
        raise NotConstructibleError(f"{type(module).__name__} is made of other modules")
    args, kwargs = _arguments(module, cls)
    _compare(module, cls, args, kwargs)
    texts = [*map(text, args), *(f"{k}={text(v)}" for k, v in kwargs.items())]
    parameters = list(module.parameters())
    frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
    return Call(f"nn.{cls.__name__}", tuple(texts), ".requires_grad_(False)" if frozen else "")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is written as the call of its constructor."""
    try:
        construction(module)
    except NotConstructibleError:
        return False
    return True


def base(module: nn.Module) -> type[nn.Module] | None:
    """The class of `torch.nn` that a module behaves like: its own, or one that its own changes nothing of."""
    for i, cls in enumerate(type(module).__mro__):
        if getattr(nn, cls.__name__, None) is cls:
            own = {n for c in type(module).__mro__[:i] for n in vars(c) if hasattr(cls, n)} - _HARMLESS
            changed = {n for n in own if not n.startswith("__") or n in ("__call__", "__getattr__")}
            return None if changed else cls
    return None


def is_sequence(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other and does nothing else."""
    return base(module) is nn.Sequential


def dropped_branch(module: nn.Module) -> Call | None:
    """The call for torchvision's StochasticDepth and timm's DropPath, which the written file defines itself."""
    cls = type(module)
    home = cls.__module__.split(".")[0]
    if home == "torchvision" and cls.__name__ == "StochasticDepth":
        return Call("StochasticDepth", (text(module.p), text(module.mode)))
    if home == "timm" and cls.__name__ == "DropPath":
        scale = () if module.scale_by_keep else ("scale=False",)
        return Call("StochasticDepth", (text(getattr(module, "drop_prob") or 0.0), text("row"), *scale))  # noqa: B009
    return None


def _signature(cls: type[nn.Module]) -> dict[str, inspect.Parameter]:
    source = nn.RNNBase if issubclass(cls, nn.RNNBase) else cls
    parameters = dict(inspect.signature(source.__init__).parameters)
    parameters.pop("self")
    if source is nn.RNNBase:
        parameters.pop("mode")
    return {
        n: p
        for n, p in parameters.items()
        if n not in _SKIPPED and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


_VALUES: dict[tuple[type[nn.Module], str], Callable[[Any], Any]] = {
    (nn.MultiheadAttention, "bias"): lambda m: m.in_proj_bias is not None,
    (nn.MultiheadAttention, "add_bias_kv"): lambda m: m.bias_k is not None,
    (nn.MultiheadAttention, "kdim"): lambda m: None if m._qkv_same_embed_dim else m.kdim,
    (nn.MultiheadAttention, "vdim"): lambda m: None if m._qkv_same_embed_dim else m.vdim,
}


def _value(module: nn.Module, cls: type[nn.Module], name: str) -> Any:
    if (cls, name) in _VALUES:
        return _VALUES[cls, name](module)
    if name == "bias" and not isinstance(getattr(module, name, None), bool):
        affine = getattr(module, "affine", True)  # without it a norm's bias is None whatever was asked for
        return getattr(module, name, None) is not None or not affine
    try:
        value = getattr(module, name)
    except AttributeError:
        raise NotConstructibleError(f"{cls.__name__} does not keep its {name}") from None
    if isinstance(module, _PAIRED) and isinstance(value, tuple) and len(set(value)) == 1:
        return value[0]
    return value


def _arguments(module: nn.Module, cls: type[nn.Module]) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    parameters = _signature(cls)
    for name, parameter in parameters.items():
        value = _value(module, cls, name)
        if isinstance(value, Tensor):
            raise NotConstructibleError(f"{cls.__name__} was given a tensor as {name}")
        if parameter.default is parameter.empty and parameter.kind is not parameter.KEYWORD_ONLY:
            args.append(value)
        elif name == "stride" and parameter.default is None and value == getattr(module, "kernel_size", None):
            continue
        elif value != parameter.default:
            kwargs[name] = value
    if isinstance(module, nn.RNN) and module.nonlinearity != "tanh":
        kwargs["nonlinearity"] = module.nonlinearity
    dtypes = {p.dtype for p in module.parameters()}
    if dtypes and dtypes != {torch.float32}:
        if len(dtypes) > 1:
            raise NotConstructibleError(f"{cls.__name__} has weights of several types")
        kwargs["dtype"] = dtypes.pop()
    return args, kwargs


def _compare(module: nn.Module, cls: type[nn.Module], args: list[Any], kwargs: dict[str, Any]) -> None:
    """Refuse a call that gives something else than the module."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            twin = cls(*args, **kwargs)
    except Exception as error:
        raise NotConstructibleError(f"{cls.__name__} cannot be made again: {error}") from error
    ours, theirs = ({k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (module, twin))
    if ours != theirs:
        raise NotConstructibleError(f"{cls.__name__} holds other tensors than its constructor makes")
    apart = {"training", "_parameters", "_buffers", "_modules", "init", "forward"}
    for name, value in vars(twin).items():
        if name in apart or "hooks" in name or name.startswith("_flat_weight"):
            continue
        if name not in vars(module) or _differs(vars(module)[name], value):
            raise NotConstructibleError(f"{cls.__name__} has another {name} than its constructor gives")


def _differs(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a is not b
    return bool(a != b)
