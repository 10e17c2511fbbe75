"""A sweep's settings -> its trials: networks x methods x seeds, each a job of its own.

A method is written as `METHOD` or `METHOD@BUDGET`: dnat-full@0.7. Settings are common to all trials, or stand in
the table of a network or of a method and hold for its trials alone. A common setting that a method has no use for
is not given to it, so that "original" stays one baseline whatever the budget of the others is. A variant is a
method with settings of its own under a name, which is the label of its runs.
"""

import importlib.machinery
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from ...errors import UsageError, WrongTypeError
from ...naming import is_code, place, unknown
from ...seeds import check_seed
from ...settings import ALIASES, CONTROLS, METHODS, SEARCHING, UNCOUNTED, Job, cores, directory_name, shown
from ..labels import label
from .variants import Table, check_variants, with_variants

MOST_SEEDS = 10_000
"""Of a sweep: each is a trial of every network and method."""

NESTED = ("network_options", "search")
"""Settings that are tables themselves: they are joined key by key."""

_OF_CHOICES = frozenset({"mode", "budget", "latency_budget", "space", "transitions", "edges", "judge"})
"""Settings that say which choices are made; "original" makes none."""
_NOT_OF_WIDTHS = _OF_CHOICES - {"budget", "latency_budget"}
"""Of these, what a control with fewer channels has no use for."""
_OF_EDGES = frozenset({"budget", "latency_budget", "edges", "judge"})
"""Settings that a search on genotypes refuses."""


def parse_seeds(text: str | int | Iterable[int]) -> tuple[int, ...]:
    """Seeds as users write them: a number of seeds, a list, ranges.

    Args:
        text: "5" (or 5) is seeds 0 to 4, "0,3,7" those three, "1-5" seeds 1 to 5, "7," seed 7 alone.

    Raises:
        ValueError: anything else, no seed, one twice, or one out of range.

    >>> parse_seeds("3"), parse_seeds("0,3,7"), parse_seeds("1-3,9"), parse_seeds("7,")
    ((0, 1, 2), (0, 3, 7), (1, 2, 3, 9), (7,))
    """
    if isinstance(text, int):
        text = str(text)
    if not isinstance(text, str):
        return _once("seed", [check_seed(seed) for seed in _listed("seeds", text)])
    ranges = []
    parts = text.removesuffix(",").split(",")
    for part in (p.strip() for p in parts):
        if not re.fullmatch(r"[0-9]{1,18}(-[0-9]{1,18})?", part):
            raise UsageError(f"{shown(text)} are no seeds: give how many (5), a list (0,3,7) or a range (1-5)")
        first, _, last = part.partition("-")
        ranges.append(range(int(first), int(last or first) + 1))
    if "," not in text and "-" not in text:
        ranges = [range(ranges[0].start)]
    total = sum(r.stop - r.start for r in ranges if r.stop > r.start)
    if total > MOST_SEEDS:
        raise UsageError(f"{shown(text)} are {total} seeds, more than {MOST_SEEDS}: nobody could wait for them")
    found = [seed for seeds in ranges for seed in seeds]
    if not found:
        raise UsageError(f"{shown(text)} is no seed at all: give how many (5), a list (0,3,7) or a range (1-5)")
    return _once("seed", [check_seed(seed) for seed in found])


def _listed(what: str, value: Any) -> Iterable[Any]:
    if not isinstance(value, Iterable):
        raise WrongTypeError(f"{what} must be a list or a text with commas, not {shown(value)}")
    return value


def parse_names(text: str | Iterable[str]) -> tuple[str, ...]:
    """Names of networks or methods, separated by commas.

    >>> parse_names("resnet8, torchvision:resnet18")
    ('resnet8', 'torchvision:resnet18')
    """
    parts = text.split(",") if isinstance(text, str) else [str(part) for part in _listed("names", text)]
    return _once("name", [part.strip() for part in parts if part.strip()])


