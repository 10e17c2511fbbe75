"""The main job on the data that come along: three seeds, each beside the untouched network.

    make demo        or: python benchmarks/demo.py

Trains ResNet8 on scikit-learn's digits with `dnat transform` and, at the same seed, with the same images and the
same recipe, without transforming it. Prints both, and draws the networks. Runs that are done are not done again.
"""

import shutil
import statistics
from pathlib import Path

from dnat.config import Config, Job
from dnat.runs import run
from dnat.terminal import TerminalTracker, changes_table, console

SEEDS = (1, 2, 3)
EPOCHS, ARCHITECTURE_EPOCHS = 24, 8
RUNS = Path("runs")


def job(method: str, seed: int) -> Job:
    """One run of the demo."""
    config = Config(seed=seed, epochs=EPOCHS, architecture_epochs=ARCHITECTURE_EPOCHS, batch_size=64)
    return Job(network="resnet8", data="digits", method=method, config=config)


def main() -> None:
    """Run, compare, and say where the pictures are."""
    from rich.table import Table

    screen = console()
    records = {}
    for seed in SEEDS:
        for method in ("original", "dnat"):
            screen.rule(f"seed {seed}: {'dnat transform' if method == 'dnat' else 'the untouched network'}")
            tracker = TerminalTracker(screen, EPOCHS)
            try:
                records[method, seed] = run(job(method, seed), RUNS / f"demo-{method}-seed{seed}", tracker=tracker)
            finally:
                tracker.finish()
    table = Table(title="ResNet8 on digits: untouched and transformed, at the same seeds")
    for name in (
        "seed",
        "accuracy, untouched",
        "accuracy, transformed",
        "parameters",
        "multiply-adds",
        "edges changed",
    ):
        table.add_column(name, justify="right")
    for seed in SEEDS:
        plain, ours = records["original", seed]["results"], records["dnat", seed]["results"]
        table.add_row(
            str(seed),
            f"{plain['test_accuracy']:.2%}",
            f"{ours['test_accuracy']:.2%}",
            f"{plain['cost_after']['params']:,} → {ours['cost_after']['params']:,}",
            f"{plain['cost_after']['madds']:,} → {ours['cost_after']['madds']:,}",
            f"{sum(c != 'original' for c in ours['choices'].values())} of {len(ours['choices'])}",
        )
    table.add_section()
    means = [_mean([records[m, s]["results"]["test_accuracy"] for s in SEEDS]) for m in ("original", "dnat")]
    saved = [
        1
        - records["dnat", s]["results"]["cost_after"]["madds"]
        / records["dnat", s]["results"]["cost_before"]["madds"]
        for s in SEEDS
    ]
    table.add_row("mean ± std", *means, "", f"-{statistics.mean(saved):.1%}", "")
    screen.print()
    screen.print(table)
    import json

    last = RUNS / f"demo-dnat-seed{SEEDS[0]}"
    screen.print(changes_table(json.loads((last / "architecture.json").read_text())["commitment"]["edges"]))
    shutil.copy(last / "architecture.png", RUNS / "demo.png")
    screen.print(f"the network before and after (seed {SEEDS[0]}): {RUNS / 'demo.png'}", highlight=False)


def _mean(values: list[float]) -> str:
    return f"{statistics.mean(values):.2%} ± {statistics.stdev(values) * 100:.2f}"


if __name__ == "__main__":
    main()
