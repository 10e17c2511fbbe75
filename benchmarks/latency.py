"""Whether a smaller network is as fast as its multiply-adds say, and whether a time budget is kept.

python benchmarks/latency.py                  torchvision's resnet50 and mobilenet_v2, at 0.7 of the multiply-adds
python benchmarks/latency.py --time           at 0.7 of their time for each batch
python benchmarks/latency.py NAME --seeds 5   another network, more draws of theta

One thread, fp32, images of 224 pixels as PyTorch lays them out, the memory kept as the command keeps it. Theta is
drawn (identity 0.10 +- 0.05, original 0.90 +- 0.05), the best set within the budget is made, and network and
original are run in turns; each ratio is that of their medians. No accuracy is looked at.
"""

import argparse
from collections.abc import Iterator

import torch
from steps import drawn
from torch import Tensor, nn

import dnat
from dnat.costs import cost, latencies, seconds_beside
from dnat.decision import Agreement, agreed, by_theta
from dnat.lab.cli.__main__ import _keep_memory
from dnat.planning import Plan, make_plan

NAMES = ("torchvision:resnet50", "torchvision:mobilenet_v2")


def ratio(small: nn.Module, network: nn.Module, images: Tensor, rounds: int) -> float:
    """The time of one network over that of another."""
    own, whole = latencies([small, network], images, least_runs=rounds, least_seconds=0)
    return own.seconds / whole.seconds


def made(network: nn.Module, example: Tensor, plan: Plan, config: dnat.Config, seed: int) -> Agreement:
    """The network of a drawn theta within the budget, which is checked as a run checks it."""
    relaxed = drawn(plan.relaxed(network, config), seed)

    def price(of: nn.Module) -> float:
        if plan.times is None:
            return float(cost(of, example).madds)
        return seconds_beside(of, network, plan.costs.total, example)

    return agreed(relaxed, lambda: by_theta(relaxed, plan, config), plan, example, price)


def rows(name: str, given: argparse.Namespace) -> Iterator[str]:
    """The lines of a network."""
    network = dnat.build(name, seed=0).eval()
    images = torch.randn(max(given.batches), 3, 224, 224, generator=torch.Generator().manual_seed(0))
    whole = cost(network, images[:1]).madds
    for counted in given.batches if given.time else [2]:
        example = images[:counted]
        limit = (
            {"latency_budget": given.budget, "latency_batch": counted} if given.time else {"budget": given.budget}
        )
        config = dnat.Config(preset="paper", **limit)
        plan = make_plan(network, dnat.trace(network, example), example, config)
        for seed in range(given.seeds):
            found = made(network, example, plan, config, seed)
            small = found.made.network.eval()
            left = cost(small, example).madds / whole
            for batch in [counted] if given.time else given.batches:
                taken = ratio(small, network, images[:batch], max(given.rounds, 3 * given.rounds // batch))
                kept = f"{taken / given.budget - 1:+15.1%}" if given.time else ""
                yield f"{name:<28}{seed:5}{batch:6}{left:8.3f}{taken:8.3f}{kept} {'; '.join(found.notes)}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--budget", type=float, default=0.7)
    parser.add_argument("--time", action="store_true", help="the budget is of time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    torch.set_num_threads(1)
    _keep_memory()
    print(f"{'network':<28}{'seed':>5}{'batch':>6}{'MAdds':>8}{'time':>8}" + "  of the budget" * given.time)
    for name in given.networks:
        for row in rows(name, given):
            print(row, flush=True)


if __name__ == "__main__":
    main()
