"""Each network and data set of a sweep, tried once before any trial is started, in a process of its own.

A factory that fails, weights that do not fit or a folder that is not there would fail in every trial otherwise.
It is a process of its own since users' code runs in it: the sweep's own stays small, and knows nothing of torch.
"""

import json
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...errors import DnatError, UsageError
from ...files import atomic_write
from ...naming import look_here, names_code
from ...settings import Job
from .forkserver import ForkServer
from .settings import Trial
from .trials import beside

_OF_NETWORK = ("network", "network_options", "weights", "data", "data_root", "image_size", "task")
"""What one try holds for, whatever method and seed a trial has."""


def check_networks(
    trials: Sequence[Trial], stop: Callable[[], bool] = lambda: False, server: ForkServer | None = None
) -> None:
    """Make each network and data set of some trials, and check all that can be checked without training.

    Args:
        trials: of which the first of each network on its data is tried.
        stop: asked several times a second whether to leave it; nothing is known then, and nothing refused.
        server: which forks the process; without, it is a new one.

    Raises:
        UsageError: what is wrong with them; equal reasons are told once.
    """
    alike: dict[str, list[Trial]] = {}
    for trial in trials:
        flat = trial.job.flat()
        alike.setdefault(json.dumps([flat.get(key) for key in _OF_NETWORK], default=str), []).append(trial)
    first = {group[0].name: group for group in alike.values()}
    reasons: dict[str, list[Trial]] = {}
    for name, reason in _tried({name: group[0].job for name, group in first.items()}, stop, server).items():
        reasons.setdefault(reason, []).extend(first[name])
    if reasons:
        lines = [f"{reason} ({_named(of, len(trials))})" for reason, of in reasons.items()]
        raise UsageError("nothing was started" + (":\n  " if len(lines) > 1 else ": ") + "\n  ".join(lines))


def _named(trials: Sequence[Trial], of: int) -> str:
    networks = ", ".join(dict.fromkeys(f"{trial.network} on {trial.job.data}" for trial in trials))
    return f"{networks}: {len(trials)} of {of} trials"


def _tried(jobs: Mapping[str, Job], stop: Callable[[], bool], server: ForkServer | None) -> dict[str, str]:
    """What is wrong with jobs, by their names; of those at which the process died the trials will tell."""
    if not jobs:
        return {}
    with tempfile.TemporaryDirectory(prefix="dnat-") as folder:
        asked, answers = (Path(folder) / name for name in ("jobs.json", "answers.json"))
        asked.write_text(json.dumps({name: job.to_toml() for name, job in jobs.items()}), encoding="utf-8")
        # What it prints stands in the trials' logs, too.
        beside(__name__, (str(asked), str(answers)), stop, server)
        told: dict[str, str] = json.loads(answers.read_text(encoding="utf-8")) if answers.exists() else {}
        return told


def _main(asked: str, answers: str) -> None:
    """Try jobs, and write what is wrong with them, after each."""
    from ..runs.running import prepared

    found: dict[str, str] = {}
    for name, text in json.loads(Path(asked).read_text(encoding="utf-8")).items():
        try:
            job = Job.from_flat(tomllib.loads(text))
            if names_code(job.flat()):
                look_here()
            prepared(job)
        except DnatError as error:
            found[name] = str(error)
            atomic_write(Path(answers), json.dumps(found).encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
