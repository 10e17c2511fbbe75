"""The methods by name. All have one signature, so that a comparison is a loop."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from ..data import Source
from ..results import Transformation
from ..session import Checked, check, images_of
from ..settings import CONTROLS, Config
from ..tasks import Task
from ..transformation import train, transform
from . import baselines

METHODS: Mapping[str, Callable[..., Transformation]] = MappingProxyType(
    {
        "dnat": transform,
        "original": train,
        **{name: functools.partial(baselines.search_and_train, name) for name in baselines.LEARNERS},
        **{name: functools.partial(baselines.control, name) for name in CONTROLS},
    }
)
"""`METHODS[name](network, data, config, records=..., tracker=..., stop=...)`; see `dnat.transform`."""


def check_method(
    name: str,
    network: nn.Module,
    data: Source,
    config: Config,
    family: baselines.Family | None = None,
    task: Task | str | None = None,
) -> Checked | None:
    """Find out what can be known to fail, before anything is trained or written.

    Args:
        name: of the method.
        network, data, config: as the method takes them.
        family: for control-narrow, how the network is made with fewer channels.
        task: what the network is trained for; by default classification.

    Returns:
        What dnat and the original take as `checked`, so that it is not found out again; None for other methods.

    Raises:
        ValueError, TypeError: see `dnat.transform`.
    """
    if name in baselines.LEARNERS:
        baselines.check_search(name, network, images_of(data), config)
    elif name in CONTROLS:
        baselines.check_control(name, network, data, config, family=family, task=task)
    else:
        return check(network, data, config, transforming=name == "dnat", task=task)
    return None
