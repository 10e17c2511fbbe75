"""The places of a network at which its width may change."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..tracing import Program, Trace, observed
from .arrays import NOTHING, distinct
from .labelling import Labelling, UnknownError
from .rules import RULES, FunctionCall

DENSE = ("linear", "addmm", "conv1d", "conv2d", "conv3d")
"""Functions whose outputs have labels of their own, whatever they read."""


@dataclass(frozen=True)
class Place:
    """Channels that can go one by one, each with all that belongs to it.

    Attributes:
        classes: how many there are.
        cuts: (name of a parameter or buffer, dimension, the class of each index along it).
        makers, readers: names of the weights that give and that read the channels, in order of execution.
        axes: along which dimension of its input, counted from the end, each reader has them.
        operations: those of the program's first trace that work on the channels.
        values: those that hold them.
    """

    classes: int
    cuts: tuple[tuple[str, int, tuple[int, ...]], ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    axes: tuple[int, ...]
    operations: frozenset[int]
    values: frozenset[int]


def places(program: Program) -> tuple[Place, ...]:
    """The places of a network at which its width may change, in order of execution."""
    if "places" not in program.analyses:
        labelling = Labelling()
        labels_of: defaultdict[int, set[int]] = defaultdict(set)

        def watch(
            func: Callable[..., Any],
            name: str,
            args: tuple[Any, ...],
            kwargs: Mapping[str, Any],
            result: Any,
            values: Mapping[int, int],
        ) -> None:
            if not labelling.names:  # not before: buffers are others while a network runs
                network = program.network
                labelling.names = {id(t): n for n, t in [*network.named_parameters(), *network.named_buffers()]}
            call = FunctionCall(func, name.strip("_"), args, kwargs, result)
            for tensor in _carried(labelling, call, begins=name in DENSE):
                labels = labelling.of(tensor)
                if labels is not None and id(tensor) in values:
                    labels_of[values[id(tensor)]].update(distinct(labels))

        outputs = observed(program, watch)
        labelling.fix(outputs)  # what the network gives keeps its width
        program.analyses["places"] = tuple(_places(program.traces[0], labelling, labels_of)) if outputs else ()
    known: tuple[Place, ...] = program.analyses["places"]
    return known


def _carried(labelling: Labelling, call: FunctionCall, *, begins: bool) -> list[Tensor]:
    """Carry labels through a call; returns the tensors that it had to do with, if any had labels."""
    operands = [t for t in tree_leaves((call.args, dict(call.kwargs))) if isinstance(t, Tensor)]
    if not begins and not any(id(t) in labelling.labels for t in operands):
        return []
    rule = RULES.get(call.name)
    if rule is None or call.kwargs.get("out") is not None:
        labelling.fix(operands)
    else:
        try:
            rule(labelling, call)
        except UnknownError:
            labelling.fix(operands)
    return [*operands, *(t for t in tree_leaves(call.result) if isinstance(t, Tensor))]


def _places(trace: Trace, labelling: Labelling, labels_of: Mapping[int, set[int]]) -> Iterator[Place]:
    """All places, in order of execution; `labels_of` has the labels of each value of the trace."""
    classes = labelling.classes
    roots = {key: classes.roots(labels.tolist()) for key, labels in labelling.cuts.items()}
    touched: defaultdict[int, set[tuple[str, int]]] = defaultdict(set)
    for key, row in roots.items():
        for root in set(row):
            touched[root].add(key)
    alike = {root: frozenset(keys) for root, keys in touched.items()}
    fixed = {NOTHING, *(classes.root(label) for label in classes.fixed), *_partly(roots.values(), alike)}
    groups: defaultdict[frozenset[tuple[str, int]], list[int]] = defaultdict(list)
    for root in sorted(alike.keys() - fixed):
        groups[alike[root]].append(root)
    holders: defaultdict[int, set[int]] = defaultdict(set)
    for value, labels in labels_of.items():
        for root in set(classes.roots(labels)):
            holders[root].add(value)
    ranks = [
        {key: rank for rank, key in enumerate(every)}
        for every in (roots, labelling.makers.items(), labelling.readers.items())
    ]
    for keys, members in groups.items():
        own, makers, readers = (sorted(keys & ranked.keys(), key=ranked.__getitem__) for ranked in ranks)
        cuts = {key: roots[key] for key in own}
        values = set().union(*(holders[root] for root in members))
        place = _place(trace, labelling, cuts, members, [n for n, _ in makers], [n for n, _ in readers], values)
        if place is not None:
            yield place


def _place(
    trace: Trace,
    labelling: Labelling,
    roots: Mapping[tuple[str, int], Sequence[int]],
    members: Sequence[int],
    makers: Sequence[str],
    readers: Sequence[str],
    values: set[int],
) -> Place | None:
    number = {root: i for i, root in enumerate(members)}
    cuts = tuple((*key, tuple(number[r] for r in row)) for key, row in roots.items())
    # Who reads what it makes itself, or has more of one class than of another, is no layer with a width.
    uneven = any(len(set(np.bincount(row, minlength=len(members)).tolist())) > 1 for _, _, row in cuts)
    again = len({name for name, _, _ in cuts}) < len(cuts)
    if len(members) < 2 or uneven or again or not makers or not readers:
        return None
    operations = {number for value in values for number in trace.users[value]}
    operations.update(p for p in (trace.values[value].producer for value in values) if p is not None)
    axes = tuple(labelling.axes[name] for name in readers)
    return Place(len(members), cuts, tuple(makers), tuple(readers), axes, frozenset(operations), frozenset(values))


def _partly(rows: Iterable[Sequence[int]], alike: Mapping[int, frozenset[tuple[str, int]]]) -> set[int]:
    """Classes that lie beside something else in what they are cut from: in other cuts, or in none."""
    mixed: set[int] = set()
    for row in rows:
        every, first = set(row), alike[row[0]]
        if NOTHING in every or any(alike[root] is not first and alike[root] != first for root in every):
            mixed |= every
    return mixed
