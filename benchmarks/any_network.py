"""dnat on every network of the zoo: nothing changes at the start, and what comes out is what was chosen.

    python benchmarks/any_network.py [NAME ...] [--seeds 20] [--jobs 2] [--json FILE] [--space nat++]

Each network is checked in a process of its own, with limits on time and memory:

attach  the relaxed network equals the original to the bit, in eval and in train mode, buffers too;
sets    random sets of choices are made; the plain network equals the one-hot relaxed one on inputs that
        discretization has not seen, in eval and train mode; it trains; it has the multiply-adds that were
        promised; its state_dict has no new names; saved whole, it loads where dnat cannot be imported, and gives
        the same there;
saved   the multiply-adds that go when one operation becomes none, with everything that only fed it.

With --space dnat,width the channels between layers may become fewer, too (`dnat.channels`), and what was cut of a
network's buffers and gradients is compared to the same part of the relaxed one's.

With --space nat++ choices are drawn from the larger space, in which a convolution may also become another
operation (`dnat.candidates`); only such operations bring new names into the state_dict.

Prints a Markdown table and exits with 1 if any check fails. A network without an edge is no failure, and neither
is a choice that dnat keeps from carrying out and says so: those are counted.
"""

import argparse
import functools
import io
import json
import math
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import dnat
from dnat.budget import Costs
from dnat.discretization import discretization
from dnat.edges import Edge, problems, units
from dnat.narrowing import cut_along
from dnat.tracing import copied

DENSITIES = (0.3, 1.0, 0.1, 0.6)
"""Shares of the edges for which another choice is drawn, in turn."""

NONES = 12
"""At most so many edges are set to none alone, to see what that saves."""

PROTOTYPE = {
    "resnet18": 33,
    "resnet50": 42,
    "convnext_tiny": 44,
    "vit_b_16": 867,
    "dla34": 53,
    "resnest14d": 62,
    "densenet121": 8.1,
    "squeezenet1_1": 1.6,
    "convmixer_768_32": 6.2,
}
"""Million multiply-adds saved by one none: what a prototype of dnat reached, mean over about twelve units."""

Outputs = list[list[Tensor]]
"""The tensors that each call of an example gives."""


@dataclass
class Report:
    """What was found out about one network.

    Attributes:
        space: from which choices were drawn.
        message: the tool's, where there is no edge.
        unsaved: why the original cannot be saved whole; then loading without dnat is not checked.
        edges, nones, groups: how many; nones are those that may become none.
        exact_eval, exact_train: whether the relaxed network equals the original to the bit.
        sets, verified: random sets of choices made, and those that passed every check.
        exact: sets whose network equals the one-hot relaxed one to the bit, in both modes.
        rounding: sets that agree in float64 only.
        changes, kept: choices other than original, and those of them that were not carried out.
        reasons: why they were not, and how often.
        saved, own, measured: million multiply-adds that go with a convolution or linear layer when one none
            removes it, those of the layer alone, and the number of layers that this is the mean of.
        failures: what went wrong; empty if the network passed.
    """

    name: str
    space: str = "dnat"
    message: str = ""
    unsaved: str = ""
    edges: int = 0
    nones: int = 0
    groups: int = 0
    exact_eval: bool | None = None
    exact_train: bool | None = None
    sets: int = 0
    verified: int = 0
    exact: int = 0
    rounding: int = 0
    changes: int = 0
    kept: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    saved: float | None = None
    own: float | None = None
    measured: int = 0
    seconds: float = 0
    finished: bool = False
    failures: list[str] = field(default_factory=list)


