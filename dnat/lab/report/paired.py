"""Runs image by image: which are compared, and whether they were tested on the same images."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import DataError, UsageError, is_of_no_file
from ...rundir import PREDICTIONS, RECORD, RunFiles
from ..labels import label
from ..summary.images import Paired, paired
from .gather import Report, Run, check_run, gather, is_sweep, read_run


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the networks of a run take each test image for.

    Attributes:
        labels, before, after: (N,) integers: the truth, by the network as it was given, by the result.
        test: a digest that is equal where the test images are.
    """

    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray
    test: str

    def right(self, which: str = "after") -> np.ndarray:
        """(N,) truth values: whether the network "before" or "after" has each image right."""
        return np.asarray(getattr(self, which) == self.labels)


def read_predictions(directory: str | Path) -> Predictions:
    """The predictions of a finished run.

    Raises:
        ValueError: it has none, or a file that cannot be read.
    """
    file = Path(directory) / PREDICTIONS
    if not file.exists():
        raise UsageError(
            f"{directory} has no {PREDICTIONS}: it is not finished, its task has no classes, or an older dnat "
            "wrote it, which kept none"
        )
    if RunFiles(directory).is_done():
        RunFiles(directory).check(PREDICTIONS)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np") as opened:
            table = {name: opened.get_tensor(name) for name in ("labels", "before", "after")}
            test = str((opened.metadata() or {})["test"])
    except (SafetensorError, KeyError, OSError) as error:
        if is_of_no_file(error):
            raise
        raise UsageError(f"{file} cannot be read: {error}") from error
    if len({values.shape for values in table.values()}) > 1 or table["labels"].ndim != 1:
        raise UsageError(f"{file} cannot be read: its tensors are of different lengths")
    return Predictions(**table, test=test)


def compared(
    paths: Sequence[str | Path], baseline: str = "original", by: Iterable[str] = ()
) -> list[tuple[str, Paired]]:
    """What is compared: a title, and both sides.

    Args:
        paths: of one run: its network as it was given, and its result; of two runs: both; of more, or of sweeps:
            each method and the baseline, at all seeds that both have.
        baseline, by: as `gather` takes them.

    Raises:
        ValueError: a path that is none of them, runs without predictions or on other test images, or nothing
            to be compared.
    """
    alone = [Path(path) for path in paths if not is_sweep(path)]
    if len(alone) < len(paths) or len(alone) > 2:
        return _of_methods(gather(paths, baseline, by))
    if tuple(by):
        raise UsageError("--by is for the runs of several seeds: name sweeps, or more than two runs")
    runs = [_finished(path) for path in alone]
    answers = [read_predictions(run.directory) for run in runs]
    first = runs[0].trial
    if len(runs) == 1:
        right = answers[0].right("before"), answers[0].right("after")
        return [(_title(runs[0], answers[0]), paired(("as given", "result"), [(first.seed,)], [right]))]
    _check_same(runs, answers)
    names = [label(run.record["job"]) for run in runs]
    if first.network != runs[1].trial.network:
        names = [f"{run.trial.network} {name}" for run, name in zip(runs, names, strict=True)]
    if names[0] == names[1]:
        names = [run.name for run in runs]
    seeds = (first.seed, runs[1].trial.seed)
    rights = answers[0].right(), answers[1].right()
    return [(_title(runs[0], answers[0]), paired((names[0], names[1]), [tuple(dict.fromkeys(seeds))], [rights]))]


def _finished(path: Path) -> Run:
    check_run(path)
    notes: list[str] = []
    run = read_run(path, notes)
    if isinstance(run, Run):
        return run
    RunFiles(path).record()  # says what is to be done about it
    raise UsageError(f"{path}: {run.reason}")


def _of_methods(report: Report) -> list[tuple[str, Paired]]:
    """Each method beside the baseline.

    Raises:
        DataError: a run whose result is damaged or gone, so that the others would be compared without it.
    """
    found = []
    lost = [u for u in report.unfinished if u.state == "damaged" or RECORD in u.reason]
    if lost:
        raise DataError("; ".join(f"{u.name}: {u.reason}" for u in lost))
    read = functools.cache(read_predictions)  # the baseline's are compared with every method's
    for group in report.groups:
        base = {run.trial.seed: run for run in group.runs.get(report.summary.baseline, ())}
        for method, runs in group.runs.items():
            pairs = [(base[run.trial.seed], run) for run in runs if run.trial.seed in base]
            if method == report.summary.baseline or not pairs:
                continue
            both = [run for pair in pairs for run in pair]
            answers = [read(run.directory) for run in both]
            _check_same(both, answers)
            rights = [a.right() for a in answers]
            seeds = [(run.trial.seed,) for _, run in pairs]
            names = (report.summary.baseline, method)
            told = paired(names, seeds, list(zip(rights[::2], rights[1::2], strict=True)))
            found.append((_title(both[0], answers[0]), told))
    if not found:
        raise UsageError(
            f"there is nothing to compare: no method has a seed in common with {report.summary.baseline} "
            "(--baseline names another one)"
        )
    return found


def _title(run: Run, answers: Predictions) -> str:
    return f"{run.trial.network} on {run.trial.data}, {len(answers.labels)} test images"


def _check_same(runs: Sequence[Run], answers: Sequence[Predictions]) -> None:
    for run, theirs in zip(runs, answers, strict=True):
        if theirs.test != answers[0].test:
            raise UsageError(
                f"{runs[0].directory} and {run.directory} were not tested on the same images "
                f"({len(answers[0].labels)} of {runs[0].trial.data}, {len(theirs.labels)} of {run.trial.data}): "
                "images can only be paired with themselves"
            )
