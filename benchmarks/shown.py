"""How many images it takes to choose: sets chosen from few, held against what many others say of them.

    python benchmarks/shown.py --weights W --data-root DIR                   ResNet20 at 0.73, 0.55 and 0.35
    python benchmarks/shown.py --weights W --data-root DIR --few 50          where there are no more than 50 images

Every choice is tried once on training images, in batches of 125 (`--kept FILE` goes on where it was stopped).
Each half of the batches chooses, one, two, four or eight at a time; the other half says what a chosen set does
to the answers, as the sum of its damages, beside the least sum that any set has there: a figure of 1.02 says
that the set is worse by 2 % than the best that could be known. Prints the mean and the worst over all draws,
and how many sets they chose.

With `--few` eight draws of so many other images choose, shown once and shown again as training varies them
(`sensitivity.VIEWS`), and all of the batches hold.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from depth_truth import given

import dnat
from dnat.data import Data
from dnat.measurement import batches_in
from dnat.proposal import Planner, parse_budget
from dnat.sensitivity.damages import Distances, Sensitivity

DRAWS = 8
"""Draws of a few images."""


def chosen(planner: Planner, budget: str, by: Sensitivity) -> dict[str, str]:
    """The set within a budget that damages choose."""
    asked = parse_budget(budget)
    return planner.place.least(asked, by, planner.place.limit(asked))


def measured(planner: Planner, path: Path) -> list[Distances]:
    """What every choice does to each batch; a file goes on where it was stopped."""
    planner.measured(path=path)
    return batches_in(path, planner.digest)


def sets_by_images(planner: Planner, parts: Sequence[Distances], budget: str) -> list[str]:
    """The lines of a budget: how good what so many images choose is."""
    half = len(parts) // 2
    lines, size = [], 1
    while size <= half:
        sets, shares = [], []
        for choosing, others in ((parts[:half], parts[half:]), (parts[half:], parts[:half])):
            held = planner.judge.sensitivity(others)
            best = held.sum_of(chosen(planner, budget, held))
            draws = [choosing[i : i + size] for i in range(0, half - size + 1, size)]
            here = [chosen(planner, budget, planner.judge.sensitivity(draw)) for draw in draws]
            sets += here
            shares += [held.sum_of(one) / best for one in here]
        images, count = size * planner.judge.sizes[0], len({tuple(one.items()) for one in sets})
        mean, worst = statistics.mean(shares), max(shares)
        lines.append(f"{budget:>6}{images:8}{len(sets):7}{count:6}{mean:8.3f}{worst:8.3f}")
        size *= 2
    return lines


def sets_from_few(planner: Planner, held: Sensitivity, data: Data, options: argparse.Namespace) -> list[str]:
    """The lines of every budget: how good what a few images choose is, shown once and shown again."""
    shares: dict[tuple[str, str], list[float]] = {}
    for draw in range(DRAWS):
        each = options.few // data.num_classes
        first = options.images // data.num_classes + draw * each
        by_class = (torch.nonzero(data.train_labels == number).flatten() for number in range(data.num_classes))
        rows = torch.cat([of[first : first + each] for of in by_class]).sort().values
        names = ("train_images", "train_labels", "train_index")
        tensors = {name: getattr(data, name)[rows] for name in names}
        few = Planner(planner.place.network, dataclasses.replace(data, **tensors))
        parts = measured(few, options.kept.with_suffix(f".{options.few}.{draw}.json"))
        for budget in options.budgets:
            best = held.sum_of(chosen(planner, budget, held))
            for name, shown in (("once", parts[:1]), ("again", parts)):
                found = chosen(planner, budget, few.judge.sensitivity(shown))
                shares.setdefault((budget, name), []).append(held.sum_of(found) / best)
    return [
        f"{budget:>6}{options.few:8} shown {name:<6}{statistics.mean(row):8.3f} ± {statistics.stdev(row):.3f}"
        f"{max(row):8.3f}"
        for (budget, name), row in shares.items()
    ]


def main() -> None:
    """Try every choice, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--budgets", nargs="+", default=["0.73", "0.55", "0.35"])
    parser.add_argument("--kept", type=Path, default=Path("shown.json"))
    parser.add_argument("--few", type=int)
    options = parser.parse_args()
    options.train, options.test = options.images, 100
    torch.set_num_threads(1)
    network, data = given(options)
    planner = Planner(network, data, images=options.images)
    parts = measured(planner, options.kept)
    if options.few:
        whole = dnat.load("cifar10", options.data_root, test_limit=options.test)
        print("\n".join(sets_from_few(planner, planner.judge.sensitivity(parts), whole, options)))
        return
    print(f"{'budget':>6}{'images':>8}{'draws':>7}{'sets':>6}{'mean':>8}{'worst':>8}")
    for budget in options.budgets:
        print("\n".join(sets_by_images(planner, parts, budget)), flush=True)


if __name__ == "__main__":
    main()
