"""A sweep's directory.

    .lock             held by the process that works here
    sweep.toml        networks, methods, seeds and settings, resolved; also a file for --config
    trials/NAME.toml  the job of each trial; also a file for `dnat transform --config`
    trials.json       state, attempts, exit code, reason and seconds of each trial that was started
    logs/NAME.log     what each trial printed, attempt after attempt
    NAME/             the run directory of each trial

Files of the trials themselves win over trials.json: what has a record.json is done, whoever did it.
"""

import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import DataError, DnatError, UsageError
from ...files import atomic_write, read_bytes, read_sealed, refuse_links, sealed, set_aside, write_json
from ...locks import Lock, LockedError, holder, is_held
from ...naming import names_code, unknown
from ...rundir import RECORD, RunFiles, check_name
from ...settings import WHERE, Job, read_toml
from .settings import Sweep, Trial, grid
from .trials import Outcome, State, trial_command

SWEEP = "sweep.toml"
"""The file of a sweep's directory that says what it is for."""


class SweepFiles:
    """What a sweep's directory holds, whether a process works in it or not.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def is_sweep(self) -> bool:
        """Whether this is a sweep's directory."""
        return (self.path / SWEEP).exists()

    def text(self) -> str:
        """What it is for, as TOML; "" where it is no sweep's directory."""
        file = self.path / SWEEP
        if not file.is_file():
            return ""
        self.refuse_links()
        return read_bytes(file).decode("utf-8", "replace")

    def read(self) -> Sweep:
        """What it is for.

        Raises:
            ValueError: it is no sweep's directory; names like it are suggested.
        """
        if not self.is_sweep():
            folder = self.path.parent
            near = [p.parent.name for p in folder.glob(f"*/{SWEEP}")]
            if near and not self.path.exists():
                raise unknown(f"sweep in {folder}", self.path.name, near)
            raise UsageError(f"{self.path} is not a sweep's directory: it has no {SWEEP}")
        self.refuse_links()
        return Sweep.from_table(read_toml(self.path / SWEEP))

    def refuse_links(self) -> None:
        """Refuse a directory with links in it, but for those to trials on other disks; see `dnat.files`."""
        refuse_links(self.path, folders=True)
        for folder in (self.job_file("").parent, self.log("").parent):
            if folder.is_symlink():
                raise DataError(f"{folder} is a link: put a folder in its place")
            refuse_links(folder)

    def read_entries(self) -> dict[str, dict[str, Any]]:
        """What is known of each trial that was started.

        Raises:
            DataError: trials.json is damaged.
        """
        entries = read_sealed(self.entries_file)
        if not all(_is_entry(entry) for entry in entries.values()):
            raise DataError(f"{self.entries_file} holds no trials")
        return entries

    @property
    def entries_file(self) -> Path:
        """The file with what is known of each trial."""
        return self.path / "trials.json"

    @property
    def stop_file(self) -> Path:
        """Stands there while trials, on whatever machine, are to save and stop."""
        return self.path / ".stop"

    def job_file(self, name: str) -> Path:
        """The file with a trial's job."""
        return self.path / "trials" / f"{name}.toml"

    def log(self, name: str) -> Path:
        """What a trial printed."""
        return self.path / "logs" / f"{name}.log"


@dataclass(frozen=True)
class Standing:
    """How a trial stands.

    Attributes:
        name: of its run directory, in the sweep's.
        network, method, seed: as the sweep has them.
        directory: the run directory.
        state: pending, running, done, failed (only done again when asked for) or interrupted (goes on with the
            next call).
        attempts: how often it was started.
        exit_code: of the last attempt; minus the signal's number if one killed it.
        reason: why it failed or was interrupted.
        seconds: of all attempts together.
    """

    name: str
    network: str
    method: str
    seed: int
    directory: Path
    state: State = "pending"
    attempts: int = 0
    exit_code: int | None = None
    reason: str = ""
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The result of a trial that is done."""
        return RunFiles(self.directory).record()

    @property
    def log(self) -> Path:
        """What the trial printed."""
        return SweepFiles(self.directory.parent).log(self.name)


_KEPT = ("state", "attempts", "exit_code", "reason", "seconds")


def read(directory: str | Path) -> tuple[Standing, ...]:
    """How the trials of a sweep stand, whether it is running or not; nothing is written.

    Raises:
        ValueError: it is no sweep's directory; names like it are suggested.
    """
    files = SweepFiles(directory)
    try:
        entries = files.read_entries()
    except DataError:  # their own files tell as much
        entries = {}
    return standings(files.path, files.read(), entries, running=is_held(directory))


def standings(
    directory: Path, sweep: Sweep, entries: Mapping[str, Mapping[str, Any]], running: bool
) -> tuple[Standing, ...]:
    """How trials stand by what is known of them (`entries`, as in trials.json) and by their own files."""
    found = []
    for name, network, method, seed in grid(sweep):
        known = {k: v for k, v in entries.get(name, {}).items() if k in _KEPT}
        standing = Standing(name, network, method, seed, directory / name, **known)
        found.append(_derived(standing, running))
    return tuple(found)


def _derived(standing: Standing, running: bool) -> Standing:
    """The standing by the trial's own files, where they know better."""
    files = RunFiles(standing.directory)
    if files.is_done():
        problem = files.problem()
        return replace(standing, state="failed" if problem else "done", reason=problem)
    if standing.state == "running" and running:
        return standing
    if standing.state == "done":  # somebody deleted the result
        standing = replace(standing, state="pending", reason=f"its {RECORD} is gone")
    if not files.is_run():
        return replace(standing, state="interrupted") if standing.state == "running" else standing
    if is_held(files.directory):
        return replace(standing, state="running", reason="")
    if standing.state in ("failed", "interrupted"):
        return standing
    # Nobody saw it end: it was started by hand, or its sweep was killed.
    state, reason = files.why_unfinished()
    if state == "failed":
        return replace(standing, state="failed", reason=reason)
    return replace(standing, state="interrupted", reason=standing.reason or reason or "its process is gone")


