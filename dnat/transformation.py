"""The whole story as one call: `transform(network, data, config) -> Transformation`.

    trace -> edges -> relax -> architecture stage -> select -> discretize -> network stage

`train` is its twin for the comparison: the untouched network, with the same images and the same recipe.
"""

import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .answers import scores
from .budget import Costs, InfeasibleError
from .config import Amount, Config
from .costs import Cost, Latency, cost, latency
from .data import Data, load
from .discretization import Discretization, discretization
from .distributed import anyone, from_first, gathered, world
from .edges import ORIGINAL, Edge, Tally
from .errors import UsageError, WrongTypeError, users_code
from .measurement import digest_of, measured
from .narrowing import cut_along
from .networks import Genotype, build, fitting
from .networks.weights import state_of
from .planning import Plan, Times, make_plan
from .records import Records
from .relaxation import RelaxedNetwork, relax
from .rundir import LATENCIES, SENSITIVITY
from .seeds import Stream, torch_seed
from .selection import Decision, decide, decisions_by_damage, decisions_made
from .sensitivity import (
    Judge,
    affordable_images,
    batch_size,
    divided,
    least_damage,
    retake_statistics,
    shown_images,
)
from .tracing import Program, copied, in_training, trace
from .tracking import Tracker
from .training import (
    FASTEST_THETA,
    ArchitectureLoss,
    Evaluation,
    Interrupted,
    Progress,
    Trainer,
    batches_per_epoch,
    burden,
    check_finite,
    check_usable,
    cutout_side,
    effects,
    evaluate,
    is_dead,
    learning_rate,
    theta_rate,
    theta_steps,
    weight_optimizer,
)

ENOUGH_REACH = 3.0
"""How far theta should be able to move: to the middle and back, with gradients that do not always agree."""

COMMIT_ATTEMPTS = 8
"""How often the choices are made again when the network that they make turns out to exceed its budget."""

SAVE_SECONDS = 30.0
"""A checkpoint is written at the end of each epoch, and when this long has passed since the last one."""


@dataclass(frozen=True)
class EdgeReport:
    """What became of one edge.

    Attributes:
        gates: what none, identity and original were worth: g(theta), for none a threshold; beside other operations
            and by another judge see `selection.Decision`.
        margin: how far the choice's gate was ahead of the next legal one.
        saved: multiply-adds of one image that this change alone saves, with all that it makes unnecessary.
        refused: (choice, why not) for choices that the edge did not have.
        reason: why the choice is not the one with the largest gate, or could not be carried out.
        others: (name, what it was worth) of the other operations that it could become.
        by: what decided, as `selection.Decision` says; empty where a method without theta did.
    """

    key: str
    kind: str
    operation: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    madds: int
    group: str
    choice: str
    gates: tuple[float, float, float]
    margin: float
    saved: int
    refused: tuple[tuple[str, str], ...] = ()
    reason: str = ""
    others: tuple[tuple[str, float], ...] = ()
    by: str = ""


@dataclass(frozen=True)
class FixedReport:
    """An operation or block that could not have changed: (choice, why not) for each choice."""

    key: str
    kind: str
    operation: str
    madds: int
    refused: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Commitment:
    """The moment at which the choices were made.

    Attributes:
        epoch: epochs that were done by then.
        relaxed: test loss and accuracy of the relaxed network, just before.
        compact: those of the plain network, just after.
        edges: what became of each edge.
        removed: paths of the modules that are gone.
        notes: what else is worth knowing.
        fixed: what could not have changed, and why.
        widths: of a network with fewer channels: (channels in, channels out) of each layer that has fewer, by its
            path; or the argument of the network's constructor that makes it narrow, and its value.
    """

    epoch: int
    relaxed: Evaluation
    compact: Evaluation
    edges: tuple[EdgeReport, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]
    fixed: tuple[FixedReport, ...] = ()
    widths: Mapping[str, Any] = field(default_factory=dict)

    @property
    def choices(self) -> dict[str, str]:
        """{edge key: choice}."""
        return {edge.key: edge.choice for edge in self.edges}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Commitment":
        """The inverse of `dataclasses.asdict`, from JSON or a checkpoint."""

        def frozen(value: Any) -> Any:
            return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

        def rows(name: str) -> list[dict[str, Any]]:
            return [{k: frozen(v) for k, v in row.items()} for row in table.get(name, ())]

        return cls(
            epoch=table["epoch"],
            relaxed=Evaluation(**table["relaxed"]),
            compact=Evaluation(**table["compact"]),
            edges=tuple(EdgeReport(**row) for row in rows("edges")),
            removed=tuple(table["removed"]),
            notes=tuple(table["notes"]),
            fixed=tuple(FixedReport(**row) for row in rows("fixed")),
            widths={path: frozen(value) for path, value in table.get("widths", {}).items()},
        )


