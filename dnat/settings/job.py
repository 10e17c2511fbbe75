"""One run as the command line knows it: `Job`, and what makes two of them the same."""

import re
import zlib
from typing import Annotated, Any, Literal, Self, get_args

import tomli_w
from pydantic import AfterValidator, Field, model_validator

from ..errors import UsageError
from ..naming import unknown
from .config import OWNERS, SETTINGS, Config
from .machine import WHERE, cores
from .part import Count, Part, shown
from .search import Control, Search

MOST_PIXELS = 8192
"""The largest side of images."""

_Searching = Literal["nat", "nat++", "random", "lstm", "max-gcn", "nao"]
_Controls = Literal["control-random", "control-uniform", "control-narrow", "control-prune"]
_Method = Literal["dnat", "original", _Searching, _Controls]

SEARCHING: tuple[str, ...] = get_args(_Searching)
"""The methods that search first and train what they found afterwards: what dnat is compared with."""
CONTROLS: tuple[str, ...] = get_args(_Controls)
"""The methods that make a network smaller at once, to a budget, without looking at what that does to it."""
METHODS: tuple[str, ...] = get_args(_Method)
"""The names of all methods."""
ALIASES = {"dnat-full": ("dnat", "full"), "dnat-cell": ("dnat", "cell")}
"""Names for a method and its mode together, as tables of results have them."""


UNCOUNTED = WHERE | {"label"}
"""Settings that do not count when jobs are compared: no bit of a run depends on them."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9 ._+=-]{0,38}[A-Za-z0-9._+=-])?")


def check_label(label: str) -> str:
    """A label, if it is text that any table, picture and directory can hold, and no method's name.

    Raises:
        ValueError: it is not.
    """
    if not _LABEL.fullmatch(label):
        raise UsageError(
            f"a label is up to 40 letters, digits, spaces and . _ + = -, beginning with one of the first two: not "
            f"{shown(label)}"
        )
    if label in (*METHODS, *ALIASES):
        raise UsageError(f"label {label!r} is the name of a method: choose another one")
    return label


class Job(Part):
    """One run as the command line knows it: a network and data by name, a method, and a `Config`."""

    network: str
    """Network: resnet20, torchvision:NAME, timm:NAME, package.module:factory. `dnat networks` lists them."""
    network_options: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network's constructor, for example {"width": 8}; `--set network.width=8` gives one."""
    weights: str | None = None
    """Trained weights: a file (safetensors, or a state_dict saved by torch), or the name of torchvision's. With
    them the preset is fine-tune where none is given."""
    data: str = "digits"
    """Data set: a name (`dnat datasets` lists them; digits come along), or package.module:factory, a function that
    gives a dnat.Data or (train, test) for dnat.from_loaders."""
    data_root: str | None = None
    """Folder that holds the data set's files; by default $DNAT_DATA, then ./data."""
    image_size: Annotated[int, Field(ge=1, le=MOST_PIXELS)] | None = None
    """Side in pixels to which images are resized where the data set allows it."""
    train_limit: Count | None = None
    """Use so many training images, class-balanced."""
    test_limit: Count | None = None
    """Use so many test images, class-balanced."""
    crop: Literal["padded", "resized"] | None = None
    """How training images are cropped: after padding, or at a random size and shape; by default as is usual."""
    skip_broken: bool | None = None
    """Leave out pictures that cannot be read; by default they end the run before it begins."""
    method: _Method = "dnat"
    """"dnat" transforms; "original" trains the untouched network with the same seed, images and recipe. Controls
    make it smaller at once, by chance or by rule, and train on; the others search for a transformation first, and
    train its result from the beginning (docs/baselines.md). dnat-full and dnat-cell name the mode, too."""
    task: str | None = None
    """What the network is trained for: classification (as without), multi-label, regression, segmentation, or
    package.module:TASK."""
    label: Annotated[str, AfterValidator(check_label)] | None = None
    """Name of the run's method in reports and trackers; by default the method with its mode and budget. No bit
    depends on it, and a run keeps the one that it began with."""
    config: Config
    """The method's settings."""

    def __init__(self, **values: Any) -> None:
        config = values.get("config") or Config()
        if isinstance(config, Config):  # otherwise it is told below what is wrong
            config = config.for_method(str(values.get("method")))
        super().__init__(**values | {"config": config})

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.method == "original" and self.config.limit.is_limited:
            raise UsageError("method 'original' changes nothing and keeps no budget: leave it out there")
        if self.method != "dnat" and self.config.limit.choices is not None:
            raise UsageError(f"choices that are made already are for method 'dnat', not {self.method!r}")
        if self.task is not None and self.method in (*SEARCHING, "control-prune"):
            raise UsageError(f"method {self.method!r} knows classification alone: leave out task")
        if self.method != "control-prune" and (names := _differing(self.config.control, Control())):
            raise UsageError(f"method {self.method!r} prunes no channels: {names[0]} is for control-prune")
        if self.method not in SEARCHING:
            # The number of epochs follows from the configuration's own.
            names = [n for n in _differing(self.config.search, Search()) if n != "epochs"]
            if names:
                raise UsageError(
                    f"method {self.method!r} does not search: search.{names[0]} is for {', '.join(SEARCHING)}"
                )
        return self

    def flat(self) -> dict[str, Any]:
        """All settings in one table, as they stand in a configuration file; None is left out.

        What tells where and how images are read (`WHERE`), and the label, are included, but do not count when jobs
        are compared.
        """
        table = self.model_dump()
        config = table.pop("config")
        table |= {n: config[OWNERS[n]][n] if n in OWNERS else config[n] for n in SETTINGS}
        search = table.pop("search")
        if self.method in SEARCHING:
            table["search"] = _lists(search)
        return _lists(table)

    @classmethod
    def from_flat(cls, table: dict[str, Any]) -> Self:
        """The job that a flat table of settings describes.

        Raises:
            ValueError: an unknown key (with the nearest known one), or a value out of range.
            TypeError: a value of the wrong type.
        """
        own = cls.model_fields.keys() - {"config"}
        for key in table:
            if key not in own and key not in SETTINGS:
                raise unknown("setting", key, own.union(SETTINGS))
        if "network" not in table:
            raise UsageError("no network given: add --network NAME (`dnat networks` lists them)")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        if "search" in values:
            values["search"] = Search.from_table(values["search"])
        _add_what_follows(values)
        config = Config(**{k: v for k, v in values.items() if k in SETTINGS})
        return cls(config=config, **{k: v for k, v in values.items() if k in own})

    def differences(self, other: "Job") -> dict[str, tuple[Any, Any]]:
        """The settings in which two jobs differ, each with both values; but for `UNCOUNTED` ones."""
        mine, theirs = _dotted(self.flat()), _dotted(other.flat())
        keys = sorted((mine.keys() | theirs.keys()) - UNCOUNTED)
        return {k: (mine.get(k), theirs.get(k)) for k in keys if mine.get(k) != theirs.get(k)}

    def to_toml(self) -> str:
        """The job as the text of a configuration file."""
        return tomli_w.dumps(self.flat())


