"""The recorder: runs a network as it is, and notes each module call and each torch function.

Each forward is noted as steps, too (`Scope`). Sizes read from a tensor's shape are numbers that remember where
they come from, so that what depends on the batch stays an expression of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name

from ..operations import NullEdge
from .examples import tensor_leaves, tensors_of
from .flow import Flow
from .functions import SHAPES, arguments_of, public_name, sizes, without_tensor
from .names import Names, attributes_of
from .numbers import plain
from .program import Call, Operation, Trace
from .scope import Scope
from .steps import Literal, Step, mapped
from .surroundings import autocast, in_reentrant_checkpoint, is_layer, learning, memory_of, random_states, switched


class Recorder(TorchFunctionMode):
    """Notes one forward run. Tensors are told apart by identity and kept alive until the run ends.

    Args:
        network: runs as it is.
        drawing: see in which forward random numbers of Python or numpy are drawn.
    """

    def __init__(self, network: nn.Module, *, drawing: bool = False) -> None:
        super().__init__()
        self.network, self.drawing = network, drawing
        self.paths: dict[nn.Module, str] = {}
        for path, module in network.named_modules():
            self.paths.setdefault(module, path)
        self.flow = Flow(network)
        self.names = Names(network, self.flow)
        self.calls: list[dict[str, Any]] = []
        self.stack: list[int] = []
        self.scopes: list[Scope] = []
        self.nulls: set[int] = set()
        self.unsure = False
        self.opaque = False
        self.results: list[Tensor] = []
        self.autocast = autocast()
        self.grad = True

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1) -> Trace:
        """Run the network and note what it does; `batch` images, or as many as can be told (None)."""
        tensors = tensor_leaves((args, kwargs))
        inputs = self.flow.begin(tensors)
        # Counting takes a detour for each operation, so that nothing is counted while time is taken.
        # Gradients are on, to see where the network itself switches them off.
        self.grad = not self.flow.clock
        counting = self.flow.counter if self.flow.counts else nullcontext()
        before = attributes_of(self.paths)
        with self._hooks(), torch.set_grad_enabled(self.grad), counting, self:
            result = self.network(*args, **kwargs)
        self.flow.charge()
        changing = {self.paths[m] for m, values in attributes_of(self.paths).items() if values != before[m]}
        self.results = tensors_of(result)
        batch = batch or self.flow.counter.batch(tensors, self.results)
        self.unsure = batch is None and self.flow.counter.madds > 0
        outputs = self.flow.numbers(self.results)
        return Trace(
            training=self.network.training,
            batch=batch or 1,
            values=tuple(self.flow.values),
            operations=self.flow.counted(),
            calls=tuple(Call(**call, keeps=call["path"] in changing) for call in self.calls),
            named=tuple(self.names.values),
            memory=tuple(self.names.memory),
            objects=self.names.objects,
            inputs=inputs,
            outputs=outputs,
            users=self.flow.users(),
            nulls=frozenset(self.nulls),
            uncounted=tuple(self.flow.counter.uncounted),
        )

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        handles = []
        for module in self.network.modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # it takes no hooks of its own
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        if any(isinstance(module, torch.jit.ScriptModule) for module in self.network.modules()):
            handles.append(register_module_forward_pre_hook(self._enter_scripted))
            handles.append(register_module_forward_hook(self._leave_scripted, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
                # torch (2.13) forgets to: what is left makes torch.compile warn of hooks on all modules.
                _global_forward_hooks_with_kwargs.pop(handle.id, None)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        tensors = tensors_of((args, kwargs))
        learns = learning() or not self.network.training
        self.calls.append(
            {
                "path": self.paths[module],
                "parent": self.stack[-1] if self.stack else None,
                "inputs": self.flow.numbers(tensors),
                "outputs": (),
                "scope": (*self.stack, len(self.calls)),
                "opens": False,
                "plain": len(tensors) == 1 and bool(args) and isinstance(args[0], Tensor),
                "lone": len(args) == 1 and not kwargs,
                "learns": learns,
                "reentrant": not torch.is_grad_enabled() and self.network.training and learns,
            }
        )
        self.stack.append(len(self.calls) - 1)
        return self._open(module, args, kwargs)

    def _open(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Begin a forward; what it is given is named as its own."""
        scope = Scope(self.names, self, module, self.paths[module], len(self.calls) - 1)
        if self.scopes:
            outer = self.scopes[-1]
            given, named = tuple(map(outer.describe, args)), {k: outer.describe(v) for k, v in kwargs.items()}
            scope.given = given, named, _named(module, given, named)
        if is_layer(module):  # torch's own needs no sizes that remember
            args, kwargs = mapped(args, plain), {k: mapped(v, plain) for k, v in kwargs.items()}
        args, kwargs = scope.enter(args), {k: scope.enter(v) for k, v in kwargs.items()}
        scope.params = tuple((name, scope.describe(v)) for name, v in _named(module, args, kwargs))
        if self.drawing:
            scope.drawn = random_states()
        self.scopes.append(scope)
        return args, kwargs

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        call = self.calls[self.stack.pop()]
        assert call["path"] == self.paths[module]
        tensors = tensors_of(output)
        call["outputs"] = self.flow.numbers(tensors)
        call["opens"] = len(tensor_leaves(output)) == len(call["outputs"]) == len(tensors)
        call["plain"] &= isinstance(output, Tensor) and len(call["inputs"]) == len(call["outputs"]) == 1
        if isinstance(module, NullEdge):
            self.nulls.update(call["outputs"])
        scope = self.scopes.pop()
        call["body"] = scope.body(output)
        drawn = self.drawing and random_states() != scope.drawn
        if drawn and not any(inner["closed"] for inner in self.calls[scope.call + 1 :]):
            scope.refuse("random numbers of Python or numpy decide what it does")
        call["closed"] = scope.why
        return self.scopes[-1].called(scope, output) if self.scopes else output

    def number(self, symbol: str, operands: tuple[Any, ...], value: Any) -> Any:
        """Note arithmetic on sizes in the forward that runs."""
        if type(value) not in (int, float) or not self.scopes or self.opaque:
            return value
        return self.scopes[-1].number(symbol, operands, value)

    def decision(self, symbol: str, operands: tuple[Any, ...], holds: bool) -> None:
        """Note a comparison of sizes in the forward that runs."""
        if self.scopes and not self.opaque:
            self.scopes[-1].decision(symbol, operands, holds)

    def _enter_scripted(self, module: nn.Module, args: Any) -> None:
        """Before any module of this process; a scripted one is one operation, whatever it does inside."""
        if isinstance(module, torch.jit.ScriptModule) and module in self.paths:
            self.opaque = True

    def _leave_scripted(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not isinstance(module, torch.jit.ScriptModule) or module not in self.paths:
            return None
        self.opaque = False
        self._enter(module, args, kwargs)
        self.scopes[-1].refuse("it is scripted")
        inputs = self.flow.numbers(tensors_of((args, kwargs)))
        number = self.flow.note(Operation("scripted", "other", tuple(self.stack), inputs, (), 0, False))
        self.flow.charge()
        self.flow.seconds.append(0.0)
        outputs = tuple(self.flow.new(t, number) for t in tensors_of(output) if id(t) not in self.flow.index)
        self.flow.operations[number] = replace(self.flow.operations[number], outputs=outputs)
        return self._leave(module, args, kwargs, output)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.opaque:
            return func(*args, **kwargs)
        if not self.scopes or (len(self.scopes) > 1 and is_layer(self.scopes[-1].module)):
            return self.flow.call(func, args, kwargs, tuple(self.stack))[0]
        full = resolve_name(func) or getattr(func, "__name__", str(func))
        short = full.removeprefix("torch.Tensor.")
        scope = self.scopes[-1]
        if short in SHAPES or full == "torch.numel":
            return sizes(scope, short.removeprefix("torch."), args, kwargs)
        if full == "_set_grad_enabled" and not in_reentrant_checkpoint():
            self.grad = args[0]
        if full in ("_set_grad_enabled", "_assert", "torch.device"):
            return func(*args, **kwargs)
        plain_args, plain_kwargs = mapped(args, plain), {k: mapped(v, plain) for k, v in kwargs.items()}
        result, changed = self.flow.call(func, plain_args, plain_kwargs, tuple(self.stack))
        scope.refuse(switched(self.grad, self.autocast))
        written = {id(t) for t in changed}
        held = any(memory_of(t) in self.names.state for t in changed)
        writes = "state" if held else "value" if changed else ""
        if not tensor_leaves(result):
            if short == "__setitem__":
                return scope.add("method", short, args, kwargs, None, writes=writes)
            place = self.flow.index.get(id(args[0]), -1) if args else -1
            if type(result) is bool and short in ("__bool__", "item") and place not in self.flow.data:
                of = (scope.describe(args[0]),)
                scope.steps.append(Step("decision", str(result).lower(), of, (), Literal("None")))
            else:
                without_tensor(scope, short, args, result)
            return result
        if full.startswith("torch.Tensor."):
            target = short.removesuffix(".__get__")
            kind = "method" if target == short else "attribute"
            return scope.add(kind, target, args, kwargs, result, written=written, writes=writes)
        target = public_name(full, func)
        return scope.add("function", target, args, kwargs, result, function=func, written=written, writes=writes)


def _named(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """The arguments of a call by the names of the forward's parameters."""
    try:
        return tuple(arguments_of(module.forward, args, kwargs))
    except (TypeError, ValueError):  # the call itself will say what is wrong
        return ()
