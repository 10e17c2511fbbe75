"""The steps of a forward -> a `torch.fx.GraphModule`, which needs torch alone, can be copied and pickled."""

import inspect
import math
import operator
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..tracing.functions import function_of
from ..tracing.steps import (
    TRAINING,
    Attribute,
    Body,
    Description,
    Group,
    Length,
    Literal,
    Property,
    Ref,
    Step,
    Unknown,
    parts,
)
from .bodies import CannotRewriteError

_DROPOUTS = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
}
_NUMBERS = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod,
    "/": operator.truediv, "**": operator.pow, "neg": operator.neg,
    "math.floor": math.floor, "math.ceil": math.ceil,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip


def check_steps(body: Body) -> None:
    """Refuse what no graph can hold.

    Raises:
        CannotRewriteError: a step switches gradients, uses something unknown, or does otherwise in train than in
            eval mode.
    """
    for step in body.steps:
        given = (*step.args, *(v for _, v in step.kwargs))
        for unknown in parts(given, Unknown):
            raise CannotRewriteError(unknown.why)
        if any(isinstance(constant.value, Tensor) for constant in parts(given, Literal)):
            raise CannotRewriteError("it uses tensors that are neither made nor registered")
        if not step.grad:
            raise CannotRewriteError("it switches gradients, which a graph does not")
        if TRAINING in given and not _dropout(step):
            name = step.target.rpartition(".")[2]
            raise CannotRewriteError(f"it calls {name} otherwise in train than in eval mode")
    for unknown in parts([body.result], Unknown):
        raise CannotRewriteError(unknown.why)


def _dropout(step: Step) -> nn.Module | None:
    """The module that does what a dropout function does in both modes; None of another function."""
    kind = _DROPOUTS.get(step.target.rpartition(".")[2])
    share = dict(step.kwargs).get("p") or (step.args[1] if len(step.args) > 1 else Literal("0.5", 0.5))
    if kind is None or step.kind != "function" or not isinstance(share, Literal):
        return None
    return kind(share.value)


def graph_module(root: nn.Module, body: Body) -> fx.GraphModule:
    """A module that does the steps, with the parts of another.

    Args:
        root: the module whose forward this was; it keeps all that it has.
        body: checked by `check_steps`, with paths as seen from the root.
    """
    writer = _Writer(root, body)
    graph = writer.graph()
    module = fx.GraphModule(writer.modules, graph, class_name=type(root).__name__)
    # Others may read them. Under this key fx keeps them when a module is copied.
    plain = (bool, int, float, str, tuple, list)
    rest = {k: v for k, v in vars(root).items() if isinstance(v, plain) and not hasattr(module, k)}
    module.meta["_user_preserved_attributes"] = rest
    for name, value in rest.items():
        setattr(module, name, value)
    before = dict(root.named_modules())
    for path, inner in module.named_modules():  # fx makes containers anew, with their parts as they are called
        old = before.get(path, root)
        inner.training = old.training
        parts_of = [] if path not in before or isinstance(old, torch.jit.ScriptModule) else [*old._modules]
        for name in (n for n in parts_of if n in inner._modules):
            inner._modules[name] = inner._modules.pop(name)
    return module


