"""Compares what a network answers with choices made to what it answers itself."""

import functools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..edges import ORIGINAL, Edge, replacements
from ..errors import UsageError, users_code
from ..relaxation import RelaxedNetwork
from ..tasks import Classification, Task, relative_error
from ..tracing import (
    Example,
    Trace,
    examples_of,
    fixed_randomness,
    frozen_modules,
    gpus_of,
    in_mode,
    kept_buffers,
    tensors_of,
)
from .damages import Distances, Sensitivity
from .memory import Memory, modules_before


class Judge:
    """Compares what a relaxed network answers with choices made to what the network itself answers.

    Args:
        relaxed: with theta as `relax` makes it; it is left as it is.
        batches: arguments of its forward, each a tensor, a tuple, or a dict of keyword arguments.
        task: which compares answers. By default class scores (one tensor: examples x classes) are compared as in a
            classification, and all tensors of other outputs by their squared difference.

    Raises:
        ValueError: no batches, or answers without numbers, or with some that are not finite.
    """

    def __init__(self, relaxed: RelaxedNetwork, batches: Sequence[Example], task: Task | None = None) -> None:
        self.relaxed, self.task, self._told = relaxed, task, task is not None
        self.batches = [arguments for batch in batches for arguments in examples_of(batch)]
        self.devices = gpus_of(relaxed)
        self.draws = False
        if not self.batches:
            raise UsageError("nothing is shown: at least one batch is needed")
        with self._changed({}):
            self.own = [self._answers(i) for i in range(len(self.batches))]
        if task is None and all(map(_are_scores, self.own)):
            self.task = Classification()
            self.own = [[self.task.answers(scores)] for (scores,) in self.own]
        name = type(relaxed.network).__name__
        if not all(self.own):
            raise UsageError(f"the answers of {name} hold no floating-point numbers that could be compared")
        if not all(bool(torch.isfinite(answer).all()) for own in self.own for answer in own):
            raise UsageError(
                f"the answers of {name} to these inputs are not finite, where norms use the statistics of what is "
                "shown: nothing compares to them"
            )
        self.sizes = [_rows(*arguments) for arguments in self.batches]

    @property
    def sees_classes(self) -> bool:
        """Whether answers are compared as class scores, by KL."""
        return isinstance(self.task, Classification)

    def damage(self, choices: Mapping[str, str]) -> float:
        """The damage of a set of choices as a whole: {edge key: choice}; edges that are missing stay original."""
        with self._changed(choices):
            return self._mean([self._apart(number) for number in range(len(self.batches))])

    @contextmanager
    def _changed(self, choices: Mapping[str, str]) -> Iterator[None]:
        """Within, choices are made and norms re-estimated; afterwards all is as it was."""
        chosen = {e.key: choices.get(e.key, ORIGINAL) for e in self.relaxed.edges}
        with _one_hot(self.relaxed, chosen), torch.no_grad(), restated(self.relaxed):
            yield

    def _answers(self, number: int) -> list[Tensor]:
        args, kwargs = self.batches[number]
        name = type(self.relaxed.network).__name__
        with fixed_randomness(self.devices), users_code(f"{name}'s forward failed", alone=False):
            before = _generators(self.devices)
            try:
                output = self.relaxed(*args, **kwargs)
                outputs = [output] if self._told else _floats(output)
                answers = [self.task.answers(o) for o in outputs] if self.task else outputs
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise UsageError(
                    "a batch is too small to re-estimate norms with (one value per channel): show larger batches"
                ) from error
            self.draws = self.draws or _generators(self.devices) != before
        return answers

    def _apart(self, number: int) -> float:
        """How far answers are from the network's own, mean over the images of a batch; infinite if not finite."""
        own, other = self.own[number], self._answers(number)
        compare = self.task.divergence if self.task else relative_error
        value = float(torch.stack([compare(b, a) for a, b in zip(own, other, strict=True)]).mean())
        return value if math.isfinite(value) else math.inf

    def _mean(self, parts: Sequence[float]) -> float:
        """The mean over the images of the first batches."""
        sizes = self.sizes[: len(parts)]
        return math.fsum(p * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)

    def alone(
        self,
        tell: Callable[[int, int], None] | None = None,
        *,
        known: Sequence[Distances] = (),
        keep: Callable[[list[Distances]], None] | None = None,
    ) -> Sensitivity:
        """The damage of every choice of every group, the others being original.

        What runs before a group's first edge is computed once for all its choices.

        Args:
            tell: is told how many choices of how many have been tried.
            known: of the first batches, what an earlier call gave to `keep`: they are not shown again.
            keep: is given what was found so far, whenever a batch is done.
        """
        trials = sum(len(self.relaxed.choices_of(group)) - 1 for group in self.relaxed.groups)
        parts = list(known)
        for number in range(len(parts), len(self.batches)):
            done = number * trials
            parts.append(self._distances(number, lambda n: tell and tell(done + n, trials * len(self.batches))))  # noqa: B023
            if keep:
                keep(parts)
        if tell:
            tell(trials * len(self.batches), trials * len(self.batches))
        return self.sensitivity(parts)

    def sensitivity(self, distances: Sequence[Distances]) -> Sensitivity:
        """What the distances on the first batches (see `alone`) come to."""
        damages = {
            group: {choice: self._mean([part[group][choice] for part in distances]) for choice in row}
            for group, row in distances[0].items()
        }
        return Sensitivity(damages, sum(self.sizes[: len(distances)]))

    def _distances(self, number: int, tell: Callable[[int], None]) -> Distances:
        """How far every choice alone takes the answers to one batch."""
        relaxed, count = self.relaxed, 0
        distances: Distances = {group: {} for group in relaxed.groups}
        with self._changed({}):
            before = {group: self.before(relaxed.members(group)) for group in relaxed.groups}
            entries = {group: _entries(relaxed.members(group)) for group in relaxed.groups}
            with Memory(relaxed.network, self.parts.union(*before.values(), *entries.values())) as memory:
                for group in relaxed.groups:
                    memory.keep(before[group])
                    for choice in relaxed.choices_of(group):
                        if choice == ORIGINAL:
                            distances[group][choice] = 0.0
                            continue
                        idle, vain = self.needless(dict.fromkeys(relaxed.members(group), choice))
                        with (
                            memory.of(before[group] - vain, entries[group], idle),
                            relaxed.trying(group, choice),
                        ):
                            distances[group][choice] = self._apart(number)
                        count += 1
                        tell(count)
        return distances

    def before(self, edges: Sequence[Edge]) -> frozenset[str]:
        """`modules_before`; none where what they give is drawn at random."""
        return frozenset() if self.draws else modules_before(edges)

    def needless(self, choices: Mapping[Edge, str]) -> tuple[frozenset[str], frozenset[str]]:
        """Modules that compute only what choices make needless, and those that give such; none where it draws.

        The first need not be computed, and what the others give may come of that: it must not be remembered.
        """
        idle, vain = (set(), set()) if self.draws else (set(self.parts), set[str]())
        for trace, inside, needed in self._inside if idle else ():
            values, operations = trace.needed(*replacements(trace, choices))
            idle = {path for path in idle if inside[path] <= needed - operations}
            vain |= {call.path for call in trace.calls if not values.issuperset(call.outputs)}
        return frozenset(idle), frozenset(vain)

    @functools.cached_property
    def parts(self) -> frozenset[str]:
        """Modules that are called once, and in which no edge begins or ends that is not the module itself."""
        ends = {path for edge in self.relaxed.edges for path in (edge.entry, edge.exit)}
        around = {path[:i] for path in ends for i, letter in enumerate(path) if letter == "."}
        return frozenset.intersection(*(frozenset(inside) for _, inside, _ in self._inside)) - around - {""}

    @functools.cached_property
    def _inside(self) -> list[tuple[Trace, dict[str, frozenset[int]], frozenset[int]]]:
        """Of each trace the operations inside of modules that are called once, and those that outputs need."""
        parts = []
        for trace in self.relaxed.edges.program.traces:
            inside = {
                path: frozenset(trace.within(calls[0]))
                for path, calls in trace.calls_by_path.items()
                if len(calls) == 1
            }
            parts.append((trace, {path: ops for path, ops in inside.items() if ops}, trace.live))
        return parts