@dataclass(frozen=True)
class Transformation:
    """The result of a run.

    Attributes:
        network: the trained, plain network, on the device of the run, in eval mode.
        commitment: what became of each edge; None where the network was only trained.
        history: one row an epoch: losses, accuracies, learning rate, gates, seconds.
        cost_before, cost_after: parameters and multiply-adds.
        before: loss and accuracy of the network as it was given, on the test images.
        test: the same of the result.
        dead: whether the result gives every image the same answer.
        genotype: of the result, where the method changed the genotype of a network of cells as a whole.
        latency_before, latency_after: time for a batch of `config.latency_batch` images, as measured.
        seconds: time spent in each stage.
    """

    network: nn.Module
    commitment: Commitment | None
    history: list[dict[str, Any]]
    cost_before: Cost
    cost_after: Cost
    before: Evaluation
    test: Evaluation
    latency_before: Latency
    latency_after: Latency
    seconds: dict[str, float]
    dead: bool = False
    genotype: Genotype | None = None

    @property
    def choices(self) -> dict[str, str]:
        """{edge key: choice}; empty where the network was only trained."""
        return self.commitment.choices if self.commitment else {}

    def results(self) -> dict[str, Any]:
        """Everything that the same seed must give again, bit for bit: no time, no place."""
        last = self.history[-1] if self.history else {}
        moment = asdict(self.commitment) if self.commitment else None
        return {
            "test_accuracy": self.test.accuracy,
            "test_loss": self.test.loss,
            "dead": self.dead,
            "test_accuracy_before": self.before.accuracy,
            "train_accuracy": last.get("train_accuracy"),
            "train_loss": last.get("train_loss"),
            "cost_before": self.cost_before.table(),
            "cost_after": self.cost_after.table(),
            "choices": self.choices,
            "relaxed_test_accuracy": moment["relaxed"]["accuracy"] if moment else None,
            "committed_test_accuracy": moment["compact"]["accuracy"] if moment else None,
            "weights_sha256": weights_digest(self.network),
        }


def transform(
    network: nn.Module | str,
    data: Data | str,
    config: Config | None = None,
    *,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Callable[[Progress], bool] | None = None,
) -> Transformation:
    """Train a network, transform it, and train it on, in one run.

    The network that is given is left unchanged.

    Args:
        network: any module that maps images (N, C, H, W) to class scores (N, classes), or a name
            for `dnat.build`.
        data: from `dnat.load` or `Data.from_tensors`, or a name for `dnat.load`.
        config: the method's settings; `Config()` by default.
        records: a run directory to write to. If it holds a checkpoint, the run goes on from there and ends with
            the same bits as if it had never stopped.
        tracker: is told of progress.
        stop: asked after each batch; when it says yes, the run saves and raises `Interrupted`.

    Raises:
        ValueError: a network or data that cannot be used, before anything is trained.
        NonFiniteError: the loss is not finite any more; the last checkpoint is good.
        Interrupted: `stop` said yes; call again with the same records to go on.
    """
    check_listeners(records, tracker, stop)
    run = _Run(*named(network, data, config), records, tracker or Tracker(), stop)
    return run.to_end(transforming=True)


