"""The loop of a sweep: trials are started while there is room, and what became of each is noted at once."""

import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from ...errors import DnatError, UsageError
from ...naming import names_code
from ...settings import cores
from ..metrics import Measured
from .cluster import Cluster, import_ray
from .directory import SWEEP, Standing, SweepDirectory, SweepFiles, continued, read
from .forkserver import THERE_ARE_FORKS, ForkServer
from .local import ANY_GPU, Local, visible_gpus
from .preflight import check_networks
from .settings import Sweep, Trial, plan, resolve
from .timing import measure
from .trials import Attempt, Outcome, progress, trial_command

_REFUSED = 2
"""The exit code of a trial that cannot be done: its network, data or settings are wrong, whatever the seed."""

TICK = 0.2
"""Seconds between two looks at the trials."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a sweep is carried out; no bit of its results depends on it.

    Attributes:
        engine: "local", or "ray".
        jobs: trials at a time; by default one, with all cores, and with Ray as many as there is room for.
        address: of a running Ray cluster.
        retries: how often an interrupted trial is resumed at once; by default never, with Ray three times.
        retry_failed: whether failed trials are done again.
        download: whether a data set that is missing is fetched.
        wandb: mode of Weights & Biases for each trial; None leaves it to the trial.

    Raises:
        ValueError: out of range, or not for this engine.
    """

    engine: Literal["local", "ray"] = "local"
    jobs: int | None = None
    address: str | None = None
    retries: int | None = None
    retry_failed: bool = False
    download: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.engine not in ("local", "ray"):
            raise UsageError(f"engine must be local or ray, not {self.engine!r}")
        if self.address is not None and self.engine != "ray":
            raise UsageError(f"address {self.address!r} is for engine ray")
        if self.jobs is not None and self.jobs < 1:
            raise UsageError(f"jobs must be at least 1, not {self.jobs}")
        if self.retries is not None and self.retries < 0:
            raise UsageError(f"retries must be at least 0, not {self.retries}")

    @property
    def resumed_at_once(self) -> int:
        """How often an interrupted trial is resumed in the same call."""
        return self.retries if self.retries is not None else 3 if self.engine == "ray" else 0


@dataclass(frozen=True)
class Live:
    """A trial that runs now.

    Attributes:
        seconds: since this attempt began.
        epochs: that it will take, without a search.
        stage: "search", "architecture" or "network"; empty before the first epoch.
        epoch: epochs done.
        measured: what the last epoch came to.
    """

    seconds: float
    epochs: int
    stage: str = ""
    epoch: int = 0
    measured: Measured | None = None


@dataclass(frozen=True)
class View:
    """A sweep at a moment, for whoever watches it.

    Attributes:
        standings: of all trials.
        live: the running ones, by name.
        jobs: trials at a time.
    """

    standings: tuple[Standing, ...]
    live: Mapping[str, Live]
    jobs: int


