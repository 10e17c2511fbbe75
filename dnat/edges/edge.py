"""An edge, and what sets of choices do to a network's values: what is legal together."""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..channels import Place
from ..naming import unknown
from ..tracing import Program, State, Trace, changed_states, losses

Kind = Literal["unit", "block", "branch", "operation", "skip", "width", "other"]
ORIGINAL, IDENTITY, NONE = "original", "identity", "none"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A place where a network may change.

    Attributes:
        key: "entry path" or "entry path>exit path"; of a width "path:width" of the layer that makes the channels.
            The same in every process.
        kind: see the module.
        operation: what the edge computes now, by the field's name ("conv_3x3", "null", a class).
        entry, exit: paths of the modules at which the edge begins and ends.
        shape_in, shape_out: without the batch, as seen on the first example.
        madds: multiply-adds of one image.
        choices: what it may become, "original" first, then other operations by name, then identity and none; of a
            width the shares that may be kept ("7/8" to "1/8").
        group: edges of one group share theta in Cell mode.
        copies: code behind the edge writes into its output, so an identity must make a copy.
        lone: its calls give it nothing but one tensor, so that `nn.Identity` can take its place.
        refused: (choice, why not) for each choice that it does not have.
        others: (name, multiply-adds of one image) of the other operations that it may become.
        part: where its module is given or gives several tensors: which of those that it gives is the edge's
            output, the only one that anything reads.
        place: of a width, the channels, and all that is cut with them. Its entry is the first layer that reads
            them.
    """

    key: str
    kind: Kind
    operation: str
    entry: str
    exit: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    choices: tuple[str, ...]
    group: str
    copies: bool = False
    lone: bool = True
    refused: tuple[tuple[str, str], ...] = field(default=(), repr=False, compare=False)
    others: tuple[tuple[str, int], ...] = ()
    part: int | None = None
    place: Place | None = field(default=None, repr=False, compare=False)
    program: Program = field(repr=False, compare=False)

    def __hash__(self) -> int:
        return hash(self.key)

    def values(self, trace: Trace) -> list[tuple[int, int]]:
        """The values (in, out) of each of the edge's calls in a trace; a width takes no other's place."""
        if self.place:
            return []
        entries, exits = trace.calls_of(self.entry), trace.calls_of(self.exit)
        pairs = ((trace.calls[a], trace.calls[b]) for a, b in zip(entries, exits, strict=True))
        return [(first.inputs[0], last.outputs[self.part or 0]) for first, last in pairs]

    @property
    def reentrant(self) -> bool:
        """Whether it runs in a checkpoint with `use_reentrant=True`, which passes on no gradient of its own where
        what goes in needs none."""
        return any(t.calls[i].reentrant for t in self.program.traces for i in t.calls_of(self.entry))

    def interleaved(self) -> int:
        """How many calls of its first module lie before the first that is followed by its last, at the most."""
        most = 1
        for trace in self.program.traces:
            order = sorted(
                [(i, 1) for i in trace.calls_of(self.entry)] + [(i, -1) for i in trace.calls_of(self.exit)]
            )
            open_ = 0
            for _, step in order if self.entry != self.exit else ():
                open_ += step
                most = max(most, open_)
        return most

    @property
    def passes(self) -> tuple[str, ...]:
        """The choices in which something else makes its output of its input: operations, and the identity."""
        if self.place:
            return ()
        return tuple(c for c in self.choices if c not in (ORIGINAL, NONE))

    @property
    def modules(self) -> tuple[str, ...]:
        """The choices that are modules of their own: operations; an identity on a null edge, or that reduces."""
        own = self.kind == "skip" or self.reduces
        return tuple(c for c in self.passes if c != IDENTITY or own)

    def added(self, choice: str) -> float:
        """Multiply-adds of one image that come with a choice."""
        if choice == IDENTITY:
            return float(self.shape_in[0] * math.prod(self.shape_out)) if self.reduces else 0.0
        return float(dict(self.others).get(choice, 0))

    def kept(self, choice: str) -> int:
        """How many of a width's channels (or classes of channels) stay with a choice."""
        assert self.place
        return self.place.classes if choice == ORIGINAL else kept_of(self.place.classes, choice)

    def remaining(self, choice: str) -> float:
        """The share of a width's channels that stays with a choice."""
        assert self.place
        return self.kept(choice) / self.place.classes

    @property
    def beside(self) -> tuple[str, ...]:
        """The choices that have a share of the original's place: other operations, or widths."""
        return self.choices[1:] if self.place else tuple(name for name, _ in self.others)

    @property
    def reduces(self) -> bool:
        """Whether its identity is a `FactorizedReduce`, with weights and multiply-adds of its own."""
        return IDENTITY in self.choices and self.shape_in != self.shape_out

    def without(self, choice: str, why: str) -> "Edge":
        """The edge with one choice less."""
        choices = tuple(c for c in self.choices if c != choice)
        return replace(self, choices=choices, refused=(*self.refused, (choice, why)))


