"""Who is told of a run's progress. The base class listens and says nothing; `WandbTracker` mirrors a run to W&B.

Weights & Biases gets what stands in the run directory, which stays the truth: rows of search.jsonl and
metrics.jsonl, then the result. Whatever goes wrong there ends the mirror and not the run, and the next one catches
up.
"""

import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from .config import CONTROLS, SEARCHING, WHERE, Job
from .edges import Tally
from .records import atomic_write, read_rows
from .training import Burden, Progress

STATE = "wandb.json"
"""The file of a run directory with the W&B run's id, how many rows it has, and whether it has the result."""

FEW_EDGES = 32
"""With at most so many edges each has numbers of its own in W&B; all stand in the table."""

_SETTINGS: dict[str, Any] = {
    "init_timeout": 30.0,
    "finish_timeout": 60.0,
    "finish_timeout_raises": True,
    "x_transaction_log_flush_interval": 1.0,  # what a killed process loses of its file; 15 by default
    "console": "off",
    "silent": True,
    # Nothing of the machine, the command line or the code goes along.
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "save_code": False,
    "host": "",
    "program": "dnat",
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""Settings of W&B where the user's environment says nothing else."""

_BY_EPOCH = ("epoch", "step", "lr", "train_*", "test_*", "seconds", "images_per_second", "gates/*")


class Tracker:
    """Told of progress; every method may be left as it is."""

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """An epoch begins, or goes on after a resume; `stage` is "search", "architecture" or "network"."""

    def batch(self, progress: Progress) -> None:
        """A batch is done."""

    def log(self, row: dict[str, Any]) -> None:
        """An epoch is done; the row is the one that stands in metrics.jsonl."""

    def burden(self, burden: Burden) -> None:
        """What a step of the architecture stage takes; where operations stand beside the original ones."""

    def searched(self, row: dict[str, Any]) -> None:
        """An epoch of a search is done; the row is the one that stands in search.jsonl."""

    def judged(self, done: int, of: int) -> None:
        """So many architectures have been judged at the end of a search."""

    def committed(self, tally: Tally) -> None:
        """The choices are made: so many of the edges changed, in each way."""

    def result(self, record: Mapping[str, Any]) -> None:
        """The run is done; the record is the one that stands in record.json."""

    def failed(self, code: int) -> None:
        """The run stops before its end; `code` is the command's exit code, 75 where it is to be resumed."""

    def finish(self) -> None:
        """The run has ended, one way or another."""


class Trackers(Tracker):
    """Tells several trackers, in their order."""

    def __init__(self, *trackers: Tracker) -> None:
        self.trackers = trackers

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.epoch(stage, progress, batches, epochs)

    def batch(self, progress: Progress) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.batch(progress)

    def log(self, row: dict[str, Any]) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.log(row)

    def burden(self, burden: Burden) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.burden(burden)

    def searched(self, row: dict[str, Any]) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.searched(row)

    def judged(self, done: int, of: int) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.judged(done, of)

    def committed(self, tally: Tally) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.committed(tally)

    def result(self, record: Mapping[str, Any]) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.result(record)

    def failed(self, code: int) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.failed(code)

    def finish(self) -> None:
        """Tell all."""
        for tracker in self.trackers:
            tracker.finish()


class WandbTracker(Tracker):
    """Mirrors a run directory to a run of Weights & Biases, whose files lie in the folder wandb of that directory.

    Nothing happens before the run tells of something for the first time, so that a job that is refused leaves
    nothing behind. W&B's step is the number of rows so far, those of search.jsonl before those of metrics.jsonl.
    Rows that the W&B run does not have yet are brought up each time, whoever wrote them. Its id is in wandb.json:
    a run that is resumed goes on with the same one.

    Any error but KeyboardInterrupt switches the mirror off, with one warning.
    """

    def __init__(
        self,
        job: Job,
        directory: str | Path,
        mode: Literal["offline", "online"],
        *,
        label: str,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take note of what is to be mirrored.

        Args:
            job: what is done.
            directory: the run directory.
            mode: offline: write files that `wandb sync` uploads. online: upload at once; where the server cannot
                be reached within W&B's time-out the run is tracked offline.
            label: the method's name as tables have it (`dnat.lab.labels.label`).
            notify: is given what the user should read, a line each.
        """
        self.job, self.directory, self.mode, self.label = job, Path(directory), mode, label
        self.notify = notify
        self.run: Any = None
        self.state: dict[str, Any] = {}
        self.code = 0
        self.off = False

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """Begin the W&B run with the first epoch, and catch up."""
        if self.run is None:
            self._try(self._mirror)

    def log(self, row: dict[str, Any]) -> None:
        """Mirror the epoch's row."""
        self._try(self._mirror)

    def searched(self, row: dict[str, Any]) -> None:
        """Mirror the row of the search."""
        self._try(self._mirror)

    def result(self, record: Mapping[str, Any]) -> None:
        """Mirror the result, unless the W&B run has it."""
        self._try(lambda: self._mirror_result(record))

    def failed(self, code: int) -> None:
        """Note with which exit code the W&B run is to end."""
        self.code = code

    def finish(self) -> None:
        """End the W&B run."""
        self._try(self._close)

    def _try(self, action: Callable[[], None]) -> None:
        if self.off:
            return
        try:
            action()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Also what derives from BaseException alone: nothing that happens there may end a training.
            self._switch_off(error)

    def _switch_off(self, error: BaseException) -> None:
        self.off = True
        self.notify(
            f"W&B: {_line(error)}; the run goes on without it. What W&B has not uploaded lies in "
            f"{self.directory}/wandb; `dnat resume {self.directory} --wandb {self.mode}` adds what it lacks, "
            "also when the run is done"
        )
        self.run = None
        _tear_down()

    def _begin(self) -> None:
        if self.run is not None:
            return
        # Reports on W&B's own errors go elsewhere than where the user sends the run.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        if self.mode == "online":
            try:
                _check_key()
                self.run = self._init("online")
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                self.notify(f"W&B cannot be reached ({_line(error)}): this run is tracked offline")
                _tear_down()
        if self.run is None:
            self.run = self._init("offline")
        for name in _BY_EPOCH:
            self.run.define_metric(name, step_metric="epoch")
        self.run.define_metric("search/*", step_metric="search/epoch")
        self.notify(f"W&B: {Path(self.run.dir).parent if self.run.offline else self.run.url}")

    def _init(self, mode: Literal["offline", "online"]) -> Any:
        import wandb

        job = self.job
        kinds = {"dnat": "transform", "original": "train"}
        kinds |= dict.fromkeys(SEARCHING, "search") | dict.fromkeys(CONTROLS, "control")
        config = job.flat() | {"label": self.label}
        if job.weights is not None:
            config["weights"] = Path(job.weights).name
        tags = [job.data, job.config.preset, job.config.mode, job.config.space, _sweep(self.directory.resolve())]
        known = {
            k: v
            for k, v in _SETTINGS.items()
            if k in wandb.Settings.model_fields and _variable(k) not in os.environ
        }
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "dnat",
            dir=self.directory,
            id=self._state()["id"],
            resume="allow",
            mode=mode,
            name=self.directory.resolve().name,
            group=f"{job.network}/{self.label}"[:128],
            job_type=kinds[job.method],
            tags=[tag[:64] for tag in dict.fromkeys(tags) if tag],
            config={k: v for k, v in config.items() if k not in WHERE},
            settings=wandb.Settings(**known),
        )

    def _state(self) -> dict[str, Any]:
        """What wandb.json says; it is made with a new id where it is missing."""
        if not self.state:
            path = self.directory / STATE
            if path.exists():
                self.state = json.loads(path.read_text())
            else:
                self._keep({"id": secrets.token_hex(6), "rows": 0, "result": False})
        return self.state

    def _keep(self, state: dict[str, Any]) -> None:
        self.state = state
        atomic_write(self.directory / STATE, (json.dumps(state) + "\n").encode())

    def _mirror(self) -> None:
        """Bring up the rows that the W&B run lacks."""
        self._begin()
        searched = [("search/", row) for row in read_rows(self.directory / "search.jsonl")]
        trained = [("", row) for row in read_rows(self.directory / "metrics.jsonl")]
        rows = [*searched, *trained]
        for number, (prefix, row) in enumerate(rows, start=1):
            if number > self._state()["rows"]:
                self.run.log(_values(row, prefix), step=number, commit=True)
        if len(rows) > self._state()["rows"]:  # fewer where the run went back to a checkpoint
            self._keep(self._state() | {"rows": len(rows)})

    def _mirror_result(self, record: Mapping[str, Any]) -> None:
        if self._state()["result"]:
            return
        self._mirror()
        architecture = json.loads((self.directory / "architecture.json").read_text())
        edges = architecture["commitment"]["edges"] if architecture["commitment"] else []
        with _staged(self.directory / "wandb"):
            self.run.log(_pictures(self.directory) | _choices(edges), step=self._state()["rows"] + 1, commit=True)
        self.run.summary.update(_summary(record, edges))
        self._close()
        self._keep(self._state() | {"result": True})

    def _close(self) -> None:
        if self.run is None:
            return
        run, self.run = self.run, None
        if self.code == 75:  # stopped, to be resumed
            run.mark_preempting()
        run.finish(exit_code=self.code)


def _sweep(directory: Path) -> str:
    """The name of the sweep that a run belongs to; empty if it belongs to none."""
    if os.environ.get("DNAT_SWEEP"):
        return Path(os.environ["DNAT_SWEEP"]).name
    return directory.parent.name if (directory.parent / "sweep.toml").exists() else ""


def _check_key() -> None:
    """See that there is a key, so that W&B does not stop the run to ask for one.

    Raises:
        PermissionError: there is none.
    """
    import wandb

    if {"WANDB_API_KEY", "WANDB_MODE"} & os.environ.keys():
        return  # there is one; or W&B thinks that none is needed, since it is not told of our flag
    if not wandb.login(prompt=False):
        raise PermissionError("there is no key: `wandb login` takes one")


def _tear_down() -> None:
    """End W&B's process and what it holds, without another word; it would have its say when Python ends."""
    try:
        import wandb

        wandb.teardown(exit_code=1)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: S110 (it has been told of)
        pass


@contextmanager
def _staged(folder: Path) -> Iterator[None]:
    """Within, W&B keeps there what it has to upload (the files of tables), not in the user's home."""
    kept = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = kept or str(folder.resolve())
    try:
        yield
    finally:
        if kept is None:
            del os.environ["WANDB_DATA_DIR"]


def _variable(setting: str) -> str:
    """The environment variable of a W&B setting.

    >>> _variable("init_timeout"), _variable("x_disable_stats")
    ('WANDB_INIT_TIMEOUT', 'WANDB__DISABLE_STATS')
    """
    return "WANDB_" + setting.removeprefix("x").upper()


def _line(error: BaseException) -> str:
    """An error in one line, without what might be a key."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return re.sub(r"\b\w{40,}\b", "...", text)[:200].rstrip(" :")


def _values(row: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A row as W&B takes it: gates as a histogram for each choice, of all groups of edges."""
    import wandb

    values: dict[str, Any] = {prefix + k: v for k, v in row.items() if k not in ("gates", "columns")}
    if row.get("gates"):
        for column, gates in zip(row["columns"], zip(*row["gates"], strict=True), strict=True):
            values[f"gates/{_plain(column)}"] = wandb.Histogram(list(gates), num_bins=32)
    return values


def _pictures(directory: Path) -> dict[str, Any]:
    import wandb

    names = ("architecture", "cells", "cells-before")
    found = {name: directory / f"{name}.png" for name in names}
    return {name: wandb.Image(str(path)) for name, path in found.items() if path.exists()}


def _choices(edges: list[dict[str, Any]]) -> dict[str, Any]:
    """The table of edges as in architecture.json; where they are few, also what each choice of each was worth."""
    import wandb

    if not edges:
        return {}
    columns = (
        "edge",
        "operation",
        "choice",
        "none",
        "identity",
        "original",
        "others",
        "margin",
        "MAdds",
        "MAdds saved",
    )
    table = wandb.Table(columns=[*columns, "why"])
    values: dict[str, Any] = {"choices": table}
    for edge in edges:
        gates = dict(zip(columns[3:6], edge["gates"], strict=True))
        others = dict(edge["others"])
        listed = ", ".join(f"{name} {gate:.3f}" for name, gate in others.items())
        front = (edge["key"], edge["operation"], edge["choice"], *gates.values(), listed)
        table.add_data(*front, edge["margin"], edge["madds"], edge["saved"], edge["reason"])
        if len(edges) <= FEW_EDGES:
            place = re.sub(r"\W", "_", edge["key"])
            values |= {f"choices/{place}/{_plain(choice)}": gate for choice, gate in (gates | others).items()}
    return values


def _plain(choice: str) -> str:
    """A choice in a name of W&B's, where "/" begins a section.

    >>> _plain("identity"), _plain("5/8")
    ('identity', '5_of_8')
    """
    return choice.replace("/", "_of_")


def _summary(record: Mapping[str, Any], edges: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of record.json under flat names; accuracies are shares, times seconds."""
    results = record["results"]
    before, after = results["cost_before"], results["cost_after"]
    names = ("test_accuracy", "test_loss", "test_accuracy_before", "train_accuracy", "train_loss", "dead")
    summary = {name: results[name] for name in names}
    summary |= {f"{name}_before": value for name, value in before.items()} | dict(after)
    summary |= {f"latency_{when}": found["seconds"] for when, found in record["latency"].items()}
    summary |= {f"seconds_{stage}": taken for stage, taken in record["seconds"].items()}
    if edges:
        tally = Tally.of_reports(edges)
        summary |= {"edges": tally.edges, "edges_changed": tally.changed}
        summary |= {"widths": tally.widths, "widths_narrowed": tally.narrowed} if tally.widths else {}
    return summary
