"""A plan in words: what each budget would take, a curve, and a table of what each choice does."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..edges import IDENTITY, NONE, ORIGINAL
from .budgets import amount, short

if TYPE_CHECKING:
    from .result import Proposal, Proposals, Tried

WIDTH = 79
"""Columns of a line, but for those that end with a key."""

MOST_FIXED = 5
"""Operations that cannot change which are shown, those that cost most."""


def described(plan: "Proposals", *, everything: bool = False) -> str:
    """A plan as text, for screens of 80 columns; keys stand at the ends of lines and are never cut.

    Args:
        plan: the result of `dnat.plan`.
        everything: show also edges that no proposal changes, and all that cannot change.
    """
    time = f", {amount(plan.seconds, 'seconds')} for {plan.timed} on {plan.device}" if plan.seconds else ""
    head = [
        f"{plan.network}: {amount(plan.madds, 'madds')}, {amount(plan.params, 'params')}{time}",
        f"{len(plan.edges)} edges may change; {plan.images} images shown, nothing trained",
        f"damage: {_WHAT[plan.compared]}",
        "of a set the sum, which decides; beside it that of the whole at once",
    ]
    parts = [head, _budgets(plan), _curve(plan), _edges(plan, everything), _fixed(plan, everything)]
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


_WHAT = {
    "class scores": "KL of the answers before and after, norms re-estimated",
    "outputs": "squared difference of the outputs, as a share of their variance",
}


def columns(rows: Sequence[Sequence[str]], left: Iterable[int] = ()) -> list[str]:
    """Rows of cells as lines; numbers to the right, columns in `left` to the left, the last as it is.

    >>> columns([("a", "b"), ("100", "c")])
    ['    a  b', '  100  c']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[-1] = 0
    lefts = {*left, len(widths) - 1}
    return [
        "  "
        + "  ".join(
            c.ljust(w) if i in lefts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def _budgets(plan: "Proposals") -> list[str]:
    timed = any(p.seconds is not None for p in plan.proposals)
    of = len({_place(plan, edge) for edge in plan.edges})
    rows = [("budget", "MAdds left", "params", *(["time"] if timed else []), "damage", "whole", "changes")]
    for p in plan.proposals:
        cells = [(short(p.madds), p.madds / plan.madds), (short(p.params), p.params / max(plan.params, 1))]
        if timed and p.seconds and plan.seconds:
            cells.append((f"{p.seconds * 1e3:.3g} ms", p.seconds / plan.seconds))
        changed = len({place for place, _ in _changes(plan, p)})
        shares = [f"{cell} {f'{share:.0%}':>4}" for cell, share in cells]
        rows.append((p.budget, *shares, _number(p.expected), _number(p.damage), f"{changed} of {of}"))
    found = columns(rows, left=[0]) if plan.proposals else []
    for p in plan.proposals:
        found += [f"  {p.budget}: {note}" for note in p.notes]
    return found + [f"  {why}" for _, why in plan.refused]


def _curve(plan: "Proposals") -> list[str]:
    """The sum of damages over the cost, a bar for each point."""
    most = max((d for _, d in plan.curve if math.isfinite(d)), default=0.0)
    if not most:
        return []
    rows = [("MAdds", "damage", "(sum of single ones, of the best sets)")]
    for madds, damage in plan.curve:
        bar = "#" * round(50 * damage / most) if math.isfinite(damage) else "not finite"
        rows.append((_percent(madds, plan.madds), _number(damage), bar))
    return columns(rows)


def _place(plan: "Proposals", edge: "Tried") -> str:
    return edge.group if plan.mode == "cell" else edge.key


def _changes(plan: "Proposals", proposal: "Proposal") -> Iterator[tuple[str, str]]:
    for edge in plan.edges:
        if proposal.choices[edge.key] != ORIGINAL:
            yield _place(plan, edge), proposal.choices[edge.key]


def _edges(plan: "Proposals", everything: bool) -> list[str]:
    """What each choice does alone, and what it is at each budget."""
    groups: dict[str, list[Tried]] = {}
    for edge in plan.edges:
        groups.setdefault(_place(plan, edge), []).append(edge)
    made = [dict(_changes(plan, p)) for p in plan.proposals]
    listed = [g for g in groups if everything or any(g in changes for changes in made)]
    if not listed:
        return ["no proposal changes an edge"] if plan.proposals else []
    several = any(set(e.damages) - {ORIGINAL, IDENTITY, NONE} for e in plan.edges)
    others = ("best other", "") if several else ()
    rows = [("identity", "none", *others, "saves", *(p.budget for p in plan.proposals), "edge")]
    for group in listed:
        damages = groups[group][0].damages
        saved = {c: sum(e.saved[c] for e in groups[group]) for c in damages}
        rows.append(
            (
                *(_number(damages.get(choice)) for choice in (IDENTITY, NONE)),
                *(_best_other(damages) if several else ()),
                _percent(max(saved.values()), plan.madds),
                *(changes.get(group, "-") for changes in made),
                group,
            )
        )
    rest = len(groups) - len(listed)
    more = [f"  and {rest} that stay at every budget: --all, or described(plan, everything=True)"] if rest else []
    return ["damage of each choice alone, and what is chosen at each budget:", *columns(rows), *more]


def _best_other(damages: dict[str, float]) -> tuple[str, str]:
    others = {c: d for c, d in damages.items() if c not in (ORIGINAL, IDENTITY, NONE)}
    if not others:
        return "-", ""
    name = min(others, key=lambda c: others[c])
    return _number(others[name]), name


def _fixed(plan: "Proposals", everything: bool) -> list[str]:
    """What cannot change and costs most, with the reasons."""
    # What holds something that may change is left out: it would hide what may not.
    whole = [f for f in plan.fixed if f.madds and not any(e.key.startswith(f"{f.key}.") for e in plan.edges)]
    listed = plan.fixed if everything else whole[:MOST_FIXED]
    if not listed:
        return []
    lines = ["cannot change:"]
    for fixed in listed:
        lines.append(f"  {_percent(fixed.madds, plan.madds):>6}  {fixed.key}")
        lines += [f"          {choice}: {why}" for choice, why in fixed.refused]
    rest = len(plan.fixed) - len(listed)
    return [*lines, f"  and {rest} more"] if rest else lines


def _percent(value: float, of: float) -> str:
    return f"{100 * value / of:.1f} %" if of else ""


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else "inf"
