"""What a network does (`Recording`) -> one file of Python that needs torch only."""

import textwrap
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..data import Preprocess
from ..tracing.literals import text
from .definitions import Definitions
from .instances import Instances
from .layout import call, laid_out
from .preparation import preparation
from .recording import Recording
from .structure import Structure, constants
from .templates import CONSTANTS, EXPECT, LOADING, OUTPUT, PARTS, STOCHASTIC_DEPTH
from .weights import state

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types of tensors that safetensors and the written reader know, and what the format calls them."""


def source(
    network: nn.Module,
    recording: Recording,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    preprocess: Preprocess | None = None,
    *,
    folded: bool = False,
) -> str:
    """The file's text.

    Args:
        network: the network that was recorded.
        recording: what it does.
        inputs: the example, whose shapes are checked at the beginning of the forward where they decide.
        preprocess: how its images are made, for a function that does so.
        folded: whether batch norms were folded, which the file then tells.
    """
    structure = Structure(network, recording)
    definitions = Definitions(structure, inputs)
    instances = Instances(structure, definitions)
    root = _root(structure, definitions, instances)
    classes = [
        f"class {name}(Parts):\n{textwrap.indent(body, '    ')}" for (_, body), name in definitions.classes.items()
    ]
    loading = _loading(network, recording, definitions.root)
    blocks = [*_helpers(definitions, root + "".join(classes)), *classes, root, loading]
    blocks += [preparation(preprocess)] if preprocess else []
    told = []
    if preprocess:
        told.append("`preprocess` makes what it takes of an image; its outputs are CLASSES.")
    if folded:
        told.append("Batch norms are folded into the layers before them: it is for eval mode only.")
    docstring = _docstring(network, definitions.root, told)
    return f"{docstring}\n{_imports(''.join(blocks))}\n" + "".join(f"\n\n{block.rstrip()}\n" for block in blocks)


def _root(structure: Structure, definitions: Definitions, instances: Instances) -> str:
    """The class of the whole network."""
    network = structure.network
    parts = instances.parts(network, "")
    sequence = structure.kinds[network] == "Sequential"
    forward = "" if sequence else "\n" + textwrap.indent(definitions.forward(network), "    ")
    ties = "".join(f"        {tie}\n" for tie in instances.ties)
    return (
        f"class {definitions.root}({'nn.Sequential' if sequence else 'Parts'}):\n"
        f"    def __init__(self):\n        {laid_out(call('super().__init__', parts), 8)}\n{ties}{forward}"
    )


def _docstring(network: nn.Module, name: str, told: list[str]) -> str:
    count = sum(p.numel() for p in network.parameters())
    lines = [
        f'"""{name}: {count:,} parameters. Needs torch only; `load()` takes the weights from beside it.',
        "",
        "Names of modules and keys of the state dict are the trained network's. The forwards are what it did,",
        "step by step, in train and in eval mode.",
        *told,
        '"""',
    ]
    return "\n".join(lines) + "\n"


def _imports(body: str) -> str:
    uses = {"OrderedDict": "OrderedDict(" in body or "(OrderedDict)" in body, "namedtuple": "namedtuple(" in body}
    collections = [name for name, used in uses.items() if used]
    lines = ["import json", *(["import math"] if "math." in body else []), "import os"]
    lines += [f"from collections import {', '.join(collections)}"] if collections else []
    lines += ["", "import torch", "from torch import nn"]
    return "\n".join(lines + (["from torch.nn import functional as F"] if " F." in body else []))


def _helpers(definitions: Definitions, body: str) -> Iterator[str]:
    for name, fields in definitions.named.items():
        yield f"{name} = namedtuple({text(name)}, {text(list(fields))})\n"
    if "Parts" in body:
        yield PARTS
    if " expect(" in body:
        yield EXPECT
    if " Output(" in body:
        yield OUTPUT
    if "StochasticDepth(" in body:
        yield STOCHASTIC_DEPTH


def _loading(network: nn.Module, recording: Recording, root: str) -> str:
    others = constants(network, recording)
    types = sorted({(TYPES[t.dtype], str(t.dtype)) for t in [*state(network).values(), *others.values()]})
    table = "{" + ", ".join(f'"{name}": {dtype}' for name, dtype in types) + "}"
    loading = LOADING.replace("{TYPES}", table).replace("NETWORK", root)
    end = "    return network.eval()\n"
    return loading.removesuffix(end) + CONSTANTS + end if others else loading
