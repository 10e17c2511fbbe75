"""The methods by name. All have one signature, so that a comparison is a loop."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from . import baselines
from .config import Config
from .data import Data
from .transform import Transformation, check, train, transform

METHODS: Mapping[str, Callable[..., Transformation]] = MappingProxyType(
    {
        "dnat": transform,
        "original": train,
        **{name: functools.partial(baselines.search_and_train, name) for name in baselines.LEARNERS},
    }
)
"""`METHODS[name](network, data, config, records=..., tracker=..., stop=...)`; see `dnat.transform`."""


def check_method(name: str, network: nn.Module, data: Data, config: Config) -> None:
    """Find out what can be known to fail, before anything is trained or written.

    Raises:
        ValueError, TypeError: see `dnat.transform`.
    """
    if name in baselines.LEARNERS:
        baselines.check_search(name, network, data, config)
    else:
        check(network, data, config, transforming=name == "dnat")
