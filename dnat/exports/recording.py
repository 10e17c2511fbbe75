"""A network and its arguments -> what it does, in both modes and whatever the batch (`Recording`).

A run shows one way through a forward only. What values of tensors would decide is refused. What sizes decide is
noted, and other shapes are run and compared.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from ..errors import UserCodeError
from ..tracing import copied, doubled, enlarged, fixed_randomness, recorded, trained
from ..tracing.steps import Attribute, Body, Ref, Step, parts, resolved_lengths
from .bodies import Modules, RefusedError

T = TypeVar("T")


@dataclass
class Recording:
    """What a network does in both modes.

    Attributes:
        bodies: {module path: (in train mode, in eval mode)}; None where it was not called.
        constants: paths of tensors that modules hold as plain attributes.
        fixed: what of the inputs' shapes must be as in the example: "" nothing, "size" all but the batch, "batch"
            everything.
        lost: kinds of objects that the network gives and the file does not.
    """

    bodies: dict[str, tuple[Body | None, Body | None]]
    constants: set[str] = field(default_factory=set)
    fixed: str = ""
    lost: tuple[str, ...] = ()

    def decides(self) -> bool:
        """Whether sizes decide what is done."""
        bodies = (b for both in self.bodies.values() for b in both if b is not None)
        return any(body.decisions() for body in bodies)


def record(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """What a network does, in both modes and whatever the batch.

    Raises:
        RefusedError: its forward cannot be written as a file of its own; the reason is the message.
    """
    small = (args, kwargs)
    modules = Modules.of(network)
    evaluated = _run(network, False, small, recorded)
    taught, images = _run(network, True, small, trained)
    opened: set[str] | None = None
    while opened != modules.opened:
        opened = set(modules.opened)
        evaluation, train = modules.bodies(evaluated), modules.bodies(taught)
    fixed = ""
    many = _other(modules, False, doubled(small)), _other(modules, True, doubled(images))
    pairs = (_resolved(evaluation, many[0]), _resolved(train, many[1]))
    if any(one != other for one, other in pairs):
        fixed = "batch"
    elif _is_sized(evaluation) and _is_fixed(evaluation, _other(modules, False, enlarged(small))):
        fixed = "size"
    (evaluation, _), (train, _) = pairs
    paths = {**evaluation, **train}
    both = {p: (train.get(p), evaluation.get(p)) for p in paths}
    lost = tuple(
        evaluated.objects[r] for r in parts([evaluated.calls[0].body.result], Ref) if r in evaluated.objects
    )
    return Recording(both, _constants(network, both), fixed, lost)


def _run(network: nn.Module, training: bool, arguments: Any, run: Callable[..., T]) -> T:
    """What `recorded` or `trained` gives of a copy of a network, which runs on copies of the arguments."""
    args, kwargs = tree_map_only(torch.Tensor, torch.clone, arguments)
    try:
        with fixed_randomness():
            return run(copied(network).train(training), args, kwargs)
    except UserCodeError as error:
        mode = "train" if training else "eval"
        raise RefusedError(f"its forward fails on the example in {mode} mode: {error.__cause__}") from error


def _other(modules: Modules, training: bool, arguments: Any) -> dict[str, Body] | None:
    """The bodies for other arguments; None if the network does not take them or more would have to be opened."""
    before = set(modules.opened)
    try:
        bodies = modules.bodies(_run(modules.network, training, arguments, recorded))
        return bodies if modules.opened == before else {}
    except RefusedError:
        return None
    finally:
        modules.opened = before


def _resolved(
    bodies: dict[str, Body], others: dict[str, Body] | None
) -> tuple[dict[str, Body], dict[str, Body] | None]:
    """Bodies, and those for twice the images, in which `len` of a tensor is the size where the two differ."""
    if others is None or bodies.keys() != others.keys():
        return bodies, others
    pairs = {path: resolved_lengths(body, others[path]) for path, body in bodies.items()}
    return {path: one for path, (one, _) in pairs.items()}, {path: other for path, (_, other) in pairs.items()}


def _is_sized(bodies: dict[str, Body]) -> bool:
    return any(step.kind == "shape" for body in bodies.values() for step in body.steps)


def _is_fixed(bodies: dict[str, Body], larger: dict[str, Body] | None) -> bool:
    """Whether a size decided something that no comparison tells of (the number of rounds of a loop)."""
    if larger is None or larger == bodies:
        return False  # what the network itself does not take the written code does not take either
    return _decisions(larger) == _decisions(bodies)


def _decisions(bodies: dict[str, Body]) -> dict[str, list[Step]]:
    return {path: body.decisions() for path, body in bodies.items()}


def _constants(network: nn.Module, bodies: dict[str, tuple[Body | None, Body | None]]) -> set[str]:
    """Paths of the tensors in bodies that are neither parameters nor buffers."""
    held = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    held |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    used = set()
    for path, both in bodies.items():
        for body in both:
            steps = body.steps if body else ()
            given = (d for s in steps for d in (*s.args, *(v for _, v in s.kwargs)))
            result = [body.result] if body else []
            used |= {f"{path}.{a.path}".lstrip(".") for a in parts((*given, *result), Attribute)}
    return used - held
