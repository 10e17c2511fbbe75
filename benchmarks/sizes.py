"""Count the catalogue: parameters, multiply-adds and edges of each network by name, into dnat/lab/catalogue.json.

python benchmarks/sizes.py            all of them (about ten minutes on two cores)
python benchmarks/sizes.py NAME ...   these, keeping the other counts
python benchmarks/sizes.py --none     keeping all counts: sources, families and data sets alone
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dnat.data import describe
from dnat.lab.catalogue import NetworkSize
from dnat.lab.runs import sized
from dnat.networks import FAMILIES, NETWORKS, accepts

FILE = Path(__file__).resolve().parent.parent / "dnat" / "lab" / "catalogue.json"


def size(name: str) -> NetworkSize:
    """What one network costs and where it may change."""
    if not accepts(name, "skips"):
        return sized(name, {})
    plain, full = sized(name, {"skips": False}), sized(name, {"skips": True})
    if plain.edges == full.edges:
        return plain
    return replace(plain, skip_edges=full.edges, skip_groups=full.groups)


def written(counts: dict[str, Any]) -> str:
    """The file, a line for each name, with counts by name."""
    networks = {
        n: {"image_size": d.image_size, "source": d.source, "size": counts[n]}
        for n, d in NETWORKS.items()
        if n in counts
    }
    lists = {
        "families": [{"name": d.name, "family": d.family, "source": d.source} for d in FAMILIES.values()],
        "datasets": [asdict(d) for d in describe()],
    }
    parts = [
        '"networks": {\n'
        + ",\n".join(f"  {json.dumps(n)}: {json.dumps(row)}" for n, row in networks.items())
        + "\n}"
    ]
    for name, rows in lists.items():
        parts.append(f'"{name}": [\n' + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]")
    return "{" + ",\n".join(parts) + "}\n"


def main(names: list[str]) -> None:
    """Count and write."""
    counts = {n: row["size"] for n, row in json.loads(FILE.read_text())["networks"].items()} if names else {}
    for name in [n for n in names if n != "--none"] if names else NETWORKS:
        counts[name] = asdict(size(name))
        print(name, counts[name], flush=True)
        FILE.write_text(written(counts))
    FILE.write_text(written(counts))


if __name__ == "__main__":
    main(sys.argv[1:])
