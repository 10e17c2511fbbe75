"""Networks by name: the papers' own, torchvision's, timm's, or any function of yours.

`build("resnet20")`, `build("nasbench201:301420")`, `build("genotype:FILE.json")`, `build("torchvision:resnet18")`,
`build("timm:deit_tiny_patch16_224")`, `build("package.module:factory")`.
"""

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import DataError, UsageError, WrongTypeError, users_code
from ..files import read_text
from ..naming import imported, unknown
from ..seeds import Stream, torch_seed
from .catalogue import FAMILIES as FAMILIES
from .catalogue import NETWORKS as NETWORKS
from .catalogue import Definition as Definition
from .catalogue import check_mode as check_mode
from .catalogue import definition as definition
from .catalogue import usual_size as usual_size
from .genotypes import GENOTYPES as GENOTYPES
from .genotypes import Genotype as Genotype
from .torchvision import import_torchvision as import_torchvision
from .torchvision import mend_torchvision as mend_torchvision
from .weights import load_weights as load_weights

_SIZES = frozenset({"num_classes", "in_channels", "width", "channels", "layers", "cells"})
"""Options of networks that are sizes."""


def build(name: str, *, seed: int | None = None, **options: Any) -> nn.Module:
    """A network by name, with fresh weights.

    Args:
        name: a name of `NETWORKS`; "FAMILY:TEXT" with a family of `FAMILIES`; "torchvision:NAME"; "timm:NAME" (the
            extra dnat[timm]); or "package.module:factory" for a function of yours that returns a module.
        seed: initial weights are drawn from this seed's own stream, and the global random state is left alone.
            Without it they come from torch's global generator.
        options: arguments of the constructor, such as num_classes=10, width=8 or skips=True.

    Raises:
        ValueError: an unknown name or option, or a factory that cannot be imported or fails.
        TypeError: a factory that returns something else than a module.

    >>> sum(p.numel() for p in build("resnet20").parameters())
    269722
    """
    factory, arguments = _factory(name)
    if is_genotype(name) and "genotype" not in options:
        options["genotype"] = genotype_of(name)
    known = _options(factory)
    for option in options:
        if known is not None and option not in known:
            raise unknown(f"option of {name}", option, known)
    if name in NETWORKS or name.partition(":")[0] in FAMILIES:
        _check_sizes(name, factory, options)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices, enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(torch_seed(seed, Stream.WEIGHTS))
        with users_code(f"network {name!r} cannot be built with {_brief(options)}"):
            network = factory(**arguments, **options)
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"{name} must return a torch.nn.Module, not {type(network).__name__}")
    return network


def _check_sizes(name: str, factory: Callable[..., nn.Module], options: Mapping[str, Any]) -> None:
    """Refuse sizes of one of our own networks that are no sizes: rounded up to 1, they would build another one."""
    for option, parameter in inspect.signature(factory).parameters.items():
        if option not in _SIZES or option not in options:
            continue
        value, whole = options[option], parameter.annotation is int
        is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (is_number and 0 < value < math.inf):
            kind = "whole number of at least 1" if whole else "positive number"
            raise UsageError(f"{option} of {name} must be a {kind}, not {value!r:.60}")


def accepts(name: str, option: str) -> bool:
    """Whether the network's constructor takes an option (True when that cannot be told)."""
    known = _options(_factory(name)[0])
    return known is None or option in known


def arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of a network's constructor by name, as far as it names them."""
    try:
        found = inspect.signature(_factory(name)[0]).parameters
    except (TypeError, ValueError):
        return {}
    return {n: p for n, p in found.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def fitting(name: str, classes: int, channels: int) -> dict[str, int]:
    """The arguments of a network's constructor that follow from its data, as far as it takes them.

    Args:
        name: of the network.
        classes: to be told apart; given as `num_classes`.
        channels: of the images; given as `in_channels` (timm's networks: `in_chans`). Where a constructor takes
            any argument, so that nobody can say whether this is one, three channels go without saying.
    """
    known = _options(_factory(name)[0])
    inputs = "in_chans" if name.startswith("timm:") else "in_channels"
    wanted = {"num_classes": classes, inputs: channels}
    if known is not None:
        return {option: value for option, value in wanted.items() if option in known}
    return wanted if channels != 3 else {"num_classes": classes}


def _factory(name: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if name in NETWORKS:
        return NETWORKS[name].make, {}
    source, colon, rest = name.partition(":")
    if not colon:
        families = [f"{family}:TEXT" for family in FAMILIES]
        others = ["torchvision:NAME", "timm:NAME", "package.module:factory"]
        raise unknown("network", name, [*NETWORKS, *families, *others])
    if source in FAMILIES:
        make = FAMILIES[source].make
        return (make if is_genotype(name) else functools.partial(make, rest)), {}
    if source == "torchvision":
        models = import_torchvision().models
        if rest not in models.list_models(module=models):
            raise unknown("torchvision network", rest, models.list_models(module=models))
        return functools.partial(models.get_model, rest), {"weights": None}
    if source == "timm":
        timm = _timm()
        if not timm.is_model(rest):
            raise unknown("timm network", rest, timm.list_models())
        return functools.partial(timm.create_model, rest), {"pretrained": False}
    factory = imported("network", name)
    if not callable(factory):
        raise WrongTypeError(f"{name} is not a function that makes a network but {type(factory).__name__}")
    return factory, {}


def is_genotype(name: str) -> bool:
    """Whether a network's name is "genotype:FILE"."""
    family, colon, _ = name.partition(":")
    return bool(colon) and family in FAMILIES and family.startswith("genotype")


def genotype_of(name: str) -> str:
    """The JSON in the file of "genotype:FILE"; as the option `genotype` it makes the name independent of the file.

    Raises:
        ValueError: a file that cannot be read, or is no genotype.
    """
    file = name.partition(":")[2]
    try:
        text = read_text(file)
    except DataError as error:
        raise UsageError(f"the genotype {error}") from error
    try:
        return Genotype.from_json(text).to_json()
    except ValueError as error:
        raise UsageError(f"{file}: {error}") from error


def _timm() -> Any:
    import_torchvision()  # timm imports it, too
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise UsageError(f"timm's networks need timm: pip install 'dnat[timm]' ({error})") from error


def _brief(options: Mapping[str, Any]) -> str:
    """Options as a message shows them; a genotype in JSON is longer than that."""
    return ", ".join(f"{k}={v!r:.60}" for k, v in options.items()) or "no options"


def _options(factory: Callable[..., nn.Module]) -> list[str] | None:
    """The names of a factory's arguments; None when it takes any."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
