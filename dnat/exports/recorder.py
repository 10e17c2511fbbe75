"""One run of a network -> what every module's forward does, step by step.

The network runs as it is, with real tensors, under a `TorchFunctionMode` that notes every torch function by name;
sizes read from a tensor's shape are numbers that remember where they come from. So no symbolic tracer has to
follow the code, and what depends on the batch stays an expression of it. Each module that is not one of torch's
layers gets a body of its own. Where it cannot have one (a module that does something else at each call, or that
reads what another module keeps), it is opened: its steps become steps of the module around it.
"""

import builtins
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from .construction import HOOKS, NotConstructibleError, construction, is_sequence, text
from .numbers import Int, Tracked, plain, tracked
from .steps import Attribute, Body, Description, Group, Literal, Property, Ref, Step, grouped, mapped, refs

_SHAPES = {"shape.__get__", "size", "__len__", "numel", "nelement"}
_STATIC = set(
    """dim ndimension stride element_size get_device type result_type can_cast promote_types type_code
    __format__ __repr__ __str__ __hash__ has_names""".split()  # noqa: SIM905
)
_STATIC_FIELDS = {
    "ndim",
    "dtype",
    "device",
    "layout",
    "requires_grad",
    "grad_fn",
    "itemsize",
    "names",
    "output_nr",
}


_OPPOSITE = {"<": ">=", "<=": ">", ">": "<=", ">=": "<", "==": "!=", "!=": "=="}


class RefusedError(Exception):
    """A network whose forward cannot be written as a file of its own."""


class OpenError(Exception):
    """These modules cannot have a body of their own."""

    def __init__(self, paths: set[str]) -> None:
        super().__init__(", ".join(sorted(paths)))
        self.paths = paths