class Engine(Protocol):
    """Where trials run."""

    jobs: int

    def free(self) -> bool:
        """Whether another trial can be started."""

    def start(self, name: str, attempt: Attempt) -> None:
        """Start a trial."""

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The trials that ended, by name; waits for the first at most so long."""

    def stop(self) -> None:
        """Ask all trials to save and stop."""

    def close(self) -> None:
        """End what still runs."""


def prepare(
    given: Sweep, directory: str | Path, jobs: int | None, notify: Callable[[str], None] = lambda text: None
) -> tuple[Sweep, tuple[Trial, ...]]:
    """A sweep as its directory already has it, or as it is begun there, and its trials; nothing is written.

    Args:
        given: what was asked for.
        directory: of the sweep.
        jobs: trials at a time, among which the cores are divided where no number of threads is given.
        notify: is given what the user should know.

    Raises:
        ValueError: something is wrong with some trials; every mistake is listed.
    """
    meant = continued(given, directory)
    try:
        sweep = resolve(meant, jobs or 1)
        trials = plan(sweep)
    except DnatError as error:
        if given.settings or not SweepFiles(directory).is_sweep():
            raise
        raise type(error)(f"{SweepFiles(directory).path / SWEEP}: {error}") from error
    kept, usual = sweep.settings["threads"], max(1, cores() // (jobs or 1))
    if "threads" in meant.settings and "threads" not in given.settings and jobs and kept != usual:
        notify(f"threads = {kept} stays for each trial, as the sweep began with it: results depend on it")
    return sweep, trials


def run_sweep(
    given: Sweep,
    directory: str | Path,
    options: Options | None = None,
    *,
    watch: Callable[[View], None] = lambda view: None,
    stop: Callable[[], bool] = lambda: False,
    notify: Callable[[str], None] = lambda text: None,
) -> tuple[Standing, ...]:
    """Carry a sweep out in a directory, or go on with it.

    Trials that are done are not done again, interrupted ones are resumed from their checkpoints. One that fails
    stops no other. Each is a process of its own, in the present working directory.

    Args:
        given: networks, methods, seeds and settings. Where the directory holds a sweep already, lists that are not
            given are taken from there, and settings where none are given; other settings are refused.
        directory: of the sweep; made when it is missing.
        options: how it is carried out.
        watch: is shown how the sweep stands, several times a second.
        stop: asked as often whether all trials are to save and stop.
        notify: is given what the user should know.

    Returns:
        How each trial stands in the end.

    Raises:
        ValueError: a sweep that cannot be done; nothing was started then, and every mistake is listed.
        LockedError: another process works in the directory, or it cannot be written.
        RayError: Ray is asked for and cannot be used.

    >>> sweep = Sweep(networks=("resnet8",), methods=("original", "dnat-full"), seeds=(0, 1))
    >>> [trial.name for trial in plan(resolve(sweep))]  # doctest: +NORMALIZE_WHITESPACE
    ['resnet8-original-seed0', 'resnet8-dnat-full-seed0', 'resnet8-original-seed1', 'resnet8-dnat-full-seed1']
    """
    options = options or Options()
    sweep, trials = prepare(given, directory, options.jobs, notify)
    if options.engine == "ray":
        import_ray()  # so that nothing is written where it is missing
    if options.download:
        _download(trials, notify)
    with ExitStack() as stack:
        server = stack.enter_context(ForkServer()) if THERE_ARE_FORKS else None
        if options.engine == "local":  # another machine may have what is missing here
            check_networks(_new(trials, directory), stop, server)
        opened = stack.enter_context(SweepDirectory.open(directory, sweep, trials, notify))
        found = _Loop(opened, options, watch, stop, server).run()
        beside = options.engine == "local" and (options.jobs or 1) > 1
        if beside and (problem := measure([s.directory for s in found if s.state == "done"], stop, server)):
            notify(problem)
        return found


def write_plan(
    given: Sweep, directory: str | Path, options: Options, notify: Callable[[str], None] = lambda text: None
) -> tuple[tuple[Standing, ...], list[Standing]]:
    """Make a sweep's directory, so that its trials can be started by hand, and start nothing.

    Args:
        given, directory, options, notify: as for `run_sweep`.

    Returns:
        How all trials stand, and those that are left to be carried out.
    """
    sweep, trials = prepare(given, directory, options.jobs, notify)
    with SweepDirectory.open(directory, sweep, trials, notify) as opened:
        found = opened.standings()
    return found, selected(found, options.retry_failed)


def _new(trials: Iterable[Trial], directory: str | Path) -> list[Trial]:
    """The trials of networks of which none has begun in the sweep's directory."""
    begun = {s.network for s in (read(directory) if SweepFiles(directory).is_sweep() else ()) if s.attempts}
    return [trial for trial in trials if trial.network not in begun]


def _download(trials: Iterable[Trial], notify: Callable[[str], None]) -> None:
    """Fetch what is missing once, before several trials would do so at a time."""
    from ..runs import load_data

    named = (t.job for t in trials if ":" not in t.job.data)  # only trials import users' modules
    for job in {(job.data, job.data_root): job for job in named}.values():
        load_data(job, download=True, notify=notify)


def selected(standings: Iterable[Standing], retry_failed: bool = False) -> list[Standing]:
    """The trials that a call carries out: the interrupted ones first, then the others in order."""
    wanted = ("interrupted", "pending", "running", *(["failed"] if retry_failed else []))
    return sorted((s for s in standings if s.state in wanted), key=lambda s: s.state != "interrupted")


