"""What decides a run: `Config` (the method), `Job` (with network and data), and the two presets.

Every open point of the DNAT paper is a field here, and each preset is one visible table. A saved run holds
the fully resolved values, so that a later change of a default cannot change what an old run meant.
"""

import dataclasses
import functools
import math
import operator
import os
import re
import tomllib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import tomli_w

from .errors import UsageError, WrongTypeError
from .naming import unknown
from .seeds import check_seed

Mode = Literal["full", "cell"]
Gate = Literal["raw", "sigmoid"]
Space = Literal["dnat", "nat++", "width", "dnat,width", "nat++,width"]

MOST_THREADS = 1024
"""More threads than any machine that we know of has cores: torch dies of some, or asks for all memory."""
MOST_PIXELS = 8192
"""The largest side of images."""
MOST_DEPTH = 32
"""Lists and tables in settings that stand in more of others are a mistake, or an attack."""
LARGEST = 1e30
"""The largest number: beyond the square root of what 32 bits hold nothing can be computed."""

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


@dataclass(frozen=True)
class Amount:
    """A limit: a share of what the original costs, or an absolute number."""

    value: float
    relative: bool

    def of(self, total: float) -> float:
        """The limit in the unit of `total`, which is what the original costs."""
        return self.value * total if self.relative else self.value


def parse_amount(text: str | float, *, seconds: bool = False) -> Amount:
    """A budget as users write it.

    Args:
        text: a share of the original (0.7, "0.7", "70%"), multiply-adds ("120M", "1.2G", 120e6), or with
            `seconds` a time ("5ms", "0.2s").
        seconds: whether absolute amounts are times.

    Raises:
        ValueError: none of these.

    >>> parse_amount("120M"), parse_amount("70%").of(1000), parse_amount("5ms", seconds=True).value
    (Amount(value=120000000.0, relative=False), 700.0, 0.005)
    """
    written = text.strip().lower() if isinstance(text, str) else shown(text)
    units = _SECONDS if seconds else _UNITS
    for unit, factor in (("%", 0.01), *sorted(units.items(), key=lambda u: -len(u[0])), ("", 1.0)):
        number = written.removesuffix(unit) if unit else written
        try:
            value = float(number) / 100 if unit == "%" else float(number) * factor
        except ValueError:
            continue
        if number == written and unit:
            continue
        relative = unit == "%" or (not unit and value <= 1)
        whole = not unit and value > 1 and seconds  # a bare number above 1 is no time
        if not whole and 0 < value < math.inf and (not relative or value <= 1):
            return Amount(value, relative)
    examples = '0.7, 70%, "5ms", "0.2s"' if seconds else '0.7, 70%, "120M", "1.2G"'
    raise UsageError(f"{shown(text)} is not a budget: give a share of the original or an amount ({examples})")


# Stands for "not given"; typed as anything, since __post_init__ replaces it before anyone reads the field.
_FROM_PRESET: Any = None

PRESETS: dict[str, dict[str, Any]] = {
    # Kim & Lee 2020 to the letter where the paper speaks, and DARTS's habits where it is silent.
    "paper": {
        "space": "dnat",
        "epochs": 600,
        "lr": 0.025,
        "warm_up": 0.0,
        "cutout": "searched",  # 16 pixels, for DARTS and ProxylessNAS alone
        "judge": "theta",
        "distillation": 0.0,
        "feature_distillation": 0.0,
        "settle": 0.0,
        "gate": "raw",  # o(x) = theta_same * op(x) + theta_identity * x; no normalization
        "skips": True,  # the hand-made networks carry the null edges of NAT's genotypes
        "skip_threshold": 1.0,  # literal argmax of (0, theta_identity, 1) on a null edge
        "lr_theta": 3e-4,  # Adam's step, as in DARTS
        "theta_betas": (0.5, 0.999),
        "zero_one_weight": 0.0,
        "cost_weight": 0.0,
        "cost_target": 0.0,
    },
    # What we found to work better; docs/log.md has the figures behind each value.
    "improved": {
        "space": "dnat",
        "epochs": 200,
        "lr": 0.025,
        "warm_up": 0.0,
        "cutout": 0,
        "judge": "theta",
        "distillation": 0.0,
        "feature_distillation": 0.0,
        "settle": 0.5,  # choices are made half way through the stage and come into force step by step
        "gate": "sigmoid",  # bounded gates that prefer to be 0 or 1, so that committing changes little
        "skips": False,
        "skip_threshold": 0.5,
        "lr_theta": "auto",  # from theta_reach: a short stage can change choices as a long one can
        "theta_betas": (0.9, 0.999),
        "zero_one_weight": 0.01,
        "cost_weight": 0.2,
        "cost_target": 0.5,  # below this share nothing is charged: pressure alone must not ruin a network
    },
}


