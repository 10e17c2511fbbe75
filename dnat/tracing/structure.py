"""What a network is made of: kinds of modules, and which of them are built alike."""

import hashlib
import json
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from ..operations import CONVOLUTIONS, CellOperation, NullEdge, geometry, is_norm, operation_name
from .modes import tensors_held
from .program import ModuleInfo


def module_infos(network: nn.Module) -> dict[str, ModuleInfo]:
    """What the analysis needs to know of each module, by the first of its paths."""
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for path, module in network.named_modules(remove_duplicate=False):
        names[module].append(path)
    hashes: dict[nn.Module, str] = {}
    return {
        paths[0]: ModuleInfo(
            path=paths[0],
            aliases=tuple(paths[1:]),
            kind=_kind(module),
            name=operation_name(module),
            structure=_structure(module, hashes),
            inplace=getattr(module, "inplace", False) is True,
            place=module.place if isinstance(module, NullEdge | CellOperation) else None,
            geometry=geometry(module),
            weights=sum(p.numel() for p in module.parameters(recurse=False)),
            has_state=next(tensors_held(module), None) is not None,
            scripted=isinstance(module, torch.jit.ScriptModule),
        )
        for module, paths in names.items()
    }


def _kind(module: nn.Module) -> Any:
    if isinstance(module, (*CONVOLUTIONS, nn.modules.conv._ConvTransposeNd)):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if is_norm(module):
        return "norm"
    if isinstance(module, NullEdge):
        return "null"
    if isinstance(module, CellOperation):
        return "operation"
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return "container"
    return "composite" if next(module.children(), None) is not None else "other"


def _structure(module: nn.Module, hashes: dict[nn.Module, str]) -> str:
    """A hash of what a module is made of: classes, child names, kernels and strides, but no widths."""
    if module not in hashes:
        text = type(module).__name__
        if isinstance(module, CONVOLUTIONS):
            text = f"{operation_name(module)} stride {module.stride}"
        if isinstance(module, CellOperation):
            text = module.name
        children = [(name, _structure(child, hashes)) for name, child in module.named_children()]
        hashes[module] = hashlib.sha256(json.dumps([text, children]).encode()).hexdigest()[:12]
    return hashes[module]
