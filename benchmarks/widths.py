"""Layers, widths and both at equal cost, beside uniform widths and the channels of Torch-Pruning.

    python benchmarks/widths.py --weights W --data-root DIR         ResNet20 at 0.65, 0.5 and 0.35, three seeds

All are trained by the recipe of the preset fine-tune (six epochs of 5,000 images, bf16), with the same images,
and differ in what is taken. Every run is kept, a line for each, in benchmarks/results/; what is there is not run
again. Beside multiply-adds stands the time for one image and for 64, as a share of the original's: the median of
many runs of both in turn, in the time of their thread. Prints accuracies by seed, their mean and deviation.
"""

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from depth_truth import given
from recovery import Row, flags, kept, spread
from torch import Tensor, nn

import dnat
from dnat.data import Data
from dnat.lab.baselines import control

RESULTS = Path(__file__).parent / "results" / "widths.jsonl"

SPACES = {"layers": "dnat", "channels": "width", "both": "dnat,width"}
"""The rows that are dnat's own, by what it may take."""

PRUNED = [f"prune-{kind}-{scope}" for kind in ("l2", "l1", "taylor") for scope in ("local", "global")]
ROWS = [*SPACES, "uniform-width", *PRUNED]


def one(network: nn.Module, data: Data, budget: str, row: str, seed: int, epochs: int) -> dnat.Transformation:
    """A run of a row."""
    settings: dict[str, Any] = {"preset": "fine-tune", "seed": seed, "epochs": epochs, "amp": "bf16", "threads": 1}
    settings["budget"] = budget
    if row in SPACES:
        return dnat.transform(network, data, dnat.Config(**settings, space=SPACES[row]))
    if row == "uniform-width":
        return control("control-uniform", network, data, dnat.Config(**settings, space="width"))
    _, kind, scope = row.split("-")
    pruning: dict[str, Any] = {"pruning": kind, "pruning_global": scope == "global"}
    return control("control-prune", network, data, dnat.Config(**settings, **pruning))


@torch.inference_mode()
def time_share(network: nn.Module, other: nn.Module, images: Tensor, runs: int = 60) -> float:
    """The time of a network as a share of another's: medians of so many runs of both in turn, after ten."""
    taken: dict[nn.Module, list[float]] = {network: [], other: []}
    for number in range(runs + 10):
        for module, times in taken.items():
            begun = time.thread_time()
            module(images)
            if number >= 10:
                times.append(time.thread_time() - begun)
    return statistics.median(taken[network]) / statistics.median(taken[other])


def times(network: nn.Module, original: nn.Module, data: Data) -> dict[str, float]:
    """Shares of the original's time, for one image and for 64, in the faster layout."""
    twins = [m.eval().to(memory_format=torch.channels_last) for m in (network, original)]
    return {f"time_{n}": round(time_share(*twins, data.example(n)), 3) for n in (1, 64)}


def run(options: argparse.Namespace) -> list[Row]:
    """Run what is missing; returns all rows that are asked for."""
    network, data = given(options)
    total = dnat.cost(network, data.example(2)).madds

    def made(seed: int, budget: str, row: str) -> Row:
        result = one(network, data, budget, row, seed, options.epochs)
        left = result.cost_after.madds
        found = {"accuracy": round(result.test.accuracy, 4), "madds": left, "share": round(left / total, 4)}
        return found | times(result.network, network, data)

    return kept(options, RESULTS, made)


def table(rows: Sequence[Mapping[str, Any]], budget: str) -> str:
    """A budget's rows: each seed, mean and deviation, what is left, and the time that it takes."""
    lines = [
        f"| at {budget} | accuracy by seed | mean ± deviation | multiply-adds left | time, 1 / 64 images |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["row"] for row in rows):
        of = [row for row in rows if row["budget"] == budget and row["row"] == name]
        if of:
            accuracies = [100 * row["accuracy"] for row in of]
            shares = statistics.mean(row["share"] for row in of)
            timed = [row for row in of if row["time_1"]]  # of some seeds networks were not kept
            taken = [f"{statistics.mean(row[f'time_{n}'] for row in timed):.2f}" for n in (1, 64) if timed]
            each = " ".join(f"{a:.2f}" for a in accuracies)
            lines.append(f"| {name} | {each} | {spread(accuracies)} | {shares:.3f} | {' / '.join(taken)} |")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the tables."""
    options = flags(__doc__, ROWS, ["0.65", "0.5", "0.35"])
    torch.set_num_threads(1)
    rows = run(options)
    for budget in options.budgets:
        print(f"\n{table(rows, budget)}")


if __name__ == "__main__":
    main()