PRESETS["fine-tune"] = PRESETS["improved"] | {
    "space": "dnat,width",
    # For a network that is trained already. Within a budget its answers decide before anything is trained, and all
    # epochs are for recovery; docs/log.md has the tables from which the rate and the weights follow.
    "epochs": 60,
    "lr": 0.03,
    "judge": "answers",
    "distillation": 0.5,
    "feature_distillation": 48.0,
}


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the methods search that dnat is compared with (`dnat.lab.baselines`): NAT, NAT++, other policies, NAO.

    The defaults are those of NAT's code where its intent is clear (docs/methods.md A2 to A8).

    Raises:
        ValueError, TypeError: as for `Config`.
    """

    official: bool = False
    """Do what NAT's released code does, with its defects: docs/baselines.md lists them."""
    graph: Literal["auto", "genotype", "edges"] = "auto"
    """What is transformed: the "genotype" of a network of cells, on a supernet, as in the papers; or the "edges"
    of any network, on its own weights. "auto": the genotype where there is one."""
    epochs: int = _FROM_PRESET
    """Epochs of the search; by default a sixth of those of the training (100 of 600, as NAT's), and for NAT++ with
    `official` a third (200 of 600, as its code has it)."""
    channels: int = 20
    """Channels of the supernet's first cells."""
    layers: int = 8
    """Cells of the supernet."""
    batch_size: int = 64
    """Images a step of the search."""
    split: float = 0.4
    """Share of the training images on which shared weights are trained; on the rest architectures are judged."""
    lr: float = 0.01
    """Learning rate of the shared weights, constant."""
    momentum: float = 0.9
    """Momentum of SGD for the shared weights."""
    weight_decay: float = 3e-4
    """Weight decay of the shared weights."""
    unused_weights: Literal["auto", "rest", "move"] = "auto"
    """What becomes of shared weights that a step does not use: they "rest", or, once they have been used, "move"
    by their momentum and weight decay, as under PyTorch 0.4, for which the released code is (docs/methods.md A7).
    "auto": "move" with `official`, else "rest"."""
    lr_policy: float = 3e-4
    """Learning rate of the policy, by Adam."""
    betas_policy: tuple[float, float] = (0.5, 0.999)
    """Adam's betas for the policy."""
    weight_decay_policy: float = 5e-4
    """Weight decay of the policy."""
    entropy: float = 0.003
    """Weight of the entropy of the moves, for each cell."""
    decay: float = 0.99
    """Share of the old in the moving average of rewards."""
    samples: int = 10
    """Architectures that are drawn in the end, of which the best is kept."""
    calibration: int = 8
    """Batches on which the statistics of norms are taken before an architecture is judged."""
    architectures: int = 100
    """Architectures that NAO learns from."""
    nao_epochs: int = 1000
    """Epochs in which NAO learns from them, as in the paper."""

    def __post_init__(self) -> None:
        _check_types(self)
        numbers: dict[str, int] = dict.fromkeys(
            ("layers", "batch_size", "samples", "calibration", "nao_epochs", "epochs"), 1
        )
        for name, least in (numbers | {"channels": 2, "architectures": 2}).items():
            if getattr(self, name) is not None:
                _check(self, name, f"at least {least}", functools.partial(operator.le, least))
        for name in ("lr", "lr_policy"):
            _check(self, name, "a positive number", lambda v: 0 < v < math.inf)
        for name in ("weight_decay", "weight_decay_policy", "entropy"):
            _check(self, name, "a number of at least 0", lambda v: 0 <= v < math.inf)
        for name in ("momentum", "decay"):
            _check(self, name, "in [0, 1)", lambda v: 0 <= v < 1)
        _check(self, "split", "between 0 and 1", lambda v: 0 < v < 1)
        _check(self, "betas_policy", "in [0, 1)", lambda v: all(0 <= b < 1 for b in v))

    @property
    def moves_unused(self) -> bool:
        """Whether shared weights that a step does not use move all the same; see `unused_weights`."""
        return self.official if self.unused_weights == "auto" else self.unused_weights == "move"

    @classmethod
    def from_table(cls, table: Any) -> "Search":
        """From the table `search` of a configuration file.

        Raises:
            ValueError: an unknown key, with the nearest known one.
        """
        if not isinstance(table, dict):
            raise WrongTypeError(f"search must be a table of settings, not {_show(table)}")
        known = {f.name for f in fields(cls)}
        for key in table:
            if key not in known:
                raise unknown("setting", f"search.{key}", [f"search.{name}" for name in known])
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a transformation besides the network and the data.

    A field that is not given, or None, takes its value from the preset (or from the rule that it names) when
    the configuration is made.

    Raises:
        ValueError: a value out of range or an unknown name, with the value and what is allowed.
        TypeError: a value of the wrong type.

    >>> Config(preset="paper", epochs=600).architecture_epochs
    50
    """

    preset: Literal["paper", "improved", "fine-tune"] = "improved"
    """Where fields that are not given come from; see `PRESETS`."""
    seed: int = 0
    """Seed of every random stream of the run."""
    mode: Mode = "full"
    """"full": every edge its own theta; "cell": edges at the same place of repeated blocks share one."""
    space: Space = _FROM_PRESET
    """Which choices an edge has: original, identity, none; in "nat++" convolutions, and operations of searched
    cells, may also become cheaper ones. "width": the channels between layers may become fewer, in eighths; alone,
    or with one of the others ("dnat,width"). By default the preset's, and "dnat" where theta is the judge."""
    transitions: dict[str, Any] | None = None
    """In the space "nat++", a table of your own in place of NAT++'s: {"conv_3x3": ["conv_1x1"], ...}."""
    edges: tuple[str, ...] | None = None
    """Which edges may change: patterns of their keys (`dnat edges` lists those), in which * stands for any text, ?
    for one character and [...] for one of several; None: all of them may."""
    choices: dict[str, str] | None = None
    """Choices that are made already, {edge key: choice}; edges that are missing stay original. They come into
    force before anything is trained, and all epochs train the compact network (`dnat transform --plan` takes them
    from a plan)."""
    choices_for: str | None = None
    """Fingerprint of the program that `choices` are for: another network is refused."""
    epochs: int = _FROM_PRESET
    """Epochs of both stages together."""
    architecture_epochs: int = _FROM_PRESET
    """Epochs of the architecture stage; by default max(5, epochs / 12), at most epochs - 1."""
    batch_size: int = 96
    """Images a step."""

    lr: float = _FROM_PRESET
    """Learning rate of the weights at the start; one cosine over both stages brings it to 0."""
    warm_up: float = _FROM_PRESET
    """Epochs in which the learning rate rises from 0, evenly."""
    momentum: float = 0.9
    """Momentum of SGD for the weights."""
    weight_decay: float = 3e-4
    """Weight decay of the weights; theta never has any."""
    grad_clip: float = 5.0
    """Largest L2 norm of the weights' gradient; 0 switches clipping off."""
    cutout: int | Literal["searched"] = _FROM_PRESET
    """Side in pixels of the square that cutout blanks; 0 switches it off. "searched": 16, as in DARTS's recipe, in
    networks of cells and ProxylessNAS's, on images of at least 32 x 32; 0 in others."""

    auxiliary: float = 0.4
    """Weight of auxiliary heads' loss, where a network has such heads (DARTS's, GoogLeNet's); 0 ignores them."""
    drop_path: float = 0.2
    """Probability of drop-path at the end of the network stage, in networks of cells: it grows linearly with the
    epochs, as in DARTS, and there is none in the architecture stage."""

    gate: Gate = _FROM_PRESET
    """How theta weighs an operation: "raw" as in the paper, "sigmoid" for bounded gates."""
    theta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of theta."""
    lr_theta: float | Literal["auto"] = _FROM_PRESET
    """Learning rate of theta, constant; "auto" takes `theta_reach` / steps of the architecture stage."""
    theta_reach: float = 6.0
    """How far theta could move before the choices are made, where lr_theta is "auto" (at most 0.1 a step)."""
    theta_betas: tuple[float, float] = _FROM_PRESET
    """Adam's betas for theta (the first is the momentum when theta is trained by SGD)."""
    zero_one_weight: float = _FROM_PRESET
    """Weight of the loss that pulls gates towards 0 or 1 (FairDARTS)."""
    cost_weight: float = _FROM_PRESET
    """Weight of the loss that charges each kept operation its share of the network's multiply-adds."""
    cost_target: float = _FROM_PRESET
    """Share of the network's cost below which nothing is charged; with a budget, the budget stands here."""
    single_pass: bool = False
    """Take the gradients of weights and theta from one backward pass instead of two."""
    budget: str | float | None = None
    """Most multiply-adds that the result may have: a share of the original (0.7), or a number ("120M")."""
    latency_budget: str | float | None = None
    """Longest time that the result may take for a batch of `latency_batch`: a share, or a time ("5ms")."""
    latency_batch: int = 1
    """Images of the batch whose time counts for `latency_budget`."""
    paths: Literal["two", "all"] = "two"
    """How many operations are computed beside the original, in the space "nat++": "two" paths take one of each
    group's operations in each step, at random; "all" takes all of them, at more time and memory."""
    matching: float = 1.0
    """Weight of the loss that teaches other operations, of the space "nat++", what the original computes."""
    warm_start: bool = True
    """Whether other operations begin as a function close to the original: the middle of its kernel, or the nearest
    separable ones. Otherwise they begin with random weights."""
    judge: Literal["theta", "loss", "answers"] = _FROM_PRESET
    """What choices are made by, within a budget: "theta"; "loss": what each would do to the training loss if it
    alone were made, found by trying every one (`trial_batches`) when the choices are made; "answers": what they do
    to the network's answers, each alone, with norms re-estimated (`judge_images`,
    `dnat.sensitivity`). That needs no theta: without `architecture_epochs` the choices are made before anything is
    trained, and all epochs train the compact network. By default the preset's, and theta where there is no budget,
    or where `architecture_epochs` are asked for."""
    trial_batches: int = 2
    """Batches on which a choice is tried, where the loss is the judge."""
    judge_images: int | Literal["auto"] = "auto"
    """Training images, without their labels, on which choices are tried, where the answers are the judge; "auto":
    from 64 to 1,000, as many as can be shown in a few minutes (`sensitivity.affordable_images`)."""
    settle: float = _FROM_PRESET
    """Last part of the architecture stage, in which the choices are made already and come into force step by step:
    gates go to 0 and 1 while the weights train on, so that dropping the rest loses nothing. 0: all at once."""
    skips: bool = _FROM_PRESET
    """Whether networks made by name carry the null edges of NAT's genotypes, where they have them."""
    skip_threshold: float = _FROM_PRESET
    """A null edge becomes an identity when its gate exceeds this."""
    distillation: float = _FROM_PRESET
    """Weight, from 0 to 1, of the answers of the original, as it was given, beside the labels."""
    feature_distillation: float = _FROM_PRESET
    """Weight of what layers of the original are given, from which those of the same names learn (hints:
    `dnat.distillation`)."""
    distillation_temperature: float = 4.0
    """Temperature at which answers are compared."""

    pruning: Literal["l2", "l1", "taylor"] = "l2"
    """By what control-prune ranks channels: a norm of their weights, or what the loss loses without them by its
    gradient on `trial_batches` batches."""
    pruning_global: bool = False
    """Whether control-prune ranks the channels of all layers together, and not those of each apart."""

    search: Search = field(default_factory=Search)
    """How the methods search that dnat is compared with."""

    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1", "mps"."""
    amp: Literal["off", "bf16"] = "off"
    """Automatic mixed precision in forward passes."""
    channels_last: bool = True
    """Whether images and convolution weights are laid out channels last."""
    threads: int = _FROM_PRESET
    """CPU threads; sums depend on them. By default all cores at hand; a run goes on with as many as before."""

    def __post_init__(self) -> None:
        _check_types(self)
        check_seed(self.seed)
        self._take_from_preset()
        _check_budgets(self)
        _check_moves(self)
        if self.judge != "theta" and not self.is_limited:
            raise UsageError(f"judge {self.judge!r} needs a budget: without one nothing is worth what it does")
        for name in ("epochs", "batch_size", "latency_batch", "trial_batches"):
            _check(self, name, "at least 1", lambda v: v >= 1)
        _check(self, "judge_images", "'auto' or at least 1", lambda v: v == "auto" or v >= 1)
        _check(self, "threads", f"from 1 to {MOST_THREADS}", lambda v: 1 <= v <= MOST_THREADS)
        _check(self, "device", "auto, cpu, cuda, cuda:1, mps", lambda v: bool(_DEVICE.fullmatch(v)))
        if self.architecture_epochs is None:
            default = min(max(5, round(self.epochs / 12)), max(self.epochs - 1, 1))
            object.__setattr__(self, "architecture_epochs", 0 if self.begins_compact else default)
        if not self.search.official:  # otherwise the method decides; see `for_method`
            object.__setattr__(self, "search", _with_epochs(self.search, self.epochs, 6))
        least = 0 if self.begins_compact else 1
        limit = f"from {least} to epochs ({self.epochs})"
        _check(self, "architecture_epochs", limit, lambda v: least <= v <= self.epochs)
        _check(self, "warm_up", f"from 0 to epochs ({self.epochs})", lambda v: 0 <= v <= self.epochs)
        _check(self, "distillation", "from 0 to 1", lambda v: 0 <= v <= 1)
        _check(self, "cost_target", "from 0 to 1", lambda v: 0 <= v <= 1)
        _check(self, "settle", "in [0, 1)", lambda v: 0 <= v < 1)
        for name in (
            "lr",
            "theta_reach",
            "distillation_temperature",
            *(["lr_theta"] if self.lr_theta != "auto" else []),
        ):
            _check(self, name, "a positive number", lambda v: 0 < v < math.inf)
        _check(self, "drop_path", "in [0, 1)", lambda v: 0 <= v < 1)
        for name in (
            "auxiliary",
            "feature_distillation",
            "matching",
            "weight_decay",
            "grad_clip",
            "zero_one_weight",
            "cost_weight",
            "skip_threshold",
        ):
            _check(self, name, "a number of at least 0", lambda v: 0 <= v < math.inf)
        _check(self, "cutout", "'searched' or a number of at least 0", lambda v: v == "searched" or v >= 0)
        _check(self, "momentum", "in [0, 1)", lambda v: 0 <= v < 1)
        _check(self, "theta_betas", "in [0, 1)", lambda v: all(0 <= b < 1 for b in v))

    def _take_from_preset(self) -> None:
        """Fill in what was not given."""
        if self.judge is None and (not self.is_limited or self.choices is not None or self.architecture_epochs):
            object.__setattr__(self, "judge", "theta")  # there is nothing to judge within, or theta is asked for
        if self.space is None and self.judge == "theta" and self.choices is None:
            object.__setattr__(self, "space", "dnat")  # what widths are worth is measured, or not at all
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.threads is None:
            object.__setattr__(self, "threads", cores())

    def for_method(self, method: str) -> "Config":
        """The same settings with the epochs of the search that a method has by default.

        >>> config = Config(epochs=600, search=Search(official=True))
        >>> config.for_method("nat").search.epochs, config.for_method("nat++").search.epochs
        (100, 200)
        """
        share = 3 if method == "nat++" and self.search.official else 6
        return dataclasses.replace(self, search=_with_epochs(self.search, self.epochs, share))

    @property
    def is_limited(self) -> bool:
        """Whether there is a budget, of multiply-adds or of time."""
        return self.budget is not None or self.latency_budget is not None

    @property
    def teaches(self) -> bool:
        """Whether the network as it was given teaches what becomes of it."""
        return self.distillation > 0 or self.feature_distillation > 0

    @property
    def begins_compact(self) -> bool:
        """Whether the choices can be made before anything is trained."""
        return self.judge == "answers" or self.choices is not None

    @property
    def moves(self) -> str | list[str | dict[str, Any]]:
        """What `find_edges` is to offer: the space, with a table in nat++'s place where there is one."""
        if self.transitions is None:
            return self.space
        return [self.transitions if name == "nat++" else name for name in self.space.split(",")]

    @property
    def operation_moves(self) -> str | dict[str, Any]:
        """The same without widths."""
        return self.transitions or ("nat++" if self.names_operations else "dnat")

    @property
    def names_operations(self) -> bool:
        """Whether edges may become other operations: those of NAT++, or of a table."""
        return "nat++" in self.space.split(",")