def train(
    network: nn.Module | str,
    data: Data | str,
    config: Config | None = None,
    *,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Callable[[Progress], bool] | None = None,
    teacher: nn.Module | None = None,
) -> Transformation:
    """Train the untouched network for `config.epochs`, with the images and the recipe that `transform` uses.

    Arguments, result and errors are those of `transform`.

    Args:
        network, data, config, records, tracker, stop: see `transform`.
        teacher: the network whose answers `config.distillation` weighs; by default the network as it was given.
    """
    check_listeners(records, tracker, stop)
    run = _Run(*named(network, data, config), records, tracker or Tracker(), stop, teacher=teacher)
    return run.to_end(transforming=False)


def check_listeners(records: object, tracker: object, stop: object) -> None:
    """Refuse what is neither None nor of the type that `transform` takes.

    Raises:
        TypeError: one of them is not.
    """
    if records is not None and not isinstance(records, Records):
        raise WrongTypeError(
            f"records must be a dnat.Records, not {type(records).__name__}: dnat.Records.open(directory, job)"
        )
    if tracker is not None and not isinstance(tracker, Tracker):
        raise WrongTypeError(f"tracker must be a dnat.tracking.Tracker, not {type(tracker).__name__}")
    if stop is not None and not callable(stop):
        raise WrongTypeError(f"stop must be a function, not {type(stop).__name__}")


def named(network: nn.Module | str, data: Data | str, config: Config | None) -> tuple[nn.Module, Data, Config]:
    """Networks and data sets that were given by name, made; weights come from the configuration's seed.

    Raises:
        ValueError, TypeError: something else was given, or a network that cannot be trained as it is.
    """
    config = Config() if config is None else config
    if not isinstance(config, Config):
        hint = ": dnat.Config(**settings)" if isinstance(config, dict) else ""
        raise WrongTypeError(f"config must be a dnat.Config, not {type(config).__name__}{hint}")
    data = load(data) if isinstance(data, str) else data
    if not isinstance(data, Data):
        kind = type(data).__name__
        raise WrongTypeError(
            f"data must be a dnat.Data or a name, not {kind}: see dnat.load and Data.from_tensors"
        )
    if isinstance(network, str):
        network = build(network, seed=config.seed, **fitting(network, data.num_classes, data.channels))
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module or a name, not {type(network).__name__}")
    check_usable(network, data)
    check_finite(network)
    return network, data, config


def check(network: nn.Module, data: Data, config: Config, *, transforming: bool) -> None:
    """Find out what can be known to fail, before anything is trained or written.

    Raises:
        ValueError, TypeError: see `transform`.
    """
    device = choose_device(config.device)
    check_usable(network, data)
    check_finite(network)
    with reproducible(config), users_code(f"{type(network).__name__}'s code failed", alone=False):
        # As it will be trained: a budget of time is that of this device, with these threads.
        twin = copied(network).to(device)
        example = data.example(2).to(device)
        program = trace(twin, example, batch=len(example))
        check_training(twin, data, config, example)
        if transforming:
            make_plan(twin, program, example, config)


def check_training(network: nn.Module, data: Data, config: Config, example: Tensor) -> None:
    """What `check` looks at beside the network's operations and the budget."""
    batches_per_epoch(len(data.train_labels), config)
    if config.latency_batch > len(data.test_labels):
        raise UsageError(
            f"latency_batch {config.latency_batch} is larger than the {len(data.test_labels)} test images, "
            "with which time is measured"
        )
    with torch.no_grad(), users_code(f"{type(network).__name__}'s forward failed"):
        classes = scores(copied(network).eval()(example)).shape[1]
    if classes < data.num_classes:
        raise UsageError(f"the network tells {classes} classes apart, but {data.name} has {data.num_classes}")
    weight_optimizer(network, config)


def weights_digest(network: nn.Module) -> str:
    """A SHA-256 over names, shapes and bits of a network's state, and what modules keep beside tensors."""
    digest = hashlib.sha256()
    for name, value in state_of(network).items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(f"{name} {json.dumps(value, sort_keys=True)}".encode())
    return digest.hexdigest()


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: no such device, or none at hand.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"device {name!r} is not one that torch knows: auto, cpu, cuda, cuda:1, mps") from error
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f"there is no device {name!r} here; use --device cpu or auto")
    return device