class EdgeSet(tuple[Edge, ...]):
    """A tuple of edges of one program, in its order, which says what they have in common."""

    @property
    def program(self) -> Program:
        """The program in which they were found."""
        return self[0].program

    @property
    def trace(self) -> Trace:
        """Its first trace."""
        return self.program.traces[0]

    def groups(self, mode: str) -> dict[str, list[Edge]]:
        """{name: edges} of the groups that share theta; in full mode each edge is one.

        Raises:
            ValueError: a mode that is neither "full" nor "cell".
        """
        if mode not in ("full", "cell"):
            raise unknown("mode", mode, ["full", "cell"])
        groups: dict[str, list[Edge]] = {}
        for edge in self:
            groups.setdefault(edge.key if mode == "full" else edge.group, []).append(edge)
        return groups


def common_choices(edges: Sequence[Edge]) -> tuple[str, ...]:
    """What all edges of a group may become."""
    return tuple(c for c in edges[0].choices if all(c in edge.choices for edge in edges))


STEPS = 8
"""Into so many steps a width is divided."""

FAST = 8
"""Channels that run fast are a multiple of this, where a step of a width is not smaller."""


def widths_of(classes: int) -> tuple[str, ...]:
    """The shares of so many channels that may be kept, from the largest to the smallest.

    >>> widths_of(16), widths_of(3)
    (('7/8', '6/8', '5/8', '4/8', '3/8', '2/8', '1/8'), ('6/8', '3/8'))
    """
    shares: dict[int, str] = {}
    for step in range(STEPS - 1, 0, -1):
        choice = f"{step}/{STEPS}"
        shares.setdefault(kept_of(classes, choice), choice)
    return tuple(choice for kept, choice in shares.items() if kept < classes)


def kept_of(classes: int, choice: str) -> int:
    """How many of so many channels a share keeps: at least one, and a multiple of 8 where a step is not smaller.

    >>> kept_of(16, "5/8"), kept_of(96, "7/8"), kept_of(3, "1/8")
    (10, 80, 1)
    """
    step = int(choice.partition("/")[0])
    if classes >= STEPS * FAST:
        return max(FAST, FAST * round(classes * step / (STEPS * FAST)))
    return max(1, round(classes * step / STEPS))


def prefixes(path: str) -> list[str]:
    """The paths of the modules around a module, outermost first, and its own; without the network's, "".

    >>> prefixes("layer1.0.conv1")
    ['layer1', 'layer1.0', 'layer1.0.conv1']
    """
    names = path.split(".") if path else []
    return [".".join(names[:depth]) for depth in range(1, len(names) + 1)]


