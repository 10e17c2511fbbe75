"""How close other operations come to those that they may replace: begun close or at random, taught or not.

    python benchmarks/beginnings.py --data-root DIR

ResNet8 on images of CIFAR-10, with random weights and trained: mean distance over all edges of each kind of
operation at the start and after each epoch of training (0: the same function, 1: nothing in common;
`Theta.taught`). Theta stands still, so that only the operations move. Then what a step of the architecture stage
takes on ResNet20 and a small DARTS network, with two paths and with all.
"""

import argparse
import collections
import statistics
from contextlib import closing

import torch

import dnat
from dnat.training import Progress, Trainer, burden, frozen_statistics

WAYS = {
    "begun close, taught": {},
    "at random, taught": {"warm_start": False},
    "begun close, not taught": {"matching": 0.0},
    "begun close, taught ten times as hard": {"matching": 10.0},
}


def distances(relaxed: dnat.RelaxedNetwork, images: torch.Tensor) -> dict[str, float]:
    """The mean distance of each operation on one batch, all of them computed at once."""
    with frozen_statistics(relaxed.train()), relaxed.taught() as found:
        relaxed(images)
    by_name = collections.defaultdict(list)
    for (_, column), values in found.items():
        by_name[relaxed.columns[column]] += [float(v.detach()) for v in values]
    return {name: statistics.mean(values) for name, values in by_name.items()}


def followed(network: torch.nn.Module, data: dnat.Data, settings: dict, epochs: int, seed: int) -> list[dict]:
    """Distances at the start and after each epoch."""
    config = dnat.Config(
        **({"space": "nat++", "seed": seed, "lr_theta": 1e-9, "settle": 0.0, "single_pass": True} | settings),
        epochs=2 * epochs,
        architecture_epochs=epochs,
        threads=1,
    )
    edges = dnat.find_edges(dnat.trace(network, data.example(2)), "nat++")
    relaxed = dnat.relax(network, edges, gate="sigmoid", seed=seed, warm_start=config.relaxation.warm_start)
    trainer = Trainer(relaxed, data, config, Progress())
    with closing(data.train_batches(seed, epochs + 1, config.training.batch_size)) as batches:
        images, _ = next(batches)
    found = [distances(relaxed, images)]
    for _ in range(epochs):
        for _ in trainer.epoch():
            pass
        trainer.close_epoch()
        found.append(distances(relaxed, images))
    return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--train", type=int, default=1920)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dnat.load("cifar10", options.data_root, train_limit=options.train, test_limit=100)
    fresh = dnat.build("resnet8", seed=options.seed)
    before = dnat.Config(seed=options.seed, epochs=12, architecture_epochs=1, threads=1)
    trained = dnat.train(fresh, data, before).network
    for label, network in (("random weights", fresh), ("trained for 12 epochs", trained)):
        for way, settings in WAYS.items():
            rows = followed(network, data, settings, options.epochs, options.seed)
            print(f"{label}, {way}:")
            for name in rows[0]:
                print(f"  {name:<14}", " ".join(f"{row[name]:.3f}" for row in rows), flush=True)
    for name, arguments in (("resnet20", {}), ("darts", {"channels": 6, "layers": 4})):
        network = dnat.build(name, seed=options.seed, **arguments)
        edges = dnat.find_edges(dnat.trace(network, data.example(2)), "nat++")
        for paths in ("two", "all"):
            config = dnat.Config(space="nat++", paths=paths, threads=1, epochs=2, architecture_epochs=1)
            relaxed = dnat.relax(network, edges, gate="sigmoid")
            print(f"{name}, {paths} paths: {burden(network, relaxed, data, config)}", flush=True)


if __name__ == "__main__":
    main()
