"""Controls: what was chosen without looking at the network, or for other things than dnat's, at the same cost.

    control-random    choices by chance, of the cost that the budget asks for
    control-uniform   layers removed evenly over the depth
    control-narrow    the same family with fewer channels, from fresh weights, for the same compute
    control-prune     fewer channels in each block, as Torch-Pruning chooses them

All are done at once, before any training, and then trained by the recipe of the other methods with the same images
in the same order; where the recipe has a teacher, that is the network as it was given. A method that learns its
choices should be better than these.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import torch
from torch import nn

from ...answers import count_of
from ...budget import Costs, InfeasibleError, by_edge
from ...costs import Cost, cost
from ...data import Source
from ...decision import ATTEMPTS
from ...discretization import Discretization, discretization
from ...distributed import from_first
from ...edges import Tally
from ...errors import UsageError
from ...files import digest_of
from ...loop import Listeners, Stop
from ...networks import build, fitting
from ...networks.weights import read_state
from ...planning import Plan, make_plan
from ...records import Records
from ...results import Commitment, EdgeReport, Transformation, fixed_of
from ...rundir import CHOSEN, CUT
from ...sensitivity import retake_statistics
from ...session import Session, check, images_of, named, reproducible, session
from ...settings import Config, parse_amount
from ...tasks import Task
from ...tracing import copied, in_training
from ...tracking import Tracker
from ...transformation import measured_before, timed, train
from .channels import Family, family_of, pruned, resized, torch_pruning, widest
from .reporting import edge_report
from .search import check_identity
from .sets import CHOOSERS

BY = {"control-random": "chance", "control-uniform": "evenly"}
"""What decides, as reports on edges say it."""


def check_control(
    method: str,
    network: nn.Module,
    data: Source,
    config: Config,
    *,
    family: Family | None = None,
    task: Task | str | None = None,
) -> None:
    """Find out what can be known to fail, before anything is trained or written.

    Raises:
        ValueError, TypeError: see `control`.
    """
    check_budget(method, config)
    check(network, data, config, transforming=method in CHOOSERS, task=task)
    if method == "control-prune":
        torch_pruning()
    if method == "control-narrow":
        example = images_of(data).example(2)
        with torch.no_grad():
            before = cost(copied(network).to(example.device), example, batch=len(example))
        widest(_known(family), example, parse_amount(str(config.limit.budget)).of(before.madds))


def check_budget(method: str, config: Config) -> None:
    """Refuse settings without a budget of multiply-adds.

    Raises:
        ValueError: there is none.
    """
    if config.limit.budget is None:
        raise UsageError(
            f"{method} needs the budget, in multiply-adds, of what it is compared with: --budget 0.7, "
            f"or in a sweep {method}@0.7"
        )


def control(
    method: str,
    network: nn.Module | str,
    data: Source | str,
    config: Config | None = None,
    *,
    task: Task | str | None = None,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Stop | None = None,
    family: Family | None = None,
) -> Transformation:
    """Make a network smaller at once, and train what is left of it.

    Args:
        method: control-random, control-uniform, control-narrow or control-prune.
        network, data, config, task, records, tracker, stop: as for `dnat.transform`; the budget must be given.
        family: for control-narrow, how the network is made with fewer channels; not needed for a network by name.

    Raises:
        ValueError, NonFiniteError, Interrupted: as `dnat.transform`; ValueError also without a budget, for a
            network that cannot be made narrower, and where Torch-Pruning is needed and missing.
    """
    listeners = Listeners.of(records, tracker, stop)
    name = network if isinstance(network, str) else None
    network, data, config = named(network, data, config)
    check_budget(method, config)
    if family is None and name is not None and method == "control-narrow":
        options = fitting(name, images_of(data).num_classes, images_of(data).channels)
        family = family_of(name, {}, functools.partial(build, name, seed=config.seed, **options))
    with session(network, data, config, task) as given:
        before, recipe = measured_before(given), given.config
        limit = parse_amount(str(config.limit.budget)).of(before["cost_before"].madds)
        commitment, small = Control(method, given, limit, family).committed(records)
        if method != "control-narrow":  # as dnat does where its choices are made at once
            retake_statistics(small, given.data, recipe.seed)
        else:  # it has to learn all that the others begin with
            after = cost(small, given.example, batch=count_of(given.example))
            recipe = recipe.but(epochs=_epochs(recipe, before["cost_before"], after))
            note = (
                f"from fresh weights, for {recipe.training.epochs} epochs, which compute what "
                f"{config.training.epochs} of the "
            )
            commitment = replace(commitment, notes=(*commitment.notes, f"{note}original do"))
    if commitment.edges:
        listeners.tracker.committed(Tally.of((edge.kind, edge.choice) for edge in commitment.edges))
    trained = train(
        small, data, recipe, task=task, records=records, tracker=tracker, stop=stop, teacher=given.original
    )
    commitment = replace(commitment, relaxed=before["before"], compact=trained.before)
    with reproducible(recipe):
        return replace(trained, commitment=commitment, **before, **timed(given, trained.network))


def _epochs(config: Config, before: Cost, after: Cost) -> int:
    """As many as compute what the network that was given would in the epochs of the others."""
    return max(config.training.epochs, round(config.training.epochs * before.madds / max(after.madds, 1)))


def _known(family: Family | None) -> Family:
    if family is None:
        raise UsageError(
            "control-narrow makes the network anew with fewer channels and has to know how: give the network by "
            "name, or family=dnat.lab.baselines.Family(...)"
        )
    return family


@dataclass(frozen=True)
class Control:
    """A control of a run, and what its result may cost.

    Attributes:
        method: its name.
        given: what the run works with.
        limit: multiply-adds of one image.
        family: for control-narrow, how the network is made with fewer channels.
    """

    method: str
    given: Session
    limit: float
    family: Family | None

    def committed(self, records: Records | None) -> tuple[Commitment, nn.Module]:
        """What is chosen, and the network that it makes; read back where it was chosen before.

        Accuracies are filled in later.
        """
        identity = f"{self.given.digest} {self.given.data.identity()}"
        known = from_first(lambda: records.kept(CHOSEN) if records else None)
        if known and from_first(lambda: records is None or records.has_files(known.get("files", {}))):
            check_identity(known, identity)
            commitment = Commitment.from_table(known["commitment"])
            return commitment, self._again(commitment, records)
        commitment, small = self._chosen()
        if records:
            digests = {}
            if self.method == "control-prune":
                records.write_state(CUT, small)
                digests[CUT] = digest_of(records.path(CUT))
            records.keep(CHOSEN, {"identity": identity, "commitment": commitment.table(), "files": digests})
        return commitment, small

    def _chosen(self) -> tuple[Commitment, nn.Module]:
        if self.method == "control-narrow":
            return self._narrowed()
        if self.method == "control-prune":
            return self._pruned()
        return self._with_set()

    def _again(self, commitment: Commitment, records: Records | None) -> nn.Module:
        """The network that was made before."""
        if self.method in CHOOSERS:
            return self._discretized(self._plan(), commitment.choices).network
        if self.method == "control-prune" and records:  # another version might take other channels
            small = resized(self.given.original, commitment.widths)
            small.load_state_dict(read_state(records.path(CUT)))
            return small
        if self.method == "control-narrow":
            return self._anew(commitment.widths[_known(self.family).option])
        return self._chosen()[1]

    def _plan(self) -> Plan:
        given = self.given
        return make_plan(given.original, given.program, given.example, given.config)

    def _discretized(self, plan: Plan, choices: Mapping[str, str]) -> Discretization:
        return discretization(plan.relaxed(self.given.original, self.given.config), choices, self.given.example)

    def _with_set(self) -> tuple[Commitment, nn.Module]:
        """Choices that can be carried out, within the limit."""
        plan = self._plan()
        relaxed = plan.relaxed(self.given.original, self.given.config)
        groups = relaxed.by_group()
        legal = {group: list(relaxed.choices_of(group)) for group in groups}
        for _ in range(ATTEMPTS):
            chosen = CHOOSERS[self.method](groups, legal, plan.costs, self.limit, self.given.config.seed)
            wanted = {e.key: c for e, c in by_edge(groups, chosen).items()}
            made = discretization(relaxed, wanted, self.given.example)
            missed = set(made.undone)
            if (
                not missed
                and cost(made.network, self.given.example, batch=count_of(self.given.example)).madds <= self.limit
            ):
                return self._commitment(self._reports(plan, made), made, plan), made.network
            if not missed:
                break
            # What could not be carried out must not be counted on.
            lost = {g for g, members in groups.items() if any(e.key in missed for e in members)}
            legal = {g: [c for c in row if g not in lost or c != chosen[g]] for g, row in legal.items()}
        raise InfeasibleError(f"no network within {self.limit:.6g} multiply-adds could be made")

    def _reports(self, plan: Plan, made: Discretization) -> tuple[EdgeReport, ...]:
        price = Costs(plan.edges)
        return tuple(
            edge_report(
                edge,
                edge.group,
                made.choices[edge.key],
                {made.choices[edge.key]: 1.0},
                saved=round(price.total - price.of({edge: made.choices[edge.key]})),
                reason="",
                by=BY[self.method],
            )
            for edge in plan.edges
        )

    def _commitment(self, edges: tuple[EdgeReport, ...], made: Discretization, plan: Plan) -> Commitment:
        return Commitment(edges=edges, removed=made.removed, fixed=fixed_of(plan))

    def _narrowed(self) -> tuple[Commitment, nn.Module]:
        family = _known(self.family)
        value = widest(family, self.given.example, self.limit)
        note = f"{family.option} {value:g} in place of {family.usual:g}"
        return Commitment(widths={family.option: value}, notes=(note,)), self._anew(value)

    def _anew(self, width: float) -> nn.Module:
        return in_training(_known(self.family).made(width).to(self.given.data.device))

    def _pruned(self) -> tuple[Commitment, nn.Module]:
        small, widths = pruned(self.given.original, images_of(self.given.data), self.given.config, self.limit)
        where = "in the whole network" if self.given.config.control.pruning_global else "in each layer"
        note = (
            f"Torch-Pruning {version('torch-pruning')}: channels of least "
            f"{self.given.config.control.pruning} {where}"
        )
        return Commitment(widths=widths, notes=(note,)), small