SEARCHING = ("nat", "nat++", "random", "lstm", "max-gcn", "nao")
"""The methods that search first and train what they found afterwards: what dnat is compared with."""
CONTROLS = ("control-random", "control-uniform", "control-narrow", "control-prune")
"""The methods that make a network smaller at once, to a budget, without looking at what that does to it."""
METHODS = ("dnat", "original", *SEARCHING, *CONTROLS)
"""The names of all methods."""
ALIASES = {"dnat-full": ("dnat", "full"), "dnat-cell": ("dnat", "cell")}
"""Names for a method and its mode together, as tables of results have them."""

WHERE = frozenset({"data_root", "streaming", "workers"})
"""Settings that tell where and how the images are read, and change no bit of a run."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run as the command line knows it: a network and data by name, a method, and a `Config`."""

    network: str
    """Name of the network (`dnat networks` lists them)."""
    network_options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the network's constructor, for example {"width": 8}."""
    weights: str | None = None
    """Trained weights: a file (safetensors, or a state_dict saved by torch), or the name of torchvision's."""
    data: str = "digits"
    """Name of the data set (`dnat datasets` lists them)."""
    data_root: str | None = None
    """Folder that holds the data set's files; by default $DNAT_DATA, then ./data."""
    image_size: int | None = None
    """Side in pixels to which images are resized where the data set allows it."""
    train_limit: int | None = None
    """Use so many training images, class-balanced."""
    test_limit: int | None = None
    """Use so many test images, class-balanced."""
    crop: Literal["padded", "resized"] | None = None
    """How training images are cropped: after padding, or at a random size and shape; by default as is usual."""
    streaming: bool | None = None
    """Whether pictures are decoded while the network trains; by default where they do not fit into memory."""
    workers: int | None = None
    """Processes that decode them; by default one a core, at most 8."""
    skip_broken: bool | None = None
    """Whether pictures that cannot be read are left out; by default they end the run before it begins."""
    method: Literal[
        "dnat",
        "original",
        "nat",
        "nat++",
        "random",
        "lstm",
        "max-gcn",
        "nao",
        "control-random",
        "control-uniform",
        "control-narrow",
        "control-prune",
    ] = "dnat"
    """"dnat" transforms; "original" trains the untouched network with the same seed, images and recipe; controls
    make it smaller at once, by chance or by rule, and train on; the others search for a transformation first, and
    train its result from the beginning (docs/baselines.md)."""
    config: Config = field(default_factory=Config)
    """The method's settings."""

    def __post_init__(self) -> None:
        _check_types(self)
        for name, least in (("train_limit", 1), ("test_limit", 1), ("workers", 0)):
            if getattr(self, name) is not None:
                _check(self, name, f"at least {least}", functools.partial(operator.le, least))
        if self.image_size is not None:
            _check(self, "image_size", f"from 1 to {MOST_PIXELS}", lambda v: 1 <= v <= MOST_PIXELS)
        if self.method == "original" and self.config.is_limited:
            raise UsageError("method 'original' changes nothing and keeps no budget: leave it out there")
        if self.method != "dnat" and self.config.choices is not None:
            raise UsageError(f"choices that are made already are for method 'dnat', not {self.method!r}")
        for name in ("pruning", "pruning_global"):
            if self.method != "control-prune" and getattr(self.config, name) != getattr(Config, name):
                raise UsageError(f"method {self.method!r} prunes no channels: {name} is for control-prune")
        object.__setattr__(self, "config", self.config.for_method(self.method))
        if self.method not in SEARCHING:
            # The number of epochs follows from the configuration's own.
            named = [f.name for f in fields(Search) if f.name != "epochs"]
            differing = [n for n in named if getattr(self.config.search, n) != getattr(Search(), n)]
            if differing:
                raise UsageError(
                    f"method {self.method!r} does not search: search.{differing[0]} is for {', '.join(SEARCHING)}"
                )

    def flat(self) -> dict[str, Any]:
        """All settings in one table, as they stand in a configuration file; None is left out.

        What tells where and how images are read (`WHERE`) is included, but does not count when jobs are compared.
        """
        table = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "config"}
        table |= dataclasses.asdict(self.config)
        search = table.pop("search")
        if self.method in SEARCHING:
            table["search"] = {k: list(v) if isinstance(v, tuple) else v for k, v in search.items()}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in table.items() if v is not None}

    @classmethod
    def from_flat(cls, table: dict[str, Any]) -> "Job":
        """The job that a flat table of settings describes.

        Raises:
            ValueError: an unknown key (with the nearest known one), or a value out of range.
            TypeError: a value of the wrong type.
        """
        own = {f.name for f in fields(cls)} - {"config"}
        method = {f.name for f in fields(Config)}
        for key in table:
            if key not in own | method:
                raise unknown("setting", key, own | method)
        if "network" not in table:
            raise UsageError("no network given: add --network NAME (`dnat networks` lists them)")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        if "search" in values:
            values["search"] = Search.from_table(values["search"])
        if values.get("method") in ALIASES:
            method_name, mode = ALIASES[values["method"]]
            if values.get("mode", mode) != mode:
                raise UsageError(f"method {values['method']!r} has mode {mode!r}, not {values['mode']!r}")
            values |= {"method": method_name, "mode": mode}
        if values.get("weights") is not None:
            values.setdefault("preset", "fine-tune")
        if values.get("method") in SEARCHING:
            if "width" in str(values.get("space")):
                raise UsageError(
                    f"method {values['method']!r} knows no widths: leave out space {values['space']!r}"
                )
            values.setdefault("space", "dnat")
        config = Config(**{k: v for k, v in values.items() if k in method})
        return cls(config=config, **{k: v for k, v in values.items() if k in own})

    def differences(self, other: "Job") -> dict[str, tuple[Any, Any]]:
        """The settings in which two jobs differ, each with both values; but for those of `WHERE`."""
        mine, theirs = _dotted(self.flat()), _dotted(other.flat())
        keys = sorted((mine.keys() | theirs.keys()) - WHERE)
        return {k: (mine.get(k), theirs.get(k)) for k in keys if mine.get(k) != theirs.get(k)}

    def to_toml(self) -> str:
        """The job as the text of a configuration file."""
        return tomli_w.dumps(self.flat())


