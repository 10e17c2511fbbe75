"""What the gates of a relaxed network follow: theta alone, a sample, a way to an end, a trial."""

from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor


@dataclass(frozen=True)
class Open:
    """Theta; all operations of a group have their shares."""


@dataclass(frozen=True)
class Sampled:
    """Theta, but one other operation of each group takes part, and the others' shares are the original's.

    Attributes:
        places: of each group, which of the other operations.
    """

    places: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Settling:
    """Not theta: the gates go straight from where they were to others.

    Attributes:
        start, end: the gates (groups, columns).
        progress: how far they are, from 0 to 1, 0-dim: a compiler makes one function for all of them.
    """

    start: Tensor
    end: Tensor
    progress: Tensor


@dataclass(frozen=True, eq=False)
class Trying:
    """One group computes what it would if a choice were made; all others follow another mode.

    Attributes:
        others: that mode.
        row, column: of the group and the choice.
    """

    others: "Mode"
    row: int
    column: int


Mode: TypeAlias = Open | Sampled | Settling | Trying
