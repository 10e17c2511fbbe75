"""The form "safetensors": the weights, and beside them in JSON what they are the weights of."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data import Preprocess


def packed(tensors: Mapping[str, Tensor], preprocess: Preprocess | None = None) -> bytes:
    """Tensors as a safetensors file.

    A tensor that stands under several names is stored once; the other names stand in the file's metadata, as
    `safetensors.torch.save_model` writes them: {other name: name}. Under "preprocess" stands how images are made.
    """
    from safetensors.torch import save

    same = aliases(tensors)
    own = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items() if n not in same}
    told = {"preprocess": json.dumps(preprocess.table())} if preprocess else {}
    return save(own, {"format": "pt", **told, **same})


def aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """{name: earlier name of the very same tensor}."""
    first: dict[Any, str] = {}
    found = {}
    for name, t in tensors.items():
        key = (t.data_ptr(), t.device, t.dtype, t.shape, t.stride()) if t.numel() else id(t)
        if first.setdefault(key, name) != name:
            found[name] = first[key]
    return found


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
    state = network.state_dict()
    content = {
        "network": _class(network),
        "parameters": sum(p.numel() for p in network.parameters()),
        "inputs": inputs,
        **({"preprocess": preprocess.table()} if preprocess else {}),
        "modules": modules,
        "tensors": {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in state.items()},
        "same": aliases(state),
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
