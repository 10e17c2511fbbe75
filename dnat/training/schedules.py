"""What changes with the steps, and the optimizers: learning rates, the end of theta's steps, drop-path, cutout."""

import math

import torch
from torch import nn

from ..data import Data, Source
from ..errors import UsageError
from ..optimizers import optimizer_of
from ..relaxation import RelaxedNetwork
from ..settings import Config, Training

FASTEST_THETA = 0.1
"""The largest learning rate that is chosen for theta."""


ENOUGH_REACH = 3.0
"""How far theta should be able to move: to the middle and back, with gradients that do not always agree."""


CUTOUT = 16
"""The side of cutout's square in DARTS's recipe, in pixels (docs/methods.md A9)."""


def weight_optimizer(network: nn.Module, training: Training) -> torch.optim.Optimizer:
    """The optimizer of the weights; the learning rate is set at each step."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    if not parameters:
        name = type(network).__name__
        raise UsageError(f"{name} has no parameters to train (all are frozen, or there are none)")
    return optimizer_of(training.optimizer, parameters, training.lr, training.momentum, training.weight_decay)


def theta_rate(config: Config, batches: int) -> float:
    """The learning rate of theta: as configured, or so that theta can move by `theta_reach` in its steps.

    It is at most `FASTEST_THETA` then: in a stage of a few steps theta would shoot past every balance between the
    loss and the cost.

    >>> theta_rate(Config(architecture_epochs=3, theta_reach=6.0, settle=0), batches=100)
    0.02
    """
    if config.relaxation.lr_theta != "auto":
        return config.relaxation.lr_theta
    return min(config.relaxation.theta_reach / theta_steps(config, batches), FASTEST_THETA)


def theta_steps(config: Config, batches: int) -> int:
    """The steps in which theta is trained: those of the architecture stage before the choices settle.

    >>> theta_steps(Config(architecture_epochs=3, settle=0.5), batches=100)
    150
    """
    steps = config.training.architecture_epochs * batches
    return max(steps - round(config.relaxation.settle * steps), 1)


def theta_optimizer(relaxed: RelaxedNetwork, config: Config, batches: int) -> torch.optim.Optimizer:
    """Adam or SGD for theta, without weight decay: it would pull theta_original, and nothing else, to 0."""
    rate = theta_rate(config, batches)
    if config.relaxation.theta_optimizer == "sgd":
        return torch.optim.SGD(relaxed.thetas(), lr=rate, momentum=config.relaxation.theta_betas[0])
    return torch.optim.Adam(relaxed.thetas(), lr=rate, betas=config.relaxation.theta_betas)


def learning_rate(training: Training, step: int, steps: int) -> float:
    """The weights' learning rate at a step: one cosine from `lr` to 0 over all steps of both stages.

    In the first `warm_up` epochs it is lower: in proportion to the steps that are done, of all in them.

    >>> [round(learning_rate(Config(lr=1.0).training, step, 4), 2) for step in range(5)]
    [1.0, 0.85, 0.5, 0.15, 0.0]
    >>> rising = Config(lr=1.0, epochs=2, warm_up=1).training
    >>> [round(learning_rate(rising, step, 4), 2) for step in range(5)]
    [0.5, 0.85, 0.5, 0.15, 0.0]
    """
    rising = training.warm_up * steps / training.epochs
    return training.lr * 0.5 * (1 + math.cos(math.pi * step / steps)) * min(1.0, (step + 1) / max(rising, 1.0))


def drop_path(training: Training, stage: str, epoch: int) -> float:
    """The probability of drop-path in an epoch: off in the architecture stage, then linear in the epochs (DARTS).

    >>> drop_path(Config(epochs=10, drop_path=0.2).training, "network", 5)
    0.1
    """
    return training.drop_path * epoch / training.epochs if stage == "network" else 0.0


def cutout_side(training: Training, network: nn.Module, data: Source) -> int:
    """The side in pixels of cutout's square for a network, as it was given; 0 for none.

    >>> from dnat.networks.cells import CellNetwork
    >>> images = (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]))
    >>> data = Data.from_tensors("black", images, images)
    >>> cutout_side(Config(preset="paper").training, CellNetwork("darts_v2", channels=2, layers=3), data)
    16
    """
    if not isinstance(data, Data):
        return 0
    if training.cutout != "searched":
        return training.cutout
    return CUTOUT if getattr(network, "searched", False) is True and min(data.image_size) >= 32 else 0


def short_stage(config: Config, batches: int) -> str:
    """What to say of an architecture stage in which theta can hardly change a choice; empty of others.

    Theta starts at 0 and 1, and a choice changes where two meet in the middle. Adam moves it by about the learning
    rate in each step. (SGD's steps have no such size, and where the loss is the judge it matters little.)

    Args:
        config: the method's settings.
        batches: steps of an epoch.

    >>> config = Config(architecture_epochs=2, epochs=4, preset="paper")
    >>> print(short_stage(config, 11))  # doctest: +NORMALIZE_WHITESPACE
    lr_theta 0.0003 x 22 steps moves theta by about 0.0066, and a choice changes at 0.5: theta will hardly change
    one; take about 910 architecture epochs, or lr_theta 0.1
    """
    steps, rate = theta_steps(config, batches), theta_rate(config, batches)
    reach = rate * steps
    if reach >= 0.5 or config.relaxation.theta_optimizer != "adam" or config.limit.judge != "theta":
        return ""
    who = "the budget will choose, not theta" if config.limit.is_limited else "theta will hardly change one"
    epochs = math.ceil(config.training.architecture_epochs * ENOUGH_REACH / reach)
    if (
        config.relaxation.lr_theta == "auto" and rate < FASTEST_THETA
    ):  # a reach that was asked for, whatever the steps
        advice = f"take a theta_reach of {ENOUGH_REACH:g} or more"
    else:
        magnitude = 10.0 ** math.floor(math.log10(ENOUGH_REACH / steps))
        faster = min(math.ceil(ENOUGH_REACH / steps / magnitude) * magnitude, FASTEST_THETA)
        advice = f"take about {epochs} architecture epochs"
        advice += f", or lr_theta {faster:g}" if faster > rate else ""
    moves = f"lr_theta {rate:.3g} x {steps} steps moves theta by about {reach:.2g}"
    return f"{moves}, and a choice changes at 0.5: {who}; {advice}"
