"""What a picture knows of a network's operations: plain rows, which a run's architecture.json keeps."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ...edges import ENDING


@dataclass(frozen=True)
class OperationRow:
    """One operation of a network and what became of it.

    Attributes:
        key: path of its entry, or "entry>exit".
        kind: unit, block, branch, skip; fixed for an operation that has no choice; width for the channels that
            one makes (`key` is "path:width"), which are no operation of their own.
        operation: name ("conv_3x3").
        shape_in, shape_out: without the batch.
        madds: multiply-adds of one image.
        choice: original, identity, none, another operation, or the share of a width that stays ("5/8"); of a skip
            edge, original means that it stays absent.
        theta: gates for none, identity and original when the choice was made.
        removed: it is gone since everything that it fed is gone.
        left: channels that it is given and that it gives afterwards, where some are fewer.
    """

    key: str
    kind: str
    operation: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    choice: str = "original"
    theta: tuple[float, float, float] | None = None
    removed: bool = False
    left: tuple[int, int] | None = None

    @property
    def state(self) -> str:
        """How the row looks after the transformation."""
        if self.kind == "skip":
            return "added" if self.choice == "identity" else "absent"
        if self.kind == "width":
            return "original" if self.choice == "original" else "narrowed"
        if self.removed:
            return "removed"
        if self.choice not in ("original", "identity", "none"):
            return "other"
        return "fixed" if self.kind == "fixed" else self.choice

    @property
    def channels(self) -> tuple[int, int]:
        """Channels that it is given and that it gives: a linear layer has them last."""
        place = -1 if self.operation == "linear" else 0
        return self.shape_in[place], self.shape_out[place]

    @property
    def entry(self) -> str:
        """The path of the operation's first module, or of that which makes the channels."""
        return self.key.partition(">")[0].removesuffix(ENDING)


def rows_to_json(rows: Iterable[OperationRow]) -> list[dict[str, Any]]:
    """Rows as JSON can hold them."""
    return [asdict(row) for row in rows]


def rows_from_json(tables: Iterable[dict[str, Any]]) -> list[OperationRow]:
    """The inverse of `rows_to_json`."""
    tuples = ("shape_in", "shape_out", "theta", "left")
    fields: Iterable[dict[str, Any]] = (
        {k: tuple(v) if k in tuples and v else v for k, v in table.items()} for table in tables
    )
    return [OperationRow(**row) for row in fields]
