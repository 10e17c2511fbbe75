"""Two small spaces of architectures: their texts, what is legal in them, and what each architecture costs.

An architecture of NAS-Bench-201 is written as six digits, one of NAS-Bench-Macro as eight (`networks.nasbench`).
Those of NAS-Bench-201 come in their live form: an operation that lies on no path from the cell's input to its
output is none, since it has no part in the output, and dnat removes it. A cell without any path is dead: dnat
never makes one, so none counts as reachable.

What is legal:

    NAS-Bench-201    each operation may stay, become skip_connect, or none; none may become skip_connect. In the
                     space "nat++" also what NAT++'s table allows within the five operations: conv_3x3 may become
                     conv_1x1 or avg_pool_3x3. Every cell is the same (mode "cell").
    NAS-Bench-Macro  each layer that keeps its shape may become the identity (mode "full").

What can be reached from an architecture are all that such changes of its places make, whatever else a method asks
of choices. dnat itself offers some of them to no edge: none where that edge alone is what a node has.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...costs import cost
from ...errors import UsageError
from ...moves import read_transitions, transitions
from ...naming import unknown
from ...networks import build
from ...networks.nasbench import EDGES, LAYERS, NAMES, OPERATIONS, parse_cell, parse_layers

SPACES = ("nasbench201", "nasbench_macro")
"""The spaces that tables are known of; also the families of their networks, for `dnat.build`."""

Moves = str | Mapping[str, Sequence[str]]
"""The space of choices: "dnat", "nat++", or a table of yours (`transitions.read_transitions`)."""

FIELD = tuple(NAMES[name] for name in OPERATIONS)
"""What the digits of NAS-Bench-201 mean, by the names that choices have."""
_NULL, _SKIP = FIELD.index("null"), FIELD.index("skip_connect")
KEPT = tuple(i for i, (_, stride) in enumerate(LAYERS) if stride == 1)
"""NAS-Bench-Macro's layers that keep their shape."""


def check_space(space: str) -> None:
    """Refuse a space that is none of `SPACES`."""
    if space not in SPACES:
        raise unknown("space of architectures", space, SPACES)


def read_architecture(space: str, text: str) -> str:
    """An architecture as digits, from any form that the space has.

    Args:
        space: one of `SPACES`.
        text: of NAS-Bench-201 "|nor_conv_3x3~0|+..." or six digits; of NAS-Bench-Macro eight digits.

    Raises:
        ValueError: an unknown space, or a text that is none of its architectures; the message says where.

    >>> read_architecture("nasbench201", "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|")
    '300010'
    """
    check_space(space)
    if space == "nasbench201":
        return "".join(str(OPERATIONS.index(name)) for name in parse_cell(text))
    return "".join(map(str, parse_layers(text)))


def live_form(space: str, architecture: str) -> str:
    """The architecture without operations that have no part in its output; see the module.

    Args:
        space: one of `SPACES`.
        architecture: in any form.

    Raises:
        ValueError: a cell in which no path leads from the input to the output; or see `read_architecture`.

    >>> live_form("nasbench201", "333300")  # nothing reads nodes 1 and 2
    '000300'
    """
    live = live_or_none(space, read_architecture(space, architecture))
    if live is None:
        raise UsageError(f"{architecture!r} is a dead cell: no path leads from its input to its output")
    return live


def live_or_none(space: str, digits: str) -> str | None:
    """The live form of digits; None of a dead cell."""
    if space != "nasbench201":
        return digits
    present = [edge for edge, digit in zip(EDGES, digits, strict=True) if int(digit) != _NULL]
    heard, read = {0}, {3}
    for source, target in sorted(present):  # an edge leads to a later node, so one pass each way will do
        if source in heard:
            heard.add(target)
    for source, target in sorted(present, reverse=True):
        if target in read:
            read.add(source)
    if 3 not in heard:
        return None
    pairs = zip(EDGES, digits, strict=True)
    return "".join(digit if s in heard and t in read else str(_NULL) for (s, t), digit in pairs)


