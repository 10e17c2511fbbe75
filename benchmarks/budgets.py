"""How long the best set of choices within a budget takes to find: CPU seconds on one thread, and branches.

python benchmarks/budgets.py                 DARTS of 8 and of 20 cells, ResNet56, MobileNetV2
python benchmarks/budgets.py --seeds 10      more draws of what choices are worth
python benchmarks/budgets.py --plain         without the rows for networks of two streams, up to 1,000 branches

What choices are worth is drawn as theta has it in the middle of a run: 0.9 of the original, 0.1 of identity, 0 of
none, each +- 0.15. Each line has the slowest of the draws.
"""

import argparse
import random
import time
import warnings
from typing import Any

import torch
from scipy.optimize import milp

import dnat
from dnat.budget import Costs, best, by_edge, solver, streams

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "DARTS, 8 cells": ("darts_v2", {"channels": 4, "layers": 8, "skips": False}),
    "DARTS, 20 cells": ("darts_v2", {"channels": 4, "layers": 20, "skips": False}),
    "ResNet56": ("resnet56", {}),
    "MobileNetV2": ("mobilenet_v2", {"width": 0.25}),
}
USUAL = {"original": 0.9, "identity": 0.1, "none": 0.0}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    branches: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        result = milp(*arguments, **options)
        branches.append(result.mip_node_count or 0)
        return result

    solver.milp = counted
    if given.plain:
        streams.rows = lambda *rest: []
        solver.MOST_BRANCHES = 1000
        warnings.simplefilter("ignore")
    print(f"{'network':<18}{'edges':>6}{'budget':>8}{'seconds':>9}{'solutions':>11}{'branches':>10}")
    for title, (name, options) in NETWORKS.items():
        edges = dnat.find_edges(dnat.trace(dnat.build(name, seed=0, **options), torch.randn(2, 3, 32, 32)))
        groups, costs = {edge.key: [edge] for edge in edges}, Costs(edges)
        for share in (0.7, 0.5, 0.3):
            worst = (0.0, 0, 0)
            for seed in range(given.seeds):
                draw = random.Random(seed)
                scores = {e.key: {c: USUAL[c] + draw.gauss(0, 0.15) for c in e.choices} for e in edges}
                branches.clear()
                begun = time.process_time()
                try:
                    found = best(groups, scores, costs, share * costs.total)
                except dnat.DnatError as error:
                    print(f"{title:<18}{len(edges):6}{share:8}  {error}")
                    break
                assert costs.of(by_edge(groups, found)) <= share * costs.total
                worst = max(worst, (time.process_time() - begun, len(branches), sum(branches)))
            else:
                print(f"{title:<18}{len(edges):6}{share:8}{worst[0]:9.2f}{worst[1]:11}{worst[2]:10}", flush=True)


if __name__ == "__main__":
    main()