def _dotted(table: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search beside the others, as `--set` names them."""
    search = table.get("search", {})
    return {k: v for k, v in table.items() if k != "search"} | {f"search.{k}": v for k, v in search.items()}


def read_toml(path: str | Path) -> dict[str, Any]:
    """The settings in a configuration file, not yet checked.

    Raises:
        ValueError: the file is missing or is not TOML; the message names the file and the place.
    """
    if Path(path).exists() and not Path(path).is_file():  # a pipe could be waited for, for ever
        raise UsageError(f"{path}: cannot be read: it is no regular file")
    try:
        return parse_toml(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def parse_toml(text: str) -> dict[str, Any]:
    """A text of TOML as a table; also what Python's own reader takes or dies of, but no setting can be.

    Raises:
        ValueError: it is no TOML, is nested too deeply, or has an integer of more than 64 bits.
    """
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise UsageError("its lists or tables are nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:  # an integer of thousands of digits
        raise UsageError("it holds an integer of more than 64 bits") from None
    _check_size(table)
    return table


def _check_size(value: Any, depth: int = 0) -> None:
    if depth > MOST_DEPTH:
        raise UsageError("its lists or tables are nested too deeply")
    if isinstance(value, int) and value.bit_length() > 63:
        raise UsageError("it holds an integer of more than 64 bits")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(item, depth + 1)


def parse_setting(text: str) -> tuple[str, Any]:
    """A `key=value` of the command line; `network.width=8` sets an argument of the network's constructor.

    Values are TOML values; a bare word is taken as text.

    Raises:
        ValueError: it is not one setting, or its value is none.

    >>> parse_setting("lr=0.1"), parse_setting("gate=raw"), parse_setting("network.width=8")
    (('lr', 0.1), ('gate', 'raw'), ('network.width', 8))
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not re.fullmatch(r"[^\s=]+", key):
        raise UsageError(f"--set takes key=value, not {shown(text)}")
    try:
        found = parse_toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key, value
    except UsageError as error:
        raise UsageError(f"--set {key}: {error}") from None
    if found.keys() != {"value"}:
        raise UsageError(f"--set takes one key=value, not {shown(text)}: repeat --set for each")
    return key, found["value"]


def directory_name(text: str, ending: str) -> str:
    """A name for a run directory that every system can hold.

    >>> directory_name("genotype:../my cells.json-digits", "-seed0")
    'genotype-.-my-cells.json-digits-seed0'
    """
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text)
    name = re.sub(r"\.\.+", ".", name).lstrip("._=+-")
    if len(name + ending) > 100:  # longer names are none; what is cut off still counts
        name = f"{name[: 90 - len(ending)]}-{zlib.crc32(name.encode()):08x}"
    return name + ending


