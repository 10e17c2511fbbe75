"""How weights are trained."""

from typing import Literal, Self

from pydantic import model_validator

from ..errors import UsageError
from .part import Count, Natural, Part, Positive, ProperShare, Share, Weight


class Training(Part):
    """How weights are trained."""

    epochs: Count
    """Epochs of both stages together."""
    architecture_epochs: Natural
    """Epochs of the architecture stage; by default max(5, epochs / 12), at most epochs - 1."""
    patience: Natural = 0
    """After how many epochs in which theta would choose the same, and change anything, the architecture stage ends
    early; the epochs of both stages together stay. 0: it lasts as long as `architecture_epochs` says."""
    batch_size: Count = 96
    """Images a step."""
    lr: Positive
    """Learning rate of the weights at the start; one cosine over both stages brings it to 0."""
    warm_up: Weight
    """Epochs in which the learning rate rises from 0, evenly."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimizer of the weights; with adamw lr is by default 0.001, weight_decay 0.01, and biases and norms do not
    decay."""
    momentum: ProperShare = 0.9
    """Momentum of SGD for the weights; of AdamW its first beta."""
    weight_decay: Weight
    """Weight decay of the weights; theta never has any."""
    grad_clip: Weight = 5.0
    """Largest L2 norm of the weights' gradient; 0 switches clipping off."""
    label_smoothing: ProperShare = 0.0
    """Share of the targets that is spread over all classes, where the task knows classes."""
    ema: ProperShare = 0.0
    """Decay of averaged weights, for example 0.999, with which the network is measured and kept; 0: no average."""
    validation: ProperShare = 0.0
    """Share of the training examples that is set aside: on those the curves and choices are measured, and the test
    examples are looked at before and after alone."""
    cutout: Natural | Literal["searched"]
    """Side in pixels of the square that cutout blanks; 0 switches it off. "searched": 16, as in DARTS's recipe, in
    networks of cells and ProxylessNAS's, on images of at least 32 x 32; 0 in others."""
    auxiliary: Weight = 0.4
    """Weight of auxiliary heads' loss, where a network has such heads (DARTS's, GoogLeNet's); 0 ignores them."""
    drop_path: ProperShare = 0.2
    """Probability of drop-path at the end of the network stage, in networks of cells: it grows linearly with the
    epochs, as in DARTS, and there is none in the architecture stage."""
    distillation: Share
    """Weight, from 0 to 1, of the answers of the original, as it was given, beside the labels."""
    feature_distillation: Weight
    """Weight of what layers of the original are given, from which those of the same names learn (hints:
    `dnat.distillation`)."""
    distillation_temperature: Positive = 4.0
    """Temperature at which answers are compared."""
    amp: Literal["off", "bf16"] = "off"
    """Automatic mixed precision in forward passes."""

    @model_validator(mode="after")
    def _warm_up_ends(self) -> Self:
        if self.warm_up > self.epochs:
            raise UsageError(f"warm_up must be from 0 to epochs ({self.epochs}), not {self.warm_up!r}")
        return self

    @property
    def teaches(self) -> bool:
        """Whether the network as it was given teaches what becomes of it."""
        return self.distillation > 0 or self.feature_distillation > 0
