"""What there is by name, as tables."""

from collections.abc import Iterable, Mapping
from typing import Any

from ..catalogue import NetworkSize
from .grid import Grid


def networks_table(title: str, found: Mapping[str, NetworkSize], sources: Mapping[str, str]) -> Grid:
    """Networks by name: what they cost, where they may change, and where their definition comes from."""

    def thetas(plain: int | None, with_skips: int | None) -> str:
        return ("-" if plain is None else str(plain)) + (f" [{with_skips}]" if with_skips is not None else "")

    rows = [
        (
            name,
            f"{size.params:,}",
            f"{size.madds:,}",
            thetas(size.edges, size.skip_edges),
            thetas(size.groups, size.skip_groups),
            sources[name],
        )
        for name, size in found.items()
    ]
    numbers = ("parameters", "MAdds", "full", "cell")
    caption = "full, cell: how many thetas in each mode; in brackets with the null edges of NAT's genotypes"
    return Grid(
        f"networks {title}",
        ("name", *numbers, "defined in"),
        tuple(rows),
        frozenset(numbers),
        frozenset(("defined in",)),
        caption,
    )


def families_table(families: Iterable[Mapping[str, str]]) -> Grid:
    """Networks that are named by a text: NAME:TEXT."""
    rows = [(f"{f['name']}:TEXT", f["family"], f["source"]) for f in families]
    rows += [
        ("torchvision:NAME", "a network of torchvision.models, with pip install 'dnat[torchvision]'", ""),
        ("timm:NAME", "a network of timm, with pip install 'dnat[timm]'", ""),
        ("package.module:factory", "a function of yours that returns a module", ""),
    ]
    return Grid("and, by a text of yours", ("name", "what", "defined in"), tuple(rows))


def datasets_table(found: Iterable[Mapping[str, Any]]) -> Grid:
    """Data sets by name, with the places in which their files are looked for."""

    def number(value: int | None) -> str:
        return "any" if value is None else f"{value:,}"

    rows = [
        (
            d["name"],
            f"{d['title']} ({d['source']})",
            *(number(d[what]) for what in ("classes", "train", "test")),
            f"{d['size']}x{d['size']}",
            d["files"],
        )
        for d in found
    ]
    columns = ("name", "what", "classes", "training", "test", "pixels", "files")
    caption = "files: in --data-root, $DNAT_DATA or ./data"
    return Grid("data sets", columns, tuple(rows), frozenset(columns[2:6]), frozenset(("what", "files")), caption)