class _Loop:
    """A sweep while it runs."""

    def __init__(
        self,
        opened: SweepDirectory,
        options: Options,
        watch: Callable[[View], None],
        stop: Callable[[], bool],
        server: ForkServer | None,
    ) -> None:
        self.opened, self.options, self.watch, self.stop, self.server = opened, options, watch, stop, server
        self.jobs = {trial.name: trial.job for trial in opened.trials}
        self.standings = {standing.name: standing for standing in opened.standings()}
        self.began: dict[str, float] = {}
        self.looked: dict[str, tuple[float, Live]] = {}

    def run(self) -> tuple[Standing, ...]:
        waiting = deque(s.name for s in selected(self.standings.values(), self.options.retry_failed))
        resumed: dict[str, int] = {}
        if waiting:
            engine = self._engine()
            try:
                self._drive(engine, waiting, resumed)
            finally:
                engine.close()
        self._show(0)
        return tuple(self.standings.values())

    def _drive(self, engine: Engine, waiting: deque[str], resumed: dict[str, int]) -> None:
        stopping = False
        while waiting or self.began:
            if not stopping and self.stop():
                stopping = True
                engine.stop()
                waiting.clear()
            while waiting and engine.free():
                self._start(engine, waiting.popleft())
                self._show(engine.jobs)
            for name, outcome in engine.ended(TICK):
                self._end(name, outcome)
                if outcome.state == "failed" and outcome.exit_code == _REFUSED:
                    self._hold_back(name, waiting)
                again = resumed.get(name, 0) < self.options.resumed_at_once
                if outcome.state == "interrupted" and again and not stopping:
                    resumed[name] = resumed.get(name, 0) + 1
                    waiting.appendleft(name)
            self._show(engine.jobs)

    def _hold_back(self, refused: str, waiting: deque[str]) -> None:
        """Do not start the trials that differ from a refused one in their seeds alone: all would be refused."""
        first = self.standings[refused]
        for name in [*waiting]:
            other = self.standings[name]
            if (other.network, other.method) == (first.network, first.method):
                waiting.remove(name)
                self.opened.refuse(name, first.reason)
                self.standings[name] = replace(other, state="failed", exit_code=_REFUSED, reason=first.reason)

    def _engine(self) -> Engine:
        options = self.options
        wants_gpu = any(job.config.machine.device in ANY_GPU for job in self.jobs.values())
        if options.engine == "local":
            return Local(options.jobs or 1, visible_gpus(os.environ) if wants_gpu else (), self.server)
        threads = int(self.opened.sweep.settings["threads"])
        return Cluster(
            self.opened.stop_file, threads=threads, jobs=options.jobs, address=options.address, wants_gpu=wants_gpu
        )

    def _start(self, engine: Engine, name: str) -> None:
        number, standing = self.opened.begin(name), self.standings[name]
        self.standings[name] = replace(standing, state="running", attempts=number, exit_code=None, reason="")
        self.began[name] = time.monotonic()
        place = standing.directory
        file = str(self.opened.job_file(name))
        arguments = trial_command(
            file,
            str(place),
            download=self.options.download,
            trusted=names_code(self.jobs[name].flat()),
            wandb=self.options.wandb,
        )
        attempt = Attempt(
            arguments=tuple(arguments),
            folder=os.getcwd(),
            directory=str(place.resolve()),
            log=str(standing.log.resolve()),
            number=number,
            device=self.jobs[name].config.machine.device,
        )
        engine.start(name, attempt)

    def _end(self, name: str, outcome: Outcome) -> None:
        seconds = self.opened.end(name, outcome)
        self.began.pop(name)
        self.looked.pop(name, None)
        standing = self.standings[name]
        self.standings[name] = replace(
            standing,
            state=outcome.state,
            exit_code=outcome.exit_code,
            reason=outcome.reason,
            seconds=seconds,
        )

    def _show(self, jobs: int) -> None:
        live = {name: self._look(name) for name in self.began}
        self.watch(View(tuple(self.standings.values()), live, jobs))

    def _look(self, name: str) -> Live:
        """How far a trial is; its files are read once a second."""
        now = time.monotonic()
        when, live = self.looked.get(name, (-math.inf, Live(0.0, self.jobs[name].config.training.epochs)))
        if now - when >= 1:
            found = progress(self.standings[name].directory)
            if found:
                live = replace(live, stage=found[0], epoch=found[1], measured=found[2])
            self.looked[name] = now, live
        return replace(live, seconds=now - self.began[name])


def remaining(view: View) -> float | None:
    """Seconds that a sweep will still take, by what its trials have taken so far; None where nothing is known.

    A trial is expected to take what the done ones of its network and method took on average, or of its network, or
    of all; trials run `view.jobs` at a time.
    """
    done = [s for s in view.standings if s.state == "done" and s.seconds > 0]
    if not done or not view.jobs:
        return None
    left, longest = 0.0, 0.0
    for standing in view.standings:
        if standing.state not in ("pending", "running"):
            continue
        expected = _expected(standing, done)
        if standing.name in view.live:
            expected = max(0.0, expected - standing.seconds - view.live[standing.name].seconds)
        left += expected
        longest = max(longest, expected)
    return max(longest, left / view.jobs)


def _expected(standing: Standing, done: list[Standing]) -> float:
    alike = [s for s in done if (s.network, s.method) == (standing.network, standing.method)]
    of_network = [s for s in done if s.network == standing.network]
    return statistics.mean(s.seconds for s in alike or of_network or done)
