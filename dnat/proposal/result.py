"""What a plan says, and how it is written down."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..edges import ORIGINAL
from ..errors import DataError, UsageError
from ..files import MOST_TABLE, parse_json, read_text
from ..measurement import finite, infinite
from ..results import FixedReport
from ..sensitivity import Sensitivity
from ..settings import Mode, shown
from ..tracing import Program
from .budgets import parse_budget
from .text import described

KIND, FORMAT = "dnat plan", 1
"""What a file of a plan says of itself."""


@dataclass(frozen=True)
class Tried:
    """What each choice of one edge does, alone.

    Attributes:
        key, kind, operation, group: see `dnat.Edge`.
        madds: multiply-adds of the edge for one image.
        damages: {choice: damage}; in Cell mode of the whole group. Infinite where answers were not finite.
        saved: {choice: multiply-adds of one image that it saves on this edge alone, with all that goes with it}.
    """

    key: str
    kind: str
    operation: str
    group: str
    madds: int
    damages: dict[str, float]
    saved: dict[str, float]


@dataclass(frozen=True)
class Proposal:
    """What would be done at one budget.

    Attributes:
        budget: as it was asked for.
        unit: what it counts: "madds", "params" or "seconds".
        limit: the budget as an amount of that.
        choices: {edge key: choice}, of every edge.
        madds, params: of the network that the choices make.
        seconds: its time for a batch, as measured; None where it was not.
        expected: the sum of the damages of the choices, each alone.
        damage: that of all together, as judged; None where the set was not judged (`Proposals.at`).
        notes: what else is worth knowing.
    """

    budget: str
    unit: str
    limit: float
    choices: dict[str, str]
    madds: int
    params: int
    seconds: float | None
    expected: float
    damage: float | None
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> dict[str, str]:
        """The choices that are not "original"."""
        return {key: choice for key, choice in self.choices.items() if choice != ORIGINAL}


@dataclass(frozen=True)
class Proposals:
    """What would go from a network at several budgets. Made by `plan`; `print` shows it.

    Attributes:
        network: its class.
        fingerprint: of its program (`dnat.Program`).
        digest: of weights, images and settings: of all that damages depend on.
        space, mode, seed: as they were asked for.
        images: how many were shown; each view of one counts.
        compared: "class scores" (by KL), or "outputs" (mean squared difference as a share of their variance).
        madds, params: of the untouched network.
        seconds: its time for a batch of `timed` on `device`, as measured; None where it was not.
        edges: what may change, in order, and what each choice does.
        fixed: what cannot change, and why; what costs most comes first.
        proposals: one for each budget that can be kept.
        refused: (budget, why it cannot be kept).
        curve: (multiply-adds, sum of damages) of the best sets, from the untouched network to the smallest.
        order: the keys of all that may and cannot change, as the network comes to them.
    """

    network: str
    fingerprint: str
    digest: str
    space: str
    mode: Mode
    seed: int
    images: int
    compared: str
    madds: int
    params: int
    seconds: float | None
    timed: int
    device: str
    edges: tuple[Tried, ...]
    fixed: tuple[FixedReport, ...]
    proposals: tuple[Proposal, ...]
    refused: tuple[tuple[str, str], ...]
    curve: tuple[tuple[float, float], ...]
    order: tuple[str, ...] = ()
    _ask: "Callable[[str | float], Proposal] | None" = field(default=None, repr=False, compare=False)

    @property
    def sensitivity(self) -> Sensitivity:
        """What each choice of each group does, as the integer program takes it."""
        rows = {e.key if self.mode == "full" else e.group: dict(e.damages) for e in self.edges}
        return Sensitivity(rows, self.images)

    def at(self, budget: str | float) -> Proposal:
        """The set with the least sum of damages within another budget; nothing is measured, or judged as a whole.

        Args:
            budget: as `plan` takes it; a time only where times were measured.

        Raises:
            ValueError: it cannot be kept, or the result was read from a file (see `tied`).
        """
        if self._ask is None:
            raise UsageError(
                "this plan was read from a file: tie it to its network first, "
                "dnat.proposal.tied(plan, network, example)"
            )
        return self._ask(budget)

    def check(self, program: Program, keys: Sequence[str]) -> None:
        """Refuse a network that this plan is not for.

        Raises:
            ValueError: it does other operations, or other edges may change.
        """
        if program.fingerprint != self.fingerprint or list(keys) != [e.key for e in self.edges]:
            raise UsageError(
                f"the plan is for another network ({self.network}, program {self.fingerprint}), or for inputs of "
                f"other shapes: this one's program is {program.fingerprint}"
            )

    def proposal(self, budget: str | float | None = None) -> Proposal:
        """The proposal for one of the budgets that were asked for; without one, the only one.

        Raises:
            ValueError: there is none for it, or there are several and none was named.
        """
        known = ", ".join(p.budget for p in self.proposals) or "none"
        if budget is None:
            if len(self.proposals) == 1:
                return self.proposals[0]
            raise UsageError(f"the plan has {len(self.proposals)} budgets: name one of {known}")
        text = parse_budget(budget).text
        for proposal in self.proposals:
            if proposal.budget == text:
                return proposal
        why = dict(self.refused).get(text, f"it has {known}")
        raise UsageError(f"the plan has nothing for the budget {text}: {why}")

    def to_json(self) -> str:
        """The result as JSON; `from_json` is its inverse."""
        table = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "_ask"}
        rows = {name: [asdict(row) for row in table[name]] for name in ("edges", "fixed", "proposals")}
        whole = {"kind": KIND, "format": FORMAT, "dnat": __version__} | table | rows
        return json.dumps(finite(whole), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Proposals":
        """The inverse of `to_json`.

        Raises:
            ValueError: it is none, is not whole, or was written by a newer dnat.
        """
        table = _own_table(text)
        try:
            edges = [e | {"damages": {c: infinite(d) for c, d in e["damages"].items()}} for e in table["edges"]]
            proposals = [
                p
                | {
                    "expected": infinite(p["expected"]),
                    "notes": tuple(p["notes"]),
                }
                for p in table["proposals"]
            ]
            read: dict[str, Any] = {
                "edges": tuple(Tried(**row) for row in edges),
                "fixed": tuple(FixedReport(**(r | {"refused": _pairs(r["refused"])})) for r in table["fixed"]),
                "proposals": tuple(Proposal(**row) for row in proposals),
                "refused": _pairs(table["refused"]),
                "order": tuple(table["order"]),
                "curve": tuple((float(madds), infinite(damage)) for madds, damage in table["curve"]),
            }
            names = {f.name for f in dataclasses.fields(cls)} - {"_ask", *read}
            read_plan = cls(**{name: table[name] for name in names}, **read)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"the plan is not whole: {type(error).__name__} {error}") from error
        return read_plan

    @classmethod
    def read(cls, path: str | Path) -> "Proposals":
        """From a file of JSON.

        Raises:
            ValueError: there is none, or it is no plan.
        """
        try:
            text = read_text(path, MOST_TABLE)
        except DataError as error:
            raise UsageError(str(error)) from error
        try:
            return cls.from_json(text)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error

    def __str__(self) -> str:
        return described(self)


def _own_table(text: str) -> dict[str, Any]:
    try:
        table = parse_json(text)
    except ValueError as error:
        raise UsageError(f"not a plan of dnat: no JSON ({type(error).__name__})") from error
    if not isinstance(table, dict) or table.get("kind") != KIND:
        raise UsageError(f'not a plan of dnat: `dnat plan --out FILE` writes one, with "kind": {KIND!r}')
    if table.get("format") != FORMAT:
        raise UsageError(
            f"a plan of format {shown(table.get('format'))}, this is {FORMAT}: update dnat, or plan anew"
        )
    return table


def _pairs(rows: Iterable[Sequence[str]]) -> tuple[Any, ...]:
    return tuple(tuple(row) for row in rows)
