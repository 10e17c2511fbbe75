"""A recorded run -> one body for each module that is to be written.

A module that cannot have one (it does something else at each call, or reads what another module keeps) is opened:
its steps become steps of the module around it.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import nn

from ..rewriting.bodies import CannotRewriteError, inlined, numbered, opened_calls, relative, within
from ..tracing import Trace, has_hooks
from ..tracing.functions import function_of
from ..tracing.steps import (
    Body,
    Description,
    Group,
    Literal,
    Ref,
    Step,
    Unknown,
    changed_body,
    parts,
    refs,
)
from .construction import is_leaf, is_sequence


class RefusedError(Exception):
    """A network whose forward cannot be written as a file of its own."""


class OpenError(Exception):
    """These modules cannot have a body of their own."""

    def __init__(self, paths: set[str]) -> None:
        super().__init__(", ".join(sorted(paths)))
        self.paths = paths


@dataclass
class Modules:
    """What is known of a network's modules, whatever it is run on.

    Attributes:
        network: the network.
        leaves: those that are written as the call of their constructor.
        sequences: those that are written as `nn.Sequential`.
        opened: those that get no body of their own, so far.
    """

    network: nn.Module
    leaves: frozenset[str]
    sequences: frozenset[str]
    opened: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, network: nn.Module) -> "Modules":
        """A network's.

        Raises:
            RefusedError: one has hooks.
        """
        modules = dict(network.named_modules())
        leaves = frozenset(path for path, module in modules.items() if path and is_leaf(module))
        for path, module in modules.items():
            # What a hook does after a forward is recorded with it, but not what it does to a layer of torch's.
            if module._forward_pre_hooks or (path in leaves and has_hooks(module)):
                raise RefusedError(f"{path or 'the network'} has hooks")
        return cls(network, leaves, frozenset(path for path, m in modules.items() if is_sequence(m)))

    def open(self, paths: set[str]) -> None:
        """Open more; what is called by nothing but a sequence is opened with that.

        Raises:
            RefusedError: they are opened already.
        """
        for path in [*paths]:
            around = path.rpartition(".")[0]
            while around in self.sequences and around:
                paths = paths | {around}
                around = around.rpartition(".")[0]
        if not paths - self.opened - {""}:
            raise RefusedError(f"{min(paths, default='') or 'the network'} uses what other modules keep")
        self.opened |= paths - {""}

    def bodies(self, trace: Trace) -> dict[str, Body]:
        """The body of each module in a run; opens modules until each can have one.

        Raises:
            RefusedError: the network cannot be written; the reason is the message.
        """
        while True:
            try:
                return _Run(self, trace).bodies()
            except OpenError as error:
                self.open(error.paths)


class _Run:
    """One run, as written with the modules that are opened so far."""

    def __init__(self, modules: Modules, trace: Trace) -> None:
        self.modules, self.trace = modules, trace
        self.makers: dict[Ref, int] = {}
        for number, call in enumerate(trace.calls):
            made = (*(d for _, d in call.body.params), *(s.result for s in call.body.steps))
            self.makers |= dict.fromkeys(parts(made, Ref), number)

    def bodies(self) -> dict[str, Body]:
        """See `Modules.bodies`."""
        bodies: dict[str, Body] = {}
        for number, call in enumerate(self.trace.calls):
            inside = any(self.trace.calls[c].path in self.modules.leaves for c in call.scope)
            if inside or (call.path in self.modules.opened and call.parent is not None):
                continue
            body = self._body(number)
            if bodies.setdefault(call.path, body) != body and call.path not in self.modules.sequences:
                raise OpenError({call.path})
        return bodies

    def _body(self, number: int) -> Body:
        path = self.trace.calls[number].path
        for call in opened_calls(self.trace, number, self.modules.opened):
            if self.trace.calls[call].closed:
                raise self._refused(call, self.trace.calls[call].closed)
        body = inlined(self.trace, number, self.modules.opened)
        for kind, description in self._unknown(body, root=not path):
            if path and kind != "step":
                raise OpenError({path})
            raise self._refused(number, description.why)
        steps = tuple(self._step(number, step) for step in body.steps)
        params = tuple((name, d) for name, d in body.params if not path or any(refs(d)))
        result = body.result if path else _without(body.result, self.trace.objects)
        body = Body(params, steps, result)
        for ref in body.free():
            raise OpenError(self._between(number, self.makers[ref]))
        try:
            return numbered(changed_body(body, lambda d: relative(d, path)), path)[0]
        except CannotRewriteError:
            raise OpenError({path}) from None

    def _unknown(self, body: Body, *, root: bool) -> Iterator[tuple[str, Unknown]]:
        yield from (("param", u) for u in parts((d for _, d in body.params), Unknown))
        for step in body.steps:
            given: Iterable[Description] = (*step.args, *(v for _, v in step.kwargs))
            called = self.trace.calls[step.call].path if step.call is not None else ""
            if called and called not in self.modules.leaves and any(parts(given, Unknown)):
                raise OpenError({called})
            yield from (("step", u) for u in parts(given, Unknown))
        if not root:
            yield from (("result", u) for u in parts([body.result], Unknown))

    def _step(self, number: int, step: Step) -> Step:
        """A step as it is written: functions by a name that torch has, modules with what their bodies take."""
        path = self.trace.calls[number].path
        if step.kind == "function" and function_of(step.target) is None:
            raise self._refused(number, f"it calls {step.target}, which torch alone does not have")
        if step.call is None:
            return replace(step, given=())
        target = self.trace.calls[step.call].path
        try:
            name = within(target, path)
        except CannotRewriteError:
            raise OpenError({path}) from None
        if target in self.modules.leaves:
            return replace(step, target=name, given=())
        takes = [any(refs(d)) for _, d in self.trace.calls[step.call].body.params]
        args = tuple(d for (_, d), takes_it in zip(step.given, takes, strict=True) if takes_it)
        return replace(step, target=name, args=args, kwargs=(), given=())

    def _between(self, user: int, maker: int) -> set[str]:
        """The modules that stand between a value and its use."""
        one, other = (self.trace.calls[c].scope for c in (user, maker))
        return {self.trace.calls[c].path for c in set(one) ^ set(other)}

    def _refused(self, number: int, why: str) -> RefusedError:
        path = self.trace.calls[number].path
        kind = type(self.modules.network.get_submodule(path)).__name__
        return RefusedError(f"{path or 'the network'} ({kind}): {why}")


def _without(description: Description, objects: Collection[Ref]) -> Description:
    """A description without objects that no file holds: of fields nothing is left, elsewhere stands None."""
    if isinstance(description, Unknown) or description in objects:
        return Literal("None")
    if not isinstance(description, Group):
        return description
    pairs = list(enumerate(description.items))
    if description.kind.startswith("."):
        pairs = [(i, item) for i, item in pairs if not (isinstance(item, Unknown) or item in objects)]
    keys = tuple(description.keys[i] for i, _ in pairs) if description.keys else ()
    return replace(description, items=tuple(_without(item, objects) for _, item in pairs), keys=keys)
