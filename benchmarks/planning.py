"""How long it takes to know what may change in a network: seconds of CPU time on one thread.

python benchmarks/planning.py              residual networks of 10, 100 and 1,000 blocks, and densenet201
python benchmarks/planning.py NAME ...     these: `dnat.build`'s names, or so many residual blocks as a number says

Columns: two runs of the network alone, as `trace` has them; `dnat.trace`, with those; `dnat.find_edges`; the plan
for a budget of 0.7, which finds the edges again and looks whether the budget can be kept.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from zoo import Block

import dnat
from dnat.planning import make_plan

NETWORKS = ("10", "100", "1000", "torchvision:densenet201")


class Residual(nn.Module):
    """A convolution and a classifier, and between them so many residual blocks."""

    def __init__(self, blocks: int, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 10)."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What work gives, and the seconds of CPU time that it takes."""
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def row(name: str) -> str:
    """A network's line of the table."""
    network: nn.Module = Residual(int(name)) if name.isdecimal() else dnat.build(name, num_classes=10)
    images = torch.randn(2, 3, 8 if name.isdecimal() else 64, 8 if name.isdecimal() else 64)
    with torch.no_grad():
        network.eval()(images)  # what torch does once
        alone = timed(lambda: network(images))[1] * 2
    program, traced = timed(lambda: dnat.trace(network, images))
    edges, listed = timed(lambda: dnat.find_edges(program))
    _, planned = timed(lambda: make_plan(network, program, images, dnat.Config(budget=0.7)))
    label = f"{name} blocks" if name.isdecimal() else name
    return f"{label:<26}{len(edges):6}{alone:9.2f}{traced:9.2f}{listed:9.2f}{planned:9.2f}"


def main(names: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(f"{'network':<26}{'edges':>6}{'alone':>9}{'trace':>9}{'edges':>9}{'plan':>9}")
    for name in names or NETWORKS:
        print(row(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
