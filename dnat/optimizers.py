"""Optimizers of weights, averages of weights, and what of both goes on when a network becomes a smaller one."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .errors import UsageError
from .naming import unknown

Cut: TypeAlias = Callable[[str, Tensor], Tensor]
"""What remains of a tensor that belongs to a parameter, by the parameter's name, when a network is narrowed."""

States: TypeAlias = dict[str, dict[str, Any]]
"""What an optimizer remembers of each parameter, by its name."""


def optimizer_of(
    kind: Literal["sgd", "adamw"],
    parameters: Iterable[nn.Parameter],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimizer for weights.

    Args:
        kind: "sgd", or "adamw" (Loshchilov & Hutter 2019), which takes `momentum` for its beta1. With "adamw"
            parameters of one dimension, which are biases and what norms scale with, do not decay (He et al. 2019,
            "Bag of Tricks", section 3.1, after Jia et al. 2018).
        parameters: to be trained.
        lr, momentum, weight_decay: as torch's optimizers take them.

    Raises:
        ValueError: another kind, or no parameters.

    >>> adamw = optimizer_of("adamw", nn.Linear(2, 3).parameters(), 0.1, 0.9, 0.01)
    >>> [(group["weight_decay"], len(group["params"])) for group in adamw.param_groups]
    [(0.01, 1), (0.0, 1)]
    """
    listed = list(parameters)
    if not listed:
        raise UsageError("there are no parameters to train (all are frozen, or there are none)")
    if kind == "sgd":
        return torch.optim.SGD(listed, lr=lr, momentum=momentum, weight_decay=weight_decay)
    if kind != "adamw":
        raise unknown("optimizer", kind, ("sgd", "adamw"))
    parts = [p for p in listed if p.dim() > 1], [p for p in listed if p.dim() <= 1]
    groups = [{"params": p, "weight_decay": w} for p, w in zip(parts, (weight_decay, 0.0), strict=True) if p]
    return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))


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


def carried_state(
    remembered: Mapping[Any, Mapping[str, Any]],
    old_network: nn.Module,
    new_optimizer: torch.optim.Optimizer,
    new_network: nn.Module,
    cut: Cut,
) -> None:
    """Let an optimizer of the same kind go on where another one stands, for parameters of the same names.

    What has a parameter's shape (momentum, second moments) is cut as the parameter was; all else (counts of steps)
    is copied. A parameter begins anew where that does not fit it: it is new, or was narrowed and its state has
    other shapes (factors of Adafactor).

    Args:
        remembered: `state` of the other one.
        old_network: whose parameters it had.
        new_optimizer: is changed.
        new_network: whose parameters it has.
        cut: see `Cut`; for parameters that were not narrowed it gives what it is given.
    """
    old = dict(old_network.named_parameters(remove_duplicate=False))
    ours = {id(p) for group in new_optimizer.param_groups for p in group["params"]}
    for name, parameter in new_network.named_parameters(remove_duplicate=False):
        before = old.get(name)
        if before is None or id(parameter) not in ours or before not in remembered:
            continue
        state = _carried(remembered[before], name, before, parameter, cut)
        if state is not None:
            new_optimizer.state[parameter] = state


def _carried(
    state: Mapping[str, Any], name: str, before: Tensor, parameter: Tensor, cut: Cut
) -> dict[str, Any] | None:
    """The state of one parameter for its narrower self; None where it does not fit that."""
    carried: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            carried[key] = value
        elif value.shape == before.shape:
            carried[key] = cut(name, value).detach().clone()
            if carried[key].shape != parameter.shape:
                return None
        elif value.dim() and before.shape != parameter.shape:
            return None
        else:
            carried[key] = value.detach().clone()
    return carried


class EMA:
    """An exponential moving average of a network's parameters and floating-point buffers (statistics of norms).

        e <- e + (1 - d) * (w - e),   d = min(decay, (1 + t) / (10 + t))

    after update t = 0, 1, ...; e is w at first. While it is young it forgets faster, as TensorFlow's
    ExponentialMovingAverage does with `num_updates`.

    Args:
        network: whose tensors are averaged.
        decay: from 0 to below 1.

    Attributes:
        tensors: {name: average}.
        updates: how many there were.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise UsageError(f"the decay of averaged weights must lie in 0 to below 1, not {decay}")
        self.decay, self.updates = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in _averaged(network)}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take the network's tensors as they are now into the average."""
        rate = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, tensor in _averaged(network):
            self.tensors[name].lerp_(tensor.detach(), rate)
        self.updates += 1

    @contextmanager
    def swapped(self, network: nn.Module) -> Iterator[None]:
        """Within, the network computes with the averages; afterwards with its own tensors, to the bit."""
        own = {name: tensor.detach().clone() for name, tensor in _averaged(network)}
        _copy(self.tensors, network)
        try:
            yield
        finally:
            _copy(own, network)

    def copy_to(self, network: nn.Module) -> None:
        """Put the averages in the place of the network's own tensors."""
        _copy(self.tensors, network)

    def carried(self, network: nn.Module, cut: Cut) -> "EMA":
        """The average of a network that was made of this one: tensors of the same names, cut as they were.

        Args:
            network: the new one; what is new in it begins as it is.
            cut: see `Cut`; of buffers, too.
        """
        made = EMA(network, self.decay)
        made.updates = self.updates
        for name, tensor in made.tensors.items():
            kept = cut(name, self.tensors[name]) if name in self.tensors else tensor
            if kept.shape == tensor.shape:
                made.tensors[name] = kept.detach().clone()
        return made

    def state_dict(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"decay": self.decay, "updates": self.updates, "tensors": dict(self.tensors)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a `state_dict` of the same network was taken.

        Raises:
            ValueError: it is of another network.
        """
        if {k: t.shape for k, t in state["tensors"].items()} != {k: t.shape for k, t in self.tensors.items()}:
            raise UsageError("these averaged weights are of another network")
        self.decay, self.updates = state["decay"], state["updates"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])


def _averaged(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from ((name, b) for name, b in network.named_buffers() if b.is_floating_point())


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    for name, tensor in _averaged(network):
        tensor.copy_(tensors[name])
