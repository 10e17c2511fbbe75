"""The recorder: runs a network as it is, and notes each module call and each torch function."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks_with_kwargs,
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..counting import Counter
from ..operations import NullEdge
from .behaviour import behaviour
from .examples import tensors_of
from .modes import tensors_held
from .program import Call, Operation, Trace, Value

Arguments: TypeAlias = tuple[Any, ...]
Watch: TypeAlias = Callable[[Callable[..., Any], str, Arguments, Mapping[str, Any], Any, Mapping[int, int]], None]
"""Is told of an operation: function, name, arguments, what it gave, and the number of each tensor's value by its
id."""


class Recorder(TorchFunctionMode):
    """Notes one forward run. Tensors are told apart by identity and kept alive until the run ends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
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

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1) -> Trace:
        """Run the network and note what it does; `batch` images, or as many as can be told (None)."""
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = tuple(self._new(t, None) for t in tensors)
        # Counting takes a detour for each operation, so that nothing is counted while time is taken.
        # In train mode gradients are on, to see where the network itself switches them off.
        learning = self.network.training and not self.clock
        counting = self.counter if self.counts else nullcontext()
        with self._hooks(), torch.set_grad_enabled(learning), counting, self:
            result = self.network(*args, **kwargs)
        self._charge()
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
            calls=tuple(Call(**call) for call in self.calls),
            inputs=inputs,
            outputs=outputs,
            users=tuple(map(tuple, users)),
            nulls=frozenset(self.nulls),
            uncounted=tuple(self.counter.uncounted),
        )

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

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_of((args, kwargs))
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
                "learns": torch.is_grad_enabled() or not self.network.training or in_reentrant_checkpoint(),
                "reentrant": not torch.is_grad_enabled() and in_reentrant_checkpoint(),
                "constants": _constants(module, args, kwargs),
            }
        )
        self.stack.append(len(self.calls) - 1)

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self.calls[self.stack.pop()]
        assert call["path"] == self.paths[module]
        call["outputs"] = self._numbers(tensors_of(output))
        leaves = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
        call["opens"] = len(leaves) == len(call["outputs"]) == len(tensors_of(output))
        call["plain"] &= isinstance(output, Tensor) and len(call["inputs"]) == len(call["outputs"]) == 1
        if isinstance(module, NullEdge):
            self.nulls.update(call["outputs"])

    def _enter_scripted(self, module: nn.Module, args: Any) -> None:
        """Before any module of this process; a scripted one is one operation, whatever it does inside."""
        if isinstance(module, torch.jit.ScriptModule) and module in self.paths:
            self.opaque = True

    def _leave_scripted(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not isinstance(module, torch.jit.ScriptModule) or module not in self.paths:
            return
        self.opaque = False
        self._enter(module, args, kwargs)
        inputs = self._numbers(tensors_of((args, kwargs)))
        number = self._note(Operation("scripted", "other", tuple(self.stack), inputs, (), 0, False))
        self._charge()
        self.seconds.append(0.0)
        outputs = tuple(self._new(t, number) for t in tensors_of(output) if id(t) not in self.index)
        self.operations[number] = replace(self.operations[number], outputs=outputs)
        self._leave(module, args, kwargs, output)

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
            if tensor.layout == torch.strided:
                self.views[tensor.untyped_storage()._cdata].append(tensor)
        self.index[id(tensor)] = len(self.values)
        self.values.append(Value(tuple(tensor.shape), tensor.dtype, producer))
        return len(self.values) - 1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.opaque:
            return func(*args, **kwargs)
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
        written = [t for t, v in zip(operands, versions, strict=True) if t._version != v and id(t) in self.index]
        results = [t for t in tensors_of(result) if id(t) not in self.weights]
        fresh = [t for t in results if not any(t is o for o in operands)]
        if not fresh and not written:
            return result  # gives back an argument, or no tensor at all
        self.seconds.append(taken)
        number = self._note(Operation(name, how, tuple(self.stack), inputs, (), 0, bool(written)))
        self._charge()
        touched = {id(t): t for t in [*fresh, *written]}
        outputs = tuple(self._new(t, number) for t in touched.values())
        self.operations[number] = replace(self.operations[number], outputs=outputs)
        for tensor in written:
            self._update_views(tensor, touched)
        if self.watch:
            self.watch(func, name, args, kwargs, result, self.index)
        return result

    def _update_views(self, written: Tensor, touched: dict[int, Tensor]) -> None:
        """A write in place changes every tensor that shares the memory: each gets a new value."""
        for view in list(self.views[written.untyped_storage()._cdata]):
            if id(view) in touched:
                continue
            touched[id(view)] = view
            inputs = (self.index[id(view)], self.index[id(written)])
            number = len(self.operations)
            value = self._new(view, number)
            self.seconds.append(0.0)
            self._note(Operation("alias_update", "homogeneous", tuple(self.stack), inputs, (value,), 0, True))


def in_reentrant_checkpoint() -> bool:
    """Whether a checkpoint with `use_reentrant=True` runs: at first without gradients, and again with them."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is torch.utils.checkpoint.CheckpointFunction.forward.__code__:
            return True
        frame = frame.f_back
    return False


def _constants(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """The arguments of a call, defaults included, that are no tensors but plain values."""
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself will say what is wrong
        return ()
    bound.apply_defaults()
    plain = (bool, int, float, str, type(None))
    constants = [(name, value) for name, value in bound.arguments.items() if isinstance(value, plain)]
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    empty = [n for n, p in signature.parameters.items() if p.kind in stars and not bound.arguments.get(n)]
    return tuple([*constants, *((name, ()) for name in empty)])