def run_name(job: Job, *, with_threads: bool = False) -> str:
    """The usual name of a job's run directory: network, data, method, seed, and a digest of what is not the usual.

    Args:
        job: what is done in it.
        with_threads: whether the number of CPU threads counts, which is so where it was given: by default it is
            another one on another machine, where the same command is to find the same directory.

    >>> run_name(Job(network="resnet8")), run_name(Job(network="resnet8", config=Config(lr=0.1)))
    ('resnet8-digits-dnat-seed0', 'resnet8-digits-dnat-seed0-2cd896b0')
    """
    usual = Job(network=job.network, data=job.data, method=job.method, config=Config(seed=job.config.seed))
    others = {key: there for key, (_, there) in usual.differences(job).items() if key != "threads"}
    if with_threads:
        others["threads"] = job.config.threads
    if job.data == "folder" and job.data_root:  # there it says which images
        others["data_root"] = job.data_root
    digest = f"-{zlib.crc32(repr(sorted(others.items())).encode()):08x}" if others else ""
    return directory_name(f"{job.network}-{job.data}-{job.method}", f"-seed{job.config.seed}{digest}")


def cores() -> int:
    """CPU cores that this process may use; processes that torchrun starts on one machine share them."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, here // max(1, int(sharing) if sharing.isdecimal() else 1))


def _check(config: object, name: str, wanted: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(config, name)
    if not holds(value):
        raise UsageError(f"{name} must be {wanted}, not {shown(value)}")


def _with_epochs(search: Search, training: int, share: int) -> Search:
    """The settings of a search, with a share of the training's epochs where none are given."""
    return search if search.epochs else dataclasses.replace(search, epochs=max(1, round(training / share)))