def other_operations(moves: Moves) -> dict[str, tuple[str, ...]]:
    """What each of NAS-Bench-201's operations may become beside skip_connect and none, within the five."""
    own = not isinstance(moves, str)
    if isinstance(moves, str) and moves not in ("dnat", "nat++"):
        raise unknown("space of choices", moves, ["dnat", "nat++"])
    table = transitions(moves) if isinstance(moves, str) else read_transitions(moves)
    others = {}
    for name in FIELD:
        targets = [t for t in table[name] if t not in (name, "skip_connect", "null")]
        outside = [t for t in targets if t not in FIELD]
        if own and outside:
            raise UsageError(
                f"the table of transitions lets {name} become {outside[0]}, which is none of NAS-Bench-201's "
                f"operations ({', '.join(FIELD)})"
            )
        others[name] = tuple(t for t in targets if t in FIELD)
    return others


def reachable(space: str, architecture: str, moves: Moves = "dnat") -> tuple[str, ...]:
    """All architectures that legal moves make of one, itself among them, in the order of their digits.

    Args:
        space: one of `SPACES`.
        architecture: where to begin, in any form; its live form counts.
        moves: what choices there are; NAS-Bench-Macro has "dnat" alone.

    Returns:
        Architectures as digits, in their live form.

    Raises:
        ValueError: see `live_form`; or moves that the space does not have.

    >>> reachable("nasbench_macro", "12100120")
    ('10100100', '10100120', '12100100', '12100120')
    >>> reachable("nasbench201", "000300")[-2:], len(reachable("nasbench201", "333333"))
    (('111301', '111311'), 290)
    """
    start = live_form(space, architecture)
    options: list[tuple[str, ...]]
    if space == "nasbench_macro":
        if moves != "dnat":
            raise UsageError(f"nasbench_macro has the moves of the space 'dnat' alone, not {moves!r}")
        options = [(d, "0") if i in KEPT else (d,) for i, d in enumerate(start)]
    else:
        others = other_operations(moves)
        options = [
            (d, str(_SKIP), str(_NULL), *(str(FIELD.index(name)) for name in others[FIELD[int(d)]])) for d in start
        ]
    reached = {live_or_none(space, "".join(digits)) for digits in itertools.product(*options)}
    return tuple(sorted(digits for digits in reached if digits is not None))


@dataclass(frozen=True)
class Prices:
    """Multiply-adds of every architecture of a space, as a sum over its places.

    Attributes:
        fixed: what an architecture of zeros costs, for one image.
        places: for each digit's place, what each digit adds to that.
    """

    fixed: int
    places: tuple[tuple[int, ...], ...]

    def of(self, architecture: str) -> int:
        """Multiply-adds of one image; of an architecture as digits, with all its operations."""
        return self.fixed + sum(place[int(d)] for place, d in zip(self.places, architecture, strict=True))


def prices(space: str, pixels: Sequence[int], **options: Any) -> Prices:
    """Count the multiply-adds of a space's networks, by building some of them without weights.

    Args:
        space: one of `SPACES`.
        pixels: channels, height and width of an image.
        options: arguments of the network's constructor, such as width=4.
    """
    check_space(space)
    options = {"in_channels": pixels[0], **options}

    def count(architecture: str) -> int:
        with torch.device("meta"):
            return cost(build(f"{space}:{architecture}", **options), torch.zeros(2, *pixels)).madds

    length, kinds = (len(EDGES), len(OPERATIONS)) if space == "nasbench201" else (len(LAYERS), 3)
    fixed = count("0" * length)

    @functools.cache
    def place(i: int) -> tuple[int, ...]:
        zeros = "0" * length
        return (0, *(count(zeros[:i] + str(d) + zeros[i + 1 :]) - fixed for d in range(1, kinds)))

    # Every edge of a cell has the same channels and the same resolution.
    return Prices(fixed, tuple(place(0 if space == "nasbench201" else i) for i in range(length)))