class _Writer:
    """Writes one graph."""

    def __init__(self, root: nn.Module, body: Body) -> None:
        self.root, self.body = root, body
        self.made = fx.Graph()
        self.nodes: dict[Ref, fx.Node] = {}
        self.held: dict[str, fx.Node] = {}
        self.modules: dict[str, Any] = {}
        used = (*(r for s in body.steps for r in s.inputs()), *parts([body.result], Ref))
        self.used = set(used)

    def graph(self) -> fx.Graph:
        """The graph of the whole body."""
        self._parameters()
        for step in self.body.steps:
            self._name(step.result, self._step(step))
        self.made.output(self._value(self.body.result))
        return self.made

    def _parameters(self) -> None:
        """Placeholders with the names and defaults of the forward's own parameters, and what they must be."""
        signature = list(inspect.signature(self.root.forward).parameters.values())
        stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        nodes = {}
        for parameter in signature:  # all of them first: a graph begins with its placeholders
            default = () if parameter.default is parameter.empty else (parameter.default,)
            name = stars.get(parameter.kind, "") + parameter.name
            nodes[parameter.name] = self.made.create_node("placeholder", name, default, {})
        given = dict(self.body.params)
        several = next((p.name for p in signature if p.kind is inspect.Parameter.VAR_POSITIONAL), "")
        named = next((p.name for p in signature if p.kind is inspect.Parameter.VAR_KEYWORD), "")
        for name, description in given.items():
            if name in nodes:
                self._given(name, nodes[name], description)
                continue
            place = name.removeprefix(f"{several}_") if several else ""
            of, key = (several, int(place)) if place.isdigit() else (named, name)
            self._given(f"{of}[{key!r}]", self._call(operator.getitem, nodes[of], key), description)
        for parameter in signature:
            if parameter.name not in given and parameter.default is not parameter.empty:
                self._same(parameter.name, nodes[parameter.name], parameter.default)

    def _given(self, name: str, node: fx.Node, description: Description) -> None:
        if isinstance(description, Literal):
            self._same(name, node, description.value)
        else:
            self._name(description, node)

    def _same(self, name: str, node: fx.Node, value: Any) -> None:
        """A value that the graph is for; another one is refused when the graph runs."""
        if value is None or isinstance(value, bool | int | float | str):
            # operator.is_ cannot be used: fx prints it as a keyword.
            text = f"{name} was {value!r} when the network was transformed, and must be that"
            self._call(torch._assert, self._call(operator.eq, node, value), text)

    def _name(self, description: Description, node: fx.Node) -> None:
        """Give names to what stands in a value, as far as it is used."""
        if isinstance(description, Ref):
            self.nodes[description] = node
        elif isinstance(description, Group):
            keys = description.keys if description.is_dict() else range(len(description.items))
            for key, item in zip(keys, description.items, strict=True):
                if not self.used.isdisjoint(parts([item], Ref)):
                    self._name(item, self._call(operator.getitem, node, key))

    def _step(self, step: Step) -> fx.Node:
        args, kwargs = self._value(Group("tuple", step.args)), {k: self._value(v) for k, v in step.kwargs}
        if step.kind == "module":
            self._keep(step.target)
            # A module of this name would take the place of the forward's own self.
            name = "self_" if step.target == "self" else None
            return self.made.create_node("call_module", step.target, args, kwargs, name)
        if step.kind in ("shape", "attribute"):
            return self._call(getattr, args[0], step.target)
        if step.kind == "number":
            return self._call(_NUMBERS[step.target], *args)
        if step.kind == "decision" and len(args) == 1:
            text = "the network was transformed where other masks or numbers were given, which decide what it does"
            holds = args[0] if step.target == "true" else self._call(torch.logical_not, args[0])
            return self._call(torch._assert, holds, text)
        if step.kind == "decision":
            text = f"the network was transformed where {step.target} held of sizes that decide what it does"
            return self._call(torch._assert, self._call(_NUMBERS[step.target], *args), text)
        if step.kind == "method":
            return self._method(step.target, args, kwargs)
        if TRAINING in (*step.args, *(v for _, v in step.kwargs)):
            return self._drop(step, args[0])
        return self._call(function_of(step.target) or step.function, *args, **kwargs)

    def _method(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> fx.Node:
        plain = name.strip("_")
        if name.startswith("__") and not kwargs:
            if hasattr(operator, plain):
                return self._call(getattr(operator, plain), *args)
            if hasattr(operator, plain[1:]):  # __radd__
                return self._call(getattr(operator, plain[1:]), args[1], args[0])
        return self.made.call_method(name, args, dict(kwargs))

    def _drop(self, step: Step, value: fx.Node) -> fx.Node:
        """A call of a dropout function, which knows its mode, as one of a module."""
        module = _dropout(step)
        assert module is not None
        name = step.target.rpartition(".")[2]
        while hasattr(self.root, name) or name in self.modules:
            name += "_"
        self.modules[name] = module.train(self.root.training)
        return self.made.call_module(name, (value,))

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.made.call_function(function, args, kwargs)

    def _keep(self, path: str) -> None:
        self.modules[path] = self.root.get_submodule(path)

    def _value(self, description: Description) -> Any:
        """A description as an argument of a node."""
        if isinstance(description, Ref):
            return self.nodes[description]
        if isinstance(description, Attribute):
            return self._attribute(description.path)
        if isinstance(description, Literal | Length):
            return description.value
        if isinstance(description, Property):
            return self._call(getattr, self._value(description.of), description.name)
        assert isinstance(description, Group), description
        items = list(map(self._value, description.items))
        if description.kind in ("tuple", "list"):
            return tuple(items) if description.kind == "tuple" else items
        if description.kind == "slice":
            return slice(*items)
        pairs = dict(zip(description.keys, items, strict=True))
        if description.kind == "dict":
            return pairs
        if description.kind == "OrderedDict":
            return self._call(OrderedDict, list(pairs.items()))
        return self._call(description.made, **pairs)

    def _attribute(self, path: str) -> fx.Node:
        if path not in self.held:
            self.modules[path] = operator.attrgetter(path)(self.root)
            self.held[path] = self.made.get_attr(path)
        return self.held[path]


def modules_of(body: Body) -> frozenset[str]:
    """The paths of the modules that are called."""
    return frozenset(step.target for step in body.steps if step.kind == "module")