def _check_budgets(config: Config) -> None:
    if config.latency_budget is not None and config.names_operations:
        raise UsageError(f"space {config.space!r} knows multiply-adds alone: give a budget, not a latency_budget")
    if config.budget is not None:
        parse_amount(config.budget)
    if config.latency_budget is not None:
        parse_amount(config.latency_budget, seconds=True)
        if config.budget is not None:
            raise UsageError("budget and latency_budget cannot be combined: give one of them")


def _check_moves(config: Config) -> None:
    if config.transitions is not None and not config.names_operations:
        raise UsageError("a table of transitions needs space 'nat++'")
    if config.choices is not None:
        _check_choices(config)
    elif config.choices_for is not None:
        raise UsageError("choices_for says which network choices are for: give choices, too")
    if config.edges == ():
        raise UsageError("edges is empty, so nothing could change: name some, or leave it out to let all change")


def _check_choices(config: Config) -> None:
    assert config.choices is not None
    for key, choice in config.choices.items():
        if not isinstance(key, str) or not isinstance(choice, str):
            raise WrongTypeError(f"choices must be a table of texts, not {shown(key)} = {shown(choice)}")
    if config.is_limited or config.judge != "theta":
        raise UsageError("choices are made already: leave out budget, latency_budget and judge")
    if config.architecture_epochs:
        raise UsageError("choices are made already: leave out architecture_epochs, there is no such stage")


