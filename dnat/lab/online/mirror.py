"""A run directory, mirrored to Weights & Biases.

W&B gets what stands in the run directory, which stays the truth: the rows of a search and of the training, then
the result. Whatever goes wrong there ends the mirror and not the run, and the next one catches up.
"""

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ...errors import DataError
from ...files import read_sealed, sealed, set_aside, write_json
from ...rundir import SEARCH_ROWS, WANDB, RunFiles
from ...settings import CONTROLS, SEARCHING, WHERE, Job
from ...tracking import Tracker
from ...training import Progress
from ..sweep.directory import SweepFiles
from . import values

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

_BY_EPOCH = ("epoch", "step", "lr", "train_*", "test_*", "validation_*", "seconds", "images_per_second", "gates/*")


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
        self.job, self.files, self.mode, self.label = job, RunFiles(directory), mode, label
        self.directory, self.notify = self.files.directory, notify
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
        tags = [
            job.data,
            job.config.preset,
            job.config.relaxation.mode,
            job.config.relaxation.space,
            _sweep(self.directory.resolve()),
        ]
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
            self.state = self._kept()
        if not self.state:
            self._keep({"id": secrets.token_hex(6), "rows": 0, "result": False})
        return self.state

    def _kept(self) -> dict[str, Any]:
        """What wandb.json says; a damaged one is set aside, and W&B gets a new run."""
        path = self.files.path(WANDB)
        try:
            state = read_sealed(path)
            if state and not {"id", "rows", "result"} <= state.keys():
                raise DataError(f"{path} lacks the id, the rows or the result")
        except DataError as error:
            self.notify(f"{error}: it is set aside as {set_aside(path)}, and a new W&B run begun")
            return {}
        return state

    def _keep(self, state: dict[str, Any]) -> None:
        self.state = state
        write_json(self.files.path(WANDB), sealed(state))

    def _mirror(self) -> None:
        """Bring up the rows that the W&B run lacks."""
        self._begin()
        rows = [("search/", row) for row in self.files.rows(SEARCH_ROWS)]
        rows += [("", row) for row in self.files.rows()]
        for number, (prefix, row) in enumerate(rows, start=1):
            if number > self._state()["rows"]:
                self.run.log(values.of_row(row, prefix), step=number, commit=True)
        if len(rows) > self._state()["rows"]:  # fewer where the run went back to a checkpoint
            self._keep(self._state() | {"rows": len(rows)})

    def _mirror_result(self, record: Mapping[str, Any]) -> None:
        if self._state()["result"]:
            return
        self._mirror()
        edges = (self.files.architecture()["commitment"] or {"edges": []})["edges"]
        with _staged(self.directory / "wandb"):
            shown = values.pictures(self.directory) | values.of_choices(edges)
            self.run.log(shown, step=self._state()["rows"] + 1, commit=True)
        self.run.summary.update(values.of_result(record, edges))
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
    return directory.parent.name if SweepFiles(directory.parent).is_sweep() else ""


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
