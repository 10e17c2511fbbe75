"""What a trained ResNet is worth without each set of its blocks: the truth that choices are held against.

    python benchmarks/depth_truth.py make --weights W --data-root DIR    train every set (resumable; --part 1/2)
    python benchmarks/depth_truth.py judge --weights W --data-root DIR    hold ways to choose against it

`make` takes each set of blocks that keep their shape out of the network (128 sets of ResNet20), re-estimates the
norms, and trains what is left by one short recipe, the same for all. The table is kept, a line for each set, in
benchmarks/results/. All of these blocks cost the same, so that sets of equal size are what a budget allows.

`judge` lets each way to choose pick a set of every size, and reads from the table how good that is:

percentile   share of the sets of this size that are no better than the one that was chosen;
regret       points by which the best set of this size is better.
"""

import argparse
import copy
import itertools
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

import dnat
from dnat.budget import Costs
from dnat.data import Data
from dnat.networks import load_weights
from dnat.planning import find_edges
from dnat.relaxation import RelaxedNetwork, relax
from dnat.sensitivity import Judge, Sensitivity, affordable_images, least_damage
from dnat.session import reproducible
from dnat.settings import parse_setting
from dnat.tracing import trace
from dnat.training import ArchitectureStage, Progress, Trainer, effects, take_statistics

RESULTS = Path(__file__).parent / "results"
THETA_EPOCHS = 2
"""Epochs in which theta is trained beside the weights."""

IMAGES = 500
"""Training images on which norms are re-estimated."""

Changed = Mapping[int, Callable[[nn.Module], nn.Module]] | None
Sets = Callable[[int], frozenset[str]]
"""A way to choose: the blocks that are taken out, by their number."""


def table_of(network: str) -> Path:
    """Where the table of a network is kept."""
    return RESULTS / f"depth_truth_{network}.jsonl"


def recipe(options: argparse.Namespace) -> dict[str, object]:
    """What every set is trained by."""
    return {
        "train": options.train,
        "test": options.test,
        "epochs": options.epochs,
        "batch_size": 128,
        "lr": 0.02,
        "distillation": 0.5,
        "feature_distillation": 48.0,
        "amp": "bf16",
        "seed": options.seed,
    }


def given(options: argparse.Namespace) -> tuple[nn.Module, Data]:
    """The trained network, and the images."""
    data = dnat.load("cifar10", options.data_root, train_limit=options.train, test_limit=options.test)
    arguments = dict(parse_setting(text) for text in getattr(options, "arguments", ()))
    network = dnat.build(options.network, num_classes=10, **arguments)
    load_weights(network, options.weights)
    return network.eval(), data


def blocks_of(network: nn.Module) -> tuple[str, ...]:
    """The blocks that keep their shape, in their order."""
    names = [name for name, _ in network.named_modules() if re.fullmatch(r"layer\d+\.\d+", name)]
    return tuple(n for n in names if isinstance(network.get_submodule(n).shortcut, nn.Identity))


def without(network: nn.Module, blocks: frozenset[str], data: Data) -> nn.Module:
    """The network without the branches of blocks, its norms re-estimated."""
    choices = {f"{block}.conv2>{block}.bn2": "none" for block in blocks}
    smaller = dnat.discretize(network, choices, data.example(2))
    take_statistics(smaller, data.train_inputs(IMAGES, 0)[0].split(125))
    return smaller


def name_of(blocks: frozenset[str]) -> str:
    """How a set is written: its blocks in order."""
    return " ".join(sorted(blocks))


def make(options: argparse.Namespace) -> None:
    """Train every set that is not in the table yet."""
    network, data = given(options)
    path = table_of(options.network)
    path.parent.mkdir(exist_ok=True)
    part, parts = map(int, options.part.split("/"))
    free = blocks_of(network)
    sets = [frozenset(s) for k in range(len(free) + 1) for s in itertools.combinations(free, k)]
    mine = sets[part - 1 :: parts]
    values = recipe(options)
    settings = {k: v for k, v in values.items() if k not in ("train", "test")}
    config = dnat.Config(preset="fine-tune", threads=1, **settings)
    for number, blocks in enumerate(mine):
        known = {row["without"] for row in rows(path, values)} if path.exists() else set()
        if name_of(blocks) in known:
            continue
        smaller = without(network, blocks, data)
        before = dnat.evaluate(smaller, data).accuracy
        row = {
            "without": name_of(blocks),
            "madds": dnat.cost(smaller, data.example(2)).madds,
            "before": round(before, 4),
            "accuracy": round(trained(smaller, network, data, config), 4),
        }
        with path.open("a") as file:  # one short line, written at once: several parts may run together
            file.write(json.dumps({**row, "recipe": values}) + "\n")
        print(f"{number + 1} of {len(mine)}: {row}", flush=True)


