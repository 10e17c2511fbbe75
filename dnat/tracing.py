"""Any network and example batches -> `Program`: every call and operation of a run, and what feeds what.

The tracer runs the network as it is (module hooks and a `TorchFunctionMode`), so that data-dependent control
flow, keyword arguments and shared modules are no obstacle. It analyses a copy and rewrites nothing. What it
records is plain data.

Three states are propagated through a trace to decide what a change would do (`Trace.propagate`):
zero (every element is 0), constant (does not depend on the input) and data (depends on the input).
"""

import copy
import hashlib
import inspect
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .counting import Counter, checked_batch, warn_of_batch, warn_of_uncounted
from .errors import UsageError, WrongTypeError, users_code
from .operations import CONVOLUTIONS, CellOperation, Geometry, NullEdge, geometry, is_norm, operation_name

Example: TypeAlias = Any
"""A tensor, a tuple (positional arguments), a dict (keyword arguments), or an iterable of such."""


class State(IntEnum):
    """What is known of a value: the larger, the more it can carry."""

    ZERO = 0
    CONSTANT = 1
    DATA = 2


Behaviour = Literal["add", "multiply", "gather", "homogeneous", "other"]
"""How an operation treats zeros.

add: a zero operand is neutral. multiply: a zero operand makes the result zero. gather: operands stand side by
side, each of them may be zero. homogeneous: all operands zero make the result zero. other: nothing is known.
"""

_ADD = {"add", "iadd"}
_MULTIPLY = {"mul", "imul", "multiply", "matmul", "bmm", "mm"}
GATHERING = {"cat", "concat", "concatenate", "stack"}
"""Functions that put tensors side by side."""
_HOMOGENEOUS = set(
    """relu relu6 leaky_relu prelu elu selu celu gelu silu mish tanh hardtanh hardswish softsign tanhshrink
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
    max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    boolean_dispatch view reshape flatten unflatten permute transpose contiguous to clone float half bfloat16
    double type type_as squeeze unsqueeze expand expand_as repeat repeat_interleave chunk split unbind getitem
    narrow select index_select movedim moveaxis swapaxes flip roll mean sum neg
    abs detach pixel_shuffle pixel_unshuffle channel_shuffle interpolate upsample unfold fold T mT
    alias_update""".split()  # noqa: SIM905
)
# With a bias of None these map zero to zero; `_behaviour` looks at the arguments.
_AFFINE = {"conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear"}


