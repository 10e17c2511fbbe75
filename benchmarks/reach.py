"""How far dnat reaches: networks of whole libraries, made smaller, written as Python, read with torch alone.

    python benchmarks/reach.py --zoo --torchvision --timm --transformers [--jobs 2]     all of them
    python benchmarks/reach.py --only hf_gpt2 timm:convmixer_768_32                     some

Each network, in a process of its own with limits on time and memory, goes through

choose      choices within 0.7 of its multiply-adds, as `dnat.select` makes them, by worths that are drawn from a
            seed; nothing is trained. Where no legal set is so cheap, the row says so, and the cheapest is taken;
compare     what is discretized equals the one-hot relaxed network, in eval and train mode: outputs, buffers and
            gradients, on inputs that discretization has not seen;
export      `dnat.export` writes it as one Python file. A process that can import torch, but neither dnat nor the
            library that the network came from, loads and runs it, in both modes: outputs are the same to 1e-5 of
            the largest.

Every row is kept, a line for each, in benchmarks/results/; what is there is not run again. Prints a Markdown table
and the reasons of all failures, and exits with 1 if there is any.
"""

import argparse
import dataclasses
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import zoo
from any_network import compared
from torch import Tensor, nn

import dnat
from dnat.budget import Costs, InfeasibleError, by_edge, cheapest
from dnat.discretization import Discretization
from dnat.edges import EdgeSet
from dnat.selection import decide
from dnat.settings import parse_amount

RESULTS = Path(__file__).parent / "results" / "reach.jsonl"

BUDGET = 0.7

TOLERANCE = 1e-5
"""How far outputs may be apart, measured by the largest of them."""

BLOCKED = ("dnat", "torchvision", "timm", "transformers", "safetensors")
"""What cannot be imported where a written network is read."""


@dataclass
class Row:
    """What became of one network.

    Attributes:
        space: from which choices were made.
        edges, changed: how many, and those whose choice is not original.
        layers, removed: modules with weights of two or more dimensions, and those of them that are gone.
        share: of the multiply-adds that are left, as measured.
        least: the smallest share that choices can reach, where the budget is below it.
        compared: how the network agrees with the one-hot relaxed one: "to the bit", "to rounding" or "in float64".
        apart: how far outputs of the written network are from those, in eval and train mode, by their largest.
        seconds: from the start of its process to its end.
        spent: seconds of each step.
        finished: whether the process got to its end.
        failures: what went wrong; empty if nothing did.
    """

    name: str
    space: str
    edges: int = 0
    changed: int = 0
    layers: int = 0
    removed: int = 0
    share: float | None = None
    least: float | None = None
    compared: str = ""
    apart: list[float] = field(default_factory=list)
    seconds: float = 0.0
    spent: dict[str, float] = field(default_factory=dict)
    finished: bool = False
    failures: list[str] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Within, seconds are spent on a step."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = round(time.perf_counter() - start, 2)


def check(row: Row, save: Callable[[], None]) -> None:
    """All that is asked of one network, noted in its row."""
    entry = zoo.ENTRIES[row.name]
    example, fresh = entry.example(0), entry.example(1)
    with row.step("build"):
        network = zoo.build(row.name)
    with row.step("edges"):
        edges = dnat.find_edges(dnat.trace(network, example), row.space)
    row.edges = len(edges)
    save()
    made = network
    if edges:
        relaxed = dnat.relax(network, edges)
        with row.step("choose"):
            choices = chosen(relaxed, row)
        row.changed = sum(choice != "original" for choice in choices.values())
        save()
        with row.step("discretize"):
            discretized = dnat.discretize(relaxed, choices, example, report=True)
        made = discretized.network
        row.failures += [f"discretize: {key}: {why}" for key, why in discretized.undone.items()]
        with row.step("compare"):
            zoo.guarded(row.failures, "compare", compare, discretized, network, edges, fresh, row)
    measure(network, made, example, row)
    save()
    zoo.guarded(row.failures, "export", written, made, example, fresh, row)