def trained(
    network: nn.Module, teacher: nn.Module, data: Data, config: dnat.Config, changed: Changed = None
) -> float:
    """The accuracy of a network after training: as `dnat.train`, but tested at the end alone, which takes less.

    Args:
        network: is changed.
        teacher: from which it learns.
        data, config: as for `dnat.train`.
        changed: {epoch: what makes another network of the one that was trained until its beginning}.
    """
    with reproducible(config):
        taught = copy.deepcopy(teacher).eval().to(memory_format=torch.channels_last).requires_grad_(False)
        network, progress = network.to(memory_format=torch.channels_last), Progress()
        trainer = Trainer(network, data, config, progress, teacher=taught)
        for epoch in range(config.training.epochs):
            if changed and epoch in changed:
                network = changed[epoch](network).to(memory_format=torch.channels_last)
                trainer = Trainer(network, data, config, progress, teacher=taught)
            for _ in trainer.epoch():
                pass
            trainer.close_epoch()
        return dnat.evaluate(network, data, config).accuracy


def rows(path: Path, values: Mapping[str, object] | None = None) -> list[dict]:
    """The rows of a table; all must be of one recipe."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    recipes = [row["recipe"] for row in found] + ([dict(values)] if values else [])
    if any(other != recipes[0] for other in recipes):
        sys.exit(f"error: {path} holds rows of another recipe: {recipes[0]}; take it away to begin anew")
    return found


def relaxed_of(network: nn.Module, data: Data) -> tuple[RelaxedNetwork, Costs]:
    """The network with nothing but its blocks' branches free to change."""
    example = data.example(2)
    free = {f"{block}.conv2>{block}.bn2" for block in blocks_of(network)}
    edges = [e for e in find_edges(trace(network, example, batch=2)) if e.key in free]
    return relax(network, edges, "full", "sigmoid", 0), Costs(edges)


def judge_of(relaxed: RelaxedNetwork, data: Data) -> Judge:
    """What `dnat plan` judges by: as many images as it shows."""
    images = affordable_images(relaxed, Costs(relaxed.edges).total)
    return Judge(relaxed, data.train_inputs(images, 0)[0].split(125))


def of_choices(choices: Mapping[str, str]) -> frozenset[str]:
    """The blocks that a set of choices takes out."""
    return frozenset(key.split(".conv2")[0] for key, choice in choices.items() if choice != "original")


def criteria(network: nn.Module, data: Data) -> dict[str, Sets]:
    """All ways to choose that need no training."""
    relaxed, costs = relaxed_of(network, data)
    judge = judge_of(relaxed, data)
    sensitivity = judge.alone()
    groups = relaxed.by_group()
    each = (costs.total - costs.of({e: "none" for e in relaxed.edges})) / len(relaxed.edges)

    def limit(k: int) -> float:
        return costs.total - k * each + 0.5

    def summed(damages: Sensitivity) -> Sets:
        return lambda k: of_choices(least_damage(groups, damages, costs, limit(k)))

    def whole(k: int) -> frozenset[str]:
        sets = itertools.combinations([edge.key for edge in relaxed.edges], k)
        return of_choices(min((dict.fromkeys(keys, "none") for keys in sets), key=judge.damage))

    config = dnat.Config(preset="fine-tune", budget=0.7, judge="loss", trial_batches=8, threads=1)
    worths = effects(relaxed, data, config, 0)
    columns = relaxed.architecture.columns.index
    increase = {
        group: {c: max(row[columns("original")] - row[columns(c)], 0.0) for c in relaxed.choices_of(group)}
        for group, row in zip(relaxed.groups, worths, strict=True)
    }
    return {
        "sum of D": summed(sensitivity),
        "D of the whole set": whole,
        "sum of losses": summed(Sensitivity(increase, IMAGES)),
    }


