"""What is said of choices: how many edges change and how, and what is left of a width."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .edge import IDENTITY, NONE, ORIGINAL, kept_of


@dataclass(frozen=True)
class Tally:
    """How many edges change, and how; printed, it says so.

    Attributes:
        operations: all edges but widths.
        removed: of those, how many become an identity or none.
        replaced: how many become another operation.
        added: null edges that become a connection.
        widths: places where the width may shrink.
        narrowed: of those, how many do.
    """

    operations: int
    removed: int
    replaced: int
    added: int
    widths: int
    narrowed: int

    @classmethod
    def of(cls, edges: Iterable[tuple[str, str]]) -> "Tally":
        """Count edges, given as (kind, choice).

        >>> print(Tally.of([("unit", "none"), ("unit", "original")]))
        1 of 2 edges changed
        >>> print(Tally.of([("unit", "none"), ("unit", "original"), ("width", "5/8")]))
        1 of 2 operations removed, 1 of 1 widths narrowed
        """
        edges = list(edges)
        others = [(kind, choice) for kind, choice in edges if kind != "width"]
        widths = [choice for kind, choice in edges if kind == "width"]
        added = sum(kind == "skip" and choice != ORIGINAL for kind, choice in others)
        gone = sum(kind != "skip" and choice in (IDENTITY, NONE) for kind, choice in others)
        changed = sum(choice != ORIGINAL for _, choice in others)
        narrowed = sum(choice != ORIGINAL for choice in widths)
        return cls(len(others), gone, changed - gone - added, added, len(widths), narrowed)

    @classmethod
    def of_reports(cls, edges: Iterable[Mapping[str, Any]]) -> "Tally":
        """The same of a run's edges, as in architecture.json."""
        return cls.of((str(edge.get("kind", "")), str(edge["choice"])) for edge in edges)

    @property
    def edges(self) -> int:
        """All of them."""
        return self.operations + self.widths

    @property
    def changed(self) -> int:
        """All that do not stay."""
        return self.removed + self.replaced + self.added + self.narrowed

    def __str__(self) -> str:
        if not self.widths:
            return f"{self.changed} of {self.edges} edges changed"
        parts = [f"{self.removed} of {self.operations} operations removed"] if self.operations else []
        parts += [f"{self.replaced} replaced"] if self.replaced else []
        parts += [f"{self.added} added"] if self.added else []
        return ", ".join([*parts, f"{self.narrowed} of {self.widths} widths narrowed"])


def is_share(choice: str | None) -> bool:
    """Whether a choice is what a width keeps.

    >>> is_share("5/8"), is_share("none"), is_share(None)
    (True, False, False)
    """
    return bool(choice and re.fullmatch(r"\d+/\d+", choice))


def channels_of(operation: str) -> int:
    """How many channels, or heads, a width has, by what it is called.

    >>> channels_of("16 channels"), channels_of("3 x 192 channels")
    (16, 3)
    """
    return int(operation.partition(" ")[0])


def narrowed(operation: str, choice: str) -> str:
    """What is left of a width.

    >>> narrowed("16 channels", "5/8"), narrowed("3 x 192 channels", "6/8"), narrowed("16 channels", "original")
    ('10 channels', '2 x 192 channels', '16 channels')
    """
    _, space, rest = operation.partition(" ")
    whole = channels_of(operation)
    return f"{whole if choice == ORIGINAL else kept_of(whole, choice)}{space}{rest}"


def remaining_share(operation: str, choice: str) -> float:
    """The share of its channels that is left of a width.

    >>> remaining_share("16 channels", "5/8"), remaining_share("3 x 192 channels", "original")
    (0.625, 1.0)
    """
    whole = channels_of(operation)
    return 1.0 if choice == ORIGINAL else kept_of(whole, choice) / whole
