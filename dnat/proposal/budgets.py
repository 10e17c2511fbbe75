"""Budgets of a plan: what is asked for, and amounts as people read them."""

from dataclasses import dataclass
from decimal import Decimal

from ..errors import WrongTypeError
from ..settings import Amount, parse_amount, shown


@dataclass(frozen=True)
class Budget:
    """A budget as it was asked for: its text, the amount, and of what ("madds", "params" or "seconds")."""

    text: str
    amount: Amount
    unit: str


def parse_budget(budget: str | float) -> Budget:
    """A budget of a plan.

    Args:
        budget: a share of the multiply-adds (0.7, "70%") or a number of them ("120M"); a time ("5ms", or
            "0.7 time" for a share of it); or parameters ("0.7 params", "1.2M params").

    Raises:
        ValueError: none of these.

    >>> [(b.amount.value, b.unit) for b in map(parse_budget, ("70%", "5 ms", "0.7 time", "200k params"))]
    [(0.7, 'madds'), (0.005, 'seconds'), (0.7, 'seconds'), (200000.0, 'params')]
    """
    if isinstance(budget, bool) or not isinstance(budget, str | int | float):
        raise WrongTypeError(f"a budget must be a number or a text, not {shown(budget)}")
    text = budget.strip().lower() if isinstance(budget, str) else f"{budget:g}"
    for word, unit in (("params", "params"), ("madds", "madds"), ("time", "seconds")):
        if text.endswith(word):
            return Budget(text, parse_amount(text.removesuffix(word).strip(), seconds=unit == "seconds"), unit)
    compact = "".join(text.split())
    if compact.endswith("s"):
        return Budget(text, parse_amount(compact, seconds=True), "seconds")
    return Budget(text, parse_amount(text if isinstance(budget, str) else budget), "madds")


def amount(value: float, unit: str) -> str:
    """An amount of multiply-adds, parameters or seconds, as people read it.

    >>> amount(40_551_000, "madds"), amount(0.0123, "seconds")
    ('40.6 M MAdds', '12.3 ms')
    """
    if unit == "seconds":
        return duration(value)
    return f"{short(value)} {'MAdds' if unit == 'madds' else 'parameters'}"


def duration(seconds: float, digits: int = 3) -> str:
    """A time with so many significant digits, never an exponent.

    >>> duration(0.0012345), duration(0.12345, digits=2), duration(0.99999), duration(12.345)
    ('1.23 ms', '120 ms', '1 s', '12.3 s')
    """
    rounded = Decimal(f"{seconds:.{digits}g}")
    return f"{rounded.normalize():f} s" if rounded >= 1 else f"{(rounded * 1000).normalize():f} ms"


def short(value: float) -> str:
    """A count in three digits.

    >>> short(40_551_000), short(123)
    ('40.6 M', '123')
    """
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g} {letter}" if value < 999.5 * factor else f"{value / factor:.0f} {letter}"
    return f"{value:.0f}"
