"""The weights that all architectures of a search share, and their training, each batch under another one."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...answers import autocast, scores
from ...networks.weights import state_of
from ...settings import Config
from ...training import frozen_statistics, images_last
from .spaces import Space

A = TypeVar("A")


class SharedWeights(Generic[A]):
    """A space's network, trained by SGD.

    Args:
        space: of architectures; its network lies on the device of the run.
        config: the run's settings.
        device: of the run.
    """

    def __init__(self, space: Space[A], config: Config, device: torch.device) -> None:
        self.space, self.config, self.device = space, config, device
        self.network: nn.Module = space.network.to(device)
        self.channels_last = images_last(self.network, config.machine, device)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        self.network = self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            [p for p in self.network.parameters() if p.requires_grad],
            lr=config.search.lr,
            momentum=config.search.momentum,
            weight_decay=config.search.weight_decay,
        )
        self.wide = torch.float32 if device.type == "mps" else torch.float64

    def step(self, architecture: A, images: Tensor, labels: Tensor) -> Tensor:
        """Train on a batch under an architecture; (3,): its summed loss, its images, and its right answers."""
        self.space.choose(architecture)
        self.network.train()
        with autocast(self.config.training, images.device):
            output = scores(self.network(images))
        output = output.float()
        loss = cross_entropy(output, labels)
        # With zeros for gradients weights go on moving; without any they rest.
        self.optimizer.zero_grad(set_to_none=not self.config.search.moves_unused)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            correct, n = (output.argmax(1) == labels).sum(), labels.new_tensor(len(labels)).to(self.wide)
            return torch.stack([loss.detach().to(self.wide) * n, n, correct.to(self.wide)])

    @torch.no_grad()
    def accuracy(self, architecture: A, images: Tensor, labels: Tensor) -> float:
        """On one batch, by its statistics; the released code lets the running ones drift (docs/methods.md A7)."""
        self.space.choose(architecture)
        self.network.train()
        drifting = nullcontext() if self.config.search.official else frozen_statistics(self.network)
        with drifting, autocast(self.config.training, images.device):
            output = scores(self.network(images))
        return float((output.argmax(1) == labels).double().mean())

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint holds of them."""
        return {
            "network": state_of(self.network),
            "optimizer": self.optimizer.state_dict(),
            "used": [name for name, p in self.network.named_parameters() if p.grad is not None],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        used = frozenset(state["used"])
        for name, parameter in self.network.named_parameters():
            parameter.grad = torch.zeros_like(parameter) if name in used else None
