"""Where a command is to write, looked at before any work is done."""

from collections.abc import Iterable
from pathlib import Path

from ...errors import UsageError
from ...locks import LOCK
from ...rundir import BOUND, LATENCY, MLFLOW, RECORD, STATUS, WANDB, RunFiles
from ..sweep.directory import SWEEP, SweepFiles

_OF_RUNS = frozenset((*BOUND, RECORD, STATUS, LATENCY, WANDB, MLFLOW, LOCK))
_OF_SWEEPS = frozenset((SWEEP, SweepFiles("").entries_file.name, LOCK))


def check_folder(path: Path) -> None:
    """Refuse a place at which no folder can be made, or be written into.

    Raises:
        UsageError: it is a file, leads through one or through nothing, or has a name that no system takes.
    """
    _check_way(path)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: name a directory")


def check_files(paths: Iterable[Path]) -> None:
    """Refuse places at which no file can be written, and those of files that runs and sweeps are made of.

    Raises:
        UsageError: as for folders.
    """
    for path in paths:
        _check_way(path)
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a file")
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is no regular file: choose another name")
        own = RunFiles(path.parent).is_run() and (path.name in _OF_RUNS or path.suffix == ".ckpt")
        if own or (SweepFiles(path.parent).is_sweep() and path.name in _OF_SWEEPS):
            raise UsageError(f"{path} is a file of the run or sweep itself: choose another name")


def with_ending(path: Path, ending: str) -> Path:
    """A path with an ending after its name, whatever stands there.

    Raises:
        UsageError: it names no file, but a folder: "..", "/".
    """
    if path.name in ("", ".."):
        raise UsageError(f"{path} names no file")
    return path.with_name(f"{path.name}.{ending}")


def _check_way(path: Path) -> None:
    """Refuse a path of which something stands in the way."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{str(path)!r:.100} cannot be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            raise UsageError(f"{path} cannot be written: {part} is a link to what is not there")
    for i, name in enumerate(path.parts):
        if name == ".." and not Path(*path.parts[:i]).exists():
            raise UsageError(f"{path} leads back through {Path(*path.parts[:i])}, which is not there")
    there = next((parent for parent in path.parents if parent.exists()), Path())
    if not there.is_dir():
        raise UsageError(f"{path} cannot be written: {there} is no folder")