def _once(kind: str, values: Sequence[Any]) -> tuple[Any, ...]:
    for i, value in enumerate(values):
        if value in values[:i]:
            raise UsageError(f"{kind} {value!r} is given twice")
    return tuple(values)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep is to do, before anything is resolved or checked.

    Attributes:
        networks: by name, as `dnat transform --network` takes them.
        methods: `METHOD` or `METHOD@BUDGET`, or the name of a variant in place of a method's.
        seeds: of the trials.
        settings: common to all trials, as in a configuration file.
        of_network: settings of one network's trials, by its name.
        of_method: settings of one method's trials, by its name with or without its budget.
        of_variant: a method (`method`, also METHOD@BUDGET) and settings that beat all others, by the name.
    """

    networks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: Table = field(default_factory=dict)
    of_network: dict[str, Table] = field(default_factory=dict)
    of_method: dict[str, Table] = field(default_factory=dict)
    of_variant: dict[str, Table] = field(default_factory=dict)

    @classmethod
    def from_table(
        cls,
        table: Mapping[str, Any],
        over: Mapping[str, Any] | None = None,
        variants: Mapping[str, Table] | None = None,
    ) -> "Sweep":
        """The sweep that a configuration file describes.

        Args:
            table: settings, with the lists `networks`, `methods` and `seeds` and the tables `network.NAME`,
                `method.NAME` and `variant.NAME`. All variants take part, whether `methods` names them or not.
            over: settings that beat those of the file, also those in its tables but for variants'. Where it has
                `methods`, of the file's variants only those take part that it names.
            variants: more of them, which beat those of the file by the same names.

        Raises:
            ValueError, TypeError: lists or tables that are none.
        """
        rest, over = dict(table), dict(over or {})
        own = rest.pop("variant", {})
        if not isinstance(own, dict):
            raise UsageError("variant must be tables: [variant.NAME] with a method and settings")
        tables = {}
        for kind in ("network", "method"):
            given = over[kind] if kind in over else rest.pop(kind, {})
            if kind in over or not isinstance(given, dict) or not all(isinstance(t, dict) for t in given.values()):
                raise UsageError(
                    f"a sweep takes a list of {kind}s: write {kind}s = [...], and [{kind}.NAME] for one of them"
                )
            tables[kind] = {name: _without(settings, over) for name, settings in given.items()}
        if "seed" in rest | over:
            raise UsageError("a sweep takes seeds: write seeds = [...], or --seeds")
        if "label" in rest | over:
            raise UsageError("a label is of one method alone: write [variant.NAME], or --variant NAME=METHOD")
        lists = {kind: rest.pop(kind, ()) for kind in ("networks", "methods", "seeds")}
        for kind in ("network", "method"):
            # What the file names and this sweep leaves out needs no settings.
            kept = _with_bases(over.get(f"{kind}s", lists[f"{kind}s"]))
            left = _with_bases(lists[f"{kind}s"]) - kept
            tables[kind] = {name: settings for name, settings in tables[kind].items() if name not in left}
        if "methods" in over:
            wanted = {name.partition("@")[0] for name in parse_names(over["methods"])}
            own = {name: settings for name, settings in own.items() if name in wanted}
        of_variant = check_variants({**own, **(variants or {})})
        lists |= {kind: over.pop(kind) for kind in lists if kind in over}
        return cls(
            networks=parse_names(lists["networks"]),
            methods=with_variants(parse_names(lists["methods"]), of_variant),
            seeds=parse_seeds(lists["seeds"]) if lists["seeds"] != () else (),
            settings=joined(rest, over),
            of_network=tables["network"],
            of_method=tables["method"],
            of_variant=of_variant,
        )

    def to_toml(self) -> str:
        """The sweep as the text of a configuration file."""
        lists = {"networks": list(self.networks), "methods": list(self.methods), "seeds": list(self.seeds)}
        tables = {"network": self.of_network, "method": self.of_method, "variant": self.of_variant}
        settings = {k: v for k, v in self.settings.items() if v is not None}
        return tomli_w.dumps(lists | settings | {k: v for k, v in tables.items() if v})


def _with_bases(names: Any) -> set[str]:
    """Names in a list, and those of methods without their budget."""
    return {base for name in parse_names(names) for base in (name, name.partition("@")[0])}


def joined(*tables: Mapping[str, Any]) -> Table:
    """Tables of settings as one; later ones win, tables inside are joined.

    >>> joined({"lr": 1, "search": {"epochs": 2}}, {"lr": 3, "search": {"layers": 4}})
    {'lr': 3, 'search': {'epochs': 2, 'layers': 4}}
    """
    result: Table = {}
    for table in tables:
        for key, value in table.items():
            nested = key in NESTED and isinstance(value, Mapping) and isinstance(result.get(key, {}), Mapping)
            result[key] = {**result.get(key, {}), **value} if nested else value
    return result


def _without(table: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """A table without the settings that are given elsewhere with more right."""
    result: Table = {}
    for key, value in table.items():
        if key in NESTED and isinstance(value, dict):
            result[key] = {k: v for k, v in value.items() if k not in over.get(key, {})}
        elif key not in over:
            result[key] = value
    return result


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its run directory, in the sweep's.
        network, method, seed: as the sweep has them.
        job: what to do, resolved.
    """

    name: str
    network: str
    method: str
    seed: int
    job: Job


def grid(sweep: Sweep) -> list[tuple[str, str, str, int]]:
    """Name, network, method and seed of each trial; seed by seed, so that an unfinished table has some of all."""
    return [(trial_name(n, m, s), n, m, s) for s in sweep.seeds for n in sweep.networks for m in sweep.methods]


