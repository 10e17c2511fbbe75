"""What is done to a picture before a network sees it, so that whoever uses the network can do the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DataError, UsageError
from ..settings.job import MOST_PIXELS

FIT = "the short side is resized to size x margin by Pillow's bilinear filter, then the centre is taken"
"""How a picture of another size is made to fit; see `pictures.decode`, which does it."""


@dataclass(frozen=True)
class Preprocess:
    """How test images are made: upright pixels of a size, divided by 255, less `mean`, divided by `std`.

    Attributes:
        classes: names of the network's outputs, in order.
        size: height and width in pixels.
        mean, std: a number each channel: red, green and blue, or grey.
        margin: the short side of a picture is resized to `size * margin` before its centre is taken.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    margin: float = 1.0

    @property
    def channels(self) -> str:
        """The order of the channels: RGB, or L for grey."""
        return "RGB" if len(self.mean) == 3 else "L"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return len(self.mean), *self.size

    def table(self) -> dict[str, Any]:
        """All of it as JSON holds it, in words where there is a choice."""
        return {
            "channels": self.channels,
            "layout": "NCHW",
            "range": [0.0, 1.0],
            "size": list(self.size),
            "margin": self.margin,
            "fit": FIT,
            "mean": list(self.mean),
            "std": list(self.std),
            "classes": list(self.classes),
        }

    @classmethod
    def from_table(cls, table: Any) -> "Preprocess":
        """The inverse of `table`.

        Raises:
            DataError: it is not what `table` gives.
        """
        names = ("classes", "size", "mean", "std")
        if not isinstance(table, Mapping) or not all(isinstance(table.get(name), list) for name in names):
            raise DataError(f"preprocess must be a table with {', '.join(names)}, not {str(table)[:80]}")
        given: dict[str, Any] = {name: tuple(table[name]) for name in names}
        found = cls(**given, margin=table.get("margin", 1.0))
        numbers = [*found.size, *found.mean, *found.std, found.margin]
        fits = (
            all(isinstance(v, int | float) and math.isfinite(v) for v in numbers) and min(found.std, default=0) > 0
        )
        fits = (
            fits and all(type(n) is int and 1 <= n <= MOST_PIXELS for n in found.size) and 0 < found.margin <= 16
        )
        fits = fits and all(isinstance(name, str) for name in found.classes)
        if not fits or len(found.mean) not in (1, 3) or len(found.std) != len(found.mean) or len(found.size) != 2:
            raise DataError(f"preprocess holds values that cannot be: {str(table)[:200]}")
        return found


def positions(classes: Sequence[str], known: Sequence[str], what: str) -> list[int]:
    """Where each class stands among those that a network knows.

    Args:
        classes: names.
        known: names of the network's outputs, in order.
        what: has the classes, for the message.

    Raises:
        DataError: a name that is not known.

    >>> positions(("b", "c"), ("a", "b", "c"), "this folder")
    [1, 2]
    """
    strange = [name for name in classes if name not in known]
    if strange:
        raise DataError(
            f"{what} has classes that the network does not know: {listed(strange)}; it knows {listed(known)}"
        )
    places = {name: i for i, name in enumerate(known)}
    return [places[name] for name in classes]


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names one after the other, the first of many.

    >>> listed(("a", "b", "c"), most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def check_shape(preprocess: Preprocess, shape: Sequence[int]) -> None:
    """Refuse a preprocessing that makes other images than a network takes.

    Args:
        preprocess: what makes the images.
        shape: (N, C, H, W) of a batch for the network.

    Raises:
        ValueError: they do not fit.
    """
    if tuple(shape[1:]) != preprocess.shape:
        raise UsageError(f"preprocess makes images of shape {preprocess.shape}, but the example is {tuple(shape)}")
