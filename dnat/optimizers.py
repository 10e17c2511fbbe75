"""Placeholder until merged: what optimizers remember, by the parameters' names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

States = dict[str, dict[str, Any]]


def states_of(optimizer: torch.optim.Optimizer, network: nn.Module) -> States:
    """What an optimizer remembers of each parameter, by its name."""
    named: dict[Any, str] = {parameter: name for name, parameter in network.named_parameters()}
    return {named[p]: dict(state) for p, state in optimizer.state.items() if p in named}


def load_states(
    optimizer: torch.optim.Optimizer, network: nn.Module, states: Mapping[str, Mapping[str, Any]]
) -> None:
    """Let an optimizer go on with what another one remembered, in the layout of the parameters."""
    for name, parameter in network.named_parameters():
        if name in states:
            optimizer.state[parameter] = {k: _like(parameter, v) for k, v in states[name].items()}


def _like(parameter: nn.Parameter, value: Any) -> Any:
    if isinstance(value, Tensor) and value.shape == parameter.shape:
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return value
