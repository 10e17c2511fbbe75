"""Microseconds that evaluation takes an image, by the size of the batch, with glibc's allocator and the command's.

python benchmarks/evaluation.py

One thread, fp32, channels last, CPU time, the median of five rounds; each allocator in a process of its own.
"""

import subprocess
import sys
import time

import torch

import dnat
from dnat.lab.cli.__main__ import _keep_memory

CASES = (
    ("resnet20", 32, (50, 100, 250, 500)),
    ("mobilenet_v2", 32, (50, 100, 250, 500)),
    ("torchvision:mobilenet_v2", 224, (1, 16)),
)


def microseconds(network: torch.nn.Module, images: torch.Tensor, rounds: int = 5) -> float:
    """An image's share of the time of a batch."""
    times = []
    with torch.inference_mode():
        network(images)
        for _ in range(rounds):
            begun = time.process_time()
            network(images)
            times.append(time.process_time() - begun)
    return sorted(times)[rounds // 2] / len(images) * 1e6


def rows() -> None:
    """Print a line for each network."""
    torch.set_num_threads(1)
    for name, size, batches in CASES:
        network = dnat.build(name, seed=0).eval().to(memory_format=torch.channels_last)
        cells = []
        for batch in batches:
            images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
            cells.append(f"{batch}: {microseconds(network, images):,.0f}")
        print(f"  {name:26} {size:4} pixels   " + "   ".join(cells), flush=True)


def main() -> None:
    """Both allocators, one after the other."""
    if len(sys.argv) > 1:
        if sys.argv[1] == "kept":
            _keep_memory()
        rows()
        return
    for how in ("usual", "kept"):
        print(f"memory: {how}", flush=True)
        subprocess.run([sys.executable, __file__, how], check=True)


if __name__ == "__main__":
    main()
