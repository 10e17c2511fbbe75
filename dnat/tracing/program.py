"""What a run of a network did, as plain data, and what a change would do to its values.

Three states are propagated through a trace for that (`Trace.propagate`): zero (every element is 0), constant (does
not depend on the input) and data (depends on the input).
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

import torch
from torch import nn

from ..operations import Geometry
from .behaviour import Behaviour
from .steps import Body, Ref


class State(IntEnum):
    """What is known of a value: the larger, the more it can carry."""

    ZERO = 0
    CONSTANT = 1
    DATA = 2


@dataclass(frozen=True)
class Value:
    """A tensor of a trace: its shape (with the batch), its dtype, the operation that made it (None: an input)."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    producer: int | None


@dataclass(frozen=True)
class Operation:
    """One torch function call: name, the module calls around it (outermost first), values in and out."""

    name: str
    behaviour: Behaviour
    scope: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    madds: int
    mutates: bool


@dataclass(frozen=True)
class Call:
    """One call of one module.

    Attributes:
        path: the module's path.
        parent: the call around it.
        inputs, outputs: the values that came in and went out.
        scope: the calls around it, and itself, outermost first.
        plain: one tensor came in, as first positional argument, and one went out.
        opens: the tensors that went out are all known, and stand in tuples, lists and dicts.
        lone: nothing but that tensor was given, not even a None.
        learns: gradients were computed, or would have been outside of this analysis.
        reentrant: it ran in a checkpoint with `use_reentrant=True`: its gradients come from a second run.
        body: what its forward did, step by step.
        closed: why these steps are not all of it; empty if they are.
        keeps: it changed attributes of its module, which another call may read.
    """

    path: str
    parent: int | None
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    scope: tuple[int, ...]
    plain: bool
    opens: bool
    lone: bool
    learns: bool
    reentrant: bool
    body: Body = field(repr=False)
    closed: str
    keeps: bool


@dataclass(frozen=True)
class ModuleInfo:
    """What the analysis needs to know of a module.

    `place` is that of an edge of a genotype's cell, `geometry` that of a plain convolution; `weights` counts the
    elements of its own parameters, `has_state` tells whether it or a part of it has parameters or buffers.
    """

    path: str
    aliases: tuple[str, ...]
    kind: Literal["convolution", "linear", "norm", "null", "operation", "container", "composite", "other"]
    name: str
    structure: str
    inplace: bool
    place: str | None
    geometry: Geometry | None
    weights: int
    has_state: bool
    scripted: bool


