"""`Config`: everything that decides a transformation besides the network and the data, in parts."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator

from ..errors import UsageError
from ..naming import unknown
from ..seeds import check_seed
from .limit import Limit
from .machine import Machine, cores
from .part import LARGEST_INTEGER, Part
from .presets import ADAMW, PRESETS
from .relaxation import Relaxation
from .search import Control, Search
from .training import Training


class Config(Part):
    """Everything that decides a transformation besides the network and the data.

    It is made from settings by their names alone, which are all different; they are read where they belong. One
    that is not given, or None, takes its value from the preset (or from the rule that it names) when the
    configuration is made. `dnat settings` lists all.

    Raises:
        ValueError: a value out of range or an unknown name, with the value and what is allowed.
        TypeError: a value of the wrong type.

    >>> config = Config(preset="paper", epochs=600)
    >>> config.training.architecture_epochs, config.but(lr=0.1).training.lr
    (50, 0.1)
    """

    preset: Literal["paper", "improved", "fine-tune"] = "improved"
    """Where settings that are not given come from: improved; paper, Kim & Lee 2020 to the letter; fine-tune, for a
    network that is trained already."""
    seed: Annotated[int, BeforeValidator(check_seed)] = 0
    """Seed of every random stream of the run."""
    training: Training
    relaxation: Relaxation
    limit: Limit
    control: Control
    search: Search
    machine: Machine

    def __init__(self, **settings: Any) -> None:
        for name in settings:
            if name not in SETTINGS:
                raise unknown("setting", name, SETTINGS)
        values = _resolved(settings)
        parts = {name: part(**{k: values.get(k) for k in part.model_fields}) for name, part in PARTS.items()}
        search = values["search"]
        if isinstance(search, Search) and not search.official:  # otherwise the method decides; see `for_method`
            search = search.with_epochs(values["epochs"], 6)
        super().__init__(preset=values.get("preset"), seed=values.get("seed"), search=search, **parts)
        _check_together(self)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Tell where a setting stands that is asked for beside its part."""
            if name in OWNERS:
                raise AttributeError(f"a Config has no {name!r} itself: it is config.{OWNERS[name]}.{name}")
            return super().__getattr__(name)

    def flat(self) -> dict[str, Any]:
        """All settings by their names, as `Config` takes them."""
        return {name: getattr(getattr(self, OWNERS[name]) if name in OWNERS else self, name) for name in SETTINGS}

    def but(self, **settings: Any) -> Self:
        """The same settings but for these; those that followed from the preset stay as they are."""
        return type(self)(**self.flat() | settings)

    def for_method(self, method: str) -> Self:
        """The same settings with the epochs of the search that a method has by default.

        >>> config = Config(epochs=600, search=Search(official=True))
        >>> config.for_method("nat").search.epochs, config.for_method("nat++").search.epochs
        (100, 200)
        """
        share = 3 if method == "nat++" and self.search.official else 6
        return self.but(search=self.search.with_epochs(self.training.epochs, share))


PARTS: Mapping[str, type[Part]] = MappingProxyType(
    {
        "training": Training,
        "relaxation": Relaxation,
        "limit": Limit,
        "control": Control,
        "machine": Machine,
    }
)
"""The parts whose settings a `Config` takes by their names alone; those of a search have a table of their own."""

OWNERS = MappingProxyType({name: owner for owner, part in PARTS.items() for name in part.model_fields})
"""The part of each setting."""

SETTINGS = ("preset", "seed", *OWNERS, "search")
"""What a `Config` is made from."""


def _resolved(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what was not given; whether they are right is not known yet."""
    values = {name: value for name, value in settings.items() if value is not None}
    preset = values.get("preset", "improved")
    limited = "budget" in values or "latency_budget" in values
    if not limited or "choices" in values or values.get("architecture_epochs"):
        values.setdefault("judge", "theta")  # there is nothing to judge within, or theta is asked for
    if values.get("judge") == "theta" and "choices" not in values:
        values.setdefault("space", "dnat")  # what widths are worth is measured, or not at all
    known = isinstance(preset, str) and preset in PRESETS  # otherwise `Config` tells
    usual = PRESETS[preset if known else "improved"] | {"threads": cores(), "search": Search()}
    values = usual | (ADAMW if values.get("optimizer") == "adamw" else {}) | values
    if "architecture_epochs" not in values:
        compact = values["judge"] == "answers" or "choices" in values
        values["architecture_epochs"] = 0 if compact else _usual_stage(values["epochs"])
    return values


def _usual_stage(epochs: object) -> int:
    """Epochs of the architecture stage where none are given."""
    if not isinstance(epochs, int) or not 0 < epochs <= LARGEST_INTEGER:
        return 1  # `Training` tells what is wrong with them
    return min(max(5, round(epochs / 12)), max(epochs - 1, 1))


def _check_together(config: Config) -> None:
    """Refuse settings of two parts that do not fit together."""
    training, limit = config.training, config.limit
    if limit.latency_budget is not None and config.relaxation.names_operations:
        raise UsageError(
            f"space {config.relaxation.space!r} knows multiply-adds alone: give a budget, not a latency_budget"
        )
    if training.patience and limit.judge != "theta":
        raise UsageError(f"patience is for choices that theta makes: leave it out, or judge={limit.judge!r}")
    if config.machine.compile and training.teaches and training.feature_distillation:
        raise UsageError(
            "a compiled network gives its teacher no hints: leave out compile, or feature_distillation=0"
        )
    if config.machine.compile and config.relaxation.names_operations:
        raise UsageError(
            f"compile is not for the space {config.relaxation.space!r}, of which each step takes other operations"
        )
    if limit.choices is not None and training.architecture_epochs:
        raise UsageError("choices are made already: leave out architecture_epochs, there is no such stage")
    least = 0 if limit.begins_compact else 1
    if not least <= training.architecture_epochs <= training.epochs:
        raise UsageError(
            f"architecture_epochs must be from {least} to epochs ({training.epochs}), not "
            f"{training.architecture_epochs}"
        )