def chosen(relaxed: dnat.RelaxedNetwork, row: Row) -> dict[str, str]:
    """Choices within the budget, as `dnat.select` makes them; the cheapest where there are none.

    A choice loses as much as it saves, times a number between 1 and 100 that is drawn for its group: so many small
    choices may be as good as a large one, and the budget is used. The closer numbers are, the longer it takes.
    """
    costs, groups = Costs(relaxed.edges), relaxed.by_group()
    drawn = 100 ** torch.rand(len(groups), generator=torch.Generator().manual_seed(0))

    def worth(group: str, choice: str) -> float:
        if choice == "original" or choice not in relaxed.choices_of(group):
            return 0.0
        return costs.of(dict.fromkeys(groups[group], choice)) / max(costs.total, 1) - 1.01

    worths = [
        [worth(group, choice) * float(factor) for choice in relaxed.columns]
        for group, factor in zip(groups, drawn, strict=True)
    ]
    try:
        decisions = decide(relaxed, limit=parse_amount(BUDGET), costs=costs, worths=worths)
    except InfeasibleError:
        choices, least = cheapest(groups, {group: relaxed.choices_of(group) for group in groups}, costs)
        row.least = least / costs.total if costs.total else 1.0
        return {edge.key: choice for edge, choice in by_edge(groups, choices).items()}
    return {decision.edge.key: decision.choice for decision in decisions}


def compare(made: Discretization, network: nn.Module, edges: EdgeSet, fresh: Any, row: Row) -> None:
    """The discretized network beside the one-hot relaxed one.

    Raises:
        AssertionError: how they differ.
    """
    done = {edge: made.choices.get(edge.key, "original") for edge in edges}
    oracle = dnat.relax(network, edges)
    oracle.set_one_hot({edge.key: choice for edge, choice in done.items()})
    row.compared, problem = compared(made.network, oracle, fresh, done)
    assert not problem, problem


def measure(network: nn.Module, made: nn.Module, example: Any, row: Row) -> None:
    """Layers and multiply-adds before and after."""
    left = {name for name, _ in layers(made)}
    before = [name for name, _ in layers(network)]
    row.layers, row.removed = len(before), sum(name not in left for name in before)
    madds = [dnat.cost(n, example, batch=1).madds for n in (made, network)]
    row.share = madds[0] / madds[1] if madds[1] else 1.0
    if row.edges and row.share > (row.least or BUDGET) + 1e-3:
        row.failures.append(f"measure: {row.share:.1%} of the multiply-adds are left")


