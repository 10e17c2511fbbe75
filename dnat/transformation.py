"""The whole story as one call: `transform(network, data, config) -> Transformation`.

    plan -> relax -> architecture stage -> decide -> discretize -> network stage -> result

`train` is its twin for the comparison: the untouched network, with the same images and the same recipe.
"""

import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from .answers import count_of
from .attachment import Architecture
from .costs import Latency, cost, latencies
from .data import Source
from .decision import judge_of, price_of
from .discretization import discretization
from .distributed import from_first
from .edges import Tally
from .loop import Listeners, Loop, Stop, peak_memory, row_of
from .planning import Plan, Times, make_plan
from .records import Records
from .results import Commitment, Transformation
from .rundir import LATENCIES, SENSITIVITY
from .sensitivity import retake_statistics
from .session import Checked, Session, session
from .settings import Config
from .state import RunState, newest
from .tasks import Task
from .tracing import copied
from .tracking import Tracker
from .training import (
    ArchitectureStage,
    Interrupted,
    Progress,
    Trainer,
    burden,
    evaluate,
    is_dead,
    learning_rate,
    short_stage,
)


def transform(
    network: nn.Module | str,
    data: Source | str,
    config: Config | None = None,
    *,
    task: Task | str | None = None,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Stop | None = None,
    progress: bool | None = None,
    checked: Checked | None = None,
) -> Transformation:
    """Train a network, transform it, and train it on, in one run.

    The network that is given is left unchanged.

    Args:
        network: any module that maps the data's inputs to what the task takes (by default images (N, C, H, W) to
            class scores (N, classes)), or a name for `dnat.build`.
        data: from `dnat.load`, `Data.from_tensors` or `dnat.from_loaders`, or a name for `dnat.load`.
        config: the method's settings; `Config()` by default.
        task: the loss and the metrics; by default classification. See `dnat.tasks`.
        records: a run directory to write to; a run that was stopped there goes on, and ends with the same bits.
        tracker: is told of progress; see `dnat.Tracker`.
        stop: asked after each batch; when it says yes, the run saves and raises `Interrupted`.
        progress: whether to show a line of it; by default on a terminal and in a notebook.
        checked: what `session.check` gave for the same arguments.

    Raises:
        ValueError: a network or data that cannot be used, before anything is trained.
        NonFiniteError: the loss is not finite any more; the last checkpoint is good.
    """
    listeners = Listeners.of(records, tracker, stop)
    with session(network, data, config, task, checked) as given, listeners.showing(progress) as listeners:
        run = Run(given, listeners, planned(given, records, checked.plan if checked else None))
        if run.architecture is not None:
            run.transform()
        run.train(until=given.config.training.epochs)
        return run.result()


def train(  # noqa: PLR0913 (those of `transform`, and the teacher)
    network: nn.Module | str,
    data: Source | str,
    config: Config | None = None,
    *,
    task: Task | str | None = None,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Stop | None = None,
    progress: bool | None = None,
    teacher: nn.Module | None = None,
    checked: Checked | None = None,
) -> Transformation:
    """Train the untouched network for `epochs`, with the images and the recipe that `transform` uses.

    Arguments, result and errors are those of `transform`.

    Args:
        network, data, config, task, records, tracker, stop, progress, checked: see `transform`.
        teacher: the network whose answers `distillation` weighs; by default the network as it was given.
    """
    listeners = Listeners.of(records, tracker, stop)
    with session(network, data, config, task, checked) as given, listeners.showing(progress) as listeners:
        run = Run(given, listeners, teacher=teacher)
        run.train(until=given.config.training.epochs)
        return run.result()


def planned(given: Session, records: Records | None, plan: Plan | None = None) -> Plan:
    """What may change, within what; times of operations are measured once in a run and kept with it.

    Args:
        given: what the run works with.
        records: where times are kept.
        plan: where it is known already; not that of a run that has times of its own.
    """
    known = from_first(lambda: records.kept(LATENCIES) if records else None)
    if known or plan is None:
        times = Times(**known) if known else None
        plan = make_plan(given.original, given.program, given.example, given.config, times)
    if records and plan.times and not known:
        records.keep(LATENCIES, asdict(plan.times))
    return plan


def measured_before(given: Session) -> dict[str, Any]:
    """What a run tells of the network as it was given: fields of `Transformation`."""
    return {
        "cost_before": cost(given.original, given.example, batch=count_of(given.example)),
        "before": evaluate(given.original, given.held_out, given.config, task=given.task),
    }


