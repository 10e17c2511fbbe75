"""What a network does (`Recording`) -> one file of Python that needs torch only."""

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data import Preprocess
from .classes import designs
from .construction import NotConstructibleError, construction, is_sequence, text
from .expressions import is_identifier
from .forward import Forward, leaves, variable
from .layout import Expression, call, laid_out, prefixed
from .preparation import NAMES, preparation
from .steps import Body, Literal, Recording, unified

TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""The types of tensors that safetensors and the written reader know, and what the format calls them."""

_OWN = {
    "Parts",
    "StochasticDepth",
    "OrderedDict",
    "namedtuple",
    "expect",
    "read",
    "load",
    "json",
    "math",
    "os",
} | NAMES

_PARTS = '''\
class Parts(nn.Module):
    """Holds modules, parameters and buffers under the names that it is given."""

    def __init__(self, /, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
'''

_STOCHASTIC_DEPTH = '''\
class StochasticDepth(nn.Module):
    """In train mode drops its input with probability p: of each image ("row") or of the whole batch ("batch")."""

    def __init__(self, p, mode, scale=True):
        super().__init__()
        self.p, self.mode, self.scale = p, mode, scale

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        kept = 1 - self.p
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.ndim - 1)
        noise = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(kept)
        if self.scale and kept > 0:
            noise.div_(kept)
        return x * noise
'''

_EXPECT = '''\
def expect(holds):
    """Refuses inputs of a size for which the network's own code would have gone another way."""
    if not holds:
        raise ValueError("this file was made for inputs of another size")
'''

_LOADING = '''\
def read(path):
    """The tensors of a safetensors file by name: 8 bytes of length, a JSON header, then all bytes."""
    # Read by hand, so that this file needs torch only, and no pickle.
    types = {TYPES}
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = bytearray(file.read())
    same = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        kind = types[entry["dtype"]]
        flat = torch.frombuffer(content[begin:end], dtype=kind) if end > begin else torch.empty(0, dtype=kind)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors | {name: tensors[other] for name, other in same.items() if other in tensors}


def load(path=None):
    """The network with its weights, in eval mode; they are read from beside this file if no path is given."""
    network = NETWORK()
    beside = os.path.splitext(os.path.abspath(__file__))[0]
    network.load_state_dict(read(path or f"{beside}.safetensors"))
    return network.eval()
