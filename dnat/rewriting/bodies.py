"""What a module's forward does, in all that was recorded of a network: one list of steps, right in both modes.

Modules in it whose inside changes are opened: their steps become steps of the module around them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

from ..tracing import Program, Trace, has_hooks, repeated
from ..tracing.steps import (
    Attribute,
    Body,
    Description,
    Group,
    Property,
    Ref,
    Step,
    changed,
    changed_body,
    parts,
    renamed,
    renamed_step,
    resolved_lengths,
    unified,
)


class CannotRewriteError(Exception):
    """A forward that cannot be written anew, or a zero that reaches something that it cannot be dropped from."""


@dataclass(frozen=True)
class Recorded:
    """A forward's steps, with paths as seen from its module.

    Attributes:
        body: the steps.
        shapes: of its tensors, on the first example.
        memory: tells which of them share theirs.
        unread: what it gives beside others, and nobody reads.
    """

    body: Body
    shapes: Mapping[Ref, tuple[int, ...]]
    memory: Mapping[Ref, int]
    unread: frozenset[Ref]


def body_of(program: Program, place: str, opened: Collection[str]) -> Recorded:
    """What the module at a path does in every call that was seen.

    Args:
        program: of the network.
        place: the module's path.
        opened: paths of modules in it that are opened.

    Raises:
        CannotRewriteError: it does other things in one call than in another, or something that no list of steps
            tells.
    """
    bodies: dict[tuple[str, frozenset[str]], Recorded] = program.analyses.setdefault("bodies", {})
    key = (place, frozenset(opened))
    if key not in bodies:
        bodies[key] = _in_both_modes(program, place, opened)
    return bodies[key]


def _in_both_modes(program: Program, place: str, opened: Collection[str]) -> Recorded:
    what = place or "the network"
    modes = []
    for training in (True, False):
        traces = [trace for trace in program.traces if trace.training is training]
        modes.append([_alone(program.network, t, c, place, opened) for t in traces for c in t.calls_of(place)])
    if not all(modes):
        raise CannotRewriteError(f"{what} is not called in both modes")
    for recorded in modes:
        if any(other.body != recorded[0].body for other in recorded):
            raise CannotRewriteError(f"{what} does other things in one call than in another")
    train, evaluation = (recorded[0] for recorded in modes)
    both = unified(train.body, evaluation.body)
    if both is None:
        raise CannotRewriteError(f"{what} does other things in train than in eval mode")
    if any(step.is_number() or step.kind == "decision" for step in both.steps):
        both = _for_all_sizes(program, place, opened, evaluation.body, both)
    unread = frozenset.intersection(*(one.unread for recorded in modes for one in recorded))
    return replace(evaluation, body=both, unread=unread)


def _for_all_sizes(program: Program, place: str, opened: Collection[str], body: Body, both: Body) -> Body:
    """The steps in both modes, as they are whatever the batch.

    Raises:
        CannotRewriteError: other things are done for more images, or for larger ones.
    """
    what = place or "the network"
    others = {
        name: [_alone(program.network, trace, call, place, opened).body for call in trace.calls_of(place)]
        for name, trace in repeated(program).items()
    }
    for more in others.get("more", ()):
        one, other = resolved_lengths(body, more)
        if one != other:
            raise CannotRewriteError(f"the batch decides what {what} does")
        both = resolved_lengths(both, more)[0]
    for larger in others.get("larger", ()):
        if larger != body and larger.decisions() == body.decisions():
            raise CannotRewriteError(f"sizes decide what {what} does")
    return both


def _alone(network: nn.Module, trace: Trace, call: int, place: str, opened: Collection[str]) -> Recorded:
    """A call's steps with values counted from 0, and paths as seen from its module."""
    for number in opened_calls(trace, call, opened):
        path = trace.calls[number].path
        if trace.calls[number].keeps:
            raise CannotRewriteError(f"{path or 'the network'} changes its attributes")
        if has_hooks(network.get_submodule(path)):
            raise CannotRewriteError(f"{path or 'the network'} has hooks")
    body = changed_body(inlined(trace, call, opened), lambda d: relative(d, place))
    steps = tuple(replace(s, target=within(s.target, place)) if s.kind == "module" else s for s in body.steps)
    body, names = numbered(replace(body, steps=steps), place)
    values = {new: trace.named[old.index] for old, new in names.items()}
    shapes = {ref: trace.values[value].shape for ref, value in values.items() if value >= 0}
    unread = {
        ref for ref in parts([body.result], Ref) if body.result != ref and not _is_read(trace, call, values[ref])
    }
    memory = {new: trace.memory[old.index] for old, new in names.items()}
    return Recorded(body, shapes, memory, frozenset(unread))


