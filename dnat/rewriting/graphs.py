"""The forward of a module as a `torch.fx` graph that is right in train and in eval mode."""

import inspect
import operator
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from ..operations import NullEdge
from ..tracing import Program, fixed_randomness, in_mode, in_reentrant_checkpoint
from .inputs import CannotRewriteError, Values


def graph_of(
    root: nn.Module, place: str, opened: Callable[[str], bool], program: Program, arguments: Mapping[str, Any]
) -> fx.Graph:
    """The graph of a module that is right in both modes."""
    constants = _constants(program, place)
    what = place or "the network"
    graphs = []
    with fixed_randomness():
        before = _hidden_state(root)
        for training in (True, False):
            try:
                with in_mode(root, training):
                    graphs.append(_Tracer(opened, constants, arguments).trace(root))
            except Exception as error:  # whatever a user's forward does with a proxy
                why = str(error).split(". ")[0]
                raise CannotRewriteError(f"{type(root).__name__} cannot be traced: {why}") from error
        if _hidden_state(root) != before:
            raise CannotRewriteError(f"{what} draws random numbers of Python or changes its attributes")
    one, other = (list(graph.nodes) for graph in graphs)
    if any(_writes_state(node) for node in other):
        raise CannotRewriteError(f"{what} writes into its buffers")
    if [(n.op, n.name, n.target) for n in one] != [(n.op, n.name, n.target) for n in other]:
        raise CannotRewriteError(f"{what} does other things in train than in eval mode")
    unlike = [node for twin, node in zip(one, other, strict=True) if _arguments_of(twin) != _arguments_of(node)]
    for node in unlike:
        if not _as_module(root, node):
            raise CannotRewriteError(f"{what} calls {function_name(node)} otherwise in train than in eval mode")
    return graphs[1]


class _Tracer(fx.Tracer):
    """Opens only the modules that lie on the way; everything else is a leaf.

    Args:
        opened: tells whether a module lies on the way.
        constants: arguments of the traced module's forward that had the same plain value in every call.
        arguments: what its forward is given on the example. Sizes and tuples can be unpacked, since their lengths
            are known from that; nothing else of the example goes into the graph.
    """

    def __init__(
        self, opened: Callable[[str], bool], constants: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.opened, self.constants, self.arguments = opened, constants, arguments
        self.context = _context()
        self.values: Values | None = None
        self.evaluating = False

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        parameters = list(inspect.signature(root_fn).parameters.values())[1:]
        stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        proxies: list[Any] = []
        for parameter in parameters:  # all of them first: a graph begins with its placeholders
            default = () if parameter.default is parameter.empty else (parameter.default,)
            proxies.append(
                self.create_proxy("placeholder", stars.get(parameter.kind, "") + parameter.name, default, {})
            )
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        for parameter, proxy in zip(parameters, proxies, strict=True):
            name = parameter.name
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional.extend(self._spread(name, proxy, range(len(self.arguments.get(name, ())))).values())
            elif parameter.kind is parameter.VAR_KEYWORD:
                keyword |= self._spread(name, proxy, list(self.arguments.get(name, {})))
            elif name in self.constants:
                value = self._constant(name, proxy, self.constants[name])
                if parameter.kind is parameter.KEYWORD_ONLY:
                    keyword[name] = value
                else:
                    positional.append(value)
            elif parameter.kind is parameter.KEYWORD_ONLY:
                keyword[name] = proxy
            else:
                positional.append(proxy)
        return lambda: root_fn(self.root, *positional, **keyword), []

    def _spread(self, name: str, proxy: Any, places: Iterable[Any]) -> dict[Any, Any]:
        """What came in by *args or **kwargs: values that can be unpacked, as a placeholder cannot."""
        values = {}
        for place in places:
            value = self.arguments[name][place]
            fixed = isinstance(value, bool | int | float | str | None)
            values[place] = self._constant(f"{name}[{place!r}]", proxy[place], value) if fixed else proxy[place]
        return values

    def _constant(self, name: str, proxy: fx.Proxy, value: Any) -> Any:
        """A value that the graph is for; another one is refused when the graph runs."""
        # operator.is_ cannot be used: fx prints it as a keyword.
        same = self.create_proxy("call_function", operator.eq, (proxy, value), {})
        text = f"{name} was {value!r} when the network was transformed, and must be that"
        self.create_proxy("call_function", torch._assert, (same, text), {})
        return value

    def create_node(
        self, kind: str, target: Any, args: Any, kwargs: Any, name: str | None = None, type_expr: Any = None
    ) -> fx.Node:
        if _context() != self.context and not in_reentrant_checkpoint():
            raise CannotRewriteError("it switches gradients or precision, which a graph does not")
        if target == "self":  # a module of this name would take the place of the forward's own self
            name = "self_"
        return super().create_node(kind, target, args, kwargs, name, type_expr)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # The zeros of a null edge take their shape from its input, which means nothing to a graph.
        return isinstance(m, NullEdge) or not self.opened(module_qualified_name)

    def iter(self, obj: Any) -> Iterator[Any]:
        """Unpack sizes and tuples; how many there are is known from the example."""
        self.evaluating = True  # modules are called and weights read as they are
        try:
            self.values = self.values or Values(self.root, self.arguments)
            value = self.values.of(obj.node)
        finally:
            self.evaluating = False
        if isinstance(value, tuple | list):
            return iter([obj[i] for i in range(len(value))])
        return super().iter(obj)

    def call_module(self, m: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        return forward(*args, **kwargs) if self.evaluating else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)


def _context() -> tuple[bool, bool, bool]:
    """What a forward may switch by a `with`, and fx does not see."""
    return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")


def _hidden_state(root: nn.Module) -> tuple[Any, ...]:
    """What a forward may change beside computing, and fx does not see: generators, plain attributes."""
    plain = (bool, int, float, str, type(None))
    attributes = [
        (path, name, value)
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, plain) and name != "training"
    ]
    return random.getstate(), str(np.random.get_state()), attributes  # noqa: NPY002