def layers(network: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules with weights of two or more dimensions of their own."""
    for name, module in network.named_modules(remove_duplicate=False):
        if any(weight.dim() > 1 for weight in module.parameters(recurse=False)):
            yield name, module


def written(network: nn.Module, example: Any, fresh: Any, row: Row) -> None:
    """Export a network as Python, and compare it to what a process makes of the file that has torch alone.

    Raises:
        AssertionError: how they differ.
    """
    args, kwargs = zoo.calls(fresh)[0]  # a file is for the first of several examples
    with tempfile.TemporaryDirectory() as folder:
        with row.step("export"):
            # It would be read again, but with a tolerance that is wider than ours.
            files = dnat.export(network, example, "py", Path(folder) / "network.py", verify=False).files
        with row.step("reload"):
            elsewhere = zoo.Elsewhere(Path(folder), kwargs or args, BLOCKED)
            try:
                for training in (False, True):
                    outputs = elsewhere.run(files[0], training=training)[0]
                    twin = dnat.tracing.copied(network).train(training)
                    zoo.seeded()
                    with torch.no_grad():
                        expected = zoo.tensors(twin(*args, **kwargs))
                    row.apart.append(apart(outputs, expected))
            finally:
                elsewhere.close()
    modes = zip(("eval", "train"), row.apart, strict=True)
    wrong = [f"apart by {distance:.2g} in {mode} mode" for mode, distance in modes if not distance <= TOLERANCE]
    assert not wrong, ", ".join(wrong)


def apart(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of outputs, each by the largest of what is expected.

    Raises:
        AssertionError: they have other shapes or types.
    """
    shapes = [[(tuple(t.shape), t.dtype) for t in tensors] for tensors in (outputs, expected)]
    assert shapes[0] == shapes[1], f"outputs {shapes[0]} instead of {shapes[1]}"
    worst = 0.0
    for x, y in zip(outputs, expected, strict=True):
        if y.numel() and not torch.equal(x, y):
            x, y = (t if t.is_complex() else t.double() for t in (x, y))
            away = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())
            size = torch.nan_to_num(y.abs(), posinf=0.0).max()
            worst = max(worst, float(torch.nan_to_num(away / size.clamp_min(1e-30), nan=torch.inf).max()))
    return worst


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | edges | changed | layers removed | MAdds left | equals one-hot | .py apart, eval / train | "
        "s | |",
        "|---|---:|---:|---:|---:|---|---:|---:|---|",
    ]
    for r in rows:
        failed = f"FAILED: {short(r.failures[0])}" if r.failures else ""
        told = [f"{r.least:.0%} is the least" if r.least else "", "" if r.edges else "no edges", failed]
        cells = (
            r.name,
            r.edges,
            r.changed,
            f"{r.removed} of {r.layers}" if r.layers else "-",
            "-" if r.share is None else f"{r.share:.0%}",
            r.compared or "-",
            " / ".join(f"{distance:.0e}" if distance else "0" for distance in r.apart) or "-",
            f"{r.seconds:.0f}",
            "; ".join(filter(None, told)),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def short(reason: str) -> str:
    """A reason as it fits into a cell."""
    line = " ".join(reason.split()).replace("|", "\\|")
    return line if len(line) <= 100 else f"{line[:97]}..."


def summary(rows: Sequence[Row]) -> str:
    """All rows in one line."""
    failed = sum(bool(r.failures) for r in rows)
    dear = sum(r.least is not None or not r.edges for r in rows)
    seconds = statistics.median(r.seconds for r in rows) if rows else 0.0
    return (
        f"{len(rows)} networks, {len(rows) - failed} passed, {failed} failed; {dear} cannot get to {BUDGET:g} of "
        f"their multiply-adds; median {seconds:.1f} s"
    )


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Try dnat, and its export to Python, on whole libraries.")
    for name, entries in zoo.SETS.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"{len(entries)} networks")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="networks by name, of any set")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time (default: 2)")
    parser.add_argument("--space", choices=("dnat", "dnat,width"), default="dnat", help="(default: dnat)")
    parser.add_argument("--time-limit", type=float, default=600, help="seconds a network (default: 600)")
    parser.add_argument("--memory", type=float, default=10, help="GiB a network (default: 10)")
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="where rows are kept (default: results/reach.jsonl)",
    )
    parser.add_argument(
        "--again",
        nargs="?",
        const="all",
        choices=("all", "failed"),
        help="run what is there, too, or what failed",
    )
    options = parser.parse_args()
    for name in options.only:
        if name not in zoo.ENTRIES:
            parser.error(f"no network {name!r}; there are {', '.join(zoo.ENTRIES)}")
    return options


def kept(file: Path, space: str) -> dict[str, Row]:
    """The newest row of each network in a file."""
    lines = file.read_text().splitlines() if file.exists() else []
    rows = (Row(**json.loads(line)) for line in lines)
    return {row.name: row for row in rows if row.space == space}


def import_libraries(names: Set[str]) -> None:
    """Import what several networks need, once for all processes that are forked."""
    zoo.import_torchvision()
    for library in ("timm", "transformers"):
        if names & zoo.SETS[library].keys():
            importlib.import_module(library)


def main() -> int:
    """Try, print, and tell by the exit code whether nothing failed."""
    options = parsed()
    asked = [name for name in zoo.SETS if getattr(options, name)]
    sets = asked or ([] if options.only else list(zoo.SETS))
    names = list(dict.fromkeys([*(name for s in sets for name in zoo.SETS[s]), *options.only]))
    rows = kept(options.results, options.space)
    old = {n for n, row in rows.items() if options.again != "all" and not (options.again and row.failures)}
    new = [Row(name, options.space) for name in names if name not in old]
    import_libraries({row.name for row in new})
    limits = {"jobs": options.jobs, "seconds": options.time_limit, "memory": options.memory}
    for row in zoo.apart(new, check, **limits):
        rows[row.name] = row
        with options.results.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
    listed = [rows[name] for name in names]
    return zoo.told(listed, table(listed), summary(listed))


if __name__ == "__main__":
    sys.exit(main())
