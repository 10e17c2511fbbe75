"""Tables of what there is: edges of a network, networks and data sets by name."""

from collections.abc import Iterable, Mapping

from rich.markup import escape
from rich.table import Table

from ...data import DataSet
from ...edges import IDENTITY, NONE, Edge
from ...networks import Definition, Size
from ..runs import Survey


def survey_tables(name: str, survey: Survey, everything: bool, image: tuple[int, ...]) -> list[Table]:
    """What may change in a network for images (C, H, W), and if asked what may not and why."""
    found = survey.edges
    groups = len({e.group for e in found})
    widths = sum(e.kind == "width" for e in found)
    among = f" ({widths if widths < len(found) else 'all'} of them widths)" if widths else ""
    time = f"; {survey.latency}" if survey.latency else ""
    counted = f"images of {'x'.join(map(str, image))}"
    table = Table(title=f"{name}, {counted}: {len(found)} edges{among}, {groups} groups in cell mode{time}")
    numbers = ("MAdds", "saves", *(["saves time"] if survey.seconds else []))
    for column in ("edge", "kind", "operation", "shape", "may become", *numbers):
        # An edge's key is what one copies from here: it is folded, never cut.
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    # Other operations are many, and the same for edges alike: they are listed once, below.
    lists: dict[tuple[str, ...], str] = {}
    for edge in found:
        others = tuple(name for name, _ in edge.others)
        of_list = [lists.setdefault(others, f"others {len(lists) + 1}")] if others else []
        choices = ", ".join([*of_list, *(c for c in edge.choices[1:] if c not in others)])
        choices = _shares(edge) if edge.kind == "width" else choices
        shape = " > ".join(dict.fromkeys("x".join(map(str, s)) for s in (edge.shape_in, edge.shape_out)))
        row = [escape(edge.key), edge.kind, escape(edge.operation), shape, choices]
        row += [f"{edge.madds:,}", f"{survey.saved[edge.key]:,.0f}"]
        if survey.seconds:
            measured = len(edge.choices) - len(edge.others) > 1  # what another operation would take is not known
            row.append(f"{survey.seconds[edge.key] * 1e3:.3f} ms" if measured else "-")
        table.add_row(*row)
    if lists:
        table.caption = "\n".join(f"{name}: {', '.join(others)}" for others, name in lists.items())
        table.caption_justify = "left"
    if not everything:
        return [table]
    rest = Table(title=f"{len(survey.fixed)} operations and blocks cannot change")
    widths = any(edge.kind == "width" for edge in survey.fixed)
    for column in ("operation or block", "what", "why not identity", "why not none"):
        rest.add_column(column, overflow="fold")
    if widths:
        rest.add_column("why not narrower", overflow="fold")
    for edge in survey.fixed:
        why = dict(edge.refused)
        whys = [why.get(IDENTITY, ""), why.get(NONE, ""), ""]
        if edge.kind == "width":
            whys = ["", "", next((w for choice, w in edge.refused if choice not in (IDENTITY, NONE)), "")]
        rest.add_row(escape(edge.key), escape(edge.operation), *map(escape, whys[: 3 if widths else 2]))
    return [table, rest] if found else [rest]


def _shares(edge: Edge) -> str:
    """What a width may shrink to: the shares, and how many channels (or heads) each is."""
    ends = list(dict.fromkeys((edge.choices[1], edge.choices[-1])))
    return f"{' to '.join(ends)} ({' to '.join(str(edge.kept(choice)) for choice in ends)})"


def networks_table(title: str, found: Mapping[str, Size], sources: Mapping[str, str]) -> Table:
    """Networks by name: what they cost, where they may change, and where their definition comes from."""
    caption = "full, cell: how many thetas in each mode; in brackets with the null edges of NAT's genotypes"
    table = Table(title=f"networks {title}", caption=caption)
    for name in ("name", "parameters", "MAdds", "full", "cell", "defined in"):
        table.add_column(name, justify="left" if name in ("name", "defined in") else "right", overflow="fold")

    def thetas(plain: int | None, with_skips: int | None) -> str:
        return ("-" if plain is None else str(plain)) + (f" [{with_skips}]" if with_skips is not None else "")

    for name, size in found.items():
        full, cell = thetas(size.edges, size.skip_edges), thetas(size.groups, size.skip_groups)
        table.add_row(
            escape(name), f"{size.params:,}", f"{size.madds:,}", escape(full), escape(cell), escape(sources[name])
        )
    return table


def families_table(families: Iterable[Definition]) -> Table:
    """Networks that are named by a text: NAME:TEXT."""
    table = Table(title="and, by a text of yours", show_header=False)
    rows = [(f"{f.name}:TEXT", f.family, f.source) for f in families]
    rows += [
        ("torchvision:NAME", "a network of torchvision.models", ""),
        ("timm:NAME", "a network of timm, with pip install 'dnat[timm]'", ""),
        ("package.module:factory", "a function of yours that returns a module", ""),
    ]
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def datasets_table(found: Iterable[DataSet]) -> Table:
    """Data sets by name, with the places in which their files are looked for."""
    table = Table(title="data sets", caption="files: in --data-root, $DNAT_DATA or ./data")
    for name in ("name", "what", "classes", "training", "test", "pixels", "files"):
        table.add_column(name, overflow="fold")

    def number(value: int | None) -> str:
        return "any" if value is None else f"{value:,}"

    for d in found:
        size = "any" if d.size is None else f"{d.size}x{d.size}"
        numbers = (number(d.classes), number(d.train), number(d.test))
        table.add_row(d.name, f"{escape(d.title)} ({escape(d.source)})", *numbers, size, escape(d.files))
    return table
