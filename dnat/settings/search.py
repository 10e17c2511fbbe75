"""How the methods that dnat is compared with search, and how its controls choose."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field

from ..errors import WrongTypeError
from ..naming import unknown
from .part import LARGEST_INTEGER, Count, Part, Positive, ProperShare, Weight, with_type


class Control(Part):
    """How the control that prunes chooses what goes."""

    pruning: Literal["l2", "l1", "taylor"] = "l2"
    """By what control-prune ranks channels: a norm of their weights, or what the loss loses without them by its
    gradient on `trial_batches` batches."""
    pruning_global: bool = False
    """Whether control-prune ranks the channels of all layers together, and not those of each apart."""


class Search(Part):
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
    epochs: Count = None  # type: ignore[assignment]  # until a `Config` has it
    """Epochs of the search; by default a sixth of those of the training (100 of 600, as NAT's), and for NAT++ with
    `official` a third (200 of 600, as its code has it)."""
    channels: Annotated[int, Field(ge=2, le=LARGEST_INTEGER)] = 20
    """Channels of the supernet's first cells."""
    layers: Count = 8
    """Cells of the supernet."""
    batch_size: Count = 64
    """Images a step of the search."""
    split: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the training images on which shared weights are trained; on the rest architectures are judged."""
    lr: Positive = 0.01
    """Learning rate of the shared weights, constant."""
    momentum: ProperShare = 0.9
    """Momentum of SGD for the shared weights."""
    weight_decay: Weight = 3e-4
    """Weight decay of the shared weights."""
    unused_weights: Literal["auto", "rest", "move"] = "auto"
    """What becomes of shared weights that a step does not use: they "rest", or, once they have been used, "move"
    by their momentum and weight decay, as under PyTorch 0.4, for which the released code is (docs/methods.md A7).
    "auto": "move" with `official`, else "rest"."""
    lr_policy: Positive = 3e-4
    """Learning rate of the policy, by Adam."""
    betas_policy: tuple[ProperShare, ProperShare] = (0.5, 0.999)
    """Adam's betas for the policy."""
    weight_decay_policy: Weight = 5e-4
    """Weight decay of the policy."""
    entropy: Weight = 0.003
    """Weight of the entropy of the moves, for each cell."""
    decay: ProperShare = 0.99
    """Share of the old in the moving average of rewards."""
    samples: Count = 10
    """Architectures that are drawn in the end, of which the best is kept."""
    calibration: Count = 8
    """Batches on which the statistics of norms are taken before an architecture is judged."""
    architectures: Annotated[int, Field(ge=2, le=LARGEST_INTEGER)] = 100
    """Architectures that NAO learns from."""
    nao_epochs: Count = 1000
    """Epochs in which NAO learns from them, as in the paper."""

    @property
    def moves_unused(self) -> bool:
        """Whether shared weights that a step does not use move all the same; see `unused_weights`."""
        return self.official if self.unused_weights == "auto" else self.unused_weights == "move"

    def with_epochs(self, training: int, share: int) -> Self:
        """The same with a share of the training's epochs, where none are given."""
        return self if self.epochs else self.but(epochs=max(1, round(training / share)))

    @classmethod
    def from_table(cls, table: Any) -> Self:
        """From the table `search` of a configuration file.

        Raises:
            ValueError: an unknown key, with the nearest known one.
        """
        if not isinstance(table, dict):
            raise WrongTypeError(f"search must be a table of settings, not {with_type(table)}")
        for key in table:
            if key not in cls.model_fields:
                raise unknown("setting", f"search.{key}", [f"search.{name}" for name in cls.model_fields])
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
        return cls(**values)
