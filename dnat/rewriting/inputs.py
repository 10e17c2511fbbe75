"""What the modules of a network are given on an example, and what the nodes of their graphs are then."""

import functools
import inspect
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.jit import ScriptModule

from ..tracing import fixed_randomness, in_mode, kept_buffers


class CannotRewriteError(Exception):
    """A module cannot be traced, or a zero reaches something that it cannot be dropped from."""


class Inputs:
    """What the modules of a network are given when it runs on an example, in eval mode.

    Args:
        network: it may be changed afterwards, as long as its modules are given the same.
        args, kwargs: of the example.
    """

    def __init__(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        calls: dict[str, tuple[Any, Any]] = {}
        handles = []
        for path, module in network.named_modules():
            if (path == "" or next(module.children(), None) is not None) and not isinstance(module, ScriptModule):
                note = functools.partial(_note, calls, path)
                handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
        try:
            with torch.no_grad(), in_mode(network, False), kept_buffers(network.modules()), fixed_randomness():
                network(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        self.bound = {path: _bound(network.get_submodule(path), *call) for path, call in calls.items()}

    def of(self, path: str) -> dict[str, Any]:
        """The arguments of the first call of the module at a path, by the names in its forward.

        Raises:
            CannotRewriteError: it was not called.
        """
        if path not in self.bound:
            raise CannotRewriteError(f"{path or 'the network'} is not called in eval mode")
        return self.bound[path]


def _note(calls: dict[str, tuple[Any, Any]], path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
    calls.setdefault(path, (args, kwargs))


def _bound(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


class Values:
    """What the nodes of a module's graph are when it is given what it is given on the example, in eval mode."""

    def __init__(self, root: nn.Module, arguments: Mapping[str, Any]) -> None:
        self.root, self.arguments = root, arguments
        self.known: dict[fx.Node, Any] = {}

    def of(self, node: fx.Node) -> Any:
        """The value of a node, and of those that it is made of.

        Raises:
            CannotRewriteError: something on the way fails.
        """
        missing, waiting = set(), [node]
        while waiting:
            each = waiting.pop()
            if each not in self.known and each not in missing:
                missing.add(each)
                waiting.extend(each.all_input_nodes)
        with torch.no_grad(), in_mode(self.root, False), kept_buffers(self.root.modules()):
            for each in node.graph.nodes:
                if each in missing:
                    try:
                        self.known[each] = self._value(each)
                    except Exception as error:  # whatever a user's module does
                        kind = type(self.root).__name__
                        raise CannotRewriteError(f"{kind} cannot be interpreted: {error}") from error
        return self.known[node]

    def _value(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.known[n])
        target: Any = node.target
        if node.op == "placeholder":
            return self.arguments[target.lstrip("*")]
        if node.op == "get_attr":
            value = operator.attrgetter(target)(self.root)
            return value.clone() if isinstance(value, Tensor) else value  # it may be written into
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        return (
            getattr(args[0], target)(*args[1:], **kwargs) if node.op == "call_method" else target(*args, **kwargs)
        )
