"""Trained weights for a network: from a file, or by the name under which torchvision publishes them."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, is_of_no_file
from ..files import parse_json
from ..naming import unknown
from ..rundir import NETWORK, RunFiles
from .torchvision import import_torchvision

EXTRA = "extra_state"
"""The entry of a safetensors file's metadata that holds, as JSON, what modules keep beside tensors."""

_USUAL = ("module.", "model.", "net.", "network.")
"""Where the weights stand under several prefixes (a moving average, a teacher), the first of these is taken."""
_OPTIONAL = ("num_batches_tracked", "_extra_state")
"""Ends of names of what a state need not have."""

_WRAPPERS = ("state_dict", "model", "model_state_dict", "state_dict_ema")


def load_weights(
    network: nn.Module,
    source: str,
    name: str = "",
    *,
    download: bool = False,
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Load trained weights into a network.

    A classifier for other classes keeps its initial weights; everything else must fit. What a wrapper put before
    all names (DataParallel, torch.compile, a Lightning module) is left out, in the file as in the network. Where
    the file tells the names of its classes (that of a run, or one that `dnat export` wrote), they are found by
    name: if all of `classes` were trained, each comes to its place; if not, the classifier keeps its own weights.

    Args:
        network: is changed.
        source: a file (.safetensors, or a state_dict saved by torch; read without running any code in it), a run
            directory, or for "torchvision:NAME" the name of its weights ("DEFAULT", "IMAGENET1K_V1").
        name: the network's name.
        download: whether torchvision's weights may be fetched when they are not at hand.
        classes: names of the network's outputs, in order; None where they have none.

    Returns:
        What the user should know.

    Raises:
        ValueError: no such file or name, a file that cannot be read, or weights that do not fit or are not finite.
    """
    path, trained = Path(source), None
    if path.is_dir():
        path = path / NETWORK
    if path.name == NETWORK and RunFiles(path.parent).is_done():
        RunFiles(path.parent).check(NETWORK)
    if path.suffix or path.exists() or not name.startswith("torchvision:"):
        state, trained = _read(path), _classes_of(path)
    else:
        state = _published(name.removeprefix("torchvision:"), source, download)
    notes = _by_name(network, state, trained, classes) if trained and classes else []
    return notes + _fit(network, state, source)


def _classes_of(path: Path) -> list[str] | None:
    """The names of the classes that weights were trained for, where the record beside them or the file tells."""
    table: Any = {}
    if path.name == NETWORK and RunFiles(path.parent).is_done():
        table = RunFiles(path.parent).record()
    elif path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, "pt") as file, suppress(ValueError):  # of another program
            table = parse_json((file.metadata() or {}).get("preprocess", "{}"))
    classes = table.get("classes") if isinstance(table, dict) else None
    return list(map(str, classes)) if isinstance(classes, list) else None


def _by_name(
    network: nn.Module, state: dict[str, Tensor], trained: Sequence[str], classes: Sequence[str]
) -> list[str]:
    """Put rows of a trained classifier where the network's classes are, or leave them out if one is missing."""
    head = _classifier(network)
    rows = [k for k in state if k.rpartition(".")[0] == head and state[k].shape[:1] == (len(trained),)]
    if list(trained) == list(classes) or not rows:
        return []
    strange = [name for name in classes if name not in trained]
    if not strange:
        places = torch.tensor([list(trained).index(name) for name in classes])
        state.update({k: state[k][places] for k in rows})
        return [f"{head} was trained for the classes {_some(trained)}: those of these images are taken by name"]
    if len(trained) != len(classes):  # which is told of where shapes are compared
        return []
    own = network.state_dict()
    state.update({k: own[k] for k in rows})
    return [f"{head} was not trained for {_some(strange)}, but for {_some(trained)}: it starts with fresh weights"]


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"there is no file of weights at {path}")
    try:
        if path.suffix == ".safetensors":
            return read_state(path)
        _refuse_packed(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if is_of_no_file(error):
            raise
        raise UsageError(f"{path} cannot be read as weights: {error}") from error
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(t, Tensor) or str(name).endswith("_extra_state") for name, t in found.items()
    ):
        raise UsageError(f"{path} holds no state_dict (a table of tensors), but {type(found).__name__}")
    return dict(found)


