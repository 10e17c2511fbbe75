"""A run's numbers in other programs: TensorBoard, MLflow, W&B. Each needs its library, which dnat does not.

    with TensorBoardTracker("runs/first/events") as tracker:
        result = dnat.transform(network, data, config, tracker=tracker)
        tracker.result(result.record())

Numbers are called as in metrics.jsonl, and stand at their epochs; those of a search begin with "search/". Whatever
goes wrong in the other program ends the tracker, with a warning, and not the run.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import read_table, write_json
from ..tracking import Tracker
from ..training import Progress


class _Elsewhere(Tracker):
    """Begins with the first epoch, so that a job that is refused leaves nothing behind.

    Args:
        name: of the program.
        library: that is needed.
        extra: of dnat's that has it.

    Raises:
        UsageError: the library is missing.
    """

    def __init__(self, name: str, library: str, extra: str) -> None:
        self.name = name
        self.code, self.off, self.begun = 0, False, False
        try:
            importlib.import_module(library)
        except ImportError as error:
            advice = f": pip install 'dnat[{extra}]'" if extra else ""
            raise UsageError(f"to track a run with {name} its library is needed{advice} ({error})") from error

    def epoch(self, stage: str, progress: Progress, batches: int, epochs: int) -> None:
        """Begin with the first epoch."""
        self._try(lambda: self._ready(progress.epoch))

    def log(self, row: dict[str, Any]) -> None:
        """Tell the numbers of an epoch."""
        self._try(lambda: self._row(row, "", row["epoch"]))

    def searched(self, row: dict[str, Any]) -> None:
        """Tell the numbers of an epoch of a search."""
        self._try(lambda: self._row(row, "search/", row["epoch"]))

    def result(self, record: Mapping[str, Any]) -> None:
        """Tell what came out."""
        if self.begun:  # a run that was done already has told it
            self._try(lambda: self._end(numbers_of_result(record)))

    def failed(self, code: int) -> None:
        """Note how the run ends."""
        self.code = code

    def finish(self) -> None:
        """Close what is open."""
        if self.begun:
            self._try(self._close)
        self.begun = False

    def _ready(self, epoch: int) -> None:
        if not self.begun:
            self._begin(epoch)
        self.begun = True

    def _try(self, action: Callable[[], None]) -> None:
        if self.off:
            return
        try:
            action()
        except Exception as error:
            self.off = True
            text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            warnings.warn(f"{self.name}: {text}; the run goes on without it", stacklevel=2)

    def _begin(self, epoch: int) -> None:
        """So many epochs are done already."""

    def _row(self, row: Mapping[str, Any], prefix: str, epoch: int) -> None:
        raise NotImplementedError

    def _end(self, numbers: Mapping[str, float]) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        """Nothing more comes."""


def numbers_of(row: Mapping[str, Any], prefix: str = "", without: Iterable[str] = ("epoch",)) -> dict[str, float]:
    """The finite numbers of a row.

    >>> numbers_of({"epoch": 1, "train_loss": 0.5, "stage": "network", "gates": []})
    {'train_loss': 0.5}
    """
    kept = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {prefix + k: float(v) for k, v in kept.items() if k not in without and math.isfinite(v)}


def numbers_of_result(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, under flat names: those of the results, costs, latencies and stages in seconds."""
    results = record["results"]
    numbers = numbers_of(results) | numbers_of(results["cost_after"])
    numbers |= {f"{name}_before": value for name, value in numbers_of(results["cost_before"]).items()}
    numbers |= {f"latency_{when}": float(taken["seconds"]) for when, taken in record["latency"].items()}
    return numbers | numbers_of(record["seconds"], "seconds_")


class TensorBoardTracker(_Elsewhere):
    """Writes event files for TensorBoard: `pip install 'dnat[tensorboard]'`.

    Gates become histograms, one of each choice. A run that goes on hides the epochs that it trains again.

    Args:
        folder: where the files are written.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__("TensorBoard", "torch.utils.tensorboard", "tensorboard")
        self.folder = Path(folder)
        self.writer: Any = None

    def _begin(self, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=epoch + 1 if epoch else None)

    def _row(self, row: Mapping[str, Any], prefix: str, epoch: int) -> None:
        import numpy as np

        for name, value in numbers_of(row, prefix).items():
            self.writer.add_scalar(name, value, epoch)
        for column, gates in zip(row.get("columns", ()), zip(*row.get("gates", ()), strict=True), strict=False):
            self.writer.add_histogram(f"gates/{column.replace('/', '_of_')}", np.array(gates), epoch)
        self.writer.flush()

    def _end(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(f"result/{name}", value)
        self.writer.flush()

    def _close(self) -> None:
        self.writer.close()


class MlflowTracker(_Elsewhere):
    """Logs to a run of MLflow, where MLFLOW_TRACKING_URI says: `pip install 'dnat[mlflow]'`.

    The experiment is MLFLOW_EXPERIMENT_NAME's, or "dnat".

    Args:
        name: of the run there.
        settings: noted as its parameters.
        kept: a file for its id, with which a run that is resumed goes on in the same one.
    """

    def __init__(
        self, name: str | None = None, settings: Mapping[str, Any] | None = None, kept: Path | None = None
    ) -> None:
        super().__init__("MLflow", "mlflow", "mlflow")
        self.title, self.settings, self.kept = name, dict(settings or {}), kept
        self.client: Any = None
        self.id = ""

    def _begin(self, epoch: int) -> None:
        import os

        from mlflow import MlflowClient

        self.client = MlflowClient()
        self.id = read_table(self.kept).get("id", "") if self.kept else ""
        if self.id:
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "dnat")
        there = self.client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self.client.create_experiment(name)
        self.id = self.client.create_run(experiment, run_name=self.title).info.run_id
        for key, value in self.settings.items():
            self.client.log_param(self.id, key, value)
        if self.kept:
            write_json(self.kept, {"id": self.id})

    def _row(self, row: Mapping[str, Any], prefix: str, epoch: int) -> None:
        for name, value in numbers_of(row, prefix).items():
            self.client.log_metric(self.id, name, value, step=epoch)

    def _end(self, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self.client.log_metric(self.id, f"result/{name}", value)

    def _close(self) -> None:
        status = {0: "FINISHED", 75: "KILLED"}.get(self.code, "FAILED")
        self.client.set_terminated(self.id, status)


class WandbTracker(_Elsewhere):
    """Logs to a run of Weights & Biases that you have begun. `--wandb` mirrors a whole run directory instead.

    Args:
        run: from `wandb.init`, which you end, too.
    """

    def __init__(self, run: Any) -> None:
        super().__init__("W&B", "wandb", "")
        self.run = run

    def _row(self, row: Mapping[str, Any], prefix: str, epoch: int) -> None:
        self.run.log(numbers_of(row, prefix, without=()))

    def _end(self, numbers: Mapping[str, float]) -> None:
        self.run.summary.update(numbers)
