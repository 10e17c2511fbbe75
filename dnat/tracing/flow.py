"""What a run computes: its values, and the operations that make them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..counting import Counter
from .behaviour import behaviour
from .examples import tensor_leaves, tensors_of
from .modes import tensors_held
from .program import Operation, Value
from .surroundings import memory_of

Arguments: TypeAlias = tuple[Any, ...]
Watch: TypeAlias = Callable[[Callable[..., Any], str, Arguments, Mapping[str, Any], Any, Mapping[int, int]], None]
"""Is told of an operation: function, name, arguments, what it gave, and the number of each tensor's value by its
id."""

_OF_NUMBERS = ("isfinite", "isnan", "isinf")
"""Functions that tell of numbers no more than whether they are numbers."""


class Flow:
    """Values and operations of one run. Tensors are told apart by identity and kept alive until the run ends.

    Attributes:
        values, operations, madds: what was noted so far; multiply-adds of each operation.
        seconds: of each operation, if a `clock` is set.
        index: the number of each tensor's value by its id.
        data: values that weights or numbers of the example count in, and not masks or places alone.
        watch: is told of each operation.
    """

    def __init__(self, network: nn.Module) -> None:
        self.weights = {id(t) for t in tensors_held(network)}
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.madds: list[int] = []
        self.seconds: list[float] = []
        self.index: dict[int, int] = {}
        self.data: set[int] = set()
        self.counter = Counter()
        self.clock: Callable[[], float] | None = None
        self.watch: Watch | None = None
        self._alive: list[Tensor] = []
        self._views: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._charged = 0

    @property
    def counts(self) -> bool:
        """Whether multiply-adds are counted: not while time is taken, or another looks on."""
        return not (self.clock or self.watch)

    def begin(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Note what is given to the network."""
        inputs = []
        for tensor in tensors:
            inputs.append(self.new(tensor, None))
            if tensor.is_floating_point() or tensor.is_complex():
                self.data.add(inputs[-1])
        return tuple(inputs)

    def counted(self) -> tuple[Operation, ...]:
        """The operations, each with its multiply-adds."""
        return tuple(replace(o, madds=m) for o, m in zip(self.operations, self.madds, strict=True))

    def users(self) -> tuple[tuple[int, ...], ...]:
        """The operations that read each value."""
        users: list[list[int]] = [[] for _ in self.values]
        for i, op in enumerate(self.operations):
            for value in dict.fromkeys(op.inputs):
                users[value].append(i)
        return tuple(map(tuple, users))

    def numbers(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """The values of tensors that have one."""
        return tuple(self.index[id(t)] for t in tensors if id(t) in self.index)

    def new(self, tensor: Tensor, producer: int | None) -> int:
        """Give a tensor a value of its own."""
        if id(tensor) not in self.index:
            self._alive.append(tensor)  # or its id could be given to another tensor
            if memory_of(tensor) >= 0:
                self._views[memory_of(tensor)].append(tensor)
        self.index[id(tensor)] = len(self.values)
        self.values.append(Value(tuple(tensor.shape), tensor.dtype, producer))
        return len(self.values) - 1

    def note(self, operation: Operation) -> int:
        """Note an operation; its outputs may be filled in later."""
        self.operations.append(operation)
        self.madds.append(0)
        return len(self.operations) - 1

    def charge(self) -> None:
        """Multiply-adds that no operation has yet, such as those of scripted code, belong to the last one."""
        if self.madds:
            self.madds[-1] += self.counter.madds - self._charged
            self._charged = self.counter.madds

    def call(self, func: Any, args: Any, kwargs: Any, scope: tuple[int, ...]) -> tuple[Any, list[Tensor]]:
        """Call a function and note it as an operation; gives what it gives, and what it wrote into."""
        operands = tensor_leaves((args, kwargs))
        inputs = self.numbers(operands)
        is_value = lambda a: isinstance(a, Tensor) and id(a) in self.index  # noqa: E731
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property: x.T, x.shape
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        how = behaviour(name, args, kwargs, is_value)
        versions = [t._version for t in operands]
        self.charge()
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
        number = self.note(Operation(name, how, scope, inputs, (), 0, bool(written)))
        self.charge()
        touched = {id(t): t for t in [*fresh, *written]}
        outputs = tuple(self.new(t, number) for t in touched.values())
        if name not in _OF_NUMBERS and (
            not self.data.isdisjoint(inputs) or any(id(t) in self.weights for t in operands)
        ):
            self.data.update(outputs)
        self.operations[number] = replace(self.operations[number], outputs=outputs)
        for tensor in written:
            self._update_views(tensor, touched, scope)
        if self.watch:
            self.watch(func, name, args, kwargs, result, self.index)
        return result, changed

    def _update_views(self, written: Tensor, touched: dict[int, Tensor], scope: tuple[int, ...]) -> None:
        """A write in place changes every tensor that shares the memory: each gets a new value."""
        for view in list(self._views[memory_of(written)]):
            if id(view) in touched:
                continue
            touched[id(view)] = view
            inputs = (self.index[id(view)], self.index[id(written)])
            number = len(self.operations)
            value = self.new(view, number)
            if not self.data.isdisjoint(inputs):
                self.data.add(value)
            self.seconds.append(0.0)
            self.note(Operation("alias_update", "homogeneous", scope, inputs, (value,), 0, True))

    def alias(self, value: Tensor) -> Tensor:
        """The same memory as another tensor, and the same value of the trace."""
        if type(value) not in (Tensor, nn.Parameter) or memory_of(value) < 0:
            return value
        with torch._C.DisableTorchFunction():
            other = value.view_as(value)
        if id(value) in self.index:
            self._alive.append(other)
            self._views[memory_of(other)].append(other)
            self.index[id(other)] = self.index[id(value)]
            if self.watch:
                with torch._C.DisableTorchFunction():
                    self.watch(torch.Tensor.contiguous, "contiguous", (value,), {}, other, self.index)
        return other