@contextmanager
def _one_hot(relaxed: RelaxedNetwork, choices: Mapping[str, str]) -> Iterator[None]:
    """Within, theta is that of choices, {edge key: choice}; edges that are missing are original."""
    theta = relaxed.architecture.theta
    before = theta.detach().clone()
    relaxed.set_one_hot({edge.key: choices.get(edge.key, ORIGINAL) for edge in relaxed.edges})
    try:
        yield
    finally:
        with torch.no_grad():
            theta.copy_(before)


@contextmanager
def restated(network: nn.Module) -> Iterator[None]:
    """Within, the network is in eval mode, but for norms with recorded statistics: they use those of the batch.

    Norms that are frozen (in eval mode within a network in train mode) use what they recorded.
    """
    still = frozen_modules(network)
    norms = [
        m for m in network.modules() if isinstance(getattr(m, "running_mean", None), Tensor) and m not in still
    ]
    with in_mode(network, False), kept_buffers(network.modules()):
        for norm in norms:
            norm.training = True
        yield


def _entries(edges: Iterable[Edge]) -> frozenset[str]:
    return frozenset(edge.entry for edge in edges)


def _floats(output: Any) -> list[Tensor]:
    """The tensors of an output that hold numbers, in float32 at least."""
    tensors = [t for t in tensors_of(output) if t.is_floating_point()]
    return [t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _generators(devices: Sequence[int]) -> tuple[Any, ...]:
    """The states of all generators that a network may draw from."""
    own = np.random.get_state(legacy=False)  # noqa: NPY002 -- what networks may use
    assert isinstance(own, dict)
    numpy_state = own["state"]["pos"], own["state"]["key"].tobytes(), own["has_gauss"]
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
    return (random.getstate(), numpy_state, *(state.numpy().tobytes() for state in states))


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many images (or rows) the arguments of a forward hold: the first tensor's first dimension."""
    return next((len(t) for t in tensors_of((args, kwargs)) if t.dim()), 1)


def _are_scores(answers: Sequence[Tensor]) -> bool:
    return len(answers) == 1 and answers[0].dim() == 2 and answers[0].shape[1] > 1