def _refuse_packed(path: Path) -> None:
    """Refuse a file that would unpack to more than it is: torch stores tensors as they are."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        packed = [m.filename for m in members if m.compress_type != zipfile.ZIP_STORED]
        if packed or sum(m.file_size for m in members) > path.stat().st_size:
            raise UsageError(f"it holds compressed data ({', '.join(packed[:1])}), which torch does not write")


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


def _fit(network: nn.Module, state: dict[str, Any], source: str) -> list[str]:
    named = network.state_dict()
    real = {_unwrapped(key): key for key in named}
    own = {key: named[name] for key, name in real.items()}
    state = {_unwrapped(key): value for key, value in state.items()}
    prefix = _prefix(state, own, source)
    others = [key for key in state if not key.startswith(prefix)]
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    missing = [k for k in own if k not in state and not k.endswith(_OPTIONAL)]
    foreign = [k for k in state if k not in own]
    if missing or foreign:
        lists = (f"{what}: {_some(keys)}" for what, keys in (("missing", missing), ("unknown", foreign)) if keys)
        raise UsageError(f"the weights of {source} are not those of this network; {'; '.join(lists)}")
    tensors = [k for k in own if k in state and isinstance(own[k], Tensor) and isinstance(state[k], Tensor)]
    other = [k for k in tensors if own[k].shape != state[k].shape]
    head = _classifier(network)
    strange = [k for k in other if k.rpartition(".")[0] != head]
    if strange:
        shapes = ", ".join(f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in strange[:3])
        raise UsageError(f"the weights of {source} have other shapes: {shapes}")
    _check_values(network, own, state, source)
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


def _prefix(state: Mapping[str, Any], own: Mapping[str, Any], source: str) -> str:
    """What stands before the names of a network's weights in a state.

    Wrappers put it there: "module." is DataParallel's, "model." or "net." the attribute of a Lightning module.

    Raises:
        ValueError: the weights of several such networks are there.
    """
    sought = [key for key in own if not key.endswith(_OPTIONAL)]
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


def _check_values(network: nn.Module, own: Mapping[str, Any], state: Mapping[str, Any], source: str) -> None:
    """Refuse weights of another kind of number, and such as are not finite."""
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in own.items():
        if name in state and state[name].is_floating_point() != value.is_floating_point():
            raise UsageError(f"{source}: {name} is {state[name].dtype}, which is no {value.dtype}")
    trained = [_unwrapped(name) for name, _ in network.named_parameters()]
    for name, values in state.items():
        counts = name in trained or name.endswith(("running_mean", "running_var"))
        if counts and values.is_floating_point() and not torch.isfinite(values).all():
            raise UsageError(f"{source}: {name} holds NaN or infinity")


def _classifier(network: nn.Module) -> str:
    """The path of the last layer with weights for each class."""
    layers = [p for p, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else ""


def _some(keys: Sequence[str]) -> str:
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
    own = {key: t.detach().cpu().contiguous().clone() for key, t in state.items() if isinstance(t, Tensor)}
    extra = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    return tensor_file(own, {EXTRA: json.dumps(extra)} if extra else {})


def tensor_file(tensors: Mapping[str, Tensor], told: Mapping[str, str]) -> bytes:
    """Tensors and texts beside them as a safetensors file, which has the same bytes each time.

    The library writes metadata in an order that differs from process to process.
    """
    from safetensors.torch import save

    content = save(dict(tensors), dict(told) or None)
    if len(told) < 2:
        return content
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(told.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return len(text).to_bytes(8, "little") + text + content[end:]


def read_state(path: str | Path) -> dict[str, Any]:
    """A state from a safetensors file; see `write_state`."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        extra = json.loads((file.metadata() or {}).get(EXTRA, "{}"))
        return {name: file.get_tensor(name) for name in file.keys()} | extra  # noqa: SIM118 -- it is no dict
