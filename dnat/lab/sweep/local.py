"""Trials on this machine: so many at a time, each with its share of the GPUs."""

import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...errors import of_machine
from .forkserver import ForkServer
from .trials import Attempt, Outcome, State, carry_out

ANY_GPU = ("auto", "cuda")
"""Devices for which a trial takes whatever GPU it is given."""


def gpu_shares(gpus: Sequence[str], jobs: int) -> list[str | None]:
    """CUDA_VISIBLE_DEVICES for each of so many trials at a time: GPUs are divided, or else taken in turn.

    Args:
        gpus: those that this process may use, as CUDA_VISIBLE_DEVICES names them.
        jobs: trials at a time, at least 1.

    >>> gpu_shares(["0", "1", "2"], 2), gpu_shares(["0", "1"], 3), gpu_shares([], 1)
    (['0', '1,2'], ['0', '1', '0'], [None])
    """
    n = len(gpus)
    if not n:
        return [None] * jobs
    if jobs >= n:
        return [gpus[slot % n] for slot in range(jobs)]
    return [",".join(gpus[slot * n // jobs : (slot + 1) * n // jobs]) for slot in range(jobs)]


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; CUDA itself is not started."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        named = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        end = next((i for i, name in enumerate(named) if name in ("", "-1")), len(named))
        return named[:end]  # as CUDA reads it: nothing after the first that there is not
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


class Local:
    """Carries out trials in processes of this machine, each watched by a thread.

    Attributes:
        jobs: trials at a time.
        server: which forks them; without, each is a new process.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = (), server: ForkServer | None = None) -> None:
        self.jobs, self.server = jobs, server
        self.shares = gpu_shares(gpus, jobs)
        self.slots = list(range(jobs))
        self._threads: list[threading.Thread] = []
        self._ended: queue.Queue[tuple[int, str, Outcome]] = queue.Queue()
        self._stop, self._at_once = threading.Event(), threading.Event()

    def free(self) -> bool:
        """Whether another trial can be started."""
        return bool(self.slots)

    def start(self, name: str, attempt: Attempt) -> None:
        """Start a trial."""
        slot = self.slots.pop(self.slots.index(min(self.slots)))
        share = self.shares[slot]
        if share is not None and attempt.device in ANY_GPU:
            attempt = replace(attempt, environment=attempt.environment | {"CUDA_VISIBLE_DEVICES": share})
        # Daemons: a second Ctrl-C ends this process although trials are still saving.
        thread = threading.Thread(target=self._carry_out, args=(slot, name, attempt), daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _carry_out(self, slot: int, name: str, attempt: Attempt) -> None:
        try:
            outcome = carry_out(attempt, self._stop.is_set, self._at_once.is_set, self.server)
        except Exception as error:
            machine = of_machine(error)  # which another time may do it
            state: State = "interrupted" if machine else "failed"
            outcome = Outcome(state, None, f"it could not be started: {machine or error}")
        self._ended.put((slot, name, outcome))

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The trials that ended, by name; waits for the first at most so long."""
        found = []
        try:
            found.append(self._ended.get(timeout=seconds))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            pass
        self.slots += [slot for slot, *_ in found]
        return [(name, outcome) for _, name, outcome in found]

    def stop(self) -> None:
        """Ask all trials to save and stop; they end by and by."""
        self._stop.set()

    def close(self) -> None:
        """Kill what still runs."""
        self._stop.set()
        self._at_once.set()
        for thread in self._threads:
            thread.join(timeout=10)