class _NothingAtRandom(TorchFunctionMode):
    """Within, dropout and stochastic depth give what they give on average."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "").strip("_")
        if name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"):
            return args[0] if args else kwargs["input"]
        if name == "bernoulli" and len(args) == 2:
            return args[0].fill_(args[1])
        if "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


@dataclass
class Observation:
    """What a network gave and did: outputs of each call, then its buffers and the gradients of its weights."""

    outputs: Outputs
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor]


def observe(network: nn.Module, example: Any, training: bool, steady: bool = False) -> Observation:
    """Run a copy of a network: in eval mode forward alone, in train mode forward and backward.

    Args:
        network: any network; of a relaxed one, theta's gradient is left out.
        example: what it is called with; gradients of several calls are summed up.
        training: in which mode.
        steady: without randomness.
    """
    network = copied(network).train(training)
    outputs = []
    with torch.set_grad_enabled(training), _NothingAtRandom() if steady else nullcontext():
        for args, kwargs in copied(zoo.calls(example)):
            zoo.seeded()
            given = zoo.tensors(network(*args, **kwargs))
            outputs.append([t.detach().clone() for t in given])
            if training:
                given = [t for t in given if t.requires_grad]
                assert given, "no output depends on the weights"
                sum((t.abs() if t.is_complex() else t).square().mean() for t in given).backward()
    weights = network.network if isinstance(network, dnat.RelaxedNetwork) else network
    gradients = {n: p.grad for n, p in weights.named_parameters(remove_duplicate=False) if p.grad is not None}
    assert gradients or not training, "no weight has a gradient"
    return Observation(outputs, dict(weights.named_buffers()), gradients)


def equal(some: Outputs, others: Outputs) -> bool:
    """Whether two runs gave the same bits (all NaNs count as one)."""
    pairs = zip(some, others, strict=True)
    return all(
        len(a) == len(b) and all(x.dtype == y.dtype and _same(x, y) for x, y in zip(a, b, strict=True))
        for a, b in pairs
    )


def _same(x: Tensor, y: Tensor) -> bool:
    return torch.equal(x, y) or (x.shape == y.shape and bool(((x == y) | (x.isnan() & y.isnan())).all()))


def difference(some: Outputs, others: Outputs) -> str:
    """How two runs differ by more than rounding; empty if they do not."""
    for a, b in zip(some, others, strict=True):
        if [(x.shape, x.dtype) for x in a] != [(y.shape, y.dtype) for y in b]:
            return f"outputs {[tuple(x.shape) for x in a]} instead of {[tuple(y.shape) for y in b]}"
        for x, y in zip(a, b, strict=True):
            x, y = (t if t.is_complex() else t.double() for t in (x, y))
            size = torch.nan_to_num(y.abs(), posinf=0.0).max().item() if y.numel() else 0.0
            if not torch.allclose(x, y, rtol=1e-4, atol=1e-5 * size, equal_nan=True):
                return f"differs by {(x - y).abs().max().item():.2g} of {size:.2g}"
    return ""


def unlike(some: Observation, other: Observation) -> str:
    """How the first network differs from the second in what it still has; empty if it does not."""
    if found := difference(some.outputs, other.outputs):
        return found
    for name, buffer in some.buffers.items():
        if found := difference([[buffer]], [[other.buffers[name]]]):
            return f"its buffer {name} {found}"
    size = max([float(g.abs().max()) for g in other.gradients.values()], default=0.0)
    for name in some.gradients:
        two = other.gradients.get(name)
        worst = float((some.gradients[name] - (0 if two is None else two)).abs().max())
        if not worst <= 1e-4 * size and math.isfinite(size):
            return f"its gradient of {name} differs by {worst:.2g} of {size:.2g}"
    return ""


def in_double(tree: Any) -> Any:
    """An example in float64."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, tree)