def _differing(part: Part, usual: Part) -> list[str]:
    return [name for name, value in part if value != getattr(usual, name)]


def _lists(table: dict[str, Any]) -> dict[str, Any]:
    """A table as TOML can hold it: without None, with lists for tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in table.items() if v is not None}


def _add_what_follows(values: dict[str, Any]) -> None:
    """Add to settings what follows from the method's name and from weights that are given."""
    if not isinstance(method := values.get("method"), str | None):
        return  # which is refused with all else that is wrong
    if method in ALIASES:
        name, mode = ALIASES[method]
        if values.get("mode", mode) != mode:
            raise UsageError(f"method {method!r} has mode {mode!r}, not {values['mode']!r}")
        values |= {"method": name, "mode": mode}
    if values.get("weights") is not None:
        values.setdefault("preset", "fine-tune")
    if values.get("method") in SEARCHING:
        if "width" in str(values.get("space")):
            raise UsageError(f"method {values['method']!r} knows no widths: leave out space {values['space']!r}")
        values.setdefault("space", "dnat")


def _dotted(table: dict[str, Any]) -> dict[str, Any]:
    """The settings of a search beside the others, as `--set` names them."""
    search = table.get("search", {})
    return {k: v for k, v in table.items() if k != "search"} | {f"search.{k}": v for k, v in search.items()}


def conflicts(there: Job, now: Job) -> dict[str, tuple[Any, Any]]:
    """The settings in which a run that exists differs from a job, so that the job cannot go on with it.

    Of the machine only that counts which was asked for and on which bits depend: the layout, and CPU threads
    unless they are this machine's own number. A run goes on on another device, and its environment tells of it.
    """
    differences = there.differences(now)
    differences.pop("device", None)
    if now.config.machine.threads == cores():  # as good as not given
        differences.pop("threads", None)
    return differences


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
        others["threads"] = job.config.machine.threads
    if job.data == "folder" and job.data_root:  # there it says which images
        others["data_root"] = job.data_root
    digest = f"-{zlib.crc32(repr(sorted(others.items())).encode()):08x}" if others else ""
    return directory_name(f"{job.network}-{job.data}-{job.method}", f"-seed{job.config.seed}{digest}")
