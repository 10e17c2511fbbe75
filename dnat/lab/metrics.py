"""What runs are judged by: a task's metrics, which way they are better, and how they are written.

Shares (accuracy, mean IoU, F1, ...) are shown in percent with two digits, all others with four significant ones.
Records without a table `metrics` are of classification, and were watched on the test images.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import UsageError
from . import fields
from .formatting import signed_interval, spread

_LIMITS = {
    **dict.fromkeys(("accuracy", "miou", "f1", "exact"), (0, 1)),
    "r2": (-math.inf, 1),
    **dict.fromkeys(("mae", "mse"), (0, math.inf)),
}
"""The least and the largest value of known metrics; those with a largest one are shares."""

_TITLES = {
    "miou": "mean IoU",
    "f1": "F1",
    "exact": "all labels right",
    "r2": "R²",
    "mae": "MAE",
    "mse": "MSE",
}


@dataclass(frozen=True)
class Metric:
    """A metric as it is shown.

    Attributes:
        name: as rows and records have it: `test_NAME`.
        direction: which way it is better, "max" or "min".
    """

    name: str
    direction: str = "max"

    @property
    def title(self) -> str:
        """Its name in words."""
        return _TITLES.get(self.name, self.name)

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the largest value that it can have."""
        return _LIMITS.get(self.name, (-math.inf, math.inf))

    @property
    def is_share(self) -> bool:
        """Whether it is shown in percent."""
        return self.limits[1] == 1

    @property
    def scale(self) -> int:
        """What values are multiplied by to be shown."""
        return 100 if self.is_share else 1

    @property
    def form(self) -> str:
        """How numbers that are shown are formatted, for Python and for plotly."""
        return ".2f" if self.is_share else ".4g"

    @property
    def unit(self) -> str:
        """What stands behind a number that is shown."""
        return " %" if self.is_share else ""

    @property
    def points(self) -> str:
        """What stands behind a difference of two such numbers."""
        return " points" if self.is_share else ""

    @property
    def column(self) -> str:
        """The head of a column of numbers.

        >>> Metric("accuracy").column, Metric("mae", "min").column
        ('accuracy, %', 'MAE')
        """
        return self.title + (", %" if self.is_share else "")

    @property
    def examples(self) -> str:
        """What it is measured on."""
        return "images" if self == ACCURACY else "examples"

    @property
    def best(self) -> str:
        """The best one in words."""
        return "highest" if self.direction == "max" else "lowest"

    def merit(self, value: float) -> float:
        """A number of which more is better."""
        return value if self.direction == "max" else -value

    def equal(self, a: float, b: float) -> bool:
        """Whether two numbers that are shown differ by rounding alone."""
        return abs(a - b) < 1e-9 if self.is_share else math.isclose(a, b, rel_tol=1e-9)

    def difference(self, a: float, b: float) -> float:
        """a less b, both as they are shown, without what is rounding."""
        # Shares are of whole examples, so that what differs by less is rounding.
        return round(a - b, 9) if self.is_share else float(f"{a - b:.9g}")

    def text(self, value: float) -> str:
        """A value as a terminal has it.

        >>> Metric("accuracy").text(0.5), Metric("mae", "min").text(0.123456)
        ('50.00%', '0.1235')
        """
        return f"{value:.2%}" if self.is_share else f"{value:.4g}"

    def spread(self, mean: float, std: float | None) -> str:
        """A mean as it is shown with its deviation, where it has one."""
        return spread(mean, std, self.form)

    def change(self, mean: float, interval: tuple[float, float] | None) -> str:
        """A mean difference with its interval, where it has one."""
        return signed_interval(mean, interval, self.form)


ACCURACY = Metric("accuracy")


class Measured(NamedTuple):
    """A metric and its value."""

    metric: Metric
    value: float

    def __str__(self) -> str:
        return self.metric.text(self.value)


def metrics_of(record: Mapping[str, Any]) -> tuple[Metric, ...]:
    """The metrics of a record, that which counts first.

    Raises:
        ValueError: there is none, or one without a direction.
    """
    if record.get("metrics") is None:
        return (ACCURACY,)
    table = fields.subtable(record, "metrics")
    for name, direction in table.items():
        if direction not in ("max", "min"):
            raise UsageError(f"metrics.{name} of a record must be 'max' or 'min', not {direction!r}")
    if not table:
        raise UsageError("a record needs at least one metric: is it the record.json of a finished run?")
    return tuple(Metric(name, direction) for name, direction in table.items())


def watched(record: Mapping[str, Any]) -> str:
    """The split on which choices and curves were made: "test" or "validation".

    Raises:
        ValueError: the record says something else.
    """
    split = record.get("watched", "test")
    if split not in ("test", "validation"):
        raise UsageError(f"watched of a record must be 'test' or 'validation', not {split!r}")
    return str(split)


def result_of(record: Mapping[str, Any]) -> Measured:
    """The metric that counts, and its value on the test examples.

    Raises:
        ValueError: it is missing or out of range.
    """
    metric = metrics_of(record)[0]
    results = fields.subtable(record, "results")
    return Measured(metric, fields.number(results, f"results.test_{metric.name}", *metric.limits))


def split_of(row: Mapping[str, Any]) -> str:
    """The split that a row of an epoch tells of beside the training examples; "train" if there is none."""
    splits = {key.partition("_")[0] for key in row}
    return next((split for split in ("validation", "test") if split in splits), "train")


def first_of(row: Mapping[str, Any]) -> str:
    """The name of the metric that counts in a row of an epoch, which stands behind the loss.

    >>> first_of({"epoch": 1, "train_loss": 0.5, "train_mae": 0.6, "train_r2": 0.1})
    'mae'
    """
    prefix = f"{split_of(row)}_"
    names = (key.removeprefix(prefix) for key in row if key.startswith(prefix))
    return next((name for name in names if name != "loss"), "loss")


def measured_in(row: Mapping[str, Any]) -> Measured | None:
    """What an epoch came to: on the split that is watched, in a search on the training examples."""
    name = first_of(row)
    value = row.get(f"{split_of(row)}_{name}")
    # A row does not say which way is better, which nobody needs who shows it.
    return Measured(Metric(name), value) if isinstance(value, int | float) else None


def common(metrics: Iterable[Metric], otherwise: str) -> str:
    """The title of metrics where they are one (or none yet: accuracy), else another word."""
    titles = {metric.title for metric in metrics}
    return otherwise if len(titles) > 1 else next(iter(titles), ACCURACY.title)


def capital(text: str) -> str:
    """A text that begins a sentence."""
    return text[:1].upper() + text[1:]


def meaning(metrics: Iterable[Metric]) -> str:
    """What the numbers of tables are.

    >>> meaning([Metric("accuracy"), Metric("mae", "min")])
    'Accuracy: on the test images; MAE (less is better): on the test examples'
    """
    less = {"max": "", "min": " (less is better)"}
    return capital("; ".join(f"{m.title}{less[m.direction]}: on the test {m.examples}" for m in metrics))
