"""Branches are dropped from a forward's steps: their zeros vanish, and what fed nothing else goes with them."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..tracing import GATHERING, Program, State, behaviour, changed_states
from ..tracing.steps import (
    Attribute,
    Body,
    Description,
    Group,
    Literal,
    Ref,
    Step,
    changed,
    parts,
    renamed,
    renamed_step,
)
from .bodies import CannotRewriteError, Recorded, body_of, within
from .graphs import check_steps, modules_of


def without_branches(
    program: Program, place: str, opened: Collection[str], ends: Iterable[str], passed: Collection[str] = ()
) -> Body:
    """The steps of the module at a path without some of its branches.

    Args:
        program: of the network.
        place, opened: see `body_of`.
        ends: paths of the modules at which the branches end.
        passed: paths of modules in whose place stands something that makes zeros of zeros, such as an identity.

    Raises:
        CannotRewriteError: it cannot be done exactly; the message tells why.
    """
    ends = set(ends)
    # An edge within one that is dropped, too, would open that one, and its zero would not be seen as one.
    recorded = body_of(program, place, frozenset(opened) - ends)
    body = _Dropping(program, place, {within(end, place) for end in ends}, recorded, passed).body()
    left = needed(body, recorded.memory)
    if recorded.unread:
        # What nobody reads is given only if that takes nothing that could go with a branch.
        nothing = renamed(dict.fromkeys(recorded.unread, Literal("None")))
        lean = needed(replace(body, result=changed(body.result, nothing)), recorded.memory)
        left = lean if modules_of(lean) < modules_of(left) else left
    check_steps(left)
    return left


class _Dropping:
    """Goes through the steps once, with zeros where branches ended.

    Args:
        program, place: whose steps these are.
        ends: paths of the modules that give zeros, as seen from the module.
        recorded: its steps.
        passed: see `without_branches`.
    """

    def __init__(
        self, program: Program, place: str, ends: Collection[str], recorded: Recorded, passed: Collection[str]
    ) -> None:
        self.program, self.place, self.ends, self.recorded = program, place, ends, recorded
        self.passed = passed
        self.zeros: set[Ref] = set()
        self.names: dict[Ref, Description] = {}
        self.steps: list[Step] = []
        self.count = len(recorded.memory)

    def body(self) -> Body:
        """What remains to be done."""
        body = self.recorded.body
        for step in body.steps:
            self._step(renamed_step(step, self.names))
        result = changed(body.result, renamed(self.names))
        if not self.zeros.isdisjoint(parts([result], Ref)):
            raise CannotRewriteError(f"{self.place or 'the network'} reads the branch elsewhere, too")
        return replace(body, steps=tuple(self.steps), result=result)

    def _step(self, step: Step) -> None:
        if step.kind == "module" and step.target in self.ends:
            self.zeros.update(parts([step.result], Ref))
            return
        read = list(step.inputs())
        lost = [ref for ref in read if ref in self.zeros]
        if not lost:
            self.steps.append(step)
        elif _name(step) in GATHERING and len(lost) < len(read):
            self._gather(step)
        else:
            left = self._left(step, read)
            if left is None:
                self.zeros.update(parts([step.result], Ref))
            elif isinstance(step.result, Ref):
                self.names[step.result] = left

    def _left(self, step: Step, read: list[Ref]) -> Description | None:
        """What takes a step's place when some operands are zero: None if it is zero as well, or an operand."""
        every = all(ref in self.zeros for ref in read)
        if step.kind == "module":
            if every and self._keeps_zero(step.target):
                return None
            raise CannotRewriteError(f"{step.target} would be given zeros")
        args = tuple(map(_plainly, step.args))
        kwargs = {name: _plainly(value) for name, value in step.kwargs}
        how = behaviour(_name(step), args, kwargs, lambda a: isinstance(a, Ref))
        if how == "add":
            rest = [ref for ref in read if ref not in self.zeros]
            return rest[0] if rest else None
        if how == "multiply" or (how == "homogeneous" and read[0] in self.zeros) or (how == "gather" and every):
            return None
        raise CannotRewriteError(f"{_name(step)} would join data with zeros")

    def _keeps_zero(self, target: str) -> bool:
        """Whether a module, given zeros, gives zeros, in every call that was seen."""
        path = f"{self.place}.{target}" if self.place else target
        if path in self.passed:
            return True
        for trace in self.program.traces:
            for call in (trace.calls[i] for i in trace.calls_of(path)):
                states = changed_states(trace, call.inputs, last=max(call.outputs, default=-1))
                if any(states.get(v, trace.states[v]) is not State.ZERO for v in call.outputs):
                    return False
        return True

    def _gather(self, step: Step) -> None:
        """Put zeros that cost nothing in the place of a gathering's zero operands."""
        kwargs = dict(step.kwargs)
        operands = step.args[0] if step.args else kwargs.get("tensors")
        if not isinstance(operands, Group) or not all(isinstance(item, Ref) for item in operands.items):
            raise CannotRewriteError(f"{_name(step)} gathers something else than a list of tensors")
        dim = step.args[1] if len(step.args) > 1 else kwargs.get("dim", Literal("0", 0))
        assert isinstance(dim, Literal)
        like = next(ref for ref in operands.items if ref not in self.zeros)
        items = [
            self._zeros(_name(step), like, ref, dim.value) if ref in self.zeros else ref
            for ref in operands.items
            if isinstance(ref, Ref)
        ]
        group = replace(operands, items=tuple(items))
        if step.args:
            step = replace(step, args=(group, *step.args[1:]))
        else:
            step = replace(step, kwargs=tuple((k, group if k == "tensors" else v) for k, v in step.kwargs))
        self.steps.append(step)

    def _zeros(self, name: str, like: Description, lost: Ref, dim: int) -> Ref:
        if name == "stack":
            return self._made("function", "torch.zeros_like", like)
        # Batch and pixels may change from call to call; only the gathered dimension is fixed.
        size = [-1] * len(self.recorded.shapes[lost])
        size[dim] = self.recorded.shapes[lost][dim]
        thin = self._made("function", "torch.narrow", like, dim, 0, 1)
        zeros = self._made("function", "torch.zeros_like", thin)
        return self._made("method", "expand", zeros, Group("tuple", tuple(Literal(str(n), n) for n in size)))

    def _made(self, kind: str, target: str, *args: Any) -> Ref:
        """A step of our own."""
        result = Ref(self.count)
        self.count += 1
        known = (Ref, Group)
        described = tuple(a if isinstance(a, known) else Literal(str(a), a) for a in args)
        function = getattr(torch, target.rpartition(".")[2], None)
        self.steps.append(Step(kind, target, described, (), result, function=function))
        return result


