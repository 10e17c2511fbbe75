"""How the work grows with edges and with images: CPU time on one thread.

python benchmarks/scaling.py

Edges: residual networks of 5 to 500 blocks, two edges each. Plan: `dnat.trace` and the plan for a budget of 0.7;
plain, pair: a step of the network alone, and a pair of steps of weights and theta, at 32 images of 8 x 8 pixels
(the medians of 5 rounds, in turns); choices: the best set for a theta that is drawn, and the network it makes.

Images: noise of 32 x 32 pixels. Made: `Data.from_tensors` with its checks, and its fingerprint; batches: augmented
and normalized batches of 128, microseconds an image over 200 batches of the second epoch; memory: what the process
grew by at most, beside the images.
"""

import resource
import statistics
import time

import torch
from planning import Residual, timed
from steps import Subject, config, data, drawn

import dnat
from dnat.discretization import discretization
from dnat.planning import make_plan
from dnat.selection import select
from dnat.training import Progress, Trainer


def by_edges(blocks: int, rounds: int = 5) -> str:
    """A line of the first table."""
    network, images = Residual(blocks), torch.randn(2, 3, 8, 8)
    settings = config(Subject("", {}, 32, {"preset": "paper"}))
    program, traced = timed(lambda: dnat.trace(network.eval(), images))
    plan, planned = timed(lambda: make_plan(network, program, images, settings.but(budget=0.7)))
    relaxed = drawn(plan.relaxed(network, settings), seed=0)
    source = data(32, size=8)
    plain, pair = (Trainer(n.train(), source, settings, Progress()) for n in (network, relaxed))
    inputs, target = next(iter(source.train_batches(0, 0, 32)))
    taken: dict[str, list[float]] = {"plain": [], "pair": []}
    for _ in range(rounds + 1):
        taken["plain"].append(timed(lambda: plain.step(inputs, target))[1])
        taken["pair"].append(timed(lambda: pair.step(inputs, target))[1])
    one, two = (statistics.median(times[1:]) for times in taken.values())
    _, chosen = timed(lambda: discretization(relaxed, select(relaxed, 0.7), images))
    steps = f"{one * 1e3:11.1f}{two * 1e3:11.1f}{two / one:9.2f}"
    return f"{len(plan.edges):8}{traced + planned:9.2f}{steps}{chosen:9.2f}"


def by_images(number: int, batch: int = 128, batches: int = 200) -> str:
    """A line of the second table."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (number, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(number) % 10
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    source = dnat.Data.from_tensors("noise", (images, labels), (images[:100], labels[:100]))
    source.fingerprint()
    made, shown = time.process_time() - begun, 0
    begun = time.process_time()
    for count, (inputs, _) in enumerate(source.train_batches(0, 1, batch), 1):
        shown += len(inputs)
        if count == batches:
            break
    taken = time.process_time() - begun
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    return f"{number:9,}{made:9.2f}{taken / shown * 1e6:11.1f}{grown:11.0f}"


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    print(f"{'edges':>8}{'plan, s':>9}{'plain, ms':>11}{'pair, ms':>11}{'ratio':>9}{'choices':>9}")
    for blocks in (5, 50, 500):
        print(by_edges(blocks), flush=True)
    print(f"\n{'images':>9}{'made, s':>9}{'batches, us':>12}{'memory, MB':>11}")
    for number in (1_000, 10_000, 100_000, 1_000_000):
        print(by_images(number), flush=True)


if __name__ == "__main__":
    main()