def timed(given: Session, network: nn.Module) -> dict[str, Any]:
    """The times of the original and of a network for a batch of the counted size: fields of `Transformation`."""
    batch = given.data.example(given.config.limit.latency_batch)
    before, after = from_first(lambda: latencies([given.original, network], batch))
    return {"latency_before": before, "latency_after": after}


class Run:
    """A run from where its newest checkpoint stands, or from its beginning.

    Args:
        given: what it works with.
        listeners: who hears of it.
        plan: what may change; without one the network is only trained.
        teacher: from which it learns; by default the network as it was given.

    Attributes:
        state: where it stands.
        loop: when it saves and stops.
    """

    def __init__(
        self, given: Session, listeners: Listeners, plan: Plan | None = None, teacher: nn.Module | None = None
    ) -> None:
        self.given, self.listeners, self.plan = given, listeners, plan
        self.before = measured_before(given)
        taught = copied(given.original if teacher is None else teacher).to(given.data.device)
        self.teacher = taught.eval().requires_grad_(False) if given.config.training.teaches else None
        self.loop = Loop(listeners, self._save)
        checkpoint = newest(listeners.records, given)
        self.state = self._begun(checkpoint)
        if checkpoint is not None:
            self.state.restore(checkpoint)
            self.loop.goes_on()
        elif self.architecture:
            self._foretell(self.architecture)

    @property
    def architecture(self) -> Architecture | None:
        """Theta's part, until the choices are made."""
        return self.state.architecture

    def _begun(self, checkpoint: Mapping[str, Any] | None) -> RunState:
        """The stage in which a checkpoint was written, or the first one, at its beginning."""
        given = self.given
        if self.plan is None:
            return RunState(self._trainer(given.original, Progress()))
        if checkpoint is None or checkpoint["commitment"] is None:
            return self._relaxed(self.plan)
        commitment = Commitment.from_table(checkpoint["commitment"])
        compact = discretization(given.original, commitment.choices, given.example, given.program).network
        return RunState(self._trainer(compact, Progress()), commitment=commitment)

    def _relaxed(self, plan: Plan) -> RunState:
        given, config = self.given, self.given.config
        relaxed = plan.relaxed(given.original, config)
        stage = ArchitectureStage(
            relaxed, config, given.data.steps(config.training.batch_size), plan.costs, plan.limit
        )
        trainer = self._trainer(given.original, Progress(), stage)
        records = self.listeners.records

        def judged() -> Any:
            path = records.path(SENSITIVITY) if records else None
            return judge_of(
                given, relaxed, plan, epoch=trainer.progress.epoch, path=path, kept=self._stop_measuring
            )

        return RunState(trainer, Architecture(stage, plan, given.example, judged, price_of(given, plan)))

    def _trainer(self, network: nn.Module, progress: Progress, stage: ArchitectureStage | None = None) -> Trainer:
        given = self.given
        return Trainer(
            network, given.data, given.config, progress, task=given.task, stage=stage, teacher=self.teacher
        )

    def _foretell(self, architecture: Architecture) -> None:
        """Tell what can be known of the architecture stage before it begins."""
        given, trainer = self.given, self.state.trainer
        if not given.config.training.architecture_epochs:
            return
        text = short_stage(given.config, trainer.batches)
        if text:
            warnings.warn(text, stacklevel=5)
        if next(architecture.relaxed.added_parameters(), None) is not None:
            taken = burden(given.original, architecture.relaxed, given.data, given.config, given.task)
            self.listeners.tracker.burden(taken)

    def _stop_measuring(self) -> None:
        stop = self.listeners.stop
        if stop and stop(self.state.trainer.progress):
            raise Interrupted("stopped while choices were tried; what was measured is kept")

    def _save(self) -> None:
        records = self.listeners.records
        if from_first(lambda: records is None):
            return
        checkpoint = self.state.checkpoint(self.given)
        step = self.state.trainer.progress.step
        from_first(lambda: records.save(step, checkpoint) if records else None)

    def transform(self) -> None:
        """Train weights and theta until the architecture stage ends, and make the choices.

        Raises:
            Interrupted, NonFiniteError: see `transform`.
        """
        architecture, trainer = self.architecture, self.state.trainer
        assert architecture is not None
        # A run that was stopped after an epoch's last batch has that epoch still to close.
        while architecture.stage.step < architecture.stage.last or trainer.progress.batch:
            self._epoch()
        self.commit()

    def train(self, until: int) -> None:
        """Train in the present stage until so many epochs are done.

        Raises:
            Interrupted, NonFiniteError: see `transform`.
        """
        while self.state.trainer.progress.epoch < until:
            self._epoch()

    def _epoch(self) -> None:
        trainer, config, data = self.state.trainer, self.given.config, self.given.data
        progress, name = trainer.progress, trainer.stage_name
        self.listeners.tracker.epoch(name, progress, trainer.batches, config.training.epochs)
        started, first, before = time.monotonic(), progress.batch, progress.seconds[name]
        for _ in trainer.epoch():
            progress.seconds[name] = before + time.monotonic() - started
            self.listeners.tracker.batch(progress)
            if self.architecture:
                self.architecture.settle_when_due()
            self.loop.pause(progress, f"epoch {progress.epoch}, batch {progress.batch}")
        size = getattr(data, "batch_size", None) or config.training.batch_size  # that of a DataLoader
        examples = min(progress.batch * size, data.train_count) - first * size
        rate = learning_rate(config.training, progress.step - 1, trainer.steps)
        if self.architecture:
            self.architecture.end_when_stable(config.training.patience)
        trained = trainer.close_epoch()
        with trainer.averaged():
            tested = evaluate(trainer.network, data, config, task=self.given.task)
        taken = time.monotonic() - started
        progress.seconds[name] = before + taken
        row = row_of(progress, name, rate, trained=trained, tested=tested, watched=self.given.watched)
        row |= {"seconds": round(taken, 3), "images_per_second": round(examples / taken, 1)}
        row |= {"memory": peak_memory(next(trainer.network.parameters()).device)}
        if self.architecture:
            relaxed = self.architecture.relaxed
            row |= {"gates": relaxed.gates().tolist(), "columns": list(relaxed.columns)}
        self.loop.log(row, self.listeners.tracker.log)

    def commit(self) -> None:
        """Make the choices: the relaxed network becomes a plain one, optimizer and learning rate go on."""
        given, started, old = self.given, time.monotonic(), self.state.trainer
        architecture = self.architecture
        assert architecture is not None
        compact = architecture.finish()
        if given.config.limit.begins_compact:  # as the answers were judged
            retake_statistics(compact, given.data, given.config.seed)
        trainer = self._trainer(compact, old.progress)
        architecture.hand_over(old.optimizer, trainer.optimizer)
        if old.ema:
            trainer.ema = old.ema.carried(compact, architecture.cut)
        with old.averaged():
            relaxed = evaluate(architecture.relaxed, given.data, given.config, task=given.task)
        with trainer.averaged():
            measured = evaluate(compact, given.data, given.config, task=given.task)
        report, epoch = architecture.report, old.progress.epoch
        commitment = Commitment(**vars(report), epoch=epoch, relaxed=relaxed, compact=measured)
        self.state = RunState(trainer, commitment=commitment)
        old.progress.seconds["architecture"] += time.monotonic() - started
        self.listeners.tracker.committed(Tally.of((edge.kind, edge.choice) for edge in commitment.edges))

    def result(self) -> Transformation:
        """What the run came to."""
        given, trainer = self.given, self.state.trainer
        network = trainer.network.eval()
        if trainer.ema:
            trainer.ema.copy_to(network)
        times = timed(given, network)
        return Transformation(
            network=network,
            commitment=self._commitment(**times),
            history=self.loop.history,
            cost_after=cost(network, given.example, batch=count_of(given.example)),
            test=evaluate(network, given.held_out, given.config, task=given.task),
            seconds=trainer.progress.seconds,
            dead=is_dead(network, given.data, task=given.task),
            watched=given.watched,
            directions=dict(given.task.metrics),
            **self.before,
            **times,
        )

    def _commitment(self, latency_before: Latency, latency_after: Latency) -> Commitment | None:
        """The choices, with a note where the result takes longer than its time budget, as measured in the end."""
        commitment, plan = self.state.commitment, self.plan
        if commitment is None or plan is None or plan.times is None or plan.limit is None:
            return commitment
        taken = latency_after.seconds
        excess = plan.costs.total * taken / latency_before.seconds / plan.limit - 1
        if excess <= TOLERANCE:
            return commitment
        text = f"the network takes {taken * 1e3:.2f} ms in the end, {excess:.0%} more than its time budget"
        return replace(commitment, notes=(*commitment.notes, text))


TOLERANCE = 0.03
"""By what share of a time budget a result may exceed it without a note: two measurements differ by as much."""