@dataclass(frozen=True)
class Trace:
    """One run of the network in one mode. Indices point into `values`, `operations` and `calls`.

    `batch` is by what multiply-adds are divided for one image; `uncounted` names operators that may multiply and
    are not among them, since no formula is known. `named` has for each `Ref` of the steps the value that it names,
    or -1, `memory` where that lies, the same for tensors that share it, and `objects` the classes of those that
    are neither tensors nor numbers.
    """

    training: bool
    batch: int
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    users: tuple[tuple[int, ...], ...] = field(repr=False)
    nulls: frozenset[int] = field(repr=False)
    uncounted: tuple[str, ...] = ()
    named: tuple[int, ...] = field(default=(), repr=False)
    memory: tuple[int, ...] = field(default=(), repr=False)
    objects: Mapping[Ref, str] = field(default_factory=dict, repr=False)

    @cached_property
    def calls_by_path(self) -> dict[str, list[int]]:
        """The calls of each module, in order."""
        calls: dict[str, list[int]] = {}
        for i, call in enumerate(self.calls):
            calls.setdefault(call.path, []).append(i)
        return calls

    @cached_property
    def states(self) -> list[State]:
        """The state of every value when nothing is replaced."""
        return self.propagate()

    @cached_property
    def untouched(self) -> tuple[frozenset[int], frozenset[int]]:
        """The values and operations that an output needs when nothing is replaced."""
        return self.needed()

    @property
    def live(self) -> frozenset[int]:
        """Of those the operations."""
        return self.untouched[1]

    @cached_property
    def live_within(self) -> Counter[int]:
        """How many of those ran inside each call."""
        return Counter(call for number in self.live for call in self.operations[number].scope)

    @cached_property
    def _within(self) -> dict[int, range]:
        ranges: dict[int, range] = {}
        for i, op in enumerate(self.operations):
            for call in op.scope:
                ranges[call] = range(ranges[call].start if call in ranges else i, i + 1)
        return ranges

    @cached_property
    def demand(self) -> tuple[Counter[int], Counter[int]]:
        """How many readers each value has that an output needs, the outputs themselves counting as one, and how
        many needed values each operation makes; see `needed`."""
        values, operations = Counter(set(self.outputs)), Counter[int]()
        for value in self.untouched[0]:
            producer = self.values[value].producer
            if producer is not None and self.states[value] is not State.ZERO:
                operations[producer] += 1
                values.update(set(self.operations[producer].inputs))
        return values, operations

    def calls_of(self, path: str) -> list[int]:
        """The calls of the module at a path, in order."""
        return self.calls_by_path.get(path, [])

    def within(self, call: int) -> range:
        """The operations that ran inside a call: nothing else runs before it ends."""
        return self._within.get(call, range(0))

    def propagate(self, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> list[State]:
        """The state of every value when some values are replaced.

        Args:
            zero: values that become zero.
            same: values that become another, earlier value (an identity).

        Returns:
            One state a value. Weights count as constants. Null edges give zero unless `same` connects them.
        """
        states = [State.DATA] * len(self.values)
        for i in range(len(states)):
            states[i] = self.state_of(i, zero, same or {}, states.__getitem__)
        return states

    def state_of(
        self, value: int, zero: Collection[int], same: Mapping[int, int], state: Callable[[int], State]
    ) -> State:
        """The state of a value, by those of the values before it."""
        if value in zero:
            return State.ZERO
        if value in same:
            return state(same[value])
        producer = self.values[value].producer
        if value in self.nulls:
            return State.ZERO
        if producer is None:
            return State.DATA
        operation = self.operations[producer]
        inputs = [state(i) for i in operation.inputs]
        if not inputs:
            return State.CONSTANT
        if operation.behaviour == "multiply" and State.ZERO in inputs:
            return State.ZERO
        if max(inputs) is State.ZERO and operation.behaviour in ("add", "gather", "homogeneous"):
            return State.ZERO
        return State.DATA if State.DATA in inputs else State.CONSTANT

    def needed(
        self, zero: Collection[int] = (), same: Mapping[int, int] | None = None
    ) -> tuple[frozenset[int], frozenset[int]]:
        """The values and operations that an output still needs when some values are replaced; see `propagate`.

        What a zero would have to be computed for is not needed: an addition does without it, and a gathering
        operation takes zeros that cost nothing.
        """
        same = same or {}
        states = self.propagate(zero, same)
        waiting = list(self.outputs)
        values, operations = set(waiting), set()
        while waiting:
            value = waiting.pop()
            if states[value] is State.ZERO:
                continue
            producer = self.values[value].producer
            sources: tuple[int, ...] = ()
            if value in same:
                sources = (same[value],)
            elif producer is not None:
                operations.add(producer)
                sources = self.operations[producer].inputs
            waiting.extend(set(sources) - values)
            values.update(sources)
        return frozenset(values), frozenset(operations)

    def where(self, operation: Operation) -> str:
        """The path of the innermost module in which an operation ran."""
        return (self.calls[operation.scope[-1]].path if operation.scope else "") or "the network"


@dataclass(frozen=True)
class Program:
    """What a network does on its examples: one `Trace` for each example and mode (eval first), and its modules.

    Attributes:
        traces, modules: what was recorded, plain data.
        fingerprint: of the first trace, stable over processes.
        network, examples: the copy that ran, and on which arguments, to try on it what can be rewritten.
        trials: {(edge key, choice): why it cannot be made, or nothing}, as far as that was tried.
        analyses: what else is known of it, by name, that takes long to find out.
    """

    traces: tuple[Trace, ...] = field(repr=False)
    modules: dict[str, ModuleInfo] = field(repr=False)
    fingerprint: str
    network: nn.Module = field(repr=False, compare=False)
    examples: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = field(repr=False, compare=False)
    trials: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)
    analyses: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        return self  # nothing changes it: a copied network can share it