def trial_name(network: str, method: str, seed: int) -> str:
    """A name for a run directory that every system can hold.

    >>> trial_name("resnet8", "dnat-full@0.7", 3), trial_name("my.nets:make", "nat++", 0)
    ('resnet8-dnat-full-0.7-seed3', 'my.nets-make-nat++-seed0')
    """
    return directory_name(f"{network}-{method}", f"-seed{seed}")


def resolve(sweep: Sweep, jobs: int = 1) -> Sweep:
    """The sweep with everything in it that its trials depend on: CPU threads, the data set, genotypes from files.

    Args:
        sweep: as it was given.
        jobs: trials at a time, among which the cores are divided. Threads are a part of what a run is.

    Raises:
        ValueError: no networks, methods or seeds; a genotype that cannot be read.
    """
    from ...networks import genotype_of, is_genotype

    for kind, flag in (("networks", "A,B"), ("methods", "original,dnat-full"), ("seeds", "5")):
        if not getattr(sweep, kind):
            raise UsageError(f"no {kind} given: add --{kind} {flag}")
    of_network = dict(sweep.of_network)
    for network in filter(is_genotype, sweep.networks):
        options = joined(sweep.settings, of_network.get(network, {})).get("network_options", {})
        if "genotype" not in options:  # the sweep holds it: it means the same wherever the file goes
            found = {"network_options": {"genotype": genotype_of(network)}}
            of_network[network] = joined(of_network.get(network, {}), found)
    settings = {"data": "digits", "threads": max(1, cores() // jobs)} | sweep.settings
    return replace(sweep, settings=settings, of_network=of_network)


def plan(sweep: Sweep) -> tuple[Trial, ...]:
    """The trials of a resolved sweep, checked as far as that needs neither data nor networks.

    Raises:
        ValueError: something is wrong with some of them; every mistake is listed, with the trials that have it.
    """
    unknown_names, other = _misnamed(sweep)
    mistakes: dict[str, list[str]] = {problem: [] for problem in (*unknown_names.values(), *other)}
    trials, rows, kinds = [], dict[tuple[Any, ...], str](), dict[str, str]()
    for name, network, method, seed in grid(sweep):
        if network in unknown_names or method in unknown_names:
            continue
        try:
            job = make_job(sweep, network, method, seed)
            check_job(job)
        except (ValueError, TypeError) as error:
            mistakes.setdefault(str(error), []).append(name)
            continue
        first = rows.setdefault((job.network, label(job.flat()), job.config.seed), name)
        twin = kinds.setdefault(_counted(job), name)
        if first != name:
            mistakes.setdefault(f"{first} and {name} would be the same entry of a table: leave one out", [])
        elif twin != name:
            mistakes.setdefault(
                f"{twin} and {name} would be the same run, with all settings equal: leave one out", []
            )
        trials.append(Trial(name, network, method, seed, job))
    if mistakes:
        total = len(sweep.networks) * len(sweep.methods) * len(sweep.seeds)
        lines = [f"{problem}{_of(where, total)}" for problem, where in mistakes.items()]
        several = f", {len(lines)} mistakes:\n  " if len(lines) > 1 else ": "
        raise UsageError("nothing was started" + several + "\n  ".join(lines))
    return tuple(trials)


def _of(names: Sequence[str], total: int) -> str:
    if not names or len(names) == total:
        return ""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f" ({', '.join(names[:3])}{rest})"


def _misnamed(sweep: Sweep) -> tuple[dict[str, str], list[str]]:
    """What is wrong with the networks and methods of a sweep, by their names; and with other names in it."""
    found: dict[str, str] = {}
    for network in sweep.networks:
        options = joined(sweep.settings, sweep.of_network.get(network, {})).get("network_options", {})
        try:
            check_network(network, tuple(options))
        except ValueError as error:
            found[network] = str(error)
    known_methods = (*METHODS, *ALIASES, *sweep.of_variant)
    for method in sweep.methods:
        base = method.partition("@")[0]
        if base not in known_methods:
            found[method] = str(
                unknown("method or variant" if sweep.of_variant else "method", base, known_methods)
            )
    other, names = [], [name for name, *_ in grid(sweep)]
    other += [
        f"two trials would have the name {name}" for name in sorted({n for n in names if names.count(n) > 1})
    ]
    taken = (*sweep.methods, *(table["method"] for table in sweep.of_variant.values()))
    methods = {*taken, *(method.partition("@")[0] for method in taken)} - {*sweep.of_variant}
    for kind, tables, known in (
        ("network", sweep.of_network, {*sweep.networks}),
        ("method", sweep.of_method, methods),
    ):
        where = [(name, f"[{kind}.{name}]") for name in tables if name not in known]
        other += [f"{place}: {unknown(f'{kind} of this sweep', name, known)}" for name, place in where]
    return found, other


def _counted(job: Job) -> str:
    """A job as text, without what does not count when jobs are compared."""
    return repr(sorted((k, v) for k, v in job.flat().items() if k not in UNCOUNTED))


def make_job(sweep: Sweep, network: str, method: str, seed: int) -> Job:
    """The job of one trial.

    Raises:
        ValueError, TypeError: settings that are wrong.
    """
    base, at, budget = method.partition("@")
    variant = dict(sweep.of_variant.get(base, {}))
    if variant:
        named = {"label": f"{base} {budget.strip()}" if at else base}
        of_method = variant.pop("method")
        base, with_budget, of_its_own = of_method.partition("@")
        variant = named | ({"budget": of_its_own.strip()} if with_budget else {}) | variant
    else:
        of_method = method
    kind = ALIASES.get(base, (base, ""))[0]
    common = {k: v for k, v in sweep.settings.items() if _has_use(kind, network, k, sweep)}
    own = joined(sweep.of_method.get(base, {}), sweep.of_method.get(of_method, {}) if "@" in of_method else {})
    ours = {k: v for k, v in sweep.of_network.get(network, {}).items() if _has_use(kind, network, k, sweep)}
    table = joined(common, ours, own, variant)
    if "budget" in variant:  # one limit beats the other
        table.pop("latency_budget", None)
    elif "latency_budget" in variant:
        table.pop("budget", None)
    if at:
        table["budget"] = budget.strip()
        table.pop("latency_budget", None)
    table |= {"network": network, "method": base, "seed": seed}
    return Job.from_flat(table)


def _has_use(method: str, network: str, setting: str, sweep: Sweep) -> bool:
    """Whether a method is given a setting that is common to several."""
    if setting == "search":
        return method in SEARCHING
    if setting in ("pruning", "pruning_global"):
        return method == "control-prune"
    if method == "original":
        return setting not in _OF_CHOICES
    if method in CONTROLS:
        return setting not in (_NOT_OF_WIDTHS if method in ("control-narrow", "control-prune") else {"judge"})
    if method in SEARCHING and setting in _OF_EDGES:
        tables = (sweep.settings, sweep.of_network.get(network, {}), sweep.of_method.get(method, {}))
        graph = joined(*tables).get("search", {}).get("graph", "auto")
        return graph == "edges" or not has_genotype(network)
    return True


def has_genotype(network: str) -> bool:
    """Whether a network, by its name, is one of cells, whose genotype is what NAT and its like transform."""
    from ...networks import definition, is_genotype

    known = definition(network)
    return is_genotype(network) or bool(known and known.genotype)


def check_job(job: Job) -> None:
    """Find out what is wrong with a job, as far as that needs neither its data nor its network.

    Raises:
        ValueError, TypeError: it is wrong.
    """
    from ...data import describe
    from ...networks import check_mode
    from ...tasks import TASKS
    from ..baselines import check_budget, configured

    config = job.config
    check_mode(job.network, config.relaxation.mode)
    if job.method in CONTROLS:
        check_budget(job.method, config)
    if job.method in SEARCHING:
        configured(job.method, config)
        on_genotype = config.search.graph != "edges" and has_genotype(job.network)
        if on_genotype and config.limit.is_limited:
            raise UsageError(
                f"{job.method} knows no budget on genotypes: leave it out for {job.network}, or take "
                "search.graph='edges'"
            )
    _check_name("data set", job.data, [d.name for d in describe()])
    _check_name("task", job.task or "classification", TASKS)


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if ":" in name:
        _check_module(kind, name)
    elif name not in known:
        raise unknown(kind, name, known)


def check_network(network: str, options: Iterable[str] = ()) -> None:
    """Find out whether there is a network of that name, and whether it takes options of these names.

    Your own modules are looked for, but not imported: they are for the trials alone.

    Raises:
        ValueError: there is none, or it does not.
    """
    from ...networks import accepts

    if is_code("network", network):
        _check_module("network", network)
        return
    for option in options:
        if not accepts(network, option):
            raise UsageError(
                f"network {network} has no option {option!r}: `dnat edges` and its docstring tell all"
            )
    accepts(network, "num_classes")  # which finds out that there is no such network


def _check_module(kind: str, name: str) -> None:
    top = place(kind, name)[0].partition(".")[0]
    if not _is_found(top):
        raise UsageError(f"{kind} {name!r} cannot be imported: there is no module {top!r}")


def _is_found(module: str) -> bool:
    return importlib.machinery.PathFinder.find_spec(module, [str(Path.cwd()), *sys.path]) is not None