def by_theta(network: nn.Module, data: Data, seed: int, how: str) -> Sets:
    """Sets of the blocks with the smallest gates, once theta was trained with the weights for two epochs.

    Args:
        network, data, seed: see `given`.
        how: "theta"; "warmed" (an epoch of weights alone comes first); "from D" (theta begins from what was
            measured: gates of blocks that do less begin lower).
    """
    relaxed, costs = relaxed_of(network, data)
    epochs = THETA_EPOCHS + (how == "warmed")
    settings = {"epochs": 6, "architecture_epochs": epochs, "batch_size": 128, "amp": "bf16", "settle": 0.0}
    config = dnat.Config(preset="fine-tune", budget=0.65, seed=seed, threads=1, **settings)
    theta, original = relaxed.architecture.theta, relaxed.architecture.columns.index("original")
    if how == "from D":
        damages = judge_of(relaxed, data).alone().damages
        logs = torch.tensor([math.log(max(damages[group]["none"], 1e-3)) for group in relaxed.groups])
        with torch.no_grad():  # within the width of the sigmoid, around its beginning at 1
            theta[:, original] += 0.2 * (logs - logs.max())
    with reproducible(config):
        steps = data.steps(config.training.batch_size)
        stage = ArchitectureStage(relaxed.train(), config, steps, costs, 0.65 * costs.total)
        taught = copy.deepcopy(network).eval().requires_grad_(False)
        trainer = Trainer(relaxed, data, config, Progress(), stage=stage, teacher=taught)
        for epoch in range(epochs):
            trainer.stage = None if how == "warmed" and epoch == 0 else stage
            for _ in trainer.epoch():
                pass
            trainer.close_epoch()
    gates = {e.key: theta[relaxed.row(e), original].item() for e in relaxed.edges}
    order = sorted(gates, key=gates.__getitem__)
    return lambda k: of_choices(dict.fromkeys(order[:k], "none"))


def standing(truth: Mapping[frozenset[str], float], chosen: frozenset[str]) -> tuple[float, float]:
    """Percentile and regret of a set among those of its size."""
    values = [v for blocks, v in truth.items() if len(blocks) == len(chosen)]
    own = truth[chosen]
    return 100 * sum(v <= own for v in values) / len(values), 100 * (max(values) - own)


def judge(options: argparse.Namespace) -> None:
    """Print how good the choices are."""
    network, data = given(options)
    found = rows(table_of(options.network))
    truth = {frozenset(row["without"].split()): row["accuracy"] for row in found}
    before = {frozenset(row["without"].split()): row["before"] for row in found}
    free = blocks_of(network)
    if len(truth) < 2 ** len(free):
        sys.exit(f"error: the table holds {len(truth)} of {2 ** len(free)} sets; `make` goes on with it")
    sizes = range(1, len(free))
    sets = criteria(network, data) | {
        f"{how}, seed {seed}": by_theta(network, data, seed, how)
        for how in ("theta", "warmed", "from D")
        for seed in range(options.theta_seeds)
    }
    ways = sets | {"the norms' accuracy": lambda k: max(sized(truth, k), key=before.__getitem__)}
    print("| chosen by | " + " | ".join(f"{k} of {len(free)}" for k in sizes) + " | percentile | regret |")
    print("|---" * (len(sizes) + 3) + "|")
    for name, choose in ways.items():
        found_at = [standing(truth, choose(k)) for k in sizes]
        cells = [f"{p:.0f} / {r:.2f}" for p, r in found_at]
        print(
            f"| {name} | {' | '.join(cells)} | {mean(p for p, _ in found_at)} | {mean(r for _, r in found_at)} |"
        )
    each = [[standing(truth, blocks) for blocks in sized(truth, k)] for k in sizes]
    cells = [f"{mean(p for p, _ in row)} / {mean(r for _, r in row)}" for row in each]
    of_all = mean(statistics.mean(p for p, _ in row) for row in each)
    print(
        f"| chance | {' | '.join(cells)} | {of_all} | {mean(statistics.mean(r for _, r in row) for row in each)} |"
    )
    best = [100 * max(truth[blocks] for blocks in sized(truth, k)) for k in sizes]
    print(f"| the best of them | {' | '.join(f'{b:.2f}' for b in best)} | | |")


def sized(truth: Mapping[frozenset[str], float], k: int) -> list[frozenset[str]]:
    """The sets of a size."""
    return [blocks for blocks in truth if len(blocks) == k]


def mean(values) -> str:
    """A mean, as it is printed."""
    return f"{statistics.mean(values):.2f}"


def main() -> None:
    """Make the table, or judge by it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "judge"])
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--theta-seeds", type=int, default=0, help="also by theta, trained at so many seeds")
    parser.add_argument("--part", default="1/1", metavar="I/N", help="this part of the sets alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    {"make": make, "judge": judge}[options.what](options)


if __name__ == "__main__":
    main()
