"""NAT++'s moves against DNAT's three choices, within the same budget, on images of CIFAR-10.

    python benchmarks/moves.py --data-root DIR      ResNet20 and a small DARTS network, three seeds, two budgets
    python benchmarks/moves.py --data-root DIR --networks resnet20 --budgets 0.5 --before 10 --set 'paths="all"'

For each network, budget and seed: the space dnat, the space nat++, and the untouched network; all see the same
images in the same order from the same initial weights. With --before they are trained for so many epochs first.
Prints every seed's test accuracy, the mean and the sample deviation, parameters, multiply-adds, seconds of the
processor, seconds of an epoch of each stage, and what was chosen. Results are appended to --json as they come;
what stands there already is not run again. --set changes what is transformed.
"""

import argparse
import collections
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import dnat
from dnat.settings import parse_setting

NETWORKS = {"resnet20": {}, "darts": {"channels": 6, "layers": 4}}


def one(task: dict) -> dict:
    """One run: its accuracy, cost, choices and seconds of the processor."""
    data = dnat.load("cifar10", task["root"], train_limit=task["train"], test_limit=task["test"])
    config = dnat.Config(
        seed=task["seed"],
        epochs=task["epochs"],
        architecture_epochs=task["architecture_epochs"],
        batch_size=task["batch_size"],
        threads=1,
        **({} if task["space"] == "original" else {"space": task["space"], "budget": task["budget"]}),
        **task["settings"],
    )
    network = dnat.build(task["network"], seed=task["seed"], **NETWORKS[task["network"]])
    if task["before"]:
        # Trained to the end of its cosine first; the same for all that is compared.
        first = dnat.Config(seed=task["seed"], epochs=task["before"], batch_size=task["batch_size"], threads=1)
        network = dnat.train(network, data, first).network
    method = dnat.train if task["space"] == "original" else dnat.transform
    begun = time.process_time()
    result = method(network, data, config)
    rows = result.history
    speed = {
        stage: statistics.median(r["seconds"] for r in rows if r["stage"] == stage)
        for stage in {r["stage"] for r in rows}
    }
    edges = result.commitment.edges if result.commitment else ()
    return {
        "accuracy": result.test.accuracy,
        "params": result.cost_after.params,
        "madds": result.cost_after.madds,
        "seconds": time.process_time() - begun,
        "epoch_seconds": speed,
        "choices": dict(collections.Counter(e.choice for e in edges)),
    }


def tasks_of(options: argparse.Namespace) -> list[dict]:
    """Every run that is asked for."""
    common = {
        k: getattr(options, k) for k in ("train", "test", "before", "epochs", "architecture_epochs", "batch_size")
    }
    common |= {"root": options.data_root}
    found = []
    for network in options.networks:
        for seed in options.seeds:
            for space in options.spaces:
                for budget in [None] if space == "original" else options.budgets:
                    settings = {} if space == "original" else dict(options.settings)
                    own = {"network": network, "seed": seed, "space": space, "budget": budget}
                    found.append(common | own | {"settings": settings})
    return found


def table(rows: list[tuple[dict, dict]]) -> str:
    """The results, a line for each network, budget and space."""
    groups = collections.defaultdict(list)
    for task, result in rows:
        key = (task["network"], task["budget"] or 1.0, task["space"], json.dumps(task["settings"]))
        groups[key].append((task["seed"], result))
    lines = [
        "| network | budget | space | accuracy of each seed | mean ± std | params | multiply-adds | seconds "
        "| epochs' seconds | choices |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (network, budget, space, settings), found in sorted(groups.items()):
        found.sort(key=lambda pair: pair[0])
        results = [result for _, result in found]
        accuracies = [100 * r["accuracy"] for r in results]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(results) > 1 else ""
        mean = {k: statistics.mean(r[k] for r in results) for k in ("accuracy", "params", "madds", "seconds")}
        chosen = collections.Counter()
        for r in results:
            chosen.update(r["choices"])
        share = ", ".join(f"{name} {count / len(results):.1f}" for name, count in chosen.most_common())
        pace = " ".join(
            f"{statistics.mean(r['epoch_seconds'][stage] for r in results):.1f}"
            for stage in sorted(results[0]["epoch_seconds"])
        )
        label = space if settings == "{}" else f"{space} {settings}"
        lines.append(
            f"| {network} | {budget:g} | {label} | {' '.join(f'{a:.2f}' for a in accuracies)} "
            f"| {100 * mean['accuracy']:.2f}{spread} | {mean['params'] / 1e3:.0f}k | {mean['madds'] / 1e6:.2f}M "
            f"| {mean['seconds']:.0f} | {pace} | {share} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is asked for and not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--spaces", nargs="+", default=["original", "dnat", "nat++"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.7])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--before", type=int, default=0, help="train the network for so many epochs first")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--architecture-epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--set", dest="settings", action="append", type=parse_setting, default=[])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, help="append results here, and begin with what stands there")
    options = parser.parse_args()
    done = {}
    if options.json and options.json.exists():
        for line in options.json.read_text().splitlines():
            row = json.loads(line)
            done[json.dumps(row["task"], sort_keys=True)] = row
    tasks = tasks_of(options)
    missing = [task for task in tasks if json.dumps(task, sort_keys=True) not in done]
    with ProcessPoolExecutor(options.jobs) as pool:
        for task, result in zip(missing, pool.map(one, missing), strict=True):
            row = {"task": task, "result": result}
            done[json.dumps(task, sort_keys=True)] = row
            print(f"{task['network']} {task['space']} {task['budget']} seed {task['seed']}: {result}", flush=True)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    rows = [done[json.dumps(task, sort_keys=True)] for task in tasks]
    print(table([(row["task"], row["result"]) for row in rows]))


if __name__ == "__main__":
    main()
