"""The architecture stage in a loop of the user's own.

    arch = dnat.attach(network, example, budget=0.7, steps=2000)
    optimizer = torch.optim.AdamW(arch.parameters())
    for batch, target in loader:
        loss = criterion(arch(batch), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        arch.step(lambda net: criterion(net(batch), target))
    compact = arch.finish(optimizer)

The weights are the loop's affair. What is theta's is done here: gates in the forward pass, theta's own step with
the weights frozen, its charge for cost, the choices and how they settle, and the plain network.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .costs import cost
from .decision import Agreement, Judged, agreed, by_theta, choices_of, decisions_of
from .discretization import discretization
from .distributed import world
from .edges import ORIGINAL
from .errors import UsageError
from .narrowing import cutter
from .optimizers import carried_state
from .planning import Plan, make_plan
from .relaxation import RelaxedNetwork
from .results import Report, report_of
from .settings import OWNERS, Config
from .tracing import copied, trace
from .training import ArchitectureStage, check_finite, clipped


class Architecture(nn.Module):
    """A network with theta on its edges, to be trained by any loop; made by `attach`.

    It is called like the network. Its parameters are the network's own, and theta's, which no optimizer of the
    loop's moves: theta needs no gradient outside of `step`. Its `state_dict`, taken between two steps, holds all
    that a training goes on from with the same bits.

    Attributes:
        relaxed: the network with theta on its edges.
        compact: the plain network, once it was made by `finish`.
    """

    def __init__(
        self,
        stage: ArchitectureStage,
        plan: Plan,
        example: Any,
        judged: Callable[[], Judged],
        price: Callable[[nn.Module], float],
    ) -> None:
        super().__init__()
        self.stage, self.plan, self.example = stage, plan, example
        self.relaxed: RelaxedNetwork = stage.relaxed
        self.compact: nn.Module | None = None
        self._judged, self._price = judged, price
        self._rows: list[dict[str, Any]] | None = None  # of decisions that settle
        self._notes: tuple[str, ...] = ()
        self._report: Report | None = None
        self._begun = self._in_step = False
        self._stable: tuple[int, dict[str, str]] = (0, {})  # epochs with the same choices, and those
        self.register_load_state_dict_post_hook(lambda module, keys: self.settle_again())

    def weights(self) -> list[list[nn.Parameter]]:
        """The parameters of the network, in groups whose gradients are to be clipped apart: its own, and those of
        operations that may take others' places."""
        return (
            clipped(self.relaxed.network, self.stage) if self.compact is None else [[*self.compact.parameters()]]
        )

    @property
    def steps_left(self) -> int:
        """Steps until `finish` is due."""
        return max(self.stage.last - self.stage.step, 0)

    @property
    def is_settling(self) -> bool:
        """Whether the choices are made, and come into force step by step."""
        return self.stage.is_settling

    @property
    def matching(self) -> Tensor | float:
        """In the space "nat++": what it costs that cheaper operations do not compute yet what the originals do, in
        the last forward pass. Add it to the loss of the weights."""
        return 0.0 if self.stage.matching is None else self.stage.matching

    @property
    def report(self) -> Report:
        """What became of each edge.

        Raises:
            ValueError: nothing became of them yet.
        """
        if self._report is None:
            raise UsageError("the choices are not made yet: call finish() first")
        return self._report

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network computes with its edges relaxed; in train mode a step begins."""
        if self.compact is not None:
            return self.compact(*args, **kwargs)
        if self._in_step or not (self.training and torch.is_grad_enabled()):
            return self.relaxed(*args, **kwargs)
        if not self._begun:
            self.stage.begin()
            self._begun = True
        return self.stage.forward(*args, **kwargs)

    def step(self, loss_of: Callable[[nn.Module], Tensor], scaler: torch.amp.GradScaler | None = None) -> None:
        """Theta's step, after the weights': call it once for each step of the loop's optimizer.

        Args:
            loss_of: the loss of a network on the batch, 0-dim; of several, where gradients are accumulated,
                on one of them or on all. Within it no weight takes a gradient, and norms record nothing.
            scaler: where the loop scales its losses against underflow (fp16).

        Raises:
            ValueError: nothing was computed in this step, or the choices are made for good.
        """
        if self.compact is not None:
            raise UsageError("the network is plain already: after finish() there is no theta to train")
        if not self._begun:
            raise UsageError("step() ends a step of a training: call the network in train mode first")
        scale = scaler.get_scale() if scaler is not None and scaler.is_enabled() else 1.0
        self._in_step = True
        try:
            self.stage.end(lambda network: loss_of(network) / world().size, scale)
        finally:
            self._in_step = False
        for theta in self.relaxed.thetas():
            theta.grad = None  # or an optimizer of the loop's would move it by what is left
        self._begun = False
        self.settle_when_due()

    def settle_when_due(self) -> None:
        """Make the choices when theta's steps are done, if they are to settle before they come into force."""
        if self.stage.is_due:
            agreement = self._agreed()
            self._settle(agreement.rows(), agreement.notes)

    def end_when_stable(self, patience: int) -> None:
        """After an epoch: end theta's steps when in so many of them theta would have chosen the same, and changed
        anything."""
        if self._rows is not None or not patience:
            return
        choices = choices_of(self._judged()(self.plan.limit, {}))
        epochs, before = self._stable
        self._stable = (epochs + 1 if choices == before else 1, choices)
        if self._stable[0] >= patience and any(choice != ORIGINAL for choice in choices.values()):
            self.stage.end_early()
            self.settle_when_due()

    def _settle(self, rows: list[dict[str, Any]], notes: tuple[str, ...]) -> None:
        self._rows, self._notes = rows, notes
        self.relaxed.settle({row["key"]: row["choice"] for row in rows})

    def _agreed(self) -> Agreement:
        return agreed(self.relaxed, self._judged, self.plan, self.example, self._price)

    def finish(self, optimizer: torch.optim.Optimizer | None = None) -> nn.Module:
        """The plain network, in which the choices are made; from now on calls go to it.

        Args:
            optimizer: of the weights, of any kind: goes on with those of the plain network, and with what it
                remembers of them.

        Raises:
            InfeasibleError: no choices keep the budget, as far as they can be made.
        """
        if self.compact is not None:
            return self.compact
        if self._rows is None:
            agreement = self._agreed()
        else:
            decisions = decisions_of(self._rows, self.plan.edges)
            made = discretization(self.relaxed, choices_of(decisions), self.example)
            agreement = Agreement(decisions, made, self._notes)
        made = agreement.made
        self._report = report_of(agreement.decisions, made, self.plan, agreement.notes)
        if optimizer is not None:
            self._carry(optimizer, made.network)
        self.compact = made.network
        return made.network

    def _carry(self, optimizer: torch.optim.Optimizer, network: nn.Module) -> None:
        """Let an optimizer of the relaxed network's weights go on with those of the plain one."""
        names = {parameter: name for name, parameter in self.relaxed.network.named_parameters()}
        there = dict(network.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [there[names[p]] for p in group["params"] if names.get(p) in there]
        remembered = dict(optimizer.state)
        optimizer.state.clear()
        carried_state(remembered, self.relaxed.network, optimizer, network, self.cut)

    def hand_over(self, old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> None:
        """After `finish`: let an optimizer of the plain network go on with what that of the relaxed one knew."""
        assert self.compact is not None
        carried_state(old.state, self.relaxed.network, new, self.compact, self.cut)

    @functools.cached_property
    def cut(self) -> Callable[[str, Tensor], Tensor]:
        """After `finish`: what the choices leave of a tensor of a parameter or buffer, by its name."""
        choices = self.report.choices
        chosen = {edge: choices[edge.key] for edge in self.relaxed.edges if edge.key in choices}
        return cutter(chosen, self.relaxed.orders)

    def get_extra_state(self) -> dict[str, Any]:
        """What is no tensor of the network's: theta's optimizer, the step, choices that settle."""
        return {
            "step": self.stage.step,
            "ends": [self.stage.first, self.stage.last],
            "stable": list(self._stable),
            "optimizer": self.stage.optimizer.state_dict(),
            "decisions": self._rows,
            "notes": list(self._notes),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The inverse of `get_extra_state`."""
        self.stage.step = state["step"]
        self.stage.first, self.stage.last = state.get("ends", (self.stage.first, self.stage.last))
        epochs, choices = state.get("stable", (0, {}))  # an older dnat knew no early end
        self._stable = (epochs, choices)
        self.stage.optimizer.load_state_dict(state["optimizer"])
        self._rows, self._notes = state["decisions"], tuple(state["notes"])

    def settle_again(self) -> None:
        """Once theta is loaded: let the gates go on from where they were when the choices were made."""
        if self._rows is not None:
            self._settle(self._rows, self._notes)
            self.stage.settle(self.stage.step)


def attach(
    network: nn.Module,
    example: Any,
    *,
    steps: int,
    budget: str | float | None = None,
    **settings: Any,
) -> Architecture:
    """Put theta on the edges of a network that a loop of your own trains; see `Architecture`.

    Args:
        network: any module; it is left unchanged, and the copy that is trained lies where it does.
        example: inputs for it, as for `dnat.trace`: a tensor, a tuple, a dict, or an iterable of such.
        steps: of the architecture stage: after so many calls of `Architecture.step` the choices are in force.
        budget: the most multiply-adds of the result: a share of the original's (0.7) or a number ("120M").
        settings: how theta is trained, as for `dnat.Config`: space, mode, gate, edges, lr_theta, theta_reach,
            settle, cost_weight, cost_target, zero_one_weight, seed, preset and so on.

    Raises:
        ValueError: a network in which nothing can change, a budget that cannot be kept, unknown settings, or some
            that a loop of your own decides (epochs, lr, batch_size, ...).

    >>> network = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    >>> x = torch.rand(2, 3, 8, 8)
    >>> arch = attach(network, x, steps=2)
    >>> bool(torch.equal(arch.eval()(x), network.eval()(x)))
    True
    """
    foreign = sorted(set(settings) & LOOPS_OWN)
    if foreign:
        raise UsageError(f"{foreign[0]} is for your own loop to decide: leave it out of attach()")
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    config = Config(budget=budget, epochs=1, architecture_epochs=1, judge="theta", **settings)
    check_finite(network)
    original = copied(network)
    program = trace(original, example)
    plan = make_plan(original, program, example, config)
    relaxed = plan.relaxed(original, config)
    relaxed.train(network.training)
    stage = ArchitectureStage(relaxed, config, steps, plan.costs, plan.limit)
    return Architecture(
        stage,
        plan,
        example,
        lambda: by_theta(relaxed, plan, config),
        lambda made: float(cost(made, example).madds),
    )


LOOPS_OWN = frozenset(name for name, part in OWNERS.items() if part != "relaxation") | {"search", "single_pass"}
"""Settings of whole runs, which `attach` does not take: all but those of the relaxation."""