_IN_PLACE = {"iadd", "isub", "imul", "itruediv", "ipow", "setitem", "iand", "ior", "ixor", "ifloordiv"}


def _writes_state(node: fx.Node) -> bool:
    """Whether a node changes a weight or a buffer in place."""
    if node.op == "call_method":
        in_place = str(node.target).endswith("_") and not str(node.target).startswith("__")
    else:
        name = getattr(node.target, "__name__", "")
        in_place = node.op == "call_function" and (name in _IN_PLACE or "out" in node.kwargs)
    first = node.args[0] if node.args else None
    while isinstance(first, fx.Node) and first.op == "call_method" and first.args:
        first = first.args[0]  # a view, or what another writing method gave back
    return in_place and isinstance(first, fx.Node) and first.op == "get_attr"


def _constants(program: Program, path: str) -> dict[str, Any]:
    """The arguments that had the same plain value in every call of a module: None masks, switches."""
    calls = [dict(t.calls[i].constants) for t in program.traces for i in t.calls_of(path)]
    first = calls[0] if calls else {}
    same = {k: v for k, v in first.items() if all(k in call and call[k] == v for call in calls)}
    return {k: v for k, v in same.items() if v is None or isinstance(v, bool | int | float | str)}


def _arguments_of(node: fx.Node) -> str:
    return f"{node.args} {sorted(node.kwargs.items())}"


_DROPOUTS = {
    "dropout": nn.Dropout,
    "dropout1d": nn.Dropout1d,
    "dropout2d": nn.Dropout2d,
    "dropout3d": nn.Dropout3d,
    "alpha_dropout": nn.AlphaDropout,
}


def _as_module(root: nn.Module, node: fx.Node) -> bool:
    """Turn a call of a dropout function, whose `training` was fixed by the trace, into one of a module."""
    kind = _DROPOUTS.get(function_name(node))
    if kind is None or node.op != "call_function" or not node.args:
        return False
    share = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
    if not isinstance(share, float | int):
        return False
    name = node.name
    while hasattr(root, name):
        name += "_"
    root.add_module(name, kind(share).train(root.training))
    with node.graph.inserting_before(node):
        node.replace_all_uses_with(node.graph.call_module(name, (node.args[0],)))
    node.graph.erase_node(node)
    return True


def function_name(node: fx.Node) -> str:
    """The name of the function that a node calls, without underscores; empty for a module."""
    if node.op not in ("call_function", "call_method"):
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return str(name).strip("_")