def _is_read(trace: Trace, call: int, value: int) -> bool:
    """Whether something beyond a call reads a value; of what is no tensor that is not known."""
    if value < 0 or value in trace.outputs:
        return True
    return any(call not in trace.operations[user].scope for user in trace.users[value])


def opened_calls(trace: Trace, call: int, opened: Collection[str]) -> Iterator[int]:
    """A call, and those in it whose steps become its own."""
    yield call
    for step in trace.calls[call].body.steps:
        if step.call is not None and trace.calls[step.call].path in opened:
            yield from opened_calls(trace, step.call, opened)


def inlined(trace: Trace, number: int, opened: Collection[str]) -> Body:
    """The steps of a call, with those of opened modules in the place of their calls; values and paths as in the
    trace.

    Raises:
        CannotRewriteError: steps do not tell all that it does.
    """
    call = trace.calls[number]
    if call.closed:
        raise CannotRewriteError(f"{call.path or 'the network'}: {call.closed}")
    names: dict[Ref, Description] = {}
    steps: list[Step] = []
    for step in call.body.steps:
        step = renamed_step(step, names)
        if step.call is None or trace.calls[step.call].path not in opened:
            steps.append(step)
            continue
        inner = inlined(trace, step.call, opened)
        own: dict[Ref, Description] = {}
        for (_, param), (_, given) in zip(inner.params, step.given, strict=True):
            _match(param, given, own)
        steps += [renamed_step(s, own) for s in inner.steps]
        _match(step.result, changed(inner.result, renamed(own)), names)
    return Body(call.body.params, tuple(steps), changed(call.body.result, renamed(names)))


def _match(inner: Description, outer: Description, names: dict[Ref, Description]) -> None:
    """Note what values of one forward are in another, where the same structure was described in both."""
    if isinstance(inner, Ref):
        names[inner] = outer
    elif isinstance(inner, Group) and isinstance(outer, Group):
        for one, other in zip(inner.items, outer.items, strict=True):
            _match(one, other, names)


def within(path: str, place: str) -> str:
    """A path as seen from a module that is around it.

    Raises:
        CannotRewriteError: the module is not around it.
    """
    if not place:
        return path
    if not path.startswith(f"{place}."):
        raise CannotRewriteError(f"{place} uses {path}, which is not a part of it")
    return path[len(place) + 1 :]


def relative(description: Description, place: str) -> Description:
    """A description with the paths in it as seen from a module that is around it; see `within`."""
    if isinstance(description, Property) and isinstance(description.of, Attribute):
        return Property(Attribute(within(description.of.path, place)), description.name)
    return Attribute(within(description.path, place)) if isinstance(description, Attribute) else description


def numbered(body: Body, place: str) -> tuple[Body, dict[Ref, Ref]]:
    """A body with its values counted in order of appearance, and what each was called before.

    Raises:
        CannotRewriteError: it uses a value that it neither makes nor is given.
    """
    if any(body.free()):
        raise CannotRewriteError(f"{place or 'the network'} uses what other modules keep")
    made = (*(d for _, d in body.params), *(step.result for step in body.steps))
    names = {ref: Ref(number) for number, ref in enumerate(dict.fromkeys(parts(made, Ref)))}
    return changed_body(body, renamed(names)), names
