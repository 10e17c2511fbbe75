"""What whole runs cost over training the original: CPU time of the command's process from its start to its end.

python benchmarks/whole.py --data-root DIR         ResNet20, 12 epochs of 2,000 images of CIFAR-10, three seeds
python benchmarks/whole.py --data digits --network resnet8 --seeds 1 --rows original nat

Methods are run in turns, seed by seed; each ratio is to the original of the same seed. "Short" is an architecture
stage of a twelfth of the epochs, as the paper has it, else it has its default length; "no nulls" leaves NAT's null
edges out; 0.7 is the budget of multiply-adds; "nat" searches in the published way: shared weights, a policy
learner, and the network it finds from its beginning.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROWS: dict[str, list[str]] = {
    "original": ["--method", "original"],
    "paper, short": ["--preset", "paper"],
    "paper, short, no nulls": ["--preset", "paper", "--set", "skips=false"],
    "improved 0.7, short": ["--preset", "improved", "--budget", "0.7"],
    "improved 0.7": ["--preset", "improved", "--budget", "0.7"],
    "nat": ["--method", "nat"],
}


def run(words: list[str], folder: Path) -> tuple[float, float, float]:
    """CPU seconds, test accuracy and the share of the multiply-adds that is left."""
    command = [sys.executable, "-W", "ignore", "-m", "dnat.lab.cli", "transform", *words, "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}\n{said}")
    record = json.loads((folder / "record.json").read_text())
    before, after = (record["results"][f"cost_{when}"]["madds"] for when in ("before", "after"))
    return used.ru_utime + used.ru_stime, record["results"]["test_accuracy"], after / before


def main() -> None:
    """Run all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--train-limit", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=[*ROWS], choices=ROWS)
    given = parser.parse_args()
    if "original" not in given.rows:
        parser.error("--rows needs the original: all are compared with it")
    common = ["--network", given.network, "--data", given.data, "--train-limit", str(given.train_limit)]
    common += ["--test-limit", "1000", "--epochs", str(given.epochs), "--batch-size", "64", "--set", "threads=1"]
    common += ["--data-root", given.data_root] if given.data_root else []
    stage = ["--architecture-epochs", str(max(1, given.epochs // 12))]
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in given.rows}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for number, name in enumerate(given.rows):
                words = [*common, *ROWS[name], *(stage if "short" in name else []), "--seed", str(seed)]
                found[name].append(run(words, Path(folder) / f"{seed}-{number}"))
                seconds, accuracy, left = found[name][-1]
                ratio = seconds / found["original"][seed][0]
                print(f"{name}, seed {seed}: {seconds:.1f} s, {ratio:.3f}, {accuracy:.2%}, {left:.3f}", flush=True)
    for name, rows in found.items():
        ratios = [row[0] / original[0] for row, original in zip(rows, found["original"], strict=True)]
        accuracies = [100 * row[1] for row in rows]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(rows) > 1 else ""
        left = statistics.mean(row[2] for row in rows)
        time = f"{statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"
        print(f"{name:<26}{time:>22}{statistics.mean(accuracies):9.2f}{spread} %{left:8.3f} of the multiply-adds")


if __name__ == "__main__":
    main()
