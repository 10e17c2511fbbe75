"""One run of a network -> what every module's forward does, step by step.

The network runs as it is, with real tensors, under a `TorchFunctionMode` that notes every torch function by name;
sizes read from a tensor's shape are numbers that remember where they come from. So no symbolic tracer has to
follow the code, and what depends on the batch stays an expression of it. Each module that is not one of torch's
layers gets a body of its own. Where it cannot have one (a module that does something else at each call, or that
reads what another module keeps), it is opened: its steps become steps of the module around it.
"""

import builtins
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from .construction import HOOKS, is_leaf, is_sequence
from .functions import SHAPES, arguments_of, has_tensor, public_name, sizes, without_tensor
from .numbers import plain
from .scope import OpenError, RefusedError, Scope, held_by, located
from .steps import Attribute, Body, Literal, mapped, refs


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
        self.leaves = {m for m in self.paths if is_leaf(m)} - {network}
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
        """See `held_by`."""
        if module not in self._held:
            self._held[module] = held_by(module)
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
            self.failure = self.failure or located(error, self.scopes[-1])
            raise self.failure from None

    def _function(self, scope: Scope, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = resolve_name(func) or getattr(func, "__name__", str(func))
        short = name.removeprefix("torch.Tensor.")
        if name == "_set_grad_enabled":
            self.grad = args[0]
        if name in ("_set_grad_enabled", "_assert", "torch.device"):
            return func(*args, **kwargs)
        if short in SHAPES or name == "torch.numel":
            return sizes(scope, short.removeprefix("torch."), args, kwargs)
        plain_args, plain_kwargs = mapped(args, plain), {k: mapped(v, plain) for k, v in kwargs.items()}
        result = func(*plain_args, **plain_kwargs)
        if torch.is_grad_enabled() is not self.grad:
            raise RefusedError(
                "it switches gradients off otherwise than by torch.no_grad (a torch.autograd.Function?)"
            )
        if torch.is_autocast_enabled(self.device.type) is not self.autocast:
            raise RefusedError("it switches autocast on or off")
        if not has_tensor(result):
            return without_tensor(scope, short, args, result)
        if name.startswith("torch.Tensor."):
            target = short.removesuffix(".__get__")
            kind = "method" if target == short else "attribute"
        else:
            kind, target = "function", public_name(name, func)
        return scope.add(kind, target, args, kwargs, result)

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
            passed = [
                v for (_, v), keep in zip(arguments_of(forward, args, kwargs), described, strict=True) if keep
            ]
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
        self.failure = self.failure or located(RefusedError(reason), self.scopes[-1] if self.scopes else None)
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
            params = [(n, scope.describe(v)) for n, v in arguments_of(forward, args, kwargs)]
            result = forward(*args, **kwargs)
            kept = [len(self.scopes) == 1 or any(refs(d)) for _, d in params]
            body = Body(
                tuple(p for p, keep in zip(params, kept, strict=True) if keep),
                tuple(scope.steps),
                scope.describe(result),
            )
        except RefusedError as error:
            # An argument or a result that cannot be written: seen from the module around it may be well.
            self.failure = self.failure or (OpenError({path}) if path else located(error, scope))
            raise self.failure from None
        finally:
            self.scopes.pop()
        if self.bodies.setdefault(path, body) != body and not is_sequence(module):
            self.failure = OpenError({path})
            raise self.failure
        return kept, result