def in_order(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Edges in order of execution, an outer one before those inside it; what is not called comes last."""
    edges = EdgeSet(edges)
    order: dict[str, int] = {}
    for i, call in enumerate(edges.trace.calls if edges else ()):
        order.setdefault(call.path, i)
    last = len(order)
    return tuple(sorted(edges, key=lambda e: (order.get(e.entry, last), -order.get(e.exit, last))))


def replacements(trace: Trace, choices: Mapping[Edge, str]) -> tuple[set[int], dict[int, int]]:
    """What a set of choices does to a trace's values: those that become zero, and those that become another.

    A value that another operation computes counts as becoming that operation's input: it depends on nothing else.
    Where several edges end at one value, the outermost that changes decides: what is inside is gone with it.
    """
    ends: dict[int, tuple[int, str]] = {}
    for edge, choice in choices.items():
        if choice == ORIGINAL:
            continue
        for value_in, value_out in edge.values(trace):
            if value_out not in ends or value_in < ends[value_out][0]:
                ends[value_out] = (value_in, choice)
    zero = {out for out, (_, choice) in ends.items() if choice == NONE}
    return zero, {out: start for out, (start, choice) in ends.items() if choice != NONE}


def problems(choices: Mapping[Edge, str]) -> list[str]:
    """Why a set of choices cannot be made together, over all traces; empty if it can (`tracing.losses`)."""
    reasons: dict[str, None] = {}
    for trace in EdgeSet(choices).program.traces if choices else ():
        zero, same = replacements(trace, choices)
        reasons.update(dict.fromkeys(losses(trace, zero, same)))
        reasons.update(dict.fromkeys(_reductions_of_nothing(trace, choices, zero, same)))
    reasons.update(dict.fromkeys(_crossings(choices)))
    return list(reasons)


def _reductions_of_nothing(
    trace: Trace, choices: Mapping[Edge, str], zero: Collection[int], same: Mapping[int, int]
) -> Iterator[str]:
    """Operations that would be given zeros: norms make something else of them, so they cannot be dropped."""
    own = [(edge, choice) for edge, choice in choices.items() if _has_weights(edge, choice)]
    if not own:
        return
    states = changed_states(trace, zero, same)
    for edge, choice in own:
        for start, out in edge.values(trace):
            if out in same and states.get(start, trace.states[start]) is not State.DATA:
                what = "reduction" if choice == IDENTITY else choice
                yield f"{edge.key}: its {what} would be given nothing"


def _crossings(choices: Mapping[Edge, str]) -> Iterator[str]:
    """Narrowed channels of which something else takes the place of a layer that makes or reads them."""
    narrowed = [edge for edge, choice in choices.items() if edge.place and choice != ORIGINAL]
    for edge, other, choice in crossings(narrowed, choices.items()):
        yield f"{edge.key}: {choice} at {other.key} takes the place of what makes or reads its channels"


def crossings(widths: Iterable[Edge], choices: Iterable[tuple[Edge, str]]) -> list[tuple[Edge, Edge, str]]:
    """Each width and each choice that crosses it, in the order of both; see `crosses`."""
    holders: defaultdict[int, list[tuple[int, Edge]]] = defaultdict(list)
    for number, width in enumerate(widths):
        for value in width.place.values if width.place else ():
            holders[value].append((number, width))
    pairs: dict[tuple[int, int], tuple[Edge, Edge, str]] = {}
    for place, (edge, choice) in enumerate(choices if holders else ()):
        for value in {v for pair in edge.values(edge.program.traces[0]) for v in pair}:
            for number, width in holders.get(value, ()):
                if (number, place) not in pairs and crosses(width, edge, choice):
                    pairs[number, place] = width, edge, choice
    return [pairs[key] for key in sorted(pairs)]


def crosses(width: Edge, edge: Edge, choice: str) -> bool:
    """Whether a choice puts something else where a width's channels are made, read, or worked on with weights."""
    if edge.place or choice in (ORIGINAL, NONE):
        return False
    assert width.place
    for start, out in edge.values(width.program.traces[0]):
        inside = (start in width.place.values) + (out in width.place.values)
        if inside == 1 or (inside and _has_weights(edge, choice)):
            return True
    return False


def _has_weights(edge: Edge, choice: str) -> bool:
    return edge.reduces if choice == IDENTITY else not edge.place and choice not in (ORIGINAL, NONE)
