"""A plan in words: what each budget would take, a curve, and tables of what each choice does."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ..edges import IDENTITY, NONE, ORIGINAL, Tally, channels_of, kept_of
from .budgets import amount, duration, short

if TYPE_CHECKING:
    from ..results import FixedReport
    from .result import Proposal, Proposals, Tried

MOST_FIXED = 5
"""Operations that cannot change which are shown, those that cost most."""

SHARES = ("6/8", "4/8", "2/8", "1/8")
"""Of a width so much is kept where its damage is shown."""


def described(plan: "Proposals", *, everything: bool = False) -> str:
    """A plan as text, for screens of 80 columns; keys stand at the ends of lines and are never cut.

    Args:
        plan: the result of `dnat.plan`.
        everything: show also edges that no proposal changes, and all that cannot change.
    """
    time = f", {amount(plan.seconds, 'seconds')} for {plan.timed} on {plan.device}" if plan.seconds else ""
    head = [
        f"{plan.network}: {amount(plan.madds, 'madds')}, {amount(plan.params, 'params')}{time}",
        f"{may_change(plan)}; {plan.images} images shown, nothing trained",
        f"damage: {_WHAT[plan.compared]}",
        "of a set the sum, which decides; beside it that of the whole at once",
    ]
    parts = [head, _budgets(plan), _curve(plan), *_edges(plan, everything), _fixed(plan, everything)]
    return "\n\n".join("\n".join(line.rstrip() for line in part) for part in parts if part)


def may_change(plan: "Proposals") -> str:
    """How many edges may change, and how many of them are widths."""
    widths = sum(edge.kind == "width" for edge in plan.edges)
    if widths and widths == len(plan.edges):
        return f"{widths} widths may shrink"
    return f"{len(plan.edges)} edges may change" + (f", {widths} of them widths" if widths else "")


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
    counts = _counts(plan)
    narrow = timed and "narrower" in counts  # a line has no room for all
    digits = 2 if narrow else 3
    rows = [("budget", "MAdds left", "params", *(["time"] if timed else []), "damage", "whole", *counts)]
    for p in plan.proposals:
        cells = [_with_share(short(p.madds), p.madds, plan.madds)]
        cells.append(short(p.params) if narrow else _with_share(short(p.params), p.params, max(plan.params, 1)))
        if timed and p.seconds and plan.seconds:
            cells.append(_with_share(duration(p.seconds, digits), p.seconds, plan.seconds))
        changed = _counts(plan, p).values()
        rows.append((p.budget, *cells, _number(p.expected, digits), _number(p.damage, digits), *changed))
    lines = columns(rows, left=[0]) if plan.proposals else []
    for p in plan.proposals:
        lines += [f"  {p.budget}: {note}" for note in p.notes]
    return lines + [f"  {why}" for _, why in plan.refused]


def _with_share(cell: str, value: float, of: float) -> str:
    return f"{cell} {f'{value / of:.0%}':>4}"


def _counts(plan: "Proposals", proposal: "Proposal | None" = None) -> dict[str, str]:
    """{column: how much changes}; where widths may shrink, they are counted apart."""
    choices = proposal.choices if proposal else {}
    places = {_place(plan, edge): (edge.kind, choices.get(edge.key, ORIGINAL)) for edge in plan.edges}
    tally = Tally.of(places.values())
    if not tally.widths:
        return {"changes": f"{tally.changed} of {tally.edges}"}
    removing = all(e.kind == "width" or not (_others(e.damages) or e.kind == "skip") for e in plan.edges)
    operations = {"gone" if removing else "changed": f"{tally.changed - tally.narrowed}/{tally.operations}"}
    return (operations if tally.operations else {}) | {"narrower": f"{tally.narrowed}/{tally.widths}"}


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


def _edges(plan: "Proposals", everything: bool) -> Iterator[list[str]]:
    """What each choice does alone, and what it is at each budget: of operations, and of widths."""
    groups: dict[str, list[Tried]] = {}
    for edge in plan.edges:
        groups.setdefault(_place(plan, edge), []).append(edge)
    changes_at = [dict(_changes(plan, p)) for p in plan.proposals]
    if plan.proposals and not (everything or any(changes_at)):
        yield ["no proposal changes an edge"]
        return
    rest = []
    for of_widths, name, table in ((False, "operations", _operations), (True, "widths", _widths)):
        own = {g: members for g, members in groups.items() if (members[0].kind == "width") == of_widths}
        listed = {g: m for g, m in own.items() if everything or any(g in changes for changes in changes_at)}
        rest += [f"{len(own) - len(listed)} {name}"] if len(listed) < len(own) else []
        yield table(plan, listed, changes_at) if listed else []
    if rest:
        yield [f"{' and '.join(rest)} stay: --all, or described(plan, everything=True)"]


Groups = dict[str, list["Tried"]]
"""Edges by what they stand for in a table: themselves, or their group."""


def _operations(plan: "Proposals", groups: Groups, changes_at: Sequence[dict[str, str]]) -> list[str]:
    several = any(_others(members[0].damages) for members in groups.values())
    others = ("best other", "") if several else ()
    rows = [("identity", "none", *others, "saves", *(p.budget for p in plan.proposals), "edge")]
    for group, members in groups.items():
        damages = members[0].damages
        rows.append(
            (
                *(_number(damages.get(choice)) for choice in (IDENTITY, NONE)),
                *(_best_other(damages) if several else ()),
                _percent(max(_saved(members, choice) for choice in damages), plan.madds),
                *(changes.get(group, "-") for changes in changes_at),
                group,
            )
        )
    return ["damage of each choice alone, and what is chosen at each budget:", *columns(rows)]


def _widths(plan: "Proposals", groups: Groups, changes_at: Sequence[dict[str, str]]) -> list[str]:
    rows = [("channels", *SHARES, "saves", *(p.budget for p in plan.proposals), "width")]
    for group, members in groups.items():
        damages, half = members[0].damages, _keeping(members, "4/8")
        rows.append(
            (
                _channels(members),
                *(_number(damages.get(_keeping(members, share))) for share in SHARES),
                _percent(_saved(members, half), plan.madds) if half else "-",
                *(_left(plan, members[0], changes.get(group, ORIGINAL)) for changes in changes_at),
                group,
            )
        )
    what = "share" if plan.mode == "cell" else "channels"
    return [f"damage of so much of a width, alone; what half of it saves; {what} left:", *columns(rows)]


def _channels(members: Sequence["Tried"]) -> str:
    """How many channels a width has, or the widths of a group."""
    widths = list(dict.fromkeys(edge.operation.removesuffix(" channels") for edge in members))
    sizes = [channels_of(edge.operation) for edge in members]
    return widths[0] if len(widths) == 1 else f"{min(sizes)} to {max(sizes)}"


def _left(plan: "Proposals", edge: "Tried", choice: str) -> str:
    """What a choice keeps of a width: its channels, or the share where widths of several sizes change alike."""
    if choice == ORIGINAL:
        return "-"
    return choice if plan.mode == "cell" else str(kept_of(channels_of(edge.operation), choice))


def _keeping(members: Sequence["Tried"], share: str) -> str:
    """The choice that keeps as many channels as a share does; of a few channels not every share is a choice."""
    sizes = {channels_of(edge.operation) for edge in members}
    for choice in members[0].damages:
        if choice != ORIGINAL and all(kept_of(n, choice) == kept_of(n, share) for n in sizes):
            return choice
    return ""


def _saved(members: Sequence["Tried"], choice: str) -> float:
    return sum(edge.saved[choice] for edge in members)


def _others(damages: dict[str, float]) -> dict[str, float]:
    return {c: d for c, d in damages.items() if c not in (ORIGINAL, IDENTITY, NONE)}


def _best_other(damages: dict[str, float]) -> tuple[str, str]:
    others = _others(damages)
    if not others:
        return "-", ""
    name = min(others, key=lambda c: others[c])
    return _number(others[name]), name


def _fixed(plan: "Proposals", everything: bool) -> list[str]:
    """What cannot change and costs most, with the reasons."""
    # What holds something that may change is left out: it would hide what may not.
    whole = [f for f in plan.fixed if f.madds and not any(e.key.startswith(f"{f.key}.") for e in plan.edges)]
    if all(edge.kind == "width" for edge in plan.edges):  # nothing else was asked for
        whole = [f for f in whole if f.kind == "width"]
    listed = plan.fixed if everything else whole[:MOST_FIXED]
    if not listed:
        return []
    widths = any(edge.kind == "width" for edge in plan.edges)
    lines = ["cannot change, but for widths:" if widths else "cannot change:"]
    for fixed in listed:
        lines.append(f"  {_percent(fixed.madds, plan.madds):>6}  {fixed.key}")
        lines += [f"          {choice}: {why}" for choice, why in _reasons(fixed)]
    rest = len(plan.fixed) - len(listed)
    return [*lines, f"  and {rest} more"] if rest else lines


def _reasons(fixed: "FixedReport") -> Sequence[tuple[str, str]]:
    if fixed.kind != "width":
        return fixed.refused
    return [("narrower", why) for choice, why in fixed.refused if choice not in (IDENTITY, NONE)][:1]


def _percent(value: float, of: float) -> str:
    return f"{100 * value / of:.1f} %" if of else ""


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}g}" if math.isfinite(value) else "inf"
