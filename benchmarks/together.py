"""Several seeds at once on one GPU: wall time with 1, 2 and 4 trials at a time, and whether bits are equal.

python benchmarks/together.py --data-root DIR      ResNet20, 2 epochs of 10,000 images of CIFAR-10, 4 seeds
python benchmarks/together.py --data digits --network resnet8 --device cpu

Each trial is a process of its own, and those of one GPU share it. Equal: the weights of each trial are, to the
bit, those that it has when it runs alone.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from safetensors.torch import load_file


def sweep(folder: Path, jobs: int, given: argparse.Namespace) -> float:
    """Wall seconds of the sweep."""
    words = ["--networks", given.network, "--methods", "dnat", "--seeds", str(given.seeds), "--epochs", "2"]
    words += [
        "--data",
        given.data,
        "--train-limit",
        str(given.images),
        "--test-limit",
        "300",
        "--batch-size",
        "128",
    ]
    words += ["--data-root", given.data_root] if given.data_root else []
    words += ["--device", given.device, "--set", "threads=1", "--jobs", str(jobs), "--out", str(folder)]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-m", "dnat.lab.cli", "sweep", *words], check=True)
    return time.perf_counter() - begun


def equal(folder: Path, alone: Path) -> bool:
    """Whether all trials of two sweeps have the same weights."""
    files = sorted(path.relative_to(alone) for path in alone.glob("*/network.safetensors"))
    assert files, f"{alone} has no finished trial"
    pairs = [(load_file(alone / path), load_file(folder / path)) for path in files]
    return all(a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a) for a, b in pairs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 4])
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for jobs in given.jobs:
            folder = Path(name) / str(jobs)
            seconds = sweep(folder, jobs, given)
            same = "yes" if equal(folder, Path(name) / str(given.jobs[0])) else "NO"
            rows.append(f"{jobs:6}{seconds:10.1f}{60 * given.seeds / seconds:18.1f}{same:>9}")
    print(f"{'jobs':>6}{'seconds':>10}{'trials a minute':>18}{'equal':>9}")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
