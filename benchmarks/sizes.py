"""Count the catalogue: parameters, multiply-adds and edges of each network by name, into dnat/networks/sizes.json.

python benchmarks/sizes.py            all of them (about ten minutes on two cores)
python benchmarks/sizes.py NAME ...   these, keeping the other rows
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

from dnat.lab.runs import sized
from dnat.networks import NETWORKS, NetworkSize, accepts

FILE = Path(__file__).resolve().parent.parent / "dnat" / "networks" / "sizes.json"


def size(name: str) -> NetworkSize:
    """What one network costs and where it may change."""
    if not accepts(name, "skips"):
        return sized(name, {})
    plain, full = sized(name, {"skips": False}), sized(name, {"skips": True})
    if plain.edges == full.edges:
        return plain
    return replace(plain, skip_edges=full.edges, skip_groups=full.groups)


def main(names: list[str]) -> None:
    """Count and write."""
    table = json.loads(FILE.read_text()) if names else {}
    for name in names or NETWORKS:
        found = size(name)
        table[name] = asdict(found)
        print(name, found, flush=True)
        rows = (f"  {json.dumps(n)}: {json.dumps(table[n])}" for n in NETWORKS if n in table)
        FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
