"""What a process keeps of 200 calls of `dnat.transform`: memory, open files, threads, objects.

    python benchmarks/leaks.py
    python benchmarks/leaks.py --calls 1000

The first calls fill caches and do not count. "KB" is what the process has of the machine; the allocator keeps what
is freed, in pieces, so that it grows for some tens of calls. "KB in use" is what was asked for and not given back
(of glibc's memory), and shows what leaks. Ends with exit code 1 if open files or threads grow, or memory in use by
more than --most KB a call.
"""

import argparse
import ctypes
import gc
import os
import sys
import threading
import warnings
from pathlib import Path

import torch
from torch import nn

import dnat

WARM = 40
"""Calls that do not count."""


def once(seed: int) -> None:
    """A transformation of a small network."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    )
    network = nn.Sequential(network, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images, labels = torch.rand(12, 1, 6, 6), torch.arange(12) % 3
    data = dnat.Data.from_tensors("leaks", (images, labels), (images, labels))
    settings = {"epochs": 2, "architecture_epochs": 1, "batch_size": 6, "threads": 1, "latency_batch": 2}
    dnat.transform(network, data, dnat.Config(**settings, seed=seed))


class _Allocated(ctypes.Structure):
    """What `mallinfo2` of glibc tells."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _in_use() -> int:
    """KB of small blocks, and of large ones that have pages of their own."""
    library = ctypes.CDLL("libc.so.6")
    library.mallinfo2.restype = _Allocated
    told = library.mallinfo2()
    return int(told.uordblks + told.hblkhd) >> 10


def kept() -> dict[str, int]:
    """What this process holds now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "KB": pages * os.sysconf("SC_PAGE_SIZE") >> 10,
        "KB in use": _in_use(),
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def main() -> None:
    """Call, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--most", type=float, default=2.0, metavar="KB", help="growth of memory a call")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for seed in range(WARM):
        once(seed)
    before = kept()
    for seed in range(options.calls):
        once(seed)
    after = kept()
    for name, value in before.items():
        print(f"{name:10}  {value:9} -> {after[name]:9}")
    growth = (after["KB in use"] - before["KB in use"]) / options.calls
    print(f"{growth:.2f} KB in use a call, over {options.calls} calls")
    sys.exit(growth > options.most or any(after[n] > before[n] for n in ("open files", "threads")))


if __name__ == "__main__":
    main()
