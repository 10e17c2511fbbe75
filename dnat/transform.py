"""The whole story as one call: `transform(network, data, config) -> Transformation`.

    trace -> edges -> relax -> architecture stage -> select -> discretize -> network stage

`train` is its twin for the comparison: the untouched network, with the same images and the same recipe.
"""

import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .config import Config
from .cost import Cost, cost
from .data import Data, load
from .discretization import discretization
from .edges import ORIGINAL, find_edges
from .networks import accepts, build
from .records import Records
from .relaxation import RelaxedNetwork, relax
from .seeds import Stream, torch_seed
from .selection import decide
from .tracing import Program, copied, trace
from .tracking import Tracker
from .training import (
    Evaluation,
    Interrupted,
    Progress,
    Trainer,
    batches_per_epoch,
    evaluate,
    learning_rate,
    scores,
    theta_rate,
    weight_optimizer,
)

SAVE_SECONDS = 30.0
"""A checkpoint is written at the end of each epoch, and when this long has passed since the last one."""


@dataclass(frozen=True)
class EdgeReport:
    """What became of one edge; `gates` are g(theta) for none (a threshold), identity and original.

    Attributes:
        margin: how far the choice's gate was ahead of the next legal one.
        reason: why the choice is not the one with the largest gate, or could not be carried out.
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
    reason: str = ""


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
    """

    epoch: int
    relaxed: Evaluation
    compact: Evaluation
    edges: tuple[EdgeReport, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def choices(self) -> dict[str, str]:
        """{edge key: choice}."""
        return {edge.key: edge.choice for edge in self.edges}

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Commitment":
        """The inverse of `dataclasses.asdict`, from JSON or a checkpoint."""
        tuples = {"shape_in", "shape_out", "gates"}
        rows: list[dict[str, Any]] = [
            {k: tuple(v) if k in tuples else v for k, v in edge.items()} for edge in table["edges"]
        ]
        return cls(
            epoch=table["epoch"],
            relaxed=Evaluation(**table["relaxed"]),
            compact=Evaluation(**table["compact"]),
            edges=tuple(EdgeReport(**row) for row in rows),
            removed=tuple(table["removed"]),
            notes=tuple(table["notes"]),
        )


@dataclass(frozen=True)
class Transformation:
    """The result of a run.

    Attributes:
        network: the trained, plain network, on the device of the run, in eval mode.
        commitment: what became of each edge; None where the network was only trained.
        history: one row an epoch: losses, accuracies, learning rate, gates, seconds.
        cost_before, cost_after: parameters and multiply-adds.
        test: loss and accuracy of the result on the test images.
        seconds: time spent in each stage.
    """

    network: nn.Module
    commitment: Commitment | None
    history: list[dict[str, Any]]
    cost_before: Cost
    cost_after: Cost
    test: Evaluation
    seconds: dict[str, float]

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
            "train_accuracy": last.get("train_accuracy"),
            "train_loss": last.get("train_loss"),
            "cost_before": asdict(self.cost_before),
            "cost_after": asdict(self.cost_after),
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
    run = _Run(*_named(network, data, config), records, tracker or Tracker(), stop)
    return run.to_end(transforming=True)


def train(
    network: nn.Module | str,
    data: Data | str,
    config: Config | None = None,
    *,
    records: Records | None = None,
    tracker: Tracker | None = None,
    stop: Callable[[Progress], bool] | None = None,
) -> Transformation:
    """Train the untouched network for `config.epochs`, with the images and the recipe that `transform` uses.

    Arguments, result and errors are those of `transform`.
    """
    run = _Run(*_named(network, data, config), records, tracker or Tracker(), stop)
    return run.to_end(transforming=False)


def _named(network: nn.Module | str, data: Data | str, config: Config | None) -> tuple[nn.Module, Data, Config]:
    """Networks and data sets that were given by name, made; weights come from the configuration's seed."""
    config = config or Config()
    data = load(data) if isinstance(data, str) else data
    if not isinstance(data, Data):
        kind = type(data).__name__
        raise TypeError(f"data must be a dnat.Data or a name, not {kind}: see dnat.load and Data.from_tensors")
    if isinstance(network, str):
        classes = {"num_classes": data.num_classes} if accepts(network, "num_classes") else {}
        network = build(network, seed=config.seed, **classes)
    if not isinstance(network, nn.Module):
        raise TypeError(f"a network must be a torch.nn.Module or a name, not {type(network).__name__}")
    return network, data, config


METHODS = {"dnat": transform, "original": train}
"""The methods by name; all have one signature."""


def check(network: nn.Module, data: Data, config: Config, *, transforming: bool = True) -> None:
    """Find out what can be known to fail, before anything is trained or written.

    Raises:
        ValueError, TypeError: see `transform`.
    """
    batches_per_epoch(len(data.train_labels), config)
    choose_device(config.device)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    example = data.example(2).to(device)
    program = trace(network, example)
    if transforming and not find_edges(program, config.space):
        raise ValueError(f"{type(network).__name__} has no operation that could be changed")
    with torch.no_grad():
        classes = scores(copied(network).eval()(example)).shape[1]
    if classes < data.num_classes:
        raise ValueError(f"the network tells {classes} classes apart, but {data.name} has {data.num_classes}")
    weight_optimizer(network, config)


def weights_digest(network: nn.Module) -> str:
    """A SHA-256 over names, shapes and bits of a network's state."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
        raise ValueError(f"device {name!r} is not one that torch knows: auto, cpu, cuda, cuda:1, mps") from error
    there = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise ValueError(f"there is no device {name!r} here; use --device cpu or auto")
    return device


@contextmanager
def reproducible(config: Config) -> Iterator[None]:
    """Within, torch computes the same bits at the same seed; what was set before is restored afterwards.

    The number of threads is fixed, since sums over several threads are rounded otherwise; the global random state,
    which dropout draws from, is set from the seed.
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
        with torch.random.fork_rng(devices=list(devices)):
            torch.manual_seed(torch_seed(config.seed, Stream.TRAINING))
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
    saved_at: float = 0.0

    def to_end(self, transforming: bool) -> Transformation:
        with reproducible(self.config):
            return self._to_end(transforming)

    def _to_end(self, transforming: bool) -> Transformation:
        config = self.config
        device = choose_device(config.device)
        original = copied(self.given).to(device).train()
        self.data = self.data.to(device)
        if config.channels_last:
            original = original.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = self.data.example(2)
        program = trace(original, example)
        check(original, self.data, config, transforming=transforming)
        cost_before = cost(original, example)
        self.trainer = self._start(original, program, example, transforming)
        if transforming:
            self._warn_of_short_stage()
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
            cost_after=cost(network, example),
            test=evaluate(network, self.data, config),
            seconds=progress.seconds,
        )

    def _warn_of_short_stage(self) -> None:
        steps = self.trainer.batches * self.config.architecture_epochs
        rate = theta_rate(self.config, self.trainer.batches)
        reach = rate * steps
        if reach < 3:
            cannot = "no choice can change" if reach < 0.5 else "few choices can change"
            warnings.warn(
                f"lr_theta {rate:g} x {steps} steps moves theta by at most {reach:.2g}: {cannot}; "
                f"take more architecture epochs or a larger lr_theta (about {3 / steps:.1g})",
                stacklevel=5,
            )

    def _start(self, original: nn.Module, program: Program, example: Tensor, transforming: bool) -> Trainer:
        """A trainer at the beginning, or where the newest checkpoint stands."""
        newest = self.records.newest() if self.records else None
        state = newest[1] if newest else None
        if state and state["fingerprint"] != program.fingerprint:
            raise ValueError("the run directory holds a run of another network; choose another directory")
        network: nn.Module = original
        if state and state["commitment"]:
            self.commitment = Commitment.from_dict(state["commitment"])
            network = discretization(original, self.commitment.choices, example).network
        elif transforming:
            edges = find_edges(program, self.config.space)
            config = self.config
            network = relax(original, edges, config.mode, config.gate, config.seed)
        trainer = Trainer(network, self.data, self.config, Progress())
        if state and self.records:
            self._restore(trainer, state)
            self.history = self.records.metrics()
        return trainer

    def _epoch(self, program: Program) -> None:
        trainer, progress = self.trainer, self.trainer.progress
        self.tracker.epoch(trainer.stage, progress, trainer.batches, self.config.epochs)
        started, first = time.monotonic(), progress.batch
        before = progress.seconds[trainer.stage]
        for _ in trainer.epoch():
            progress.seconds[trainer.stage] = before + time.monotonic() - started
            self.tracker.batch(progress)
            if self.stop and self.stop(progress):
                self._save(program)
                raise Interrupted(f"stopped after epoch {progress.epoch}, batch {progress.batch}")
            if time.monotonic() - self.saved_at > SAVE_SECONDS:
                self._save(program)
        images = (progress.batch - first) * self.config.batch_size
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
        self.history.append(row)
        if self.records:
            self.records.log(row)
        self.tracker.log(row)
        self._save(program)

    def _commit(self, relaxed: RelaxedNetwork, example: Tensor) -> None:
        """Make the choices: the relaxed network becomes a plain one, momentum and learning rate go on."""
        config, old = self.config, self.trainer
        decisions = decide(relaxed, skip_threshold=config.skip_threshold)
        wanted = {d.edge.key: d.choice for d in decisions}
        made = discretization(relaxed, wanted, example, scales=config.commit)
        trainer = Trainer(made.network, self.data, config, old.progress)
        momentum = _momentum(old)
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
                reason=made.kept.get(d.edge.key, d.reason),
            )
            for d in decisions
        )
        self.commitment = Commitment(
            epoch=old.progress.epoch,
            relaxed=evaluate(relaxed, self.data, config),
            compact=evaluate(made.network, self.data, config),
            edges=reports,
            removed=made.removed,
            notes=tuple(made.notes),
        )
        self.trainer = trainer
        changed = sum(c != ORIGINAL for c in made.choices.values())
        self.tracker.committed(changed, len(made.choices))

    def _save(self, program: Program) -> None:
        if not self.records:
            return
        trainer, progress = self.trainer, self.trainer.progress
        state: dict[str, Any] = {
            "fingerprint": program.fingerprint,
            "progress": {**asdict(replace(progress, totals=torch.zeros(0))), "totals": progress.totals.cpu()},
            "commitment": asdict(self.commitment) if self.commitment else None,
            "network": {k: v.cpu() for k, v in trainer.network.state_dict().items()},
            "momentum": {k: v.cpu() for k, v in _momentum(trainer).items()},
            "theta": trainer.theta.state_dict() if trainer.theta else None,
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        for name, tensor in [*state["network"].items(), *state["momentum"].items()]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                trainer.fail(f"{name} is not finite any more")
        self.records.save(progress.step, state)
        self.saved_at = time.monotonic()

    def _restore(self, trainer: Trainer, state: dict[str, Any]) -> None:
        trainer.network.load_state_dict(state["network"])
        for name, parameter in trainer.weights.named_parameters():
            if name in state["momentum"]:
                buffer = torch.empty_like(parameter).copy_(state["momentum"][name])
                trainer.optimizer.state[parameter]["momentum_buffer"] = buffer
        if trainer.theta:
            trainer.theta.load_state_dict(state["theta"])
        for name, value in state["progress"].items():
            setattr(trainer.progress, name, value)
        trainer.progress.totals = trainer.progress.totals.to(trainer.device, trainer.wide)
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])


def _momentum(trainer: Trainer) -> dict[str, Tensor]:
    """SGD's momentum by the parameters' names, which outlast the change of the network."""
    found = {}
    for name, parameter in trainer.weights.named_parameters():
        buffer = trainer.optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            found[name] = buffer
    return found
