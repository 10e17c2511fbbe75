"""Where labels stand beside points and lines, so that none covers another."""

from collections.abc import Sequence

from .series import Spot


def spread_apart(values: Sequence[float], span: Sequence[float], pixels: float, gap: float = 17) -> list[float]:
    """Places near the values, in their order and on the axis, far enough apart for labels that stand there.

    Args:
        values: where labels belong.
        span: the axis' range.
        pixels: how long the axis is in the figure.
        gap: pixels between two labels.
    """
    step = gap * (span[1] - span[0]) / pixels
    # Labels that touch make a block, which stands where the mean of its values is, as far as the axis reaches.
    blocks: list[tuple[list[int], float]] = []
    for i in sorted(range(len(values)), key=lambda i: values[i]):
        blocks.append(([i], _within(values[i], step / 2, span)))
        while len(blocks) > 1 and _touch(blocks[-2], blocks[-1], step):
            merged = blocks[-2][0] + blocks[-1][0]
            mean = sum(values[j] for j in merged) / len(merged)
            blocks[-2:] = [(merged, _within(mean, len(merged) * step / 2, span))]
    places = list(values)
    for members, centre in blocks:
        for place, i in enumerate(members):
            places[i] = centre + (place - (len(members) - 1) / 2) * step
    return places


def _within(centre: float, half: float, span: Sequence[float]) -> float:
    """The centre of something so large, moved into the span if it fits."""
    if 2 * half > span[1] - span[0]:
        return (span[0] + span[1]) / 2
    return min(max(centre, span[0] + half), span[1] - half)


def label_places(
    means: Sequence[Spot], across: Sequence[float], span: Sequence[float], pixels: float, gap: float = 17
) -> list[tuple[Spot, float, bool]]:
    """For each mean the height of its label and whether it stands on the left: towards the middle of the figure.

    Labels stand a little above their points, so that no level line runs through them.

    Args:
        means: in the plane of cost and metric.
        across: the range of costs.
        span: the range of the metric, upwards.
        pixels: how long the axis is in the figure.
        gap: pixels between two labels.
    """
    step = gap * (span[1] - span[0]) / pixels
    sides = {
        on_the_left: [m for m in means if _is_right(m, across) == on_the_left] for on_the_left in (False, True)
    }
    # Labels that point at one another from near points would meet in the middle on a narrow screen.
    near = 0.6 * (across[1] - across[0])
    meeting = any(
        abs(a.cost - b.cost) < near and abs(a.value - b.value) < 2 * step
        for a in sides[False]
        for b in sides[True]
    )
    found = []
    for mine in [sides[False] + sides[True]] if meeting else sides.values():
        heights = spread_apart([m.value + 0.6 * step for m in mine], span, pixels, gap)
        found += [(m, y, _is_right(m, across)) for m, y in zip(mine, heights, strict=True)]
    return found


def _is_right(spot: Spot, across: Sequence[float]) -> bool:
    return spot.cost > (across[0] + across[1]) / 2


def _touch(lower: tuple[list[int], float], upper: tuple[list[int], float], step: float) -> bool:
    return upper[1] - lower[1] < step * (len(lower[0]) + len(upper[0])) / 2