class Scope:
    """The forward of one module while it runs."""

    def __init__(self, recorder: "Recorder", module: nn.Module, path: str) -> None:
        self.recorder, self.module, self.path = recorder, module, path
        self.steps: list[Step] = []
        self.refs: dict[int, Ref] = {}
        self.reads: dict[tuple[str, Any], Ref | Attribute] = {}
        self.shapes: dict[int, tuple[Int, ...]] = {}
        self.held = recorder.held(module)
        self.count = 0

    def new(self) -> Ref:
        """The next value's name."""
        self.count += 1
        return Ref(self.count - 1)

    def bind(self, value: Any) -> Any:
        """Make tensors and tracked numbers in a structure values of this forward; returns them as such."""
        return mapped(value, self._bind)

    def _bind(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) in self.refs or id(value) in self.held:
                # Under a name of its own: what a layer returns unchanged in one mode, it may not in the other.
                value = self.recorder.alias(value)
            self.refs[id(value)] = self.new()
            self.recorder.keep(value, self)
        elif isinstance(value, Tracked):
            return tracked(plain(value), self, self.new())
        return value

    def number(self, symbol: str, operands: tuple[Any, ...], value: Any) -> Any:
        """Note arithmetic on tracked numbers."""
        if type(value) not in (int, float):
            return value
        self.recorder.expect(self)
        args = tuple(self.describe(o) for o in operands)
        result = tracked(value, self, self.new())
        self.steps.append(Step("number", symbol, args, (), result.ref))
        return result

    def decision(self, symbol: str, operands: tuple[Any, ...], holds: bool) -> None:
        """Note a comparison of tracked numbers."""
        if self.recorder.paused or not self.recorder.scopes:
            return
        self.recorder.expect(self)
        args = tuple(self.describe(o) for o in operands)
        step = Step("decision", symbol if holds else _OPPOSITE[symbol], args, (), Literal("None"))
        if step not in self.steps:
            self.steps.append(step)

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The sizes of a tensor, tracked unless a module holds it."""
        sizes = tuple(torch.Tensor.size(tensor))
        if id(tensor) in self.held and id(tensor) not in self.refs:
            return sizes
        self.recorder.sized = True
        known = self.shapes.get(id(tensor))
        if known is None or tuple(map(plain, known)) != sizes:
            known = tuple(tracked(n, self, self.new()) for n in sizes)
            self.shapes[id(tensor)] = known
            result = Group("tuple", tuple(n.ref for n in known))
            self.steps.append(Step("shape", "shape", (self.describe(tensor),), (), result))
        return known

    def add(self, kind: str, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        """Note a step whose arguments were these and whose result this is; returns the result to hand on."""
        described = tuple(self.describe(a) for a in args)
        named = tuple((k, self.describe(v)) for k, v in kwargs.items())
        result = self.bind(result)
        step = Step(kind, target, described, named, self.describe(result), torch.is_grad_enabled())
        self.steps.append(step)
        return result

    def describe(self, value: Any) -> Description:
        """A value of this forward, or a constant, as data.

        Raises:
            RefusedError: it is neither.
        """
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Tracked):
            if value.scope is not self:
                self.recorder.opening(value.scope, self)
            return value.ref
        group = grouped(value)
        if group is not None:
            kind, items, keys = group
            return Group(kind, tuple(self.describe(i) for i in items), keys)
        return self._constant(value)

    def _tensor(self, value: Tensor) -> Description:
        if id(value) in self.refs:
            return self.refs[id(value)]
        if id(value) in self.held:
            return self._held(value)
        owner = self.recorder.owners.get(id(value))
        if owner is not None:
            self.recorder.opening(owner, self)
        if id(value) in self.recorder.held(self.recorder.network):
            self.recorder.opening(self.recorder.scopes[0], self)
        raise RefusedError(
            "it uses a tensor that neither torch's Python functions made nor a registered module holds"
        )

    def _held(self, value: Tensor) -> Description:
        found = self.held[id(value)]
        if isinstance(found, Attribute) and id(value) not in self.recorder.registered:
            self.recorder.constants.add(f"{self.path}.{found.path}".lstrip("."))
        if isinstance(found, str):
            raise RefusedError(f"it keeps tensors in {found}: register them as buffers")
        return found

    def _constant(self, value: Any) -> Description:
        for kind, of_kind in (("device", torch.device), ("dtype", torch.dtype)):
            if isinstance(value, of_kind):
                if (kind, value) in self.reads:
                    return Property(self.reads[kind, value], kind)
                if kind == "device" and self.refs and value == self.recorder.device:
                    return Property(next(iter(self.refs.values())), kind)
        try:
            return Literal(text(value))
        except NotConstructibleError:
            raise RefusedError(f"it hands a {type(value).__name__} on") from None


# One run


class Recorder(TorchFunctionMode):
    """One run of one copy of a network.

    Args:
        network: the copy; its modules are given recording forwards.
        opened: modules that get no body of their own.
    """

    def __init__(self, network: nn.Module, opened: set[str]) -> None:
        super().__init__()
        self.network, self.opened = network, opened
        self.scopes: list[Scope] = []
        self.bodies: dict[str, Body] = {}
        self.owners: dict[int, Scope] = {}
        self.constants: set[str] = set()
        self.sized = False
        self.paused = False
        self.grad = True
        self.failure: Exception | None = None
        self._alive: list[Tensor] = []
        self._held: dict[nn.Module, dict[int, Attribute | Literal | str]] = {}
        tensors = [*network.parameters(), *network.buffers()]
        self.registered = {id(t) for t in tensors}
        self.device = tensors[0].device if tensors else torch.device("cpu")
        self.autocast = torch.is_autocast_enabled(self.device.type)
        self.paths: dict[nn.Module, str] = {}
        for path, module in network.named_modules():
            self.paths[module] = path
        self.leaves = {m for m in self.paths if _is_leaf(m)} - {network}
        for module in self.paths:
            module.forward = functools.partial(self._call, module, module.forward)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the network once."""
        length = builtins.len
        # Python makes a plain number of what `__len__` returns, so that the batch in `len(x)` would be lost.
        builtins.len = lambda x: self._length(x) if isinstance(x, Tensor) else length(x)
        try:
            with self, torch.enable_grad():
                self.network(*args, **kwargs)
        finally:
            builtins.len = length
        if self.failure is not None:
            raise self.failure

    @staticmethod
    def _length(tensor: Tensor) -> int:
        return tensor.shape[0] if tensor.dim() else tensor.__len__()

    def alias(self, value: Tensor) -> Tensor:
        """The same memory as another tensor."""
        paused, self.paused = self.paused, True
        try:
            return torch.ops.aten.alias(value)
        finally:
            self.paused = paused

    def keep(self, value: Tensor, owner: Scope) -> None:
        """Keep a tensor, so that no other gets its id, and who made it."""
        self._alive.append(value)
        self.owners[id(value)] = owner

    def expect(self, scope: Scope) -> None:
        """Note that a forward is added to, which must be the one that runs."""
        if self.scopes[-1] is not scope:
            self.opening(scope, self.scopes[-1])

    def opening(self, owner: Scope, user: Scope) -> None:
        """Open the modules that stand between a value and its use."""
        if owner in self.scopes:
            paths = {s.path for s in self.scopes[self.scopes.index(owner) + 1 :]}
        else:
            running = {s.path for s in self.scopes}
            paths = ({owner.path, *self._around(owner.path)} - running) or {user.path}
        self.failure = OpenError(paths - {""})
        raise self.failure

    def _around(self, path: str) -> Iterator[str]:
        while "." in path:
            path = path.rpartition(".")[0]
            yield path

    def held(self, module: nn.Module) -> dict[int, Attribute | Literal | str]:
        """{id: description} of the tensors that a module and its children hold; text where they have no name."""
        if module not in self._held:
            found: dict[int, Attribute | Literal | str] = {}
            for name, child in module.named_modules(remove_duplicate=False):
                prefix = f"{name}." if name else ""
                for key, value in _tensors(child):
                    found.setdefault(id(value), Attribute(prefix + key))
            for child in module.modules():
                for key, value in vars(child).items():
                    if not key.startswith("_") and isinstance(value, list | tuple | dict):
                        for leaf in tree_leaves(value):
                            if isinstance(leaf, Tensor):
                                found.setdefault(id(leaf), _spelled(leaf, f"{type(child).__name__}.{key}"))
            self._held[module] = found
        return self._held[module]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused or not self.scopes:
            return func(*args, **kwargs)
        try:
            return self._function(self.scopes[-1], func, args, kwargs)
        except (RefusedError, OpenError) as error:
            self.failure = self.failure or _located(error, self.scopes[-1])
            raise self.failure from None

    def _function(self, scope: Scope, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        short = name.removeprefix("torch.Tensor.")
        if name == "_set_grad_enabled":
            self.grad = args[0]
        if name in ("_set_grad_enabled", "_assert", "torch.device"):
            return func(*args, **kwargs)
        if short in _SHAPES or name == "torch.numel":
            return _sizes(scope, short.removeprefix("torch."), args, kwargs)
        plain_args, plain_kwargs = mapped(args, plain), {k: mapped(v, plain) for k, v in kwargs.items()}
        result = func(*plain_args, **plain_kwargs)
        if torch.is_grad_enabled() is not self.grad:
            raise RefusedError(
                "it switches gradients off otherwise than by torch.no_grad (a torch.autograd.Function?)"
            )
        if torch.is_autocast_enabled(self.device.type) is not self.autocast:
            raise RefusedError("it switches autocast on or off")
        if not _has_tensor(result):
            return self._without_tensor(scope, short, args, result)
        if name.startswith("torch.Tensor."):
            kind, target = (
                ("attribute", short[: -len(".__get__")]) if short.endswith(".__get__") else ("method", short)
            )
        else:
            kind, target = "function", _public(name, func)
        return scope.add(kind, target, args, kwargs, result)

    def _without_tensor(self, scope: Scope, name: str, args: tuple[Any, ...], result: Any) -> Any:
        """A function that gives no tensor: it reads what never changes, or it writes, or it is refused."""
        field_name = name.removesuffix(".__get__")
        if name in _STATIC or field_name in _STATIC_FIELDS or field_name.startswith(("is_", "torch.is_")):
            if field_name in ("device", "dtype"):
                of = scope.describe(args[0])
                assert isinstance(of, Ref | Attribute)
                scope.reads[field_name, result] = of
            return result
        if name == "__setitem__":
            return scope.add("method", name, args, {}, None)
        raise RefusedError(f"it lets values of tensors decide or leave torch ({name.removeprefix('torch.')})")

    def _call(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        path = self.paths[module]
        if self.paused or (path in self.opened and self.scopes):
            return forward(*args, **kwargs)
        if any(getattr(module, name, None) for name in HOOKS):
            raise self._refused(f"{path or 'the network'} has hooks")
        if not self.scopes:
            return self._body(module, path, forward, args, kwargs)[1]
        parent = self.scopes[-1]
        inside = self._inside(parent, module)
        if module in self.leaves:
            self.paused = True
            try:
                result = forward(*mapped(args, plain), **mapped(kwargs, plain))
            finally:
                self.paused = False
            try:
                return parent.add("module", inside, args, kwargs, result)
            except RefusedError as error:
                raise self._refused(str(error)) from None
        described, result = self._body(module, path, forward, args, kwargs)
        try:
            passed = [v for (_, v), keep in zip(_arguments(forward, args, kwargs), described, strict=True) if keep]
            return parent.add("module", inside, tuple(passed), {}, result)
        except RefusedError:
            self.failure = OpenError({path})
            raise self.failure from None

    def _inside(self, parent: Scope, module: nn.Module) -> str:
        for name, child in parent.module.named_modules(remove_duplicate=False):
            if child is module:
                return name
        self.failure = OpenError({s.path for s in self.scopes[1:]})
        raise self.failure

    def _refused(self, reason: str) -> Exception:
        self.failure = self.failure or _located(RefusedError(reason), self.scopes[-1] if self.scopes else None)
        return self.failure

    def _body(
        self,
        module: nn.Module,
        path: str,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> tuple[list[bool], Any]:
        """Run a module's forward as one of its own; tells which of its arguments hold values, and the result."""
        scope = Scope(self, module, path)
        args, kwargs = scope.bind(args), {k: scope.bind(v) for k, v in kwargs.items()}
        self.scopes.append(scope)
        try:
            params = [(n, scope.describe(v)) for n, v in _arguments(forward, args, kwargs)]
            result = forward(*args, **kwargs)
            kept = [len(self.scopes) == 1 or any(refs(d)) for _, d in params]
            body = Body(
                tuple(p for p, keep in zip(params, kept, strict=True) if keep),
                tuple(scope.steps),
                scope.describe(result),
            )
        except RefusedError as error:
            # An argument or a result that cannot be written: seen from the module around it may be well.
            self.failure = self.failure or (OpenError({path}) if path else _located(error, scope))
            raise self.failure from None
        finally:
            self.scopes.pop()
        if self.bodies.setdefault(path, body) != body and not is_sequence(module):
            self.failure = OpenError({path})
            raise self.failure
        return kept, result


def _is_leaf(module: nn.Module) -> bool:
    try:
        construction(module)
    except NotConstructibleError:
        return False
    return True


def _located(error: Exception, scope: Scope | None) -> Exception:
    if not isinstance(error, RefusedError) or scope is None or getattr(error, "located", False):
        return error
    made = RefusedError(f"{scope.path or 'the network'} ({type(scope.module).__name__}): {error}")
    made.located = True  # type: ignore[attr-defined]
    return made


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and plain tensors that are direct attributes of a module."""
    for values in (module._parameters, module._buffers, vars(module)):
        for key, value in values.items():
            if isinstance(value, Tensor):
                yield key, value


def _spelled(tensor: Tensor, where: str) -> Literal | str:
    if tensor.numel() > 16 or tensor.requires_grad:
        return where
    return Literal(f"torch.tensor({text(tensor.tolist())}, dtype={tensor.dtype})")


def _has_tensor(result: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(result))


def _sizes(scope: Scope, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor = args[0]
    sizes = scope.shape(tensor)
    if name == "__len__":
        return sizes[0]
    if name in ("numel", "nelement"):
        count = math.prod(map(plain, sizes))
        if id(tensor) in scope.held:
            return count
        return scope.add("method", "numel", (tensor,), {}, tracked(count, scope, scope.new()))
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return torch.Size(sizes) if dim is None else sizes[dim]


def _public(name: str, func: Any) -> str:
    """The name under which a file that imports torch finds a function.

    Raises:
        RefusedError: there is none.
    """
    if name.startswith("torch.functional."):
        name = "torch." + name.removeprefix("torch.functional.")
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = f"torch.ops.{func}"
        if name.startswith(("torch.ops.aten.", "torch.ops.prims.")):
            return name
    for candidate in (name, f"torch.{name}", f"{getattr(func, '__module__', None)}.{name}"):
        if candidate.startswith("torch.") and not name.startswith("torch.ops.") and callable(_found(candidate)):
            return candidate
    raise RefusedError(f"it calls {name}, which torch alone does not have")


def _found(name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split(".")[1:], torch)
    except AttributeError:
        return None


def _arguments(
    forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    """The arguments of a call by name, as they stand in the signature."""
    signature = inspect.signature(forward)
    found: list[tuple[str, Any]] = []
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found += [(f"{name}_{i}", v) for i, v in enumerate(value)]
        elif kind is inspect.Parameter.VAR_KEYWORD:
            found += value.items()
        else:
            found.append((name, value))
    return found
