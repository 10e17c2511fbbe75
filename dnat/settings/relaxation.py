"""What an edge may become, and how theta on it is trained."""

from typing import Any, Literal, Self

from pydantic import model_validator

from ..errors import UsageError
from .part import Part, Positive, ProperShare, Share, Weight

Mode = Literal["full", "cell"]
Gate = Literal["raw", "sigmoid"]
Space = Literal["dnat", "nat++", "width", "dnat,width", "nat++,width"]


class Relaxation(Part):
    """What an edge may become, and how theta on it is trained."""

    mode: Mode = "full"
    """"full": every edge its own theta; "cell": edges at the same place of repeated blocks share one."""
    space: Space
    """Which choices an edge has: original, identity, none; in "nat++" convolutions, and operations of searched
    cells, may also become cheaper ones. "width": the channels between layers may become fewer, in eighths; alone,
    or with one of the others ("dnat,width"). By default the preset's, and "dnat" where theta is the judge."""
    transitions: dict[str, Any] | None = None
    """In the space "nat++", a table of your own in place of NAT++'s: {"conv_3x3": ["conv_1x1"], ...}."""
    edges: tuple[str, ...] | None = None
    """Which edges may change: patterns of their keys (`dnat edges` lists those), in which * stands for any text, ?
    for one character and [...] for one of several. By default all of them may."""
    gate: Gate
    """How theta weighs an operation: "raw" as in the paper, "sigmoid" for bounded gates."""
    theta_optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of theta."""
    lr_theta: Positive | Literal["auto"]
    """Learning rate of theta, constant; "auto" takes `theta_reach` / steps of the architecture stage."""
    theta_reach: Positive = 6.0
    """How far theta could move before the choices are made, where lr_theta is "auto" (at most 0.1 a step)."""
    theta_betas: tuple[ProperShare, ProperShare]
    """Adam's betas for theta (the first is the momentum when theta is trained by SGD)."""
    zero_one_weight: Weight
    """Weight of the loss that pulls gates towards 0 or 1 (FairDARTS)."""
    cost_weight: Weight
    """Weight of the loss that charges each kept operation its share of the network's multiply-adds."""
    cost_target: Share
    """Share of the network's cost below which nothing is charged; with a budget, the budget stands here."""
    single_pass: bool = False
    """Take the gradients of weights and theta from one backward pass instead of two."""
    paths: Literal["two", "all"] = "two"
    """How many operations are computed beside the original, in the space "nat++": "two" paths take one of each
    group's operations in each step, at random; "all" takes all of them, at more time and memory."""
    matching: Weight = 1.0
    """Weight of the loss that teaches other operations, of the space "nat++", what the original computes."""
    warm_start: bool = True
    """Whether other operations begin as a function close to the original: the middle of its kernel, or the nearest
    separable ones. Otherwise they begin with random weights."""
    settle: ProperShare
    """Last part of the architecture stage, in which the choices are made already and come into force step by step:
    gates go to 0 and 1 while the weights train on, so that dropping the rest loses nothing. 0: all at once."""
    skips: bool
    """Whether networks made by name carry the null edges of NAT's genotypes, where they have them."""
    skip_threshold: Weight
    """A null edge becomes an identity when its gate exceeds this."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.transitions is not None and not self.names_operations:
            raise UsageError("a table of transitions needs space 'nat++'")
        if self.edges == ():
            raise UsageError(
                "edges is empty, so nothing could change: name some, or leave it out to let all change"
            )
        return self

    @property
    def moves(self) -> str | list[str | dict[str, Any]]:
        """What `find_edges` is to offer: the space, with a table in nat++'s place where there is one."""
        if self.transitions is None:
            return self.space
        return [self.transitions if name == "nat++" else name for name in self.space.split(",")]

    @property
    def operation_moves(self) -> str | dict[str, Any]:
        """The same without widths."""
        return self.transitions or ("nat++" if self.names_operations else "dnat")

    @property
    def names_operations(self) -> bool:
        """Whether edges may become other operations: those of NAT++, or of a table."""
        return "nat++" in self.space.split(",")
