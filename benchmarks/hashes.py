"""Whether a change of the code changes results: twelve short runs, and a hash of each.

    python benchmarks/hashes.py FILE            write their hashes, {name: hash}
    python benchmarks/hashes.py FILE --against  run them again, and tell which differ; exits with 1 if any does

The runs are of all methods' families, presets and kinds of networks, on a few digits, each by the command `dnat`
in a process of its own. A hash is over everything that the same seed must give again (accuracies, losses, costs,
choices, weights). Hashes of one machine do not hold for another: make them on the same one, before and after.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent

SHORT = "--epochs 3 --batch-size 50 --train-limit 200 --test-limit 100 --set threads=1 --device cpu"

RUNS = {
    "improved": "--network resnet8 --architecture-epochs 2",
    "paper-null-edges": "--network resnet8 --preset paper --architecture-epochs 2 --set lr_theta=0.05",
    "cell-budget": "--network resnet8 --mode cell --budget 0.6 --architecture-epochs 2",
    "fine-tune-widths": "--network resnet8 --preset fine-tune --budget 0.6 --set judge_images=50",
    "nat++-moves": "--network resnet8 --space nat++ --budget 0.7 --architecture-epochs 2",
    "widths-by-theta": "--network resnet8 --space dnat,width --budget 0.7 --architecture-epochs 2 --seed 3",
    "cells-paper": (
        "--network darts_v2 --set network.channels=4 --set network.layers=3 --preset paper --mode cell "
        "--architecture-epochs 1 --set lr_theta=0.1"
    ),
    "mobilenet-loss": (
        "--network mobilenet_v2 --set network.width=0.25 --budget 0.8 --set judge=loss --set single_pass=true "
        "--architecture-epochs 2"
    ),
    "original": "--network vgg16 --set network.width=8 --image-size 32 --method original --set amp=bf16",
    "nat-edges": "--network resnet8 --method nat --set search.epochs=1 --budget 0.8",
    "nao-genotype": (
        "--network darts_v2 --set network.channels=4 --set network.layers=3 --method nao --set search.epochs=1 "
        "--set search.layers=3 --set search.channels=4 --set search.architectures=4 --set search.nao_epochs=5"
    ),
    "control-uniform": "--network torchvision:squeezenet1_1 --method control-uniform --budget 0.7 --image-size 48",
}
"""The arguments of `dnat transform` beside `SHORT`."""


def hashed(name: str) -> str:
    """Run one of `RUNS`; the hash of its results."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, str(ROOT / "cli.py"), "transform", *SHORT.split(), *RUNS[name].split()]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, env=os.environ)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stdout}\n{done.stderr}")
        results = json.loads((out / "record.json").read_text())["results"]
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    """Write the hashes, or compare to those that were written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--against", action="store_true")
    options = parser.parse_args()
    before = json.loads(options.file.read_text()) if options.against else {}
    found = {}
    for name in RUNS:
        found[name] = hashed(name)
        same = (
            "" if not before else "same" if before.get(name) == found[name] else f"DIFFERS from {before.get(name)}"
        )
        print(name, found[name], same, flush=True)
    if not options.against:
        options.file.write_text(json.dumps(found, indent=2) + "\n")
    elif found != before:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