def draw(edges: Sequence[Edge], generator: random.Random, density: float) -> dict[Edge, str]:
    """A random legal set of choices: drawn for a share of the edges, and repaired by giving up some at random."""
    drawn = [(e, generator.choice(e.choices[1:])) for e in edges if generator.random() < density]
    generator.shuffle(drawn)
    legal: dict[Edge, str] = {}

    def add(some: list[tuple[Edge, str]]) -> None:
        if not some:
            return
        if not problems(legal | dict(some)):
            legal.update(some)
        elif len(some) > 1:
            add(some[: len(some) // 2])
            add(some[len(some) // 2 :])

    add(drawn)
    return legal


def check(seeds: int, report: Report, save: Callable[[], None]) -> None:
    """All checks of one network, noted in the report."""
    network = zoo.build(report.name)
    example, fresh = zoo.ENTRIES[report.name].example(0), zoo.ENTRIES[report.name].example(1)
    edges = dnat.find_edges(dnat.trace(network, example), report.space)
    report.edges = len(edges)
    report.nones = sum("none" in e.choices for e in edges)
    report.groups = len({e.group for e in edges})
    try:
        relaxed = dnat.relax(network, edges)
    except ValueError as error:
        if edges:
            raise
        report.message = str(error)
        return
    zoo.guarded(report.failures, "attach", _attached, network, relaxed, [example, fresh], report)
    save()
    with tempfile.TemporaryDirectory() as folder:
        report.unsaved = _unsaved(network, fresh)
        elsewhere = None if report.unsaved else zoo.Elsewhere(Path(folder), fresh)
        try:
            for seed in range(seeds):
                choices = draw(edges, random.Random(seed), DENSITIES[seed % len(DENSITIES)])
                zoo.guarded(
                    report.failures,
                    f"set {seed}",
                    _set_of,
                    network,
                    edges,
                    choices,
                    example,
                    fresh,
                    elsewhere,
                    report,
                )
                report.sets += 1
                save()
        finally:
            if elsewhere:
                elsewhere.close()
    zoo.guarded(report.failures, "one none", _saved, network, edges, example, report)


def _unsaved(network: nn.Module, example: Any) -> str:
    """Why the original itself cannot be saved whole after it has run; empty if it can."""
    network = copied(network)
    for args, kwargs in zoo.calls(example):
        network(*args, **kwargs)
    try:
        torch.save(network, io.BytesIO())
    except Exception as error:
        return str(error).partition("\n")[0]
    return ""


def _attached(network: nn.Module, relaxed: nn.Module, examples: list[Any], report: Report) -> None:
    """Whether the relaxed network equals the original: outputs and buffers to the bit, gradients to rounding."""
    assert isinstance(relaxed, dnat.RelaxedNetwork)
    extra = _extra(relaxed, network, relaxed.edges)
    extra -= {"theta", "architecture.distance", "architecture.measured"}
    assert not extra, f"other names in the state_dict: {sorted(extra)[:3]}"
    for training in (False, True):
        some, other = (observe(n, examples, training) for n in (relaxed, network))
        for own in (some.buffers, some.gradients):
            for name in [n for n in own if _of_others(n, relaxed.edges)]:
                del own[name]
        same = equal(some.outputs, other.outputs)
        same &= all(_same(buffer, some.buffers[name]) for name, buffer in other.buffers.items())
        mode = "train" if training else "eval"
        setattr(report, f"exact_{mode}", same)
        assert same, f"not exact in {mode} mode"
        assert some.gradients.keys() == other.gradients.keys(), "other weights have gradients"
        assert not unlike(some, other), f"in {mode} mode {unlike(some, other)}"


def _set_of(
    network: nn.Module,
    edges: Sequence[Edge],
    choices: dict[Edge, str],
    example: Any,
    fresh: Any,
    elsewhere: zoo.Elsewhere | None,
    report: Report,
) -> None:
    """All checks of one set of choices.

    Raises:
        AssertionError: which check failed.
    """
    told = {edge.key: choice for edge, choice in choices.items()}
    found = discretization(network, told, example, edges[0].program)
    report.changes += len(told)
    report.kept += len(found.undone)
    report.reasons = dict(Counter(report.reasons) + Counter(found.undone.values()))
    extra = _extra(found.network, network, edges)
    assert not extra, f"new names in the state_dict: {sorted(extra)[:3]}"
    cut = {name.rpartition(".")[0] for e, c in choices.items() if e.place for name, _, _ in e.place.cuts}
    changed = [name for name in _changed(found.network, network) if name not in cut]
    assert not changed, f"module {changed[0]} is not what it was; {told}"
    done = {edge.key: found.choices.get(edge.key, "original") for edge in edges}
    undone = [k for k, c in told.items() if done[k] != c and k not in found.undone]
    assert not undone, f"not done and not reported: {undone[:3]}"
    if not found.undone:
        costs, (before, after) = (
            Costs(edges),
            (dnat.cost(copied(n), example).madds for n in (network, found.network)),
        )
        promised = costs.total - costs.of(choices)
        assert abs(before - after - promised) <= 1, f"saves {before - after}, not {promised:.0f}; {told}"

    oracle = dnat.relax(network, edges)
    oracle.set_one_hot(done)
    exact, problem = compared(found.network, oracle, fresh, choices)
    assert not problem, f"{problem}; {told}"
    if elsewhere:
        there, here = elsewhere.run(found.network), observe(found.network, fresh, training=False).outputs
        assert not difference(there, here), f"loaded without dnat it {difference(there, here)}"
    report.verified += 1
    report.exact += exact == "to the bit"
    report.rounding += exact == "in float64"


def compared(
    network: nn.Module, oracle: dnat.RelaxedNetwork, fresh: Any, choices: dict[Edge, str]
) -> tuple[str, str]:
    """A network beside the one-hot relaxed one, in eval and train mode: outputs, buffers and gradients.

    Returns:
        How they agree: "to the bit", "to rounding" or "in float64"; and if they do not, how they differ.
    """
    exact, rounding = True, False
    for training in (False, True):
        some, other = (observe(n, fresh, training, steady=True) for n in (network, oracle))
        other = _narrowed(other, oracle, choices)
        exact &= equal(some.outputs, other.outputs)
        if unlike(some, other):
            # Norms over few values may blow up rounding; what is right agrees in float64.
            wide = [observe(copied(n).double(), in_double(fresh), training, True) for n in (network, oracle)]
            if problem := unlike(wide[0], _narrowed(wide[1], oracle, choices)):
                return "", f"another function in {'train' if training else 'eval'} mode: {problem}"
            rounding = True
        lost = _trained(other) & set(network.state_dict()) - _trained(some)
        if lost:
            return "", f"no gradient any more: {sorted(lost)[:3]}"
    return "to the bit" if exact else "in float64" if rounding else "to rounding", ""


def _narrowed(observation: Observation, relaxed: dnat.RelaxedNetwork, choices: dict[Edge, str]) -> Observation:
    """What a relaxed network did, without what its widths leave out."""
    buffers, gradients = (
        cut_along(tensors, choices, relaxed.orders) for tensors in (observation.buffers, observation.gradients)
    )
    return Observation(observation.outputs, buffers, gradients)


def _extra(network: nn.Module, original: nn.Module, edges: Sequence[Edge]) -> set[str]:
    """Names in a network's state_dict that the original's does not have, but for those of other operations."""
    found = network.state_dict().keys() - original.state_dict().keys()
    return {name for name in found if not _of_others(name, edges)}


def _of_others(name: str, edges: Sequence[Edge]) -> bool:
    """Whether a parameter or buffer belongs to another operation that may take an edge's place."""
    ends = (f".{edge.entry.rpartition('.')[2]}.{other}." for edge in edges for other, _ in edge.others)
    return any(end in f".{name}" for end in ends)  # a module may have several paths


def _changed(network: nn.Module, original: nn.Module) -> list[str]:
    """Names of modules of a network that have other settings (a dropout's share) than in the original."""
    before = dict(original.named_modules(remove_duplicate=False))
    return [
        name
        for name, module in network.named_modules(remove_duplicate=False)
        if name in before and type(module) is type(before[name]) and _settings(module) != _settings(before[name])
    ]


def _settings(module: nn.Module) -> str:
    # That activations write in place no longer is meant.
    return re.sub(r"(, )?inplace=\w+", "", module.extra_repr())


def _trained(observation: Observation) -> set[str]:
    return {name for name, gradient in observation.gradients.items() if bool(gradient.any())}


def _saved(network: nn.Module, edges: Sequence[Edge], example: Any, report: Report) -> None:
    """What one none saves: counted on the network for some edges, calculated for all."""
    nones = [edge for edge in edges if "none" in edge.choices]
    if not nones:
        return
    costs, before = Costs(edges), dnat.cost(network, example).madds
    saved = {edge: costs.total - costs.of({edge: "none"}) for edge in nones}

    def measure(edge: Edge) -> None:
        found = discretization(network, {edge.key: "none"}, example, edges[0].program)
        report.changes += 1
        report.kept += len(found.undone)
        report.reasons = dict(Counter(report.reasons) + Counter(found.undone.values()))
        real = before - dnat.cost(found.network, example).madds
        if not found.undone and abs(real - saved[edge]) > 1:
            report.failures.append(f"none at {edge.key} saves {real}, not {saved[edge]:.0f} as calculated")

    step = len(nones) / min(len(nones), NONES)
    for number in range(min(len(nones), NONES)):
        edge = nones[int(number * step)]
        zoo.guarded(report.failures, f"none at {edge.key}", measure, edge)
    program = edges[0].program
    trace = program.traces[0]
    removed = {edge: costs.removed({edge: "none"}) for edge in nones}
    of_units = []
    for unit in units(program):
        operations = {i for call in trace.calls_of(unit.entry) for i in trace.within(call)}
        found = [(saved[edge], unit.madds) for edge in nones if operations & removed[edge]]
        if found:
            of_units.append(min(found))
    report.measured = len(of_units)
    if of_units:
        report.saved = sum(all_gone for all_gone, _ in of_units) / len(of_units) / 1e6
        report.own = sum(own for _, own in of_units) / len(of_units) / 1e6


def table(reports: Sequence[Report]) -> str:
    """The reports as a Markdown table."""
    head = (
        "network",
        "edges",
        "with none",
        "groups",
        "exact eval/train",
        "sets verified",
        "of them to the bit",
        "choices kept",
        "one none saves (own), M",
        "prototype",
        "s",
        "",
    )
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    for r in reports:
        if r.message:
            lines.append(f"| {r.name} |" + " |" * (len(head) - 3) + f" {r.seconds:.0f} | {r.message} |")
            continue
        cells = (
            r.name,
            r.edges,
            r.nones,
            r.groups,
            f"{_yes(r.exact_eval)}/{_yes(r.exact_train)}",
            f"{r.verified} of {r.sets}",
            _share(r.exact, r.verified),
            _share(r.kept, r.changes),
            f"{r.saved:.3g} ({r.own:.3g})" if r.saved is not None and r.own is not None else "-",
            f"{PROTOTYPE[r.name]:g}" if r.name in PROTOTYPE else "",
            f"{r.seconds:.0f}",
            "FAILED" if r.failures else "the original cannot be saved whole" if r.unsaved else "",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _yes(value: bool | None) -> str:
    return "-" if value is None else "yes" if value else "NO"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def summary(reports: Sequence[Report]) -> str:
    """Networks, passed and failed, in one line."""
    failed = sum(bool(r.failures) for r in reports)
    return f"{len(reports)} networks, {len(reports) - failed} passed, {failed} failed"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Check dnat on every network of the zoo.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="networks of any set (default: all of the zoo)")
    parser.add_argument("--seeds", type=int, default=20, help="random sets of choices a network (default: 20)")
    parser.add_argument("--jobs", type=int, default=2, help="networks at a time (default: 2)")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write each report there when it is done; what is there with as many sets is not checked again",
    )
    parser.add_argument("--time-limit", type=float, default=1800, help="seconds a network (default: 1800)")
    parser.add_argument("--memory", type=float, default=10, help="GiB a network (default: 10)")
    parser.add_argument(
        "--space",
        choices=("dnat", "nat++", "width", "dnat,width", "nat++,width"),
        default="dnat",
        help="of choices (default: dnat)",
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in zoo.ENTRIES:
            parser.error(f"no network {name!r}; there are {', '.join(zoo.ENTRIES)}")
    return options


def _done(file: Path | None) -> dict[str, Report]:
    """The reports that a file holds already."""
    if file is None or not file.exists():
        return {}
    return {r["name"]: Report(**r) for r in json.loads(file.read_text())["networks"]}


def _write(file: Path, done: dict[str, Report]) -> None:
    reports = list(done.values())
    text = json.dumps({"summary": summary(reports), "networks": [asdict(r) for r in reports]}, indent=1)
    zoo.write(file, text + "\n")


def main() -> int:
    """Check, print, and tell by the exit code whether all passed."""
    options = parsed()
    names = options.names or list(zoo.ZOO)
    done = _done(options.json)
    reports = [
        Report(name, options.space)
        for name in names
        if name not in done or done[name].sets < options.seeds or done[name].space != options.space
    ]
    limits = {"jobs": options.jobs, "seconds": options.time_limit, "memory": options.memory}
    for report in zoo.apart(reports, functools.partial(check, options.seeds), **limits):
        done[report.name] = report
        if options.json:
            _write(options.json, done)
    reports = [done[name] for name in zoo.ENTRIES if name in done and (not options.names or name in names)]
    return zoo.told(reports, table(reports), summary(reports))


if __name__ == "__main__":
    sys.exit(main())