def behaviour(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], is_value: Any) -> Behaviour:
    """How a function treats zeros, for a call seen by the tracer or a node of an fx graph.

    Args:
        name: the function's name; underscores around it (in-place and operator forms) do not matter.
        args: its positional arguments.
        kwargs: its keyword arguments.
        is_value: tells whether an argument is a value of the trace (and not a weight, a number or None).
    """
    name = name.strip("_")
    if name in _ADD:
        both = len(args) == 2 and all(map(is_value, args)) and not kwargs
        return "add" if both else "other"
    if name in _MULTIPLY:
        return "multiply"
    if name in ("div", "divide", "true_divide", "truediv"):  # 0 / x is 0, x / 0 is not
        return "homogeneous" if args and is_value(args[0]) and not is_value(args[1]) else "other"
    if name in _AFFINE:
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        return "homogeneous" if bias is None else "other"
    if name == "pad":
        value = args[3] if len(args) > 3 else kwargs.get("value")
        return "homogeneous" if not value else "other"
    if name in GATHERING:
        return "gather"
    return "homogeneous" if name in _HOMOGENEOUS else "other"


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
        constants: names and values of arguments that were None, a truth value, a number or a text; and of
            `*args` and `**kwargs` that were empty, ().
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
    constants: tuple[tuple[str, Any], ...]


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
    are not among them, since no formula is known.
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

    @cached_property
    def calls_by_path(self) -> dict[str, list[int]]:
        """The calls of each module, in order."""
        found: dict[str, list[int]] = {}
        for i, call in enumerate(self.calls):
            found.setdefault(call.path, []).append(i)
        return found

    def calls_of(self, path: str) -> list[int]:
        """The calls of the module at a path, in order."""
        return self.calls_by_path.get(path, [])

    def within(self, call: int) -> frozenset[int]:
        """The operations that ran inside a call."""
        return frozenset(i for i, op in enumerate(self.operations) if call in op.scope)

    def propagate(self, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> list[State]:
        """The state of every value when some values are replaced.

        Args:
            zero: values that become zero.
            same: values that become another, earlier value (an identity).

        Returns:
            One state a value. Weights count as constants. Null edges give zero unless `same` connects them.
        """
        same = same or {}
        states = [State.DATA] * len(self.values)
        for i, value in enumerate(self.values):
            if value.producer is not None:
                states[i] = self._result(self.operations[value.producer], states)
            if i in same:
                states[i] = states[same[i]]
            elif i in self.nulls:
                states[i] = State.ZERO
            if i in zero:
                states[i] = State.ZERO
        return states

    def _result(self, operation: Operation, states: list[State]) -> State:
        inputs = [states[i] for i in operation.inputs]
        if not inputs:
            return State.CONSTANT
        if operation.behaviour == "multiply" and State.ZERO in inputs:
            return State.ZERO
        if max(inputs) is State.ZERO and operation.behaviour in ("add", "gather", "homogeneous"):
            return State.ZERO
        return State.DATA if State.DATA in inputs else State.CONSTANT

    def live(self, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> frozenset[int]:
        """The operations that an output still needs when some values are replaced; see `needed`."""
        return self.needed(zero, same)[1]

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

    def problems(self, zero: Collection[int] = (), same: Mapping[int, int] | None = None) -> list[str]:
        """Why a set of replacements cannot be made exactly; empty if it can.

        A zero may only ever meet data in an addition, where dropping it changes nothing, or stand beside it; no
        addition and no gathering may lose all its operands; every output must still depend on the input.
        """
        before, after = self.propagate(), self.propagate(zero, same)
        found = []
        for i in self.outputs:
            if before[i] is State.DATA and after[i] is not State.DATA:
                found.append("an output would no longer depend on the input")
        for op in self.operations:
            lost = [i for i in op.inputs if before[i] is State.DATA and after[i] is not State.DATA]
            if not lost:
                continue
            if len(lost) == sum(before[i] is State.DATA for i in op.inputs):
                if self._is_node(op):
                    found.append(f"{self.where(op)}: every input of {op.name.strip('_')} would be lost")
                continue
            zeros = all(after[i] is State.ZERO for i in lost)
            rest = [i for i in op.inputs if i not in lost]
            fits = all(self.values[i].shape == self.values[op.outputs[0]].shape for i in rest)
            allowed = op.behaviour in ("gather", "multiply") or (op.behaviour == "add" and fits)
            if not (zeros and allowed):
                found.append(f"{self.where(op)}: {op.name.strip('_')} would join data with a constant")
        return found

    def _is_node(self, operation: Operation) -> bool:
        """Whether an operation gathers several values and is the last of its sum (`a + b + c` is one node)."""
        if operation.behaviour not in ("add", "gather") or len(operation.inputs) < 2:
            return False
        users = [self.operations[u] for v in operation.outputs for u in self.users[v]]
        return not users or any(user.behaviour != "add" for user in users)

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
        found: what else was found out about it, by name, that takes long.
    """

    traces: tuple[Trace, ...] = field(repr=False)
    modules: dict[str, ModuleInfo] = field(repr=False)
    fingerprint: str
    network: nn.Module = field(repr=False, compare=False)
    examples: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...] = field(repr=False, compare=False)
    trials: dict[tuple[str, str], str] = field(default_factory=dict, repr=False, compare=False)
    found: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        return self  # nothing changes it: a copied network can share it


def examples_of(example: Example) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Positional and keyword arguments of each example; see `Example`.

    Raises:
        TypeError: nothing that a network could be called with.
    """
    if isinstance(example, Tensor):
        return [((example,), {})]
    if isinstance(example, tuple):
        return [(example, {})]
    if isinstance(example, Mapping):
        return [((), dict(example))]
    if isinstance(example, Iterable) and not isinstance(example, str | bytes):
        found = [arguments for item in example for arguments in examples_of(item)]
        if found:
            return found
        raise WrongTypeError("the example is empty: at least one batch is needed")
    raise WrongTypeError(
        f"an example must be a tensor, a tuple, a dict or an iterable of such, not {type(example).__name__}"
    )


def trace(network: nn.Module, example: Example, *, batch: int | None = None) -> Program:
    """Run a copy of a network on examples, in eval and in train mode, and note everything that it computes.

    The network itself, its buffers, its mode and the global random state are left as they were.

    Args:
        network: any module.
        example: a tensor, a tuple of positional arguments, a dict of keyword arguments, or an iterable of such.
            A batch of 2 is best: batch norm refuses some single images in train mode (they are doubled then).
        batch: how many images each example holds. By default the first dimension that all outputs share with an
            input; where there is none, the whole example counts as one, with a warning.

    Returns:
        The Program, as plain data.

    Raises:
        ValueError: the network cannot be copied or its forward fails (the cause is chained), or `batch` is no
            whole number above 0.
        TypeError: `network` is not a module, or `example` is of no use.

    Warns:
        UserWarning: the batch is not certain, or something that may multiply was not counted.

    >>> program = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(2, 3, 8, 8))
    >>> [(op.name, op.madds) for op in program.traces[0].operations]
    [('conv2d', 7776), ('relu', 0)]
    """
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    arguments = examples_of(example)
    lazy = [n for n, p in network.named_parameters() if torch.nn.parameter.is_lazy(p)]
    if lazy:
        raise UsageError(f"{lazy[0]} is not initialized yet: call the network once on a batch, then trace it")
    told = checked_batch(batch)
    twin = copied(network)
    traces: list[Trace] = []
    devices = sorted({t.device.index for t in _state(network) if t.device.type == "cuda"})
    with fixed_randomness(devices):
        for training in (False, True):
            for i, (args, kwargs) in enumerate(arguments):
                with in_mode(twin, training):
                    traces.append(_run(twin, args, kwargs, traces[i].batch if training else told))
    warn_of_uncounted(traces[0].uncounted)
    modules = _describe(twin)
    calls = sorted(
        (c.path, modules[c.path].name, [t.values[v].shape[1:] for v in c.inputs + c.outputs])
        for t in traces[:1]
        for c in t.calls
    )
    digest = hashlib.sha256(json.dumps(calls).encode()).hexdigest()[:16]
    return Program(tuple(traces), modules, digest, twin, tuple(arguments))


def copied(network: nn.Module) -> nn.Module:
    """A deep copy of a network.

    Raises:
        ValueError: the network holds something that cannot be copied; the cause is chained.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise UsageError(f"{type(network).__name__} cannot be copied: {error}") from error


@contextmanager
def fixed_randomness(devices: Iterable[int] = ()) -> Iterator[None]:
    """Within, the generators of torch, Python and numpy start from 0; afterwards they are as they were.

    Args:
        devices: CUDA devices whose generators count, too.
    """
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 -- what networks may use
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def kept_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within, what modules write into their own buffers, statistics and counters say, is lost at the end."""
    own = [(m, name, b) for m in modules for name, b in m.named_buffers(recurse=False)]
    for module, name, buffer in own:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer


def frozen_modules(network: nn.Module) -> set[nn.Module]:
    """The modules that are in eval mode within a network in train mode, as norms are that shall not learn."""
    return {module for module in network.modules() if network.training and not module.training}


def in_training(network: nn.Module) -> nn.Module:
    """The network in train mode: as it is, if it was already, with what is frozen in it; else all of it."""
    return network if network.training else network.train()


@contextmanager
def in_mode(network: nn.Module, training: bool) -> Iterator[None]:
    """Within, all modules are in train or in eval mode; afterwards each is in the mode in which it was.

    What was frozen, in eval mode within a network in train mode, is in eval mode in both.
    """
    modes = {module: module.training for module in network.modules()}
    still = frozen_modules(network)
    for module in modes:
        module.training = training and module not in still
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def timed(network: nn.Module, example: Example, repeats: int) -> tuple[tuple[str, ...], list[list[float]]]:
    """Run a network in eval mode and take the time of each operation.

    Args:
        network: any module; its buffers are left as they were.
        example: see `trace`; of several examples the first is used.
        repeats: so many runs, after one that does not count.

    Returns:
        Names of the operations, in the order of the program's first trace, and for each run their seconds. The
        time between operations (Python's) is in none of them.
    """
    args, kwargs = examples_of(example)[0]
    device = next((t.device for t in _state(network)), torch.device("cpu"))

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    runs: list[list[float]] = []
    names: tuple[str, ...] = ()
    with in_mode(network, False):
        for _ in range(repeats + 1):
            recorder = _Recorder(network)
            recorder.clock = clock
            found = recorder.run(args, kwargs)
            names = tuple(op.name for op in found.operations)
            runs.append(recorder.seconds)
    return names, runs[1:]


Arguments: TypeAlias = tuple[Any, ...]
Watch: TypeAlias = Callable[[Callable[..., Any], str, Arguments, Mapping[str, Any], Any, Mapping[int, int]], None]
"""Is told of an operation: function, name, arguments, what it gave, and the number of each tensor's value by its
id."""


def observed(program: Program, watch: Watch) -> tuple[Tensor, ...]:
    """Run a program's network again as in its first trace, and show each operation as it happens.

    Returns:
        What the network gives; nothing where it does not do again what it did.
    """
    args, kwargs = program.examples[0]
    network = program.network
    devices = sorted({t.device.index for t in _state(network) if t.device.type == "cuda"})
    recorder = _Recorder(network)
    recorder.watch = watch
    with fixed_randomness(devices), in_mode(network, False), kept_buffers(network.modules()):
        recorder.run(args, kwargs)
    names = [op.name for op in recorder.operations]
    return tuple(recorder.made) if names == [op.name for op in program.traces[0].operations] else ()


def _state(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _run(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None) -> Trace:
    shapes = [tuple(t.shape) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    mode = "train" if network.training else "eval"
    with users_code(f"{type(network).__name__}'s forward failed on the example of shape {shapes} in {mode} mode"):
        recorder = _Recorder(network)
        try:
            found = recorder.run(args, kwargs, batch)
        except Exception as error:
            if "more than 1 value per channel" not in str(error) or not network.training:
                raise
            double = lambda t: t.repeat_interleave(2, 0) if t.dim() else t  # noqa: E731
            args, kwargs = tree_map_only(Tensor, double, (args, kwargs))
            return _Recorder(network).run(args, kwargs, batch and 2 * batch)
    if recorder.unsure:
        warn_of_batch(*([found.values[i].shape for i in ids] for ids in (found.inputs, found.outputs)))
    return found


class _Recorder(TorchFunctionMode):
    """Notes one forward run. Tensors are told apart by identity and kept alive until the run ends."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.paths: dict[nn.Module, str] = {}
        for path, module in network.named_modules():
            self.paths.setdefault(module, path)
        self.weights = {id(t) for t in _state(network)}
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
        self.made: list[Tensor] = []

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], batch: int | None = 1) -> Trace:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = tuple(self._new(t, None) for t in tensors)
        # Counting takes a detour for each operation, so that nothing is counted while time is taken.
        # In train mode gradients are on, to see where the network itself switches them off.
        learning = self.network.training and not self.clock
        counting = self.counter if self.counts else nullcontext()
        with self._hooks(), torch.set_grad_enabled(learning), counting, self:
            result = self.network(*args, **kwargs)
        self._charge()
        self.made = made = tensors_of(result)
        batch = batch or self.counter.batch(tensors, made)
        self.unsure = batch is None and self.counter.madds > 0
        outputs = self._known(made)
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
        handles.append(register_module_forward_pre_hook(self._enter_scripted))
        handles.append(register_module_forward_hook(self._leave_scripted, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = tensors_of((args, kwargs))
        self.calls.append(
            {
                "path": self.paths[module],
                "parent": self.stack[-1] if self.stack else None,
                "inputs": self._known(tensors),
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
        call["outputs"] = self._known(tensors_of(output))
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
        inputs = self._known(tensors_of((args, kwargs)))
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

    def _known(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
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
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        inputs = self._known(given)
        is_value = lambda a: isinstance(a, Tensor) and id(a) in self.index  # noqa: E731
        name = getattr(func, "__name__", str(func))
        if name == "__get__":  # a property: x.T, x.shape
            name = getattr(getattr(func, "__self__", None), "__name__", name)
        how = behaviour(name, args, kwargs, is_value)
        versions = [t._version for t in given]
        self._charge()
        start = self.clock() if self.clock else 0.0
        result = self.counter.call(func, args, kwargs) if self.counts else func(*args, **kwargs)
        taken = self.clock() - start if self.clock else 0.0
        written = [t for t, v in zip(given, versions, strict=True) if t._version != v and id(t) in self.index]
        made = [t for t in tensors_of(result) if id(t) not in self.weights]
        fresh = [t for t in made if not any(t is g for g in given)]
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


def tensors_of(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in order; objects with `to_tuple` (transformers) are opened."""
    if hasattr(tree, "to_tuple"):
        tree = tree.to_tuple()
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


def _constants(module: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[str, Any], ...]:
    """The arguments of a call, defaults included, that are no tensors but plain values."""
    try:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
    except (TypeError, ValueError):  # the call itself will say what is wrong
        return ()
    bound.apply_defaults()
    plain = (bool, int, float, str, type(None))
    found = [(name, value) for name, value in bound.arguments.items() if isinstance(value, plain)]
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    empty = [n for n, p in signature.parameters.items() if p.kind in stars and not bound.arguments.get(n)]
    return tuple([*found, *((name, ()) for name in empty)])


def _describe(network: nn.Module) -> dict[str, ModuleInfo]:
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for path, module in network.named_modules(remove_duplicate=False):
        names[module].append(path)
    hashes: dict[nn.Module, str] = {}
    return {
        paths[0]: ModuleInfo(
            path=paths[0],
            aliases=tuple(paths[1:]),
            kind=_kind(module),
            name=operation_name(module),
            structure=_structure(module, hashes),
            inplace=getattr(module, "inplace", False) is True,
            place=module.place if isinstance(module, NullEdge | CellOperation) else None,
            geometry=geometry(module),
            weights=sum(p.numel() for p in module.parameters(recurse=False)),
            has_state=next(_state(module), None) is not None,
            scripted=isinstance(module, torch.jit.ScriptModule),
        )
        for module, paths in names.items()
    }


def _kind(module: nn.Module) -> Any:
    if isinstance(module, (*CONVOLUTIONS, nn.modules.conv._ConvTransposeNd)):
        return "convolution"
    if isinstance(module, nn.Linear):
        return "linear"
    if is_norm(module):
        return "norm"
    if isinstance(module, NullEdge):
        return "null"
    if isinstance(module, CellOperation):
        return "operation"
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return "container"
    return "composite" if next(module.children(), None) is not None else "other"


def _structure(module: nn.Module, hashes: dict[nn.Module, str]) -> str:
    """A hash of what a module is made of: classes, child names, kernels and strides, but no widths."""
    if module not in hashes:
        text = type(module).__name__
        if isinstance(module, CONVOLUTIONS):
            text = f"{operation_name(module)} stride {module.stride}"
        if isinstance(module, CellOperation):
            text = module.name
        children = [(name, _structure(child, hashes)) for name, child in module.named_children()]
        hashes[module] = hashlib.sha256(json.dumps([text, children]).encode()).hexdigest()[:12]
    return hashes[module]