'''

_CONSTANTS = """\
    # Tensors that the network needs and its state dict leaves out.
    buffers = dict(network.named_buffers(remove_duplicate=False))
    for name, constant in read(f"{beside}.constants.safetensors").items():
        buffers[name].copy_(constant)
"""


def source(
    network: nn.Module,
    recording: Recording,
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    preprocess: Preprocess | None = None,
) -> str:
    """The file's text.

    Args:
        network: the network that was recorded.
        recording: what it does.
        inputs: the example, whose shapes are checked at the beginning of the forward where they decide.
        preprocess: how its images are made, for a function that does so.
    """
    return _File(network, recording, inputs, preprocess).text()


class _File:
    def __init__(
        self, network: nn.Module, recording: Recording, inputs: Any, preprocess: Preprocess | None
    ) -> None:
        self.network, self.recording, self.inputs, self.preprocess = network, recording, inputs, preprocess
        self.classes: dict[tuple[str, str], str] = {}
        self.named: dict[str, tuple[str, ...]] = {}
        self.ties: list[str] = []
        self.shared = 0
        self.paths: dict[nn.Module, str] = {m: p for p, m in network.named_modules()}
        self.first: dict[int, str] = {}
        for path, module in network.named_modules(remove_duplicate=False):
            for name in self._own(module):
                self.first.setdefault(id(getattr(module, name)), f"{path}.{name}".lstrip("."))
        self.kinds = {m: self._kind(m) for m in self.paths}
        bodies = {m: self._bodies(m) for m, kind in self.kinds.items() if kind == "class"}
        self.designs = designs(bodies, network)
        name = self._class_name(network)
        self.root = f"{name}Network" if name in _OWN else name

    def _kind(self, module: nn.Module) -> str:
        """How a module is written: "leaf", a container of torch's, "class" with a forward, or "parts"."""
        try:
            if module is not self.network:
                construction(module)
                return "leaf"
        except NotConstructibleError:
            pass
        if is_sequence(module):
            return "Sequential"
        if self.paths[module] in self.recording.bodies:
            return "class"
        for cls in (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict):
            if isinstance(module, cls):
                return cls.__name__
        return "parts"

    def text(self) -> str:
        """The whole file."""
        parts = self._parts(self.network, "")
        sequence = self.kinds[self.network] == "Sequential"
        forward = "" if sequence else "\n" + textwrap.indent(self._forward(self.network), "    ")
        made = laid_out(call("super().__init__", parts), 8)
        ties = "".join(f"        {t}\n" for t in self.ties)
        root = (
            f"class {self.root}({'nn.Sequential' if sequence else 'Parts'}):\n"
            f"    def __init__(self):\n        {made}\n{ties}{forward}"
        )
        classes = [
            f"class {name}(Parts):\n{textwrap.indent(body, '    ')}" for (_, body), name in self.classes.items()
        ]
        blocks = [*self._helpers(root + "".join(classes)), *classes, root, self._loading()]
        blocks += [preparation(self.preprocess)] if self.preprocess else []
        head = f"{self._docstring()}\n{self._imports(''.join(blocks))}\n"
        return head + "".join(f"\n\n{block.rstrip()}\n" for block in blocks)

    def _docstring(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        lines = (
            f'"""{self.root}: {count:,} parameters. Needs torch only; `load()` takes the weights from beside it.',
            "",
            "Names of modules and keys of the state dict are the trained network's. The forwards are what it did,",
            "step by step, in train and in eval mode.",
            *(
                ["`preprocess` makes what it takes of an image; its outputs are CLASSES."]
                if self.preprocess
                else []
            ),
            '"""',
        )
        return "\n".join(lines) + "\n"

    def _imports(self, body: str) -> str:
        collections = [n for n in ("OrderedDict", "namedtuple") if f"{n}(" in body]
        lines = ["import json", *(["import math"] if "math." in body else []), "import os"]
        lines += [f"from collections import {', '.join(collections)}"] if collections else []
        lines += ["", "import torch", "from torch import nn"]
        return "\n".join(lines + (["from torch.nn import functional as F"] if " F." in body else []))

    def _helpers(self, body: str) -> Iterator[str]:
        for name, fields in self.named.items():
            yield f"{name} = namedtuple({text(name)}, {text(list(fields))})\n"
        if "Parts" in body:
            yield _PARTS
        if " expect(" in body:
            yield _EXPECT
        if "StochasticDepth(" in body:
            yield _STOCHASTIC_DEPTH

    def _loading(self) -> str:
        others = constants(self.network, self.recording)
        types = sorted(
            {(TYPES[t.dtype], str(t.dtype)) for t in [*self.network.state_dict().values(), *others.values()]}
        )
        table = "{" + ", ".join(f'"{name}": {dtype}' for name, dtype in types) + "}"
        made = _LOADING.replace("{TYPES}", table).replace("NETWORK", self.root)
        end = "    return network.eval()\n"
        return made.removesuffix(end) + _CONSTANTS + end if others else made

    # What a module holds

    def _parts(self, module: nn.Module, path: str) -> list[Expression]:
        """The arguments that hand a module all that it holds: positional ones for a Sequential, else by name."""
        if self.kinds[module] == "Sequential":
            return self._items(module, path)
        found: dict[str, Expression] = {}
        if module in self.designs:
            found |= self.designs[module].constants
        found |= {n: self._tensor(module, n, path) for n in self._own(module)}
        for name, child in module._modules.items():
            found[name] = "None" if child is None else self._child(child, f"{path}.{name}".lstrip("."))
        return [
            prefixed(f"{n}=", e) if is_identifier(n) else call("**", [prefixed(f"{text(n)}: ", e)], opening="{")
            for n, e in found.items()
        ]

    def _child(self, child: nn.Module, path: str) -> Expression:
        if self.paths[child] == path or self.shared:
            return self._expression(child, path)
        # The same module under another name: made twice, so that it has its place, and then tied.
        self.shared += 1
        made = self._expression(child, path)
        self.shared -= 1
        self._tie(path, self.paths[child])
        return made

    def _expression(self, module: nn.Module, path: str) -> Expression:
        kind = self.kinds[module]
        if kind == "leaf":
            made = construction(module)
            for holder, part in module.named_modules():
                for name in self._own(part):
                    self._tie_tensor(part, name, f"{path}.{holder}".rstrip("."))
            return call(made.name, made.arguments, suffix=made.suffix)
        if kind in ("class", "parts"):
            return call(self._class(module) if kind == "class" else "Parts", self._parts(module, path))
        return self._container(module, path, kind)

    def _items(self, module: nn.Module, path: str) -> list[Expression]:
        names = list(module._modules)
        made = [self._child(m, f"{path}.{n}".lstrip(".")) for n, m in module._modules.items() if m is not None]
        if _counts(names):
            return made
        if all(map(is_identifier, names)):
            return [call("OrderedDict", [prefixed(f"{n}=", e) for n, e in zip(names, made, strict=True)])]
        entries = [prefixed(f"{text(n)}: ", e) for n, e in zip(names, made, strict=True)]
        return [call("OrderedDict", entries, opening="({")]

    def _container(self, module: nn.Module, path: str, kind: str) -> Expression:
        if kind == "Sequential":
            return call("nn.Sequential", self._items(module, path))
        entries: dict[str, Expression] = {
            n: self._child(m, f"{path}.{n}") for n, m in module._modules.items() if m is not None
        }
        entries |= {n: self._tensor(module, n, path) for n in self._own(module)}
        if kind in ("ModuleList", "ParameterList"):
            return call(f"nn.{kind}", list(entries.values()), opening="([")
        return call(f"nn.{kind}", [prefixed(f"{text(n)}: ", e) for n, e in entries.items()], opening="({")

    def _own(self, module: nn.Module) -> list[str]:
        """Names of the tensors that are direct attributes of a module."""
        constants = [p for p in sorted(self.recording.constants) if _holder(self.network, p) is module]
        held = {**module._parameters, **module._buffers}
        return [*(n for n, t in held.items() if t is not None), *(p.rpartition(".")[2] for p in constants)]

    def _tensor(self, module: nn.Module, name: str, path: str) -> Expression:
        value = getattr(module, name)
        self._tie_tensor(module, name, path)
        sizes = ", ".join(map(str, value.shape)) or "()"
        zeros = f"torch.zeros({sizes})"
        if value.dtype != torch.float32:
            zeros = f"torch.zeros({sizes}, dtype={value.dtype})"
        if name in module._parameters:
            return call("nn.Parameter", [zeros] if value.requires_grad else [zeros, "requires_grad=False"])
        kept = name in module._buffers and name not in module._non_persistent_buffers_set
        return call("nn.Buffer", [zeros] if kept else [zeros, "persistent=False"])

    def _tie_tensor(self, module: nn.Module, name: str, path: str) -> None:
        here, first = f"{path}.{name}".lstrip("."), self.first[id(getattr(module, name))]
        if here != first and not self.shared:
            self._tie(here, first)

    def _tie(self, path: str, first: str) -> None:
        parent, _, name = path.rpartition(".")
        target = self._locate(path, self.network)
        same = self._locate(first, self.network)
        if target.startswith("getattr("):
            self.ties.append(f"setattr({self._locate(parent, self.network)}, {text(name)}, {same})")
        else:
            self.ties.append(f"{target} = {same}")

    def _locate(self, path: str, root: nn.Module) -> str:
        """Source for what stands at a path in a module, seen from its forward."""
        made, place = "self", root
        for part in path.split(".") if path else ():
            kind = self.kinds[place]
            if kind in ("ModuleList", "ParameterList") or (kind == "Sequential" and _counts(place._modules)):
                made += f"[{part}]"
            elif kind in ("ModuleDict", "ParameterDict"):
                made += f"[{text(part)}]"
            else:
                made = f"{made}.{part}" if is_identifier(part) else f"getattr({made}, {text(part)})"
            place = place._modules.get(part, place)  # type: ignore[assignment]
        return made

    # forward

    def _class_name(self, module: nn.Module) -> str:
        name = type(module).__name__
        return name if is_identifier(name) and name not in ("nn", "F", "torch") else "Network"

    def _class(self, module: nn.Module) -> str:
        key = (self._class_name(module), self._forward(module))
        if key not in self.classes:
            taken = {*self.classes.values(), self.root, *_OWN, *self.named}
            names = (key[0] if n == 1 else f"{key[0]}{n}" for n in range(1, len(taken) + 2))
            self.classes[key] = next(n for n in names if n not in taken)
        return self.classes[key]

    def _bodies(self, module: nn.Module) -> tuple[Body, ...]:
        """One body, or that of train and that of eval mode."""
        train, evaluation = self.recording.bodies[self.paths[module]]
        if train is None or evaluation is None:
            return tuple(b for b in (train, evaluation) if b is not None)
        one = unified(train, evaluation)
        return (one,) if one else (train, evaluation)

    def _forward(self, module: nn.Module) -> str:
        bodies = self.designs[module].bodies
        at_root = module is self.network
        lines = [f"def forward({', '.join(['self', *_signature(bodies[0])])}):"]
        lines += [f"    {line}" for line in self._guards(bodies[0])] if at_root else []
        if len(bodies) > 1:
            lines += ["    if self.training:", *self._body(bodies[0], module, 8)]
        return "\n".join([*lines, *self._body(bodies[-1], module, 4)]) + "\n"

    def _body(self, body: Body, module: nn.Module, indent: int) -> Iterator[str]:
        # Classes stand at the margin, so a body's lines begin 4 further in than here.
        for line in Forward(body, lambda path: self._locate(path, module), self.named).lines(indent + 4):
            first, *rest = line.split("\n")
            yield " " * indent + first
            yield from (part.removeprefix("    ") for part in rest)

    def _guards(self, body: Body) -> Iterator[str]:
        """Checks of what the example decided: constants, and shapes where they matter."""
        for name, description in body.params:
            if isinstance(description, Literal):
                test = "is not" if description.text in ("None", "True", "False") else "!="
                yield f"if {variable(name)} {test} {description.text}:"
                told = f"this file was made for {name}={description.text}"
                yield f"    raise ValueError({text(told)})"
        if not self.recording.fixed:
            return
        start = 1 if self.recording.fixed == "size" else 0
        shapes = [t.shape for t in tree_leaves(self.inputs) if isinstance(t, Tensor)]
        for (place, _), shape in zip(leaves(body.params), shapes, strict=False):
            seen, fixed = f"{place}.shape[1:]" if start else f"{place}.shape", text(tuple(shape[start:]))
            yield f"if {seen} != {fixed}:"
            yield f'    raise ValueError(f"this file was made for {seen} = {fixed}, not {{tuple({seen})}}")'


def _signature(body: Body) -> Iterator[str]:
    for i, (name, description) in enumerate(body.params):
        optional = all(isinstance(d, Literal) for _, d in body.params[i:])
        default = f"={description.text}" if optional and isinstance(description, Literal) else ""
        yield variable(name) + default


def _counts(names: Iterable[str]) -> bool:
    return all(name == str(i) for i, name in enumerate(names))


def _holder(network: nn.Module, path: str) -> nn.Module:
    return network.get_submodule(path.rpartition(".")[0])


def constants(network: nn.Module, recording: Recording) -> dict[str, Tensor]:
    """Tensors that a network needs and its state dict leaves out."""
    state = network.state_dict().keys()
    found = {n: b for n, b in network.named_buffers(remove_duplicate=False) if n not in state}
    return found | {p: getattr(_holder(network, p), p.rpartition(".")[2]) for p in sorted(recording.constants)}
