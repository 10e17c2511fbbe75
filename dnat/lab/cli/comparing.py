"""`dnat compare` and `dnat power`: what tells networks apart, and how many seeds it takes to see it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ...errors import UsageError
from ..formatting import aligned, p_text, signed_interval
from .group import cli
from .output import say
from .results import BASELINE, BY


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@BASELINE
@BY
def compare(runs: tuple[Path, ...], baseline: str, by: str | None) -> None:
    """Compare networks image by image on the test images, which have to be the same.

    One run: its network as it was given, with its result. Two runs: these. Sweeps, or more runs: each method with
    the baseline at all seeds that both have. McNemar's exact test is of two networks; the interval is the
    bootstrap's over images and, with several seeds, over seeds, too.

    \b
    dnat compare runs/first/resnet8-original-seed0 runs/first/resnet8-dnat-full-seed0
    dnat compare runs/first
    """
    from ..report.paired import compared
    from ..summary import parse_by

    for number, (title, pair) in enumerate(compared(runs, baseline, parse_by(by))):
        say("\n" * bool(number) + "\n".join(_pair_text(title, pair)))


def _pair_text(title: str, pair: Any) -> list[str]:
    first, second = pair.names
    rows = [["seed", "first, %", "second, %", "both", "first only", "second only", "neither", "p"]]
    for seeds, t in zip(pair.seeds, pair.tables, strict=True):
        shares = (f"{100 * share:.2f}" for share in t.shares)
        counts = map(str, (t.both, t.first, t.second, t.neither))
        rows.append([" and ".join(map(str, seeds)), *shares, *counts, p_text(t.p)])
    several = len(pair.tables) > 1
    mean = signed_interval(pair.difference, pair.interval, ".2f")
    drawn = f"images and the {len(pair.tables)} seeds" if several else "images"
    return [
        title,
        f"first: {first}; second: {second}",
        "",
        *aligned(rows),
        "",
        f"second less first: {mean} points",
        f"interval: 95 %, bootstrap over {drawn}",
        "p: McNemar's exact test of the two networks" + ", each seed for itself" * several,
    ]


@cli.command()
@click.option("--difference", type=float, help="The true mean difference that is to be seen.")
@click.option("--deviation", type=float, help="Standard deviation of the paired differences over seeds.")
@click.option(
    "--runs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Take the deviation from finished runs or sweeps; repeatable.",
)
@BASELINE
@BY
@click.option("--margin", type=float, help='Show "not worse by that" (one-sided) in place of "different".')
@click.option("--tests", type=click.IntRange(1), default=1, show_default=True, help="Methods that are compared.")
@click.option("--power", "wanted", type=float, default=0.8, show_default=True, help="Probability to see it.")
@click.option("--level", type=float, default=0.05, show_default=True, help="Largest corrected p that counts.")
def power(
    difference: float | None,
    deviation: float | None,
    runs: tuple[Path, ...],
    baseline: str,
    by: str | None,
    margin: float | None,
    tests: int,
    wanted: float,
    level: float,
) -> None:
    """Tell how many seeds it takes to see a difference, before a sweep trains them.

    Seeds are paired: what counts is the deviation of the differences between two methods at equal seeds, in the
    unit of the difference (percentage points of accuracy). Runs of a few seeds tell it, roughly.

    \b
    dnat power --difference 0.3 --deviation 0.2 --tests 3
    dnat power --difference 0.5 --runs runs/first
    dnat power --margin 0.3 --deviation 0.2
    """
    from ..summary.power import Question, seeds_of_exact, seeds_of_t, shown_sizes, t_power

    if difference is None and margin is None:
        raise UsageError("what is to be seen? give --difference X, or --margin M for 'not worse by M'")
    if (deviation is None) == (not runs):
        raise UsageError("give either --deviation S, of the paired differences, or --runs to take it from")
    if deviation is None:
        deviation = _deviation_of(runs, baseline, by)
    question = Question(
        difference=difference or 0.0, deviation=deviation, tests=tests, level=level, power=wanted, margin=margin
    )
    answer, exact = seeds_of_t(question), seeds_of_exact(question)
    asked = f"a difference of {question.difference:g}" if margin is None else f"not worse by {margin:g}"
    true = f" where the true difference is {question.difference:g}" if margin is not None else ""
    of = f" (the first of {tests} by Holm)" if tests > 1 else ""
    sides = "two-sided" if margin is None else "one-sided"
    say(f"to see {asked}{true}; deviation of the differences {question.deviation:.3g}")
    say(f"paired t test, {sides}, at {question.level_of_each:.3g}{of}:\n")
    sizes = shown_sizes(answer, exact)
    for line in aligned([("seeds", "power"), *((str(n), f"{t_power(question, n):.3f}") for n in sizes)]):
        say(line)
    if answer is None:
        say(f"\nmore than 1000 seeds would be needed for a power of {wanted:g}")
        return
    say(f"\n{max(answer, exact)} seeds: the t test needs {answer} for a power of {wanted:g}; the exact")
    say(f"sign-flip test and Wilcoxon's cannot be significant with fewer than {exact}.")


def _deviation_of(runs: Sequence[Path], baseline: str, by: str | None) -> float:
    from ..report import gather
    from ..summary import parse_by
    from ..summary.power import deviation_interval, pooled_deviation

    summary = gather(runs, baseline, parse_by(by)).summary
    if len({row.metric for row in summary.rows}) > 1:
        raise UsageError("these runs are judged by different metrics: give --runs of one, or --deviation")
    found, freedom = pooled_deviation(summary.comparisons)
    if not found:
        raise UsageError("all differences of these runs are equal: give --deviation")
    low, high = deviation_interval(found, freedom)
    several = sorted({c.n for c in summary.comparisons if c.n > 1})
    say(f"deviation {found:.3g} from {len(summary.comparisons)} comparison(s) of {several[0]} seeds or more,")
    say(f"which leave it between {low:.3g} and {high:.3g} (95 %)\n")
    return found
