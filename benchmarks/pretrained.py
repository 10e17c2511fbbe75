"""A trained network made smaller within a budget, against two controls at the same cost and the same time.

    python benchmarks/pretrained.py --data-root DIR      ResNet20 on 2,000 + 2,000 images of CIFAR-10, three seeds

For each seed a network is trained; then

dnat      `transform` from its weights with the budget;
random    the same in all respects, but instead of the learned choices a random legal set of nearly the same cost;
narrow    a network of the same kind with fewer channels, nearly the same cost, trained from scratch for as long
          as dnat took (its number of epochs follows from the speed measured here);
longer    the same for as long as training and transforming took together.

All see the same images in the same order. Time is that of the processor, so that other processes do not count.
Prints every seed, mean and sample deviation.
"""

import argparse
import json
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

import dnat
from dnat.budget import Costs, by_edge
from dnat.config import PRESETS
from dnat.data import Data
from dnat.edges import problems
from dnat.planning import find_edges
from dnat.selection import Decision
from dnat.tracing import trace


def data_of(root: str, train: int, test: int) -> Data:
    """The subset of CIFAR-10."""
    return dnat.load("cifar10", root, train_limit=train, test_limit=test)


def random_choices(network, example, cost: float, seed: int) -> dict[str, str]:
    """A random legal set of choices whose cost is nearest to the given one among 2,000 draws."""
    edges = find_edges(trace(network, example))
    costs, generator = Costs(edges), random.Random(seed)
    groups = {e.key: [e] for e in edges}
    best: tuple[float, dict[str, str]] | None = None
    for _ in range(2000):
        share = generator.random()
        drawn = {
            e.key: generator.choice(e.choices[1:]) if generator.random() < share else "original" for e in edges
        }
        price = costs.of(by_edge(groups, drawn))
        # Never cheaper than half a percent below, so that the control is not held back by its cost.
        nearer = price >= 0.995 * cost and (best is None or abs(price - cost) < best[0])
        if nearer and not problems(by_edge(groups, drawn)):
            best = abs(price - cost), drawn
    assert best is not None
    return best[1]


def width_of(cost: float, size: int) -> int:
    """The width at which ResNet20's cost is nearest."""
    import torch

    example = torch.zeros(2, 3, size, size)
    costs = {w: dnat.cost(dnat.build("resnet20", width=w, seed=0), example).madds for w in range(2, 33)}
    return min(costs, key=lambda w: abs(costs[w] - cost))


def timed(function, *arguments):
    """A result and the seconds of the processor that it took."""
    begun = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - begun


def with_choices(network, data: Data, config: dnat.Config, choices: dict[str, str]):
    """Transform a network with choices that are given instead of learned."""

    def given(relaxed, **options) -> tuple[Decision, ...]:
        return tuple(Decision(e, (0.0, 0.0, 0.0), choices[e.key], 0.0, "given") for e in relaxed.edges)

    with patch.object(sys.modules["dnat.transform"], "decide", given):
        return dnat.transform(network, data, config)


def for_as_long(network, data: Data, config: dnat.Config, seconds: float):
    """Train for so many epochs as fit into the time, by the speed of one epoch: result, seconds, epochs."""

    def epochs(number: int) -> dnat.Config:
        return dnat.Config(**(asdict(config) | {"epochs": number, "architecture_epochs": 1, "budget": None}))

    _, pace = timed(dnat.train, network, data, epochs(3))
    number = max(1, round(3 * seconds / pace))
    result, taken = timed(dnat.train, network, data, epochs(number))
    return result, taken, number


def one_seed(options: argparse.Namespace, seed: int) -> dict:
    """All that is compared at one seed."""
    data = data_of(options.data_root, options.train, options.test)
    base = dnat.Config(seed=seed, epochs=options.train_epochs, architecture_epochs=1, threads=1)
    trained, train_seconds = timed(dnat.train, dnat.build("resnet20", seed=seed), data, base)
    config = dnat.Config(
        preset=options.preset,
        seed=seed,
        epochs=options.epochs,
        architecture_epochs=options.architecture_epochs,
        budget=options.budget,
        lr=options.lr,
        threads=1,
    )
    ours, seconds = timed(dnat.transform, trained.network, data, config)
    madds = ours.cost_after.madds
    chosen = random_choices(trained.network, data.example(2), madds, seed)
    assert set(chosen) == set(ours.choices)
    control, control_seconds = timed(with_choices, trained.network, data, config, chosen)
    narrow = dnat.build("resnet20", seed=seed, width=width_of(madds, 32))
    rows = {
        "trained": (trained, train_seconds, options.train_epochs),
        "dnat": (ours, seconds, options.epochs),
        "random": (control, control_seconds, options.epochs),
        "narrow": for_as_long(narrow, data, base, seconds),
        "longer": for_as_long(narrow, data, base, train_seconds + seconds),
    }
    changed = {k: c for k, c in ours.choices.items() if c != "original"}
    found = {
        name: {
            "accuracy": result.test.accuracy,
            "madds": result.cost_after.madds,
            "params": result.cost_after.params,
            "seconds": taken,
            "epochs": epochs,
        }
        for name, (result, taken, epochs) in rows.items()
    } | {"choices": changed, "random choices": {k: c for k, c in chosen.items() if c != "original"}}
    print(f"seed {seed}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run the seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--budget", default="0.7")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--train-epochs", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--architecture-epochs", type=int, default=4)
    parser.add_argument("--preset", choices=list(PRESETS), default="improved")
    parser.add_argument("--lr", type=float, help="by default the preset's")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        results = list(pool.map(one_seed, [options] * len(options.seeds), options.seeds))
    if options.json:
        options.json.write_text(json.dumps(dict(zip(map(str, options.seeds), results, strict=True)), indent=2))
    print("| | " + " | ".join(f"seed {s}" for s in options.seeds) + " | mean ± std | MAdds | seconds | epochs |")
    print("|---" * (len(options.seeds) + 5) + "|")
    for name in ("trained", "dnat", "random", "narrow", "longer"):
        rows = [r[name] for r in results]
        values = [r["accuracy"] for r in rows]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(
            f"| {name} | "
            + " | ".join(f"{v:.2%}" for v in values)
            + f" | {statistics.mean(values):.2%} ± {spread * 100:.2f}"
            + f" | {statistics.mean(r['madds'] for r in rows) / 1e6:.1f} M"
            + f" | {statistics.mean(r['seconds'] for r in rows):.0f}"
            + f" | {', '.join(str(r['epochs']) for r in rows)} |"
        )
    for seed, result in zip(options.seeds, results, strict=True):
        print(f"seed {seed}, changed: {result['choices']}")


if __name__ == "__main__":
    main()