class SweepDirectory(SweepFiles):
    """A sweep's directory, locked for this process. Use it as a context manager.

    Attributes:
        path: the directory.
        sweep: what it holds.
        trials: of the sweep.
    """

    def __init__(self, path: Path, sweep: Sweep, trials: tuple[Trial, ...], notify: Callable[[str], None]) -> None:
        super().__init__(path)
        self.sweep, self.trials = sweep, trials
        self.entries: dict[str, dict[str, Any]] = {}
        self._notify = notify
        self._lock: Lock | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        sweep: Sweep,
        trials: tuple[Trial, ...],
        notify: Callable[[str], None] = lambda text: None,
    ) -> "SweepDirectory":
        """Make a sweep's directory, or open it again for the same settings and at least the same trials.

        A damaged file that can be made again is set aside, which `notify` is told.

        Raises:
            ValueError: it belongs to something else, to other settings, or has trials that `sweep` lacks.
            LockedError: another process works in it, or it cannot be written.
        """
        found = cls(Path(path), sweep, trials, notify)
        check_name(found.path.resolve().name)
        for trial in trials:
            check_name(trial.name)
        found.refuse_links()
        found._check_unless_held()
        try:
            found.path.mkdir(parents=True, exist_ok=True)
            found._lock = Lock(found.path)
            found._check()  # another process may have made it in between
            found._write()
        except BaseException as error:
            found.close()
            if isinstance(error, OSError) and not isinstance(error, LockedError):
                raise LockedError(f"{path} cannot be written: {error.strerror or error}") from error
            raise
        return found

    def _check_unless_held(self) -> None:
        """`_check`; where another process makes the directory at this moment, that is what is wrong."""
        try:
            self._check()
        except UsageError:
            if is_held(self.path):
                raise LockedError(f"{self.path} is in use by {holder(self.path)}") from None
            self._check()  # the other one may have come to its end

    def _check(self) -> None:
        if not self.is_sweep():
            if self.path.exists() and any(not p.name.startswith(".") for p in self.path.iterdir()):
                raise UsageError(
                    f"{self.path} is not empty and not a sweep's directory: choose another one (--out)"
                )
            return
        there = self.read()
        for kind in ("networks", "methods", "seeds"):
            missing = [str(v) for v in getattr(there, kind) if v not in getattr(self.sweep, kind)]
            if missing:
                raise UsageError(
                    f"{self.path} also has the {kind} {', '.join(missing)}: a sweep may grow, not shrink; "
                    "name them, too, or choose another directory (--out)"
                )
        refuse_others(self.path, self.trials)
        known = {trial.name for trial in self.trials}
        lacking = sorted(p.stem for p in self.path.glob("trials/*.toml") if p.stem not in known)
        if lacking:
            raise UsageError(
                f"{self.path / SWEEP} lacks trials that {self.path / 'trials'} has: put back what was there "
                f"({', '.join(lacking[:5])})"
            )

    def _write(self) -> None:
        # First: whatever ends this here, the same command finds that this is its directory.
        _write_if_new(self.path / SWEEP, self.sweep.to_toml())
        for folder in ("trials", "logs"):
            (self.path / folder).mkdir(exist_ok=True)
        for stray in (*self.path.glob(".*.tmp"), *self.path.glob("trials/.*.tmp"), self.stop_file):
            stray.unlink(missing_ok=True)  # of a process that was killed
        for trial in self.trials:
            file = self.job_file(trial.name)
            if os.path.lexists(file) and _job_in(file) is None:
                self._notify(f"{file} is damaged: it is set aside as {set_aside(file)}, and written anew")
            _write_if_new(file, trial.job.to_toml())
        self._take_entries()
        for name, entry in self.entries.items():
            if entry.get("state") == "running":  # its sweep was killed: the trial's own files say how it ended
                self.entries[name] = entry | {"state": "pending"}
        for found in self.standings():
            if found.name in self.entries:
                self.entries[found.name] |= {"state": found.state, "reason": found.reason}
        if self.entries:
            self._save()

    def _take_entries(self) -> None:
        try:
            self.entries = self.read_entries()
        except DataError as error:
            aside = set_aside(self.entries_file)
            self._notify(f"{error}: it is set aside as {aside}, and made again from the trials' own files")

    def __enter__(self) -> "SweepDirectory":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the directory back."""
        if self._lock is not None:
            self.stop_file.unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def standings(self) -> tuple[Standing, ...]:
        """How the trials stand."""
        return standings(self.path, self.sweep, self.entries, running=True)

    def begin(self, name: str) -> int:
        """Note that a trial is started; returns which attempt it is."""
        entry = self.entries.get(name, {})
        attempts = int(entry.get("attempts", 0)) + 1
        self._note(name, entry | {"state": "running", "attempts": attempts, "exit_code": None, "reason": ""})
        return attempts

    def end(self, name: str, outcome: Outcome) -> float:
        """Note how an attempt ended; returns the seconds of all attempts."""
        entry = self.entries[name]
        seconds = round(entry.get("seconds", 0.0) + outcome.seconds, 3)
        self._note(name, entry | asdict(outcome) | {"seconds": seconds})
        return seconds

    def refuse(self, name: str, reason: str) -> None:
        """Note that a trial is not started, since one like it was refused."""
        self._note(name, self.entries.get(name, {}) | {"state": "failed", "exit_code": 2, "reason": reason})

    def _note(self, name: str, entry: dict[str, Any]) -> None:
        self.entries[name] = entry
        self._save()

    def _save(self) -> None:
        write_json(self.entries_file, sealed(self.entries))


def _is_entry(entry: Any) -> bool:
    """Whether this is what trials.json has of a trial."""
    kinds = {"state": str, "attempts": int, "exit_code": int | None, "reason": str, "seconds": int | float}
    return isinstance(entry, dict) and all(isinstance(entry[k], kinds[k]) for k in _KEPT if k in entry)


def _write_if_new(path: Path, text: str) -> None:
    """Files that stay the same keep their times."""
    if not path.is_file() or path.read_bytes() != text.encode():
        atomic_write(path, text.encode())


def _job_in(file: Path) -> Job | None:
    """The job in a file; None where it cannot be read."""
    try:
        return Job.from_flat(read_toml(file))
    except DnatError:
        return None


def refuse_others(directory: Path, trials: Iterable[Trial]) -> None:
    """Refuse trials whose jobs differ from those that stand in a sweep's directory.

    Raises:
        ValueError: with the settings that differ.
    """
    listed: dict[str, str] = {}
    first = ""
    for trial in trials:
        file = SweepFiles(directory).job_file(trial.name)
        there = _job_in(file)
        if there is not None:  # a damaged one is written anew
            for key, (old, now) in there.differences(trial.job).items():
                listed.setdefault(key, f"{key} {_short(old)} (there) / {_short(now)} (now)")
                first = first or str(file)
    if listed:
        raise UsageError(
            f"{directory} holds a sweep with other settings: {', '.join(listed.values())}; choose another "
            f"directory (--out), or put back {first} if it was changed"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def continued(given: Sweep, directory: str | Path) -> Sweep:
    """What is meant by a call for a directory in which a sweep stands already.

    Lists that are not given stay as they are; settings, too, where none are given but where the images lie. The
    number of CPU threads stays in any case, since sums depend on it. Variants that come alone come to those there.
    """
    if not SweepFiles(directory).is_sweep():
        if not given.networks and (Path(directory) / "trials").is_dir():
            raise UsageError(
                f"{Path(directory) / SWEEP} is gone: put it back, or name networks, methods and seeds"
            )
        return given
    there = SweepFiles(directory).read()
    lists = {kind: getattr(given, kind) or getattr(there, kind) for kind in ("networks", "methods", "seeds")}
    if given.methods and {name.partition("@")[0] for name in given.methods} <= given.of_variant.keys():
        lists["methods"] = tuple(dict.fromkeys((*there.methods, *given.methods)))
    if {*given.settings} <= WHERE and not given.of_network and not given.of_method:
        settings = there.settings | given.settings
        variants = there.of_variant | given.of_variant
        return replace(there, **lists, settings=settings, of_variant=variants)
    return replace(given, **lists, settings={"threads": there.settings["threads"]} | given.settings)


def commands(standings: Sequence[Standing], *, download: bool = False, wandb: str | None = None) -> list[str]:
    """One line for a shell for each of some trials; together they do what the sweep would."""
    return [
        shlex.join(
            ["dnat", *trial_command(str(file), str(s.directory), download=download, trusted=trusted, wandb=wandb)]
        )
        for s in standings
        for file in [SweepFiles(s.directory.parent).job_file(s.name)]
        for job in [_job_in(file)]
        for trusted in [job is not None and names_code(job.flat())]
    ]