@contextmanager
def reproducible(config: Config) -> Iterator[None]:
    """Within, torch computes the same bits at the same seed; what was set before is restored afterwards.

    Gradients are computed, also if it is called under `no_grad`. The number of threads is fixed, since sums over
    several threads are rounded otherwise; the global random state, which dropout draws from, is set from the seed.
    """
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    torch.set_num_threads(config.threads)
    # Warn only: an operation without a deterministic form should be named, not forbidden.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=list(devices)):
            rank = world().rank
            torch.manual_seed(torch_seed(config.seed, Stream.TRAINING, *([rank] if rank else [])))
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


@dataclass
class _Run:
    """One run: the state that is saved, and the loop over epochs."""

    given: nn.Module
    data: Data
    config: Config
    records: Records | None
    tracker: Tracker
    stop: Callable[[Progress], bool] | None
    history: list[dict[str, Any]] = field(default_factory=list)
    commitment: Commitment | None = None
    decided: dict[str, Any] | None = None
    plan: Plan | None = None
    teacher: nn.Module | None = None
    given_digest: str = ""
    saved_at: float = 0.0

    def to_end(self, transforming: bool) -> Transformation:
        with reproducible(self.config), users_code(f"{type(self.given).__name__}'s code failed", alone=False):
            return self._to_end(transforming)

    def _to_end(self, transforming: bool) -> Transformation:
        config = self.config
        device = choose_device(config.device)
        original = in_training(copied(self.given).to(device))
        self.data = self.data.to(device)
        # What is made of the network cannot tell any more what it was made of.
        config = self.config = replace(config, cutout=cutout_side(config, original, self.data))
        if config.channels_last:
            original = original.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = self.data.example(2)
        program = trace(original, example, batch=len(example))
        check_training(original, self.data, config, example)
        if transforming:
            self.plan = self._plan(original, program, example)
        cost_before, latency_before = cost(original, example, batch=len(example)), self._latency(original)
        before = evaluate(original, self.data, config)
        self.given_digest = weights_digest(original)
        taught = original if self.teacher is None else self.teacher
        self.teacher = copied(taught).to(device).eval().requires_grad_(False) if config.teaches else None
        self.trainer = self._start(original, program, example, transforming)
        if transforming and config.architecture_epochs:
            self._warn_of_short_stage()
        if (
            self.trainer.relaxed
            and self.trainer.progress.step == 0
            and config.architecture_epochs
            and next(self.trainer.relaxed.others(), None) is not None
        ):
            self.tracker.burden(burden(original, self.trainer.relaxed, self.data, config))
        self.saved_at = time.monotonic()
        while True:
            progress = self.trainer.progress
            if self.trainer.relaxed and progress.epoch == config.architecture_epochs:
                self._commit(self.trainer.relaxed, example)
            if progress.epoch == config.epochs:
                break
            self._epoch(program)
        network = self.trainer.network.eval()
        return Transformation(
            network=network,
            commitment=self.commitment,
            history=self.history,
            cost_before=cost_before,
            cost_after=cost(network, example, batch=len(example)),
            before=before,
            test=evaluate(network, self.data, config),
            latency_before=latency_before,
            latency_after=self._latency(network),
            seconds=progress.seconds,
            dead=is_dead(network, self.data),
        )

    def _latency(self, network: nn.Module) -> Latency:
        return from_first(lambda: latency(network, self.data.example(self.config.latency_batch)))

    def _plan(self, original: nn.Module, program: Program, example: Tensor) -> Plan:
        """The plan; times of operations are measured once in a run and kept with it."""
        known = from_first(lambda: self.records.read_json(LATENCIES) if self.records else None)
        plan = make_plan(original, program, example, self.config, Times(**known) if known else None)
        if self.records and plan.times and not known:
            self.records.write_json(LATENCIES, asdict(plan.times))
        return plan

    def _warn_of_short_stage(self) -> None:
        text = short_stage(self.config, self.trainer.batches)
        if text:
            warnings.warn(text, stacklevel=5)

    def _start(self, original: nn.Module, program: Program, example: Tensor, transforming: bool) -> Trainer:
        """A trainer at the beginning, or where the newest checkpoint stands."""
        newest = from_first(lambda: self.records.newest() if self.records else None)
        state = newest[1] if newest else None
        if state and state["fingerprint"] != program.fingerprint:
            raise UsageError("the run directory holds a run of another network; choose another directory")
        if state and state["given"] != self.given_digest:
            raise UsageError(
                "the run directory holds a run that began with other weights; choose another directory"
            )
        if state and self._has_other_images(state):
            raise UsageError(
                "the run directory holds a run on other images (pixels, classes, labels or sizes differ); point "
                "--data-root to those that it began with, or choose another directory"
            )
        network: nn.Module = original
        if state and state["commitment"]:
            assert self.plan
            self.commitment = Commitment.from_dict(state["commitment"])
            network = discretization(original, self.commitment.choices, example).network
        elif transforming:
            assert self.plan
            config = self.config
            network = relax(
                original, self.plan.edges, config.mode, config.gate, config.seed, warm_start=config.warm_start
            )
        trainer = self._trainer(network, Progress())
        if state:
            self._restore(trainer, state)
            self.history = from_first(lambda: self.records.metrics() if self.records else [])
        return trainer

    def _has_other_images(self, state: Mapping[str, Any]) -> bool:
        """Whether a checkpoint is of other images, as far as that can be told without reading files again."""
        here = self.data.content()
        there = state.get("images", here)
        alike = there.partition(" ")[0] == here.partition(" ")[0]
        return state["data"] != self.data.identity() or (alike and there != here)

    def _trainer(self, network: nn.Module, progress: Progress) -> Trainer:
        loss = None
        if isinstance(network, RelaxedNetwork) and self.plan:
            loss = ArchitectureLoss(network, self.config, self.plan.costs, self.plan.limit)
        return Trainer(network, self.data, self.config, progress, loss, self.teacher)

    def _epoch(self, program: Program) -> None:
        trainer, progress = self.trainer, self.trainer.progress
        self.tracker.epoch(trainer.stage, progress, trainer.batches, self.config.epochs)
        started, first = time.monotonic(), progress.batch
        before = progress.seconds[trainer.stage]
        for _ in trainer.epoch():
            progress.seconds[trainer.stage] = before + time.monotonic() - started
            self.tracker.batch(progress)
            self._settle_when_due()
            late = time.monotonic() - self.saved_at > SAVE_SECONDS
            stopped, due = anyone(bool(self.stop and self.stop(progress)), late)
            if stopped or due:
                self._save(program)
            if stopped:
                raise Interrupted(f"stopped after epoch {progress.epoch}, batch {progress.batch}")
        size = self.config.batch_size
        images = min(progress.batch * size, len(self.data.train_labels)) - first * size
        rate = learning_rate(self.config, progress.step - 1, trainer.steps)
        trained = trainer.close_epoch()
        tested = evaluate(trainer.network, self.data, self.config)
        taken = time.monotonic() - started
        progress.seconds[trainer.stage] = before + taken
        row: dict[str, Any] = {
            "epoch": progress.epoch,
            "stage": trainer.stage,
            "step": progress.step,
            "lr": rate,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "test_loss": tested.loss,
            "test_accuracy": tested.accuracy,
            "seconds": round(taken, 3),
            "images_per_second": round(images / taken, 1),
        }
        if trainer.relaxed:
            row["gates"] = trainer.relaxed.architecture.gates().tolist()
            row["columns"] = list(trainer.relaxed.architecture.columns)
        self.history.append(row)
        if self.records:
            self.records.log(row)
        self.tracker.log(row)
        self._save(program)

    def _commit(self, relaxed: RelaxedNetwork, example: Tensor) -> None:
        """Make the choices: the relaxed network becomes a plain one, momentum and learning rate go on."""
        config, old, started = self.config, self.trainer, time.monotonic()
        assert self.plan
        if self.decided:
            decisions = _decisions_from(self.decided["decisions"], self.plan.edges)
            notes = self.decided["notes"]
            made = discretization(relaxed, {d.edge.key: d.choice for d in decisions}, example)
        else:
            decisions, made, notes = self._agreed(relaxed, example, self.plan)
        if config.begins_compact:  # as the answers were judged
            retake_statistics(made.network, self.data, config)
        price = Costs(self.plan.edges)
        trainer = self._trainer(made.network, old.progress)
        chosen = {edge: made.choices[edge.key] for edge in relaxed.edges if edge.key in made.choices}
        momentum = cut_along(_momentum(old), chosen, relaxed.orders)
        for name, parameter in trainer.weights.named_parameters():
            if name in momentum:
                trainer.optimizer.state[parameter]["momentum_buffer"] = momentum[name]
        reports = tuple(
            EdgeReport(
                key=d.edge.key,
                kind=d.edge.kind,
                operation=d.edge.operation,
                shape_in=d.edge.shape_in,
                shape_out=d.edge.shape_out,
                madds=d.edge.madds,
                group=d.edge.group,
                choice=made.choices[d.edge.key],
                gates=d.gates,
                margin=d.margin,
                saved=round(price.total - price.of({d.edge: made.choices[d.edge.key]})),
                refused=d.edge.refused,
                reason=made.undone.get(d.edge.key, d.reason),
                others=d.others,
                by="rewriting" if d.edge.key in made.undone else d.by,
            )
            for d in decisions
        )
        self.commitment = Commitment(
            epoch=old.progress.epoch,
            relaxed=evaluate(relaxed, self.data, config),
            compact=evaluate(made.network, self.data, config),
            edges=reports,
            removed=made.removed,
            notes=(*made.notes, *notes),
            fixed=tuple(FixedReport(e.key, e.kind, e.operation, e.madds, e.refused) for e in self.plan.fixed),
        )
        self.trainer = trainer
        old.progress.seconds["architecture"] += time.monotonic() - started
        self.tracker.committed(Tally.of((edge.kind, edge.choice) for edge in reports))

    def _settle_when_due(self) -> None:
        """Make the choices when theta's steps are done, if they are to settle before they come into force."""
        relaxed, config = self.trainer.relaxed, self.config
        if relaxed is None or self.decided or not config.settle:
            return
        if self.trainer.progress.step < theta_steps(config, self.trainer.batches):
            return
        assert self.plan
        decisions, made, notes = self._agreed(relaxed, self.data.example(2), self.plan)
        rows = _rows_of(decisions)
        # What cannot be carried out is not trained for.
        for row in rows:
            if row["key"] in made.undone:
                row |= {"choice": ORIGINAL, "reason": made.undone[row["key"]], "by": "rewriting"}
        self.decided = {"decisions": rows, "notes": notes}
        relaxed.settle({row["key"]: row["choice"] for row in rows})

    def _agreed(
        self, relaxed: RelaxedNetwork, example: Tensor, plan: Plan
    ) -> tuple[tuple[Decision, ...], Discretization, list[str]]:
        """The choices and the network that they make, in all processes those of the first: times are measured."""
        if world().size == 1:
            return self._within_limit(relaxed, example, plan)

        def decided() -> tuple[list[dict[str, Any]], list[str]]:
            decisions, _, notes = self._within_limit(relaxed, example, plan)
            return _rows_of(decisions), notes

        rows, notes = from_first(decided)
        decisions = _decisions_from(rows, plan.edges)
        wanted = {d.edge.key: d.choice for d in decisions}
        return decisions, discretization(relaxed, wanted, example), notes

    def _within_limit(
        self, relaxed: RelaxedNetwork, example: Tensor, plan: Plan
    ) -> tuple[tuple[Decision, ...], Discretization, list[str]]:
        """Choices and the network that they make, so that the network, as it is then measured, keeps the limit."""
        deciding = self._deciding(relaxed, plan)
        limit, last = plan.limit, None
        ruled_out: dict[str, str] = {}
        for _ in range(COMMIT_ATTEMPTS):
            try:
                decisions = deciding(limit, ruled_out)
            except InfeasibleError:
                if last is None or plan.times is None:
                    raise
                break
            wanted = {d.edge.key: d.choice for d in decisions}
            made = discretization(relaxed, wanted, example)
            real = float(cost(made.network, example, batch=len(example)).madds)
            if plan.times is not None:
                real = latency(made.network, self.data.example(self.config.latency_batch)).seconds
            last = decisions, made
            if plan.limit is None or real <= plan.limit:
                return decisions, made, []
            assert limit is not None
            missed = [*made.undone, *made.partial]
            if missed and plan.times is None:  # what could not be carried out must not be counted on
                ruled_out |= {key: wanted[key] for key in missed}
            else:
                limit *= min(plan.limit / real, 0.995)
        assert last is not None
        assert plan.limit is not None
        if plan.times is None:
            raise InfeasibleError(f"no network within {plan.limit:.6g} multiply-adds could be made")
        decisions, made = last
        return decisions, made, [f"the time budget of {plan.limit * 1e3:.2f} ms was not reached"]

    def _deciding(
        self, relaxed: RelaxedNetwork, plan: Plan
    ) -> Callable[[float | None, Mapping[str, str]], tuple[Decision, ...]]:
        """The function that makes decisions within a limit, without choices that are ruled out."""
        made = self.config.choices
        if made is not None:
            return lambda limit, ruled_out: decisions_made(relaxed, made)
        if self.config.judge == "answers":
            return self._deciding_by_answers(relaxed, plan)
        if not torch.isfinite(relaxed.architecture.theta).all():  # between two looks at the loss
            self.trainer.fail("theta is not finite any more")
        worths = None
        if self.config.judge == "loss":
            worths = effects(relaxed, self.data, self.config, self.trainer.progress.epoch)
        return lambda limit, ruled_out: decide(
            relaxed,
            limit=None if limit is None else Amount(limit, relative=False),
            costs=plan.costs,
            skip_threshold=self.config.skip_threshold,
            ruled_out=ruled_out,
            floor=self._floor(plan, limit),
            worths=worths,
        )

    def _deciding_by_answers(
        self, relaxed: RelaxedNetwork, plan: Plan
    ) -> Callable[[float | None, Mapping[str, str]], tuple[Decision, ...]]:
        asked = self.config.judge_images
        number = affordable_images(relaxed, Costs(plan.edges).total) if asked == "auto" else asked
        images = shown_images(self.data, number, self.config.seed)
        judge = Judge(relaxed, divided(images, batch_size(relaxed)))
        digest = digest_of(relaxed, weights_digest(relaxed.detached()), self.config.seed, judge.batches)
        path = self.records.path(SENSITIVITY) if self.records else None
        sensitivity = measured(judge, path, digest, kept=self._stop_while_measuring)

        def decisions(limit: float | None, ruled_out: Mapping[str, str]) -> tuple[Decision, ...]:
            assert limit is not None, "the answers judge within a budget alone"
            allowed = sensitivity.without(ruled_out, relaxed)
            choices = least_damage(relaxed.by_group(), allowed, plan.costs, limit, plan.costs.full * limit)
            return decisions_by_damage(relaxed, choices, allowed.damages)

        return decisions

    def _stop_while_measuring(self) -> None:
        if self.stop and self.stop(self.trainer.progress):
            raise Interrupted("stopped while choices were tried; what was measured is kept")

    def _floor(self, plan: Plan, limit: float | None) -> float:
        """What the choices need not go below: where theta is charged for its cost, what is free of charge."""
        if not self.config.cost_weight:
            return 0.0
        return self.config.cost_target * plan.costs.total if limit is None else limit

    def _save(self, program: Program) -> None:
        here = world()
        if here.size == 1 and not self.records:
            return
        trainer, progress = self.trainer, self.trainer.progress
        own = _random_state()
        state: dict[str, Any] = {
            "fingerprint": program.fingerprint,
            "given": self.given_digest,
            "data": self.data.identity(),
            "images": self.data.content(),
            "decided": self.decided,
            "progress": {**asdict(replace(progress, totals=torch.zeros(0))), "totals": progress.totals.cpu()},
            "commitment": asdict(self.commitment) if self.commitment else None,
            "network": state_of(trainer.network),
            "momentum": {k: v.cpu() for k, v in _momentum(trainer).items()},
            "theta": trainer.theta.state_dict() if trainer.theta else None,
            "torch_rng": own[0],
            "cuda_rng": own[1],
        }
        if here.size > 1:
            state["random"] = gathered(own)
        for name, tensor in [*state["network"].items(), *state["momentum"].items()]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
                trainer.fail(f"{name} is not finite any more")
        from_first(lambda: self.records.save(progress.step, state) if self.records else None)
        self.saved_at = time.monotonic()

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        trainer.network.load_state_dict(state["network"])
        self.decided = state["decided"]
        if self.decided and trainer.relaxed:
            trainer.relaxed.settle({row["key"]: row["choice"] for row in self.decided["decisions"]})
        for name, parameter in trainer.weights.named_parameters():
            if name in state["momentum"]:
                buffer = torch.empty_like(parameter).copy_(state["momentum"][name])
                trainer.optimizer.state[parameter]["momentum_buffer"] = buffer
        if trainer.theta:
            trainer.theta.load_state_dict(state["theta"])
        for name, value in state["progress"].items():
            setattr(trainer.progress, name, value)
        trainer.settle(trainer.progress.step)
        trainer.progress.totals = trainer.progress.totals.to(trainer.device, trainer.wide)
        here = world()
        if here.size > 1 and len(state.get("random", ())) == here.size:
            torch_state, cuda_states = state["random"][here.rank]
        elif here.first:
            torch_state, cuda_states = state["torch_rng"], state["cuda_rng"]
        else:
            return  # of a run of fewer processes: this one draws anew, from its own stream
        torch.set_rng_state(torch_state)
        if cuda_states and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(cuda_states)


