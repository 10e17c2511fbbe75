"""How much the result may cost, and by what choices are made within that."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from ..errors import UsageError
from .part import Count, Part, shown

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Amount:
    """A limit: a share of what the original costs, or an absolute number."""

    value: float
    relative: bool

    def of(self, total: float) -> float:
        """The limit in the unit of `total`, which is what the original costs."""
        return self.value * total if self.relative else self.value


def parse_amount(text: str | float, *, seconds: bool = False) -> Amount:
    """A budget as users write it.

    Args:
        text: a share of the original (0.7, "0.7", "70%"), multiply-adds ("120M", "1.2G", 120e6), or with
            `seconds` a time ("5ms", "0.2s").
        seconds: whether absolute amounts are times.

    Raises:
        ValueError: none of these.

    >>> parse_amount("120M"), parse_amount("70%").of(1000), parse_amount("5ms", seconds=True).value
    (Amount(value=120000000.0, relative=False), 700.0, 0.005)
    """
    written = text.strip().lower() if isinstance(text, str) else shown(text)
    units = _SECONDS if seconds else _UNITS
    for unit, factor in (("%", 0.01), *sorted(units.items(), key=lambda u: -len(u[0])), ("", 1.0)):
        number = written.removesuffix(unit) if unit else written
        try:
            value = float(number) / 100 if unit == "%" else float(number) * factor
        except ValueError:
            continue
        if number == written and unit:
            continue
        relative = unit == "%" or (not unit and value <= 1)
        whole = not unit and value > 1 and seconds  # a bare number above 1 is no time
        if not whole and 0 < value < math.inf and (not relative or value <= 1):
            return Amount(value, relative)
    examples = '0.7, 70%, "5ms", "0.2s"' if seconds else '0.7, 70%, "120M", "1.2G"'
    raise UsageError(f"{shown(text)} is not a budget: give a share of the original or an amount ({examples})")


def _is_amount(value: str | float) -> str | float:
    parse_amount(value)
    return value


def _is_time(value: str | float) -> str | float:
    parse_amount(value, seconds=True)
    return value


class Limit(Part):
    """How much the result may cost, and by what choices are made within that."""

    budget: Annotated[str | int | float, AfterValidator(_is_amount)] | None = None
    """Most multiply-adds that the result may have: a share of the original (0.7), or a number ("120M")."""
    latency_budget: Annotated[str | int | float, AfterValidator(_is_time)] | None = None
    """Longest time that the result may take, measured here: a share of the original's (0.7), or a time ("5ms"). It
    is that of a batch of `latency_batch` images."""
    latency_batch: Count = 1
    """Images of the batch whose time counts for `latency_budget`."""
    judge: Literal["theta", "loss", "answers"]
    """What choices are made by, within a budget. "theta"; "loss": what each would do to the training loss if it
    alone were made, found by trying every one (`trial_batches`) when the choices are made; "answers": what they do
    to the network's answers, each alone, with norms re-estimated (`judge_images`,
    `dnat.sensitivity`). That needs no theta: without `architecture_epochs` the choices are made before anything is
    trained, and all epochs train the compact network. By default the preset's, and theta where there is no budget,
    or where `architecture_epochs` are asked for."""
    trial_batches: Count = 2
    """Batches on which a choice is tried, where the loss is the judge."""
    judge_images: Count | Literal["auto"] = "auto"
    """Training images, without their labels, on which choices are tried, where the answers are the judge; "auto":
    from 64 to 1,000, as many as can be shown in a few minutes (`sensitivity.affordable_images`). Where there are
    at most half as many, and at most 500, they are shown up to nine times, cropped and flipped as for
    training."""
    choices: dict[str, str] | None = None
    """Choices that are made already, {edge key: choice}; edges that are missing stay original. They come into
    force before anything is trained, and all epochs train the compact network (`dnat transform --plan` takes them
    from a plan)."""
    choices_for: str | None = None
    """Fingerprint of the program that `choices` are for: another network is refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.budget is not None and self.latency_budget is not None:
            raise UsageError("budget and latency_budget cannot be combined: give one of them")
        if self.choices is not None and (self.is_limited or self.judge != "theta"):
            raise UsageError("choices are made already: leave out budget, latency_budget and judge")
        if self.choices is None and self.choices_for is not None:
            raise UsageError("choices_for says which network choices are for: give choices, too")
        if self.judge != "theta" and not self.is_limited:
            raise UsageError(f"judge {self.judge!r} needs a budget: without one nothing is worth what it does")
        return self

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget, of multiply-adds or of time."""
        return self.budget is not None or self.latency_budget is not None

    @property
    def begins_compact(self) -> bool:
        """Whether the choices can be made before anything is trained."""
        return self.judge == "answers" or self.choices is not None
