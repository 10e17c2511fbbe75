"""What there is by name, as `dnat networks` and `dnat datasets` tell it: from a file; nobody waits for torch.

`python benchmarks/sizes.py` counts and writes `catalogue.json` anew; the tests compare it with the definitions,
with the papers' sizes and with fresh counts.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class NetworkSize:
    """What a network costs and where it may change: counted, not taken from papers.

    Attributes:
        params: number of parameters, without an auxiliary head's.
        madds: multiply-adds of one image.
        edges: number of edges, each with a theta of its own in Full mode.
        groups: number of thetas in Cell mode; None where there is no such mode.
        skip_edges, skip_groups: the same with the null edges of NAT's genotypes; None where it has none.
    """

    params: int
    madds: int
    edges: int
    groups: int | None
    skip_edges: int | None = None
    skip_groups: int | None = None


@functools.cache
def catalogue() -> Mapping[str, Any]:
    """The file: "networks", by name, with size, image_size and source; the lists "families" and "datasets"."""
    table: Mapping[str, Any] = json.loads((files(__package__) / "catalogue.json").read_text())
    return table


def size_of(name: str) -> NetworkSize:
    """What a single network costs, as the file says."""
    return NetworkSize(**catalogue()["networks"][name]["size"])