_DECIDED = ("gates", "choice", "margin", "reason", "others", "by")


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
    if reach >= 0.5 or config.theta_optimizer != "adam" or config.judge != "theta":
        return ""
    who = "the budget will choose, not theta" if config.is_limited else "theta will hardly change one"
    epochs = math.ceil(config.architecture_epochs * ENOUGH_REACH / reach)
    if config.lr_theta == "auto" and rate < FASTEST_THETA:  # a reach that was asked for, whatever the steps
        advice = f"take a theta_reach of {ENOUGH_REACH:g} or more"
    else:
        magnitude = 10.0 ** math.floor(math.log10(ENOUGH_REACH / steps))
        faster = min(math.ceil(ENOUGH_REACH / steps / magnitude) * magnitude, FASTEST_THETA)
        advice = f"take about {epochs} architecture epochs"
        advice += f", or lr_theta {faster:g}" if faster > rate else ""
    moves = f"lr_theta {rate:.3g} x {steps} steps moves theta by about {reach:.2g}"
    return f"{moves}, and a choice changes at 0.5: {who}; {advice}"


def _rows_of(decisions: Iterable[Decision]) -> list[dict[str, Any]]:
    """Decisions as they are kept with a checkpoint."""
    return [{"key": d.edge.key, **{k: getattr(d, k) for k in _DECIDED}} for d in decisions]


def _decisions_from(rows: Iterable[Mapping[str, Any]], edges: Iterable[Edge]) -> tuple[Decision, ...]:
    """The inverse of `_rows_of`."""
    by_key = {edge.key: edge for edge in edges}
    return tuple(
        Decision(
            by_key[row["key"]],
            tuple(row["gates"]),
            row["choice"],
            row["margin"],
            row["reason"],
            tuple((name, gate) for name, gate in row.get("others", ())),
            row.get("by", "theta"),
        )
        for row in rows
    )


def _random_state() -> tuple[Tensor, list[Tensor]]:
    """The state of torch's global generators, of the CPU and of each GPU."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _momentum(trainer: Trainer) -> dict[str, Tensor]:
    """SGD's momentum by the parameters' names, which outlast the change of the network."""
    found = {}
    for name, parameter in trainer.weights.named_parameters():
        buffer = trainer.optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            found[name] = buffer
    return found
