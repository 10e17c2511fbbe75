"""What each part of the recovery is worth: a trained ResNet, choices made, and one setting at a time changed.

    python benchmarks/recovery.py --weights W --data-root DIR              ResNet20 at 0.66 and 0.5, three seeds

The choices of each budget are made once (`dnat.plan`); all that follows is the default of the preset fine-tune but
for what a row names. Rows of other sets (by chance, evenly) are trained by the default. Every run is kept, a line
for each, in benchmarks/results/; what is there is not run again. Prints accuracies, their mean and deviation, and
how far each row is from the default, seed by seed.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from depth_truth import given, trained
from torch import nn

import dnat
from dnat.budget import Costs, by_edge
from dnat.data import Data
from dnat.lab.baselines.sets import CHOOSERS
from dnat.planning import find_edges
from dnat.relaxation import relax
from dnat.sensitivity import retake_statistics
from dnat.tracing import trace

RESULTS = Path(__file__).parent / "results" / "recovery.jsonl"

ROWS: dict[str, dict[str, Any]] = {
    "default": {},
    "rate 0.005": {"lr": 0.005},
    "rate 0.01": {"lr": 0.01},
    "rate 0.02": {"lr": 0.02},
    "rate 0.06": {"lr": 0.06},
    "half an epoch of warm-up": {"warm_up": 0.5},
    "no answers": {"distillation": 0.0},
    "answers 0.9": {"distillation": 0.9},
    "no hints": {"feature_distillation": 0.0},
    "hints 16": {"feature_distillation": 16.0},
    "hints 144": {"feature_distillation": 144.0},
    "not clipped": {"grad_clip": 0.0},
    "norms as recorded": {"norms": "recorded"},
    "in steps": {"steps": 3},
    "set by chance": {"set": "control-random"},
    "set spread evenly": {"set": "control-uniform"},
}
"""What differs from the default: settings, and "set", "norms" and "steps"."""


def choices_of(network: nn.Module, data: Data, budget: str, how: str, seed: int) -> dict[str, str]:
    """The choices within a budget, those that do least first."""
    if how == "answers":
        plan = dnat.plan(network, data, [budget])
        made = {k: c for k, c in plan.at(budget).choices.items() if c != "original"}
        damages = {edge.key: edge.damages for edge in plan.edges}
        return dict(sorted(made.items(), key=lambda pair: damages[pair[0]][pair[1]]))
    example = data.example(2)
    edges = find_edges(trace(network, example, batch=2))
    relaxed, costs = relax(network, edges), Costs(edges)
    groups = relaxed.by_group()
    legal = {group: list(relaxed.choices_of(group)) for group in groups}
    chosen = CHOOSERS[how](groups, legal, costs, float(budget) * costs.total, seed)
    return {edge.key: c for edge, c in by_edge(groups, chosen).items() if c != "original"}


def in_steps(choices: Mapping[str, str], steps: int) -> list[dict[str, str]]:
    """Choices in so many parts, the first half of them in the first."""
    keys = list(choices)
    bounds = [0, *(math.ceil(len(keys) * (i + 1) / (steps + 1)) for i in range(1, steps)), len(keys)]
    return [{key: choices[key] for key in keys[a:b]} for a, b in itertools.pairwise(bounds)]


def one(
    network: nn.Module, data: Data, choices: Mapping[str, str], row: Mapping[str, Any], seed: int, epochs: int
):
    """The accuracy of a row at a seed."""
    settings = {k: v for k, v in row.items() if k not in ("set", "norms", "steps")}
    config = dnat.Config(preset="fine-tune", seed=seed, epochs=epochs, amp="bf16", threads=1, **settings)

    def smaller(part: Mapping[str, str], current: nn.Module) -> nn.Module:
        made = dnat.discretize(current, part, data.example(2))
        if row.get("norms") != "recorded":
            retake_statistics(made, data, seed)
        return made

    first, *later = in_steps(choices, row.get("steps", 1))
    changed = {epoch: functools.partial(smaller, part) for epoch, part in enumerate(later, 1)}
    return trained(smaller(first, network), network, data, config, changed)


Row = dict[str, Any]


def kept(options: argparse.Namespace, file: Path, make: Callable[[int, str, str], Row]) -> list[Row]:
    """All rows that are asked for: those that a file holds, and what is missing, which is made and kept there.

    Args:
        options: from `flags`.
        file: with a line for each row.
        make: what is found out of (seed, budget, name of a row).
    """
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted = []
    for seed, budget, name in itertools.product(options.seeds, options.budgets, options.rows):
        about = {"network": options.network, "budget": budget, "row": name, "seed": seed}
        about |= {"train": options.train, "test": options.test, "epochs": options.epochs}
        known = next((r for r in found if all(r.get(k) == v for k, v in about.items())), None)
        if known is None:
            known = about | make(seed, budget, name)
            file.parent.mkdir(exist_ok=True)
            with file.open("a") as lines:
                lines.write(json.dumps(known) + "\n")
            print(known, file=sys.stderr, flush=True)
        wanted.append(known)
    return wanted


def flags(text: str | None, rows: Sequence[str], budgets: Sequence[str]) -> argparse.Namespace:
    """The flags of a benchmark of a trained ResNet, with these rows and budgets by default."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--arguments", nargs="+", default=[], metavar="NAME=VALUE", help="of its constructor")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--budgets", nargs="+", default=budgets)
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help=", ".join(rows))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=6)
    return parser.parse_args()


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run what is missing; returns all rows that are asked for."""
    network, data = given(options)
    example = data.example(2)
    sets: dict[tuple[str, str, int], dict[str, str]] = {}

    def made(seed: int, budget: str, name: str) -> Row:
        how = ROWS[name].get("set", "answers")
        key = (budget, how, 0 if how == "answers" else seed)
        if key not in sets:
            sets[key] = choices_of(network, data, *key)
        accuracy = one(network, data, sets[key], ROWS[name], seed, options.epochs)
        left = dnat.cost(dnat.discretize(network, sets[key], example), example).madds
        return {"accuracy": round(accuracy, 4), "madds": left}

    return kept(options, RESULTS, made)


def table(rows: Sequence[Mapping[str, Any]], budget: str) -> str:
    """A budget's rows: each seed, mean and deviation; and the mean difference from the default with its own."""
    by_row: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["budget"] == budget:
            by_row.setdefault(row["row"], {})[row["seed"]] = 100 * row["accuracy"]
    lines = [f"| at {budget} | accuracy by seed | mean ± deviation | beside the default |", "|---|---|---|---|"]
    for name, values in by_row.items():
        apart = [v - by_row["default"][s] for s, v in values.items() if s in by_row.get("default", {})]
        each = " ".join(f"{v:.2f}" for v in values.values())
        beside = "" if name == "default" or not apart else spread(apart, "+")
        lines.append(f"| {name} | {each} | {spread(list(values.values()))} | {beside} |")
    return "\n".join(lines)


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def main() -> None:
    """Run what is missing, and print the tables."""
    options = flags(__doc__, list(ROWS), ["0.66", "0.5"])
    torch.set_num_threads(1)
    rows = run(options)
    for budget in options.budgets:
        print(f"\n{table(rows, budget)}")


if __name__ == "__main__":
    main()
