"""The recorder: runs a network as it is, and notes each module call and each torch function.

Each forward is noted as steps, too (`Scope`). Sizes read from a tensor's shape are numbers that remember where
they come from, so that what depends on the batch stays an expression of it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from ..counting import Counter
from ..operations import NullEdge
from .behaviour import behaviour
from .examples import tensors_of
from .functions import SHAPES, arguments_of, is_tensor_in, public_name, sizes, without_tensor
from .modes import tensors_held
from .numbers import plain
from .program import Call, Operation, Trace, Value
from .scope import Scope, attributes_of, held_by
from .steps import Literal, Ref, Step, mapped
from .surroundings import autocast, in_reentrant_checkpoint, is_layer, memory_of, random_states

Arguments: TypeAlias = tuple[Any, ...]
Watch: TypeAlias = Callable[[Callable[..., Any], str, Arguments, Mapping[str, Any], Any, Mapping[int, int]], None]
"""Is told of an operation: function, name, arguments, what it gave, and the number of each tensor's value by its
id."""


_OF_NUMBERS = ("isfinite", "isnan", "isinf")
"""Functions that tell of numbers no more than whether they are numbers."""


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
        self.weights = {id(t) for t in tensors_held(network)}
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.calls: list[dict[str, Any]] = []
        self.stack: list[int] = []
        self.index: dict[int, int] = {}
        self.alive: list[Tensor] = []
        self.views: defaultdict[int, list[Tensor]] = defaultdict(list)
        self.nulls: set[int] = set()
        self.counter = Counter()
        self.madds: list[int] = []
        self.charged = 0
        self.unsure = False
        self.opaque = False
        self.clock: Callable[[], float] | None = None
        self.seconds: list[float] = []
        self.watch: Watch | None = None
        self.results: list[Tensor] = []
        self.scopes: list[Scope] = []
        self.owners: dict[int, Ref] = {}
        self.named: list[int] = []
        self.memory: list[int] = []
        self.places = {-1: -1}
        self.kept: list[Any] = []
        self.objects: dict[Ref, str] = {}
        self.data: set[int] = set()
        """Values that weights or numbers of the example count in, and not masks or places alone."""
        self.held = held_by(network)
        self.state = {memory_of(t) for t in tensors_held(network)} - {-1}
        self.device = next((t.device for t in tensors_held(network)), torch.device("cpu"))
        self.autocast = autocast()
        self.grad = True

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1) -> Trace:
        """Run the network and note what it does; `batch` images, or as many as can be told (None)."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = tuple(self._new(t, None) for t in tensors)
        numbers = (i for i, t in zip(inputs, tensors, strict=True) if t.is_floating_point() or t.is_complex())
        self.data.update(numbers)
        # Counting takes a detour for each operation, so that nothing is counted while time is taken.
        # Gradients are on, to see where the network itself switches them off.
        self.grad = not self.clock
        counting = self.counter if self.counts else nullcontext()
        before = attributes_of(self.paths)
        with self._hooks(), torch.set_grad_enabled(self.grad), counting, self:
            result = self.network(*args, **kwargs)
        self._charge()
        changing = {self.paths[m] for m, values in attributes_of(self.paths).items() if values != before[m]}
        self.results = tensors_of(result)
        batch = batch or self.counter.batch(tensors, self.results)
        self.unsure = batch is None and self.counter.madds > 0
        outputs = self._numbers(self.results)
        users: list[list[int]] = [[] for _ in self.values]
        for i, op in enumerate(self.operations):
            for value in dict.fromkeys(op.inputs):
                users[value].append(i)
        return Trace(
            training=self.network.training,
            batch=batch or 1,
            values=tuple(self.values),
            operations=tuple(replace(o, madds=m) for o, m in zip(self.operations, self.madds, strict=True)),
            calls=tuple(self._call(call, changing) for call in self.calls),
            named=tuple(self.named),
            memory=tuple(self.memory),
            objects=self.objects,
            inputs=inputs,
            outputs=outputs,
            users=tuple(map(tuple, users)),
            nulls=frozenset(self.nulls),
            uncounted=tuple(self.counter.uncounted),
        )

    @staticmethod
    def _call(values: dict[str, Any], changing: set[str]) -> Call:
        return Call(**values, keeps=values["path"] in changing)

    @property
    def counts(self) -> bool:
        """Whether multiply-adds are counted: not while time is taken, or another looks on."""
        return not (self.clock or self.watch)

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
        learns = torch.is_grad_enabled() or not self.network.training or in_reentrant_checkpoint()
        self.calls.append(
            {
                "path": self.paths[module],
                "parent": self.stack[-1] if self.stack else None,
                "inputs": self._numbers(tensors),
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
        scope = Scope(self, module, self.paths[module], len(self.calls) - 1)
        if self.scopes:
            outer = self.scopes[-1]
            described = (
                tuple(outer.describe(a) for a in args),
                {k: outer.describe(v) for k, v in kwargs.items()},
            )
            scope.given = (*described, _named(module, *described))
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
        call["outputs"] = self._numbers(tensors_of(output))
        leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        call["opens"] = len(leaves) == len(call["outputs"]) == len(tensors_of(output))
        call["plain"] &= isinstance(output, Tensor) and len(call["inputs"]) == len(call["outputs"]) == 1
        if isinstance(module, NullEdge):
            self.nulls.update(call["outputs"])
        scope = self.scopes.pop()
        call["body"] = scope.body(output)
        inner = self.calls[scope.call + 1 :]
        if self.drawing and random_states() != scope.drawn and not any(c["closed"] for c in inner):
            scope.refuse("random numbers of Python or numpy decide what it does")
        call["closed"] = scope.why
        return self.scopes[-1].called(scope, output) if self.scopes else output

    def new(self, value: Any = None) -> Ref:
        """A new name: for a tensor, for an object, or (None) for a number."""
        known = self.index.get(id(value), -1) if isinstance(value, Tensor) else -1
        self.named.append(known)
        place = memory_of(value) if isinstance(value, Tensor) else -1
        self.memory.append(self.places.setdefault(place, len(self.places) - 1))
        ref = Ref(len(self.named) - 1)
        if value is not None:
            self.kept.append(value)  # or its id could be given to another
        if not isinstance(value, Tensor | None):
            self.objects[ref] = type(value).__name__
        return ref

    def alias(self, value: Tensor) -> Tensor:
        """The same memory as another tensor, and the same value of the trace."""
        if type(value) not in (Tensor, nn.Parameter) or memory_of(value) < 0:
            return value
        with torch._C.DisableTorchFunction():
            other = value.view_as(value)
        if id(value) in self.index:
            self.alive.append(other)
            self.views[memory_of(other)].append(other)
            self.index[id(other)] = self.index[id(value)]
            if self.watch:
                with torch._C.DisableTorchFunction():
                    self.watch(torch.Tensor.contiguous, "contiguous", (value,), {}, other, self.index)
        return other

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
        inputs = self._numbers(tensors_of((args, kwargs)))
        number = self._note(Operation("scripted", "other", tuple(self.stack), inputs, (), 0, False))
        self._charge()
        self.seconds.append(0.0)
        outputs = tuple(self._new(t, number) for t in tensors_of(output) if id(t) not in self.index)
        self.operations[number] = replace(self.operations[number], outputs=outputs)
        return self._leave(module, args, kwargs, output)

    def _note(self, operation: Operation) -> int:
        self.operations.append(operation)
        self.madds.append(0)
        return len(self.operations) - 1

    def _charge(self) -> None:
        """Multiply-adds that no operation has yet, such as those of scripted code, belong to the last one."""
        if self.madds:
            self.madds[-1] += self.counter.madds - self.charged
            self.charged = self.counter.madds

    def _numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        return tuple(self.index[id(t)] for t in tensors if id(t) in self.index)

    def _new(self, tensor: Tensor, producer: int | None) -> int:
        if id(tensor) not in self.index:
            self.alive.append(tensor)  # or its id could be given to another tensor
            if memory_of(tensor) >= 0:
                self.views[memory_of(tensor)].append(tensor)
        self.index[id(tensor)] = len(self.values)
        self.values.append(Value(tuple(tensor.shape), tensor.dtype, producer))
        return len(self.values) - 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.opaque:
            return func(*args, **kwargs)
        if not self.scopes or is_layer(self.scopes[-1].module):
            return self._operation(func, args, kwargs)[0]
        full = resolve_name(func) or getattr(func, "__name__", str(func))
        short = full.removeprefix("torch.Tensor.")
        scope = self.scopes[-1]
        if short in SHAPES or full == "torch.numel":
            return sizes(scope, short.removeprefix("torch."), args, kwargs)
        if full == "_set_grad_enabled":
            self.grad = args[0]
        if full in ("_set_grad_enabled", "_assert", "torch.device"):
            return func(*args, **kwargs)
        plain_args, plain_kwargs = mapped(args, plain), {k: mapped(v, plain) for k, v in kwargs.items()}
        result, changed = self._operation(func, plain_args, plain_kwargs)
        self._look_for_switches(scope)
        written = {id(t) for t in changed}
        held = any(memory_of(t) in self.state for t in changed)
        writes = "state" if held else "value" if changed else ""
        if not is_tensor_in(result):
            if short == "__setitem__":
                return scope.add("method", short, args, kwargs, None, writes=writes)
            if short == "__bool__" and self.index.get(id(args[0]), -1) not in self.data:
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

    def _look_for_switches(self, scope: Scope) -> None:
        if torch.is_grad_enabled() is not self.grad and not in_reentrant_checkpoint():
            scope.refuse("it switches gradients off otherwise than by torch.no_grad (a torch.autograd.Function?)")
        if autocast() != self.autocast:
            scope.refuse("it switches autocast on or off")

    def _operation(self, func: Any, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """Call a function and note it as an operation; gives what it gives, and what it wrote into."""
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = self._numbers(operands)
        is_value = lambda a: isinstance(a, Tensor) and id(a) in self.index  # noqa: E731
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property: x.T, x.shape
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        how = behaviour(name, args, kwargs, is_value)
        versions = [t._version for t in operands]
        self._charge()
        start = self.clock() if self.clock else 0.0
        result = self.counter.call(func, args, kwargs) if self.counts else func(*args, **kwargs)
        taken = self.clock() - start if self.clock else 0.0
        changed = [t for t, v in zip(operands, versions, strict=True) if t._version != v]
        written = [t for t in changed if id(t) in self.index]
        results = [t for t in tensors_of(result) if id(t) not in self.weights]
        fresh = [t for t in results if not any(t is o for o in operands)]
        if not fresh and not written:
            return result, changed  # gives back an argument, or no tensor at all
        self.seconds.append(taken)
        number = self._note(Operation(name, how, tuple(self.stack), inputs, (), 0, bool(written)))
        self._charge()
        touched = {id(t): t for t in [*fresh, *written]}
        outputs = tuple(self._new(t, number) for t in touched.values())
        if name not in _OF_NUMBERS and (
            not self.data.isdisjoint(inputs) or any(id(t) in self.weights for t in operands)
        ):
            self.data.update(outputs)
        self.operations[number] = replace(self.operations[number], outputs=outputs)
        for tensor in written:
            self._update_views(tensor, touched)
        if self.watch:
            self.watch(func, name, args, kwargs, result, self.index)
        return result, changed

    def _update_views(self, written: Tensor, touched: dict[int, Tensor]) -> None:
        """A write in place changes every tensor that shares the memory: each gets a new value."""
        for view in list(self.views[memory_of(written)]):
            if id(view) in touched:
                continue
            touched[id(view)] = view
            inputs = (self.index[id(view)], self.index[id(written)])
            number = len(self.operations)
            value = self._new(view, number)
            if not self.data.isdisjoint(inputs):
                self.data.add(value)
            self.seconds.append(0.0)
            self._note(Operation("alias_update", "homogeneous", tuple(self.stack), inputs, (value,), 0, True))


def _named(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """The arguments of a call by the names of the forward's parameters."""
    try:
        return tuple(arguments_of(module.forward, args, kwargs))
    except (TypeError, ValueError):  # the call itself will say what is wrong
        return ()
