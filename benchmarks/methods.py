"""All methods on some networks, several seeds each, as one table.

    python benchmarks/methods.py                     four small networks on the digits, five seeds
    python benchmarks/methods.py --official          the same as NAT's released code does it
    python benchmarks/methods.py --data cifar10 --data-root DIR --train-limit 2000 --test-limit 2000 --seeds 2

Each run has a directory under --out, and a run that is done is not done again: the same command goes on. At one
seed all methods begin with the same weights and see the same images. A legend stands below the table.
"""

import argparse
import json
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from dnat.config import ALIASES, SEARCHING, Job, parse_setting
from dnat.networks import definition
from dnat.runs import run
from dnat.summary import markdown, summarize

NETWORKS = {
    "resblock": {"channels": 6, "layers": 3},
    "mobilenetv2_cell": {"channels": 6, "layers": 3},
    "darts_v2": {"channels": 6, "layers": 3},
    "proxyless_mobile": {"width": 0.25},
}
METHODS = ("original", "dnat-cell", "dnat-full", "nat", "nat++", "random", "lstm", "max-gcn", "nao")
SMALL = {"channels": 4, "layers": 3, "batch_size": 32, "architectures": 30, "nao_epochs": 200}


def make_job(network: str, method: str, seed: int, options: argparse.Namespace) -> Job:
    """The job of one run."""
    name, _ = ALIASES.get(method, (method, ""))
    table = {
        "network": network,
        "network_options": dict(NETWORKS.get(network, {})),
        "method": method,
        "seed": seed,
        "data": options.data,
        "data_root": options.data_root,
        "train_limit": options.train_limit,
        "test_limit": options.test_limit,
        "epochs": options.epochs,
        "architecture_epochs": options.architecture_epochs,
        "batch_size": options.batch_size,
        "threads": 1,
        **dict(map(parse_setting, options.set)),
    }
    if name in SEARCHING:
        table["search"] = SMALL | {"epochs": options.search_epochs, "official": options.official}
    return Job.from_flat({k: v for k, v in table.items() if v is not None})


def one(task: tuple[Job, Path, bool]) -> tuple[str, dict]:
    """One run; returns its directory's name and its record."""
    job, directory, download = task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of short architecture stages
        return directory.name, run(job, directory, download=download)


def applies(network: str, method: str) -> bool:
    """Whether a network has the mode that a method's name asks for: ProxylessNAS has no Cell mode."""
    known = definition(network)
    return known is None or method not in ALIASES or ALIASES[method][1] in known.modes


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-root")
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--test-limit", type=int)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--architecture-epochs", type=int, default=4)
    parser.add_argument("--search-epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--official", action="store_true")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="default: runs/methods, or runs/methods-official")
    parser.add_argument("--json", type=Path, help="also write all results here")
    options = parser.parse_args()
    options.out = options.out or Path("runs/methods-official" if options.official else "runs/methods")
    networks, methods, seeds = options.networks.split(","), options.methods.split(","), range(options.seeds)
    tasks = []
    for seed in seeds:  # so that an unfinished table has some of everything
        for network in networks:
            for method in (m for m in methods if applies(network, m)):
                job = make_job(network, method, seed, options)
                tasks.append((job, options.out / f"{network}-{method}-seed{seed}", options.download))
    records = {}
    with ProcessPoolExecutor(options.jobs) as pool:
        for name, record in pool.map(one, tasks):
            records[name] = record
            result = record["results"]
            print(f"{name}: {result['test_accuracy']:.2%}, {result['cost_after']['madds']:,} multiply-adds")
    print(markdown(summarize(records.values())))
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
