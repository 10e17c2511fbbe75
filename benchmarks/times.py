"""How long the networks of finished runs take, beside the one they were made from: each pair in turns.

python benchmarks/times.py runs/evidence-time                batches of 1, 16 and 64 images
python benchmarks/times.py runs/evidence-time --batch 16

One thread, fp32. A run measures its network once, on a machine that may be busy; here the original and the
result are run in turns, and the ratio is that of their medians. A line for each method, with the mean
and the deviation over its runs.
"""

import argparse
import statistics
from collections import defaultdict
from pathlib import Path

import torch
from latency import ratio

import dnat
from dnat.lab.labels import label
from dnat.lab.runs.finished import restore


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the directory of a sweep")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=61)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[float]]] = defaultdict(list)
    for path in sorted(given.runs.glob("*/record.json")):
        small, job, example = restore(path.parent)
        network = dnat.build(job.network, seed=0, **job.network_options).eval()
        images = torch.randn(max(given.batch), *example.shape[1:], generator=torch.Generator().manual_seed(0))
        pairs = (ratio(small, network, images[:batch], given.rounds) for batch in given.batch)
        found[label(job.flat())].append([dnat.cost(small, example).madds, *pairs])
    print(f"{'method':<32}{'n':>3}{'MAdds, M':>10}" + "".join(f"{f'batch {b}':>16}" for b in given.batch))
    for name, rows in sorted(found.items()):
        madds, *times = zip(*rows, strict=True)
        cells = "".join(f"{statistics.mean(t):9.3f} ± {statistics.pstdev(t):.3f}" for t in times)
        print(f"{name:<32}{len(rows):3}{statistics.mean(madds) / 1e6:10.2f}{cells}")


if __name__ == "__main__":
    main()