def _name(step: Step) -> str:
    """The name of what a step calls, without underscores; empty for a module."""
    return step.target.rpartition(".")[2].strip("_") if step.kind != "module" else ""


def _plainly(description: Description) -> Any:
    """A constant's value; anything else as it is."""
    return description.value if isinstance(description, Literal) else description


def needed(body: Body, memory: Mapping[Ref, int]) -> Body:
    """A body without the steps that its result does not need.

    Args:
        body: the steps.
        memory: which values share memory: what writes into one that is needed is needed, too.
    """
    kept: set[int] = set()
    refs = set(parts([body.result], Ref))
    places = {memory.get(ref, -1) for ref in refs} - {-1}
    for number, step in reversed(list(enumerate(body.steps))):
        target = step.args[0] if step.args else None
        into = memory.get(target, -1) if isinstance(target, Ref) else -1
        held = step.writes == "state" or isinstance(target, Attribute)
        if refs.isdisjoint(parts([step.result], Ref)) and not (step.writes and (held or into in places)):
            continue
        kept.add(number)
        refs.update(step.inputs())
        places |= {memory.get(ref, -1) for ref in step.inputs()} - {-1}
    return replace(body, steps=tuple(_with_decisions(body, kept)))


def _with_decisions(body: Body, kept: Collection[int]) -> Iterable[Step]:
    """The kept steps, and the decisions about what is known then: sizes, and masks that no module makes."""
    known = {ref for _, d in body.params for ref in parts([d], Ref)}
    makers = {ref: number for number, step in enumerate(body.steps) for ref in parts([step.result], Ref)}
    chosen = set(kept)
    for number, step in enumerate(body.steps):
        decides = step.kind == "decision"
        if number in chosen:
            known.update(parts([step.result], Ref))
        elif decides or step.is_number():
            of_mask = decides and len(step.args) == 1
            wanted = _made_of(body, step.inputs(), known, makers, of_mask=of_mask)
            if wanted is not None and decides:
                chosen |= {number, *wanted}
            elif wanted is not None:
                known.update(parts([step.result], Ref))
    return (step for number, step in enumerate(body.steps) if number in chosen)


def _made_of(
    body: Body, refs: Iterable[Ref], known: Collection[Ref], makers: Mapping[Ref, int], *, of_mask: bool
) -> set[int] | None:
    """The steps that make values of what is known, without modules; None where that cannot be.

    Args:
        body, makers: the steps, and which of them makes each value.
        refs, known: the values, and what is known.
        of_mask: whether functions of tensors may be among the steps, and not only arithmetic on sizes.
    """
    wanted: set[int] = set()
    waiting = list(refs)
    while waiting:
        ref = waiting.pop()
        number = makers.get(ref)
        if number is None or number in wanted:
            continue
        step = body.steps[number]
        if not (step.is_number() or (of_mask and step.kind != "module" and not step.writes)):
            if ref in known:
                continue
            return None
        wanted.add(number)
        waiting += step.inputs()
    return wanted