def _check_types(config: Any) -> None:
    """Check every field against its annotation; a whole number will do where any number is wanted."""
    hints = get_type_hints(type(config))
    for f in fields(config):
        value, hint = getattr(config, f.name), hints[f.name]
        if value is None and (f.default is None or type(None) in get_args(hint)):
            continue
        several = isinstance(hint, UnionType) or get_origin(hint) is Union
        options = [o for o in get_args(hint) if o is not type(None)] if several else [hint]
        wanted = options[0]
        problems = [_type_problem(value, option) for option in options]
        if all(problems):
            raise (UsageError if get_origin(wanted) is Literal else WrongTypeError)(
                f"{f.name} must be {' or '.join(problems)}, not {_show(value)}"
            )
        _check_range(f.name, value)
        if wanted is float and not problems[0]:
            object.__setattr__(config, f.name, float(value))


def _check_range(name: str, value: object) -> None:
    """Refuse numbers that nothing can be computed with; infinity and NaN are for the checks of each setting."""
    if isinstance(value, int) and value.bit_length() > 63:
        raise UsageError(f"{name} must be a number of at most 64 bits, not {shown(value)}")
    if isinstance(value, float) and LARGEST < abs(value) < math.inf:
        raise UsageError(f"{name} must be a number of at most {LARGEST:g}, not {shown(value)}")


