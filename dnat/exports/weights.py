"""The form "safetensors": the weights, and beside them in JSON what they are the weights of."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data import Preprocess
from ..networks.weights import tensor_file

_EXTRA = "_extra_state"
"""The last part of the key under which torch keeps what `get_extra_state` gives."""


def state(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's state dict: all of it but what its modules add of other kinds."""
    left_out = set(extras(network))
    return {name: value for name, value in network.state_dict().items() if name not in left_out}


def extras(network: nn.Module) -> list[str]:
    """The keys of what modules add to the state dict by `get_extra_state`, which may be anything."""
    paths = network.named_modules(remove_duplicate=False)
    own = nn.Module.get_extra_state
    added = [path for path, m in paths if type(m).get_extra_state is not own]
    return [f"{path}.{_EXTRA}".lstrip(".") for path in added]


def packed(tensors: Mapping[str, Tensor], preprocess: Preprocess | None = None) -> bytes:
    """Tensors as a safetensors file.

    A tensor that stands under several names is stored once; the other names stand in the file's metadata, as
    `safetensors.torch.save_model` writes them: {other name: name}. Under "preprocess" stands how images are made.
    """
    same = aliases(tensors)
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if n not in same}
    told = {"preprocess": json.dumps(preprocess.table())} if preprocess else {}
    return tensor_file(own, {"format": "pt", **told, **same})


def aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: earlier name of the very same tensor}."""
    first: dict[Any, str] = {}
    same = {}
    for name, t in tensors.items():
        key = (t.data_ptr(), t.device, t.dtype, t.shape, t.stride()) if t.numel() else id(t)
        if first.setdefault(key, name) != name:
            same[name] = first[key]
    return same


def architecture(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], preprocess: Preprocess | None = None
) -> bytes:
    """What a network is made of, as JSON: its modules in order, its inputs, names of one and the same tensor."""
    modules = [
        {"path": path, "class": _class(module)} | ({} if module._modules else {"repr": repr(module)})
        for path, module in network.named_modules(remove_duplicate=False)
    ]
    inputs = [
        {"shape": list(t.shape), "dtype": str(t.dtype)}
        for t in tree_leaves((args, kwargs))
        if isinstance(t, Tensor)
    ]
    tensors = state(network)
    content = {
        "network": _class(network),
        "parameters": sum(p.numel() for p in network.parameters()),
        "inputs": inputs,
        **({"preprocess": preprocess.table()} if preprocess else {}),
        "modules": modules,
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in tensors.items()},
        "same": aliases(tensors),
        "torch": torch.__version__,
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def digests(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape, type and a checksum of the bits of every tensor."""
    return {
        name: f"{tuple(t.shape)} {t.dtype} {hashlib.sha256(_bytes(t)).hexdigest()}" for name, t in tensors.items()
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _class(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
