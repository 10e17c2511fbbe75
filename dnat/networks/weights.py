"""Trained weights for a network: from a file, or by the name under which torchvision publishes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError
from ..naming import unknown
from .torchvision import import_torchvision

EXTRA = "extra_state"
"""The entry of a safetensors file's metadata that holds, as JSON, what modules keep beside tensors."""

_USUAL = ("module.", "model.", "net.", "network.")
"""Where the weights stand under several prefixes (a moving average, a teacher), the first of these is taken."""
_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")


def load_weights(network: nn.Module, source: str, name: str = "", *, download: bool = False) -> list[str]:
    """Load trained weights into a network.

    A classifier for other classes keeps its initial weights; everything else must fit. What a wrapper put before
    all names (DataParallel, torch.compile, a Lightning module) is left out, in the file as in the network.

    Args:
        network: is changed.
        source: a file (.safetensors, or a state_dict saved by torch; read without running any code in it), a run
            directory, or for "torchvision:NAME" the name of its weights ("DEFAULT", "IMAGENET1K_V1").
        name: the network's name.
        download: whether torchvision's weights may be fetched when they are not at hand.

    Returns:
        What the user should know.

    Raises:
        ValueError: no such file or name, a file that cannot be read, or weights that do not fit.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "network.safetensors"
    if path.suffix or path.exists() or not name.startswith("torchvision:"):
        state = _read(path)
    else:
        state = _published(name.removeprefix("torchvision:"), source, download)
    return _fit(network, state, source)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UsageError(f"there is no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path} cannot be read as weights: {error}") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UsageError(f"{path} holds no state_dict (a table of tensors), but {type(found).__name__}")
    return dict(found)


def _published(name: str, source: str, download: bool) -> dict[str, Tensor]:
    models = import_torchvision().models
    known = models.get_model_weights(name)
    if source not in known.__members__:
        raise unknown(f"weights of {name}", source, [*known.__members__, "a file"])
    weights = known[source]
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    if not path.exists() and not download:
        raise UsageError(f"{path} is missing: put {weights.url} there, or add --download")
    return dict(weights.get_state_dict(progress=False, check_hash=True))


def _fit(network: nn.Module, state: dict[str, Tensor], source: str) -> list[str]:
    named = network.state_dict()
    real = {_unwrapped(key): key for key in named}
    own = {key: named[name] for key, name in real.items()}
    state = {_unwrapped(key): value for key, value in state.items()}
    prefix = _prefix(state, own, source)
    others = [key for key in state if not key.startswith(prefix)]
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    foreign = [k for k in state if k not in own]
    if missing or foreign:
        lists = (f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unknown", foreign)) if keys)
        raise UsageError(f"the weights of {source} are not those of this network; {'; '.join(lists)}")
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    head = _classifier(network)
    strange = [k for k in other if k.rpartition(".")[0] != head]
    if strange:
        shapes = ", ".join(f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in strange[:3])
        raise UsageError(f"the weights of {source} have other shapes: {shapes}")
    network.load_state_dict({real[k]: state[k] if k in state and k not in other else v for k, v in own.items()})
    notes = []
    if others:
        notes.append(f"of {source} what does not begin with {prefix!r} is no part of the network: {_some(others)}")
    if other:
        classes = (state[other[0]].shape[0], own[other[0]].shape[0])
        notes.append(
            f"{head} was trained for {classes[0]} classes, not {classes[1]}: it starts with fresh weights"
        )
    return notes


def _unwrapped(key: str) -> str:
    """A name in a state without what torch.compile puts before a part of a network, or before all of it."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def _prefix(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> str:
    """What stands before the names of a network's weights in a state.

    Wrappers put it there: "module." is DataParallel's, "model." or "net." the attribute of a Lightning module.

    Raises:
        ValueError: the weights of several such networks are there.
    """
    sought = [key for key in own if not key.endswith("num_batches_tracked")]
    if not sought or all(key in state for key in sought):
        return ""
    ends = [key for key in state if key.endswith(f".{sought[0]}")]
    prefixes = [key.removesuffix(sought[0]) for key in ends]
    found = [p for p in prefixes if all(p + key in state for key in sought)]
    usual = [p for p in _USUAL if p in found]
    if len(found) > 1 and not usual:
        raise UsageError(
            f"{source} holds several networks' weights, under {', '.join(map(repr, found))}: keep one"
        )
    return usual[0] if usual else found[0] if found else ""


def _classifier(network: nn.Module) -> str:
    """The path of the last layer with weights for each class."""
    layers = [p for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else ""


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")


def state_of(network: nn.Module) -> dict[str, Any]:
    """A network's state, tensors on the CPU, and what its modules keep beside them (`Module.get_extra_state`).

    Raises:
        ValueError: extra state that JSON would not give back as it is; the message names the module.
    """
    state = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            _check_extra(name, value)
        state[name] = value.detach().cpu() if isinstance(value, Tensor) else value
    return state


def _check_extra(name: str, value: Any) -> None:
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        module = name.removesuffix("_extra_state").rstrip(".") or "the network"
        raise UsageError(
            f"get_extra_state of {module} gives {value!r:.60}, which no file can hold as it is: "
            "let it give a tensor, or lists and dicts (keys are texts) of numbers, texts, truth values and None"
        )


def write_state(state: Mapping[str, Any]) -> bytes:
    """A state as a safetensors file; tensors that share memory are written each, extra state as metadata."""
    from safetensors.torch import save

    own = {key: t.detach().cpu().contiguous().clone() for key, t in state.items() if isinstance(t, Tensor)}
    extra = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return save(own, {EXTRA: json.dumps(extra)} if extra else None)


def read_state(path: str | Path) -> dict[str, Any]:
    """A state from a safetensors file; see `write_state`."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        extra = json.loads((file.metadata() or {}).get(EXTRA, "{}"))
        return {name: file.get_tensor(name) for name in file.keys()} | extra  # noqa: SIM118 -- it is no dict