def _type_problem(value: object, wanted: Any) -> str:
    """What a value should have been; empty if it is."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        names = f"one of {', '.join(map(str, arguments))}" if arguments[1:] else repr(arguments[0])
        return "" if value in arguments else names
    if origin is tuple and arguments[1:] == (...,):
        fits = isinstance(value, tuple) and not any(_type_problem(v, arguments[0]) for v in value)
        return "" if fits else "a list of texts (in Python a tuple)"
    if origin is tuple:
        return (
            ""
            if isinstance(value, tuple)
            and len(value) == len(arguments)
            and not any(_type_problem(v, float) for v in value)
            else f"{len(arguments)} numbers"
        )
    if wanted in (int, float):
        kinds = int if wanted is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool)
        return "" if fits else ("an integer" if wanted is int else "a number")
    kind = origin or wanted
    return "" if isinstance(value, kind) else {str: "a text", bool: "true or false"}.get(kind, kind.__name__)


def _show(value: object) -> str:
    kind = {"str": "the text", "bool": "the truth value"}.get(type(value).__name__, type(value).__name__)
    return f"{kind} {shown(value)}"


def shown(value: object, most: int = 80) -> str:
    """A value as an error shows it: one line, not longer than one reads.

    >>> shown("a"), shown([1] * 99, 10), shown(10**5000)
    ("'a'", '[1, 1, ...', 'an integer of 16610 bits')
    """
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # of something that is in it
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= most else f"{text[: most - 3]}..."
