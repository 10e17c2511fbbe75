"""Trials as tasks of Ray: on many machines that share a folder, or on this one.

A task carries a trial out as `local` does, by a process of its own with the same command and the same
environment, so that its results have the same bits. When a worker is lost its trial notices and stops, and the
next attempt goes on from the checkpoint, wherever it runs.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import DnatError
from .trials import Attempt, Outcome, carry_out

_PASSED_ON = ("DNAT_", "WANDB_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "TORCH_", "PYTHON", "CUBLAS_", "COLUMNS")
"""Beginnings of the variables that trials take from where the sweep was started, and not from Ray's worker."""


class RayError(DnatError, RuntimeError):
    """Ray is not installed, or cannot be reached."""


def import_ray() -> Any:
    """The package ray, which is an extra.

    Raises:
        RayError: it is not installed.
    """
    # Ray reads these when it is imported. It reports on its use over the network if it is not told otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without a GPU keep the variable
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    try:
        import ray
    except ImportError as error:
        raise RayError("--engine ray needs Ray: pip install 'dnat[ray]'") from error
    logging.getLogger("ray").setLevel(logging.ERROR)  # importing it sets the level
    return ray


def passed_on(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The variables that trials take from where the sweep was started.

    >>> passed_on({"OMP_NUM_THREADS": "1", "HOME": "/home/a"})
    {'OMP_NUM_THREADS': '1'}
    """
    found: dict[str, str | None] = {k: v for k, v in environment.items() if k.startswith(_PASSED_ON)}
    return {"OMP_NUM_THREADS": None} | found  # Ray sets it for its workers


def task(attempt: Attempt, stop_file: str) -> Outcome:
    """What a worker of Ray does."""
    return carry_out(attempt, Path(stop_file).exists)


class Cluster:
    """Carries out trials as tasks of Ray.

    Attributes:
        jobs: trials at a time.

    Args:
        stop_file: what stands in the sweep's directory while trials are to stop; every machine sees it.
        threads: CPU threads of a trial.
        jobs: trials at a time; by default as many as there is room for.
        address: of a running cluster ("auto", "HOST:6379"; one that asks for tokens needs RAY_AUTH_MODE=token in
            the environment); by default Ray is started here, for this sweep alone.
        wants_gpu: whether trials use GPUs where there are any.

    Raises:
        RayError: Ray is not installed, or cannot be reached.
    """

    def __init__(
        self,
        stop_file: Path,
        *,
        threads: int = 1,
        jobs: int | None = None,
        address: str | None = None,
        wants_gpu: bool = False,
    ) -> None:
        self.ray = import_ray()
        self.stop_file = stop_file
        self.running: dict[Any, tuple[str, float]] = {}
        self.connected = not self.ray.is_initialized()  # a Ray that is there already is used, and left as it is
        if self.connected:
            with _own_signals():
                self._connect(address, threads, jobs or 1)
        resources = self.ray.cluster_resources()
        largest = max((node["Resources"].get("CPU", 0) for node in self.ray.nodes() if node["Alive"]), default=0)
        cpus = max(1, min(threads, int(largest)))
        self.jobs = jobs or max(1, int(resources.get("CPU", 1) // cpus))
        gpus = resources.get("GPU", 0) if wants_gpu else 0
        share = min(1.0, gpus / self.jobs)
        remote = self.ray.remote(max_retries=0, num_cpus=cpus)
        self._task, self._gpu_share = remote(task), share

    def _connect(self, address: str | None, threads: int, jobs: int) -> None:
        common = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
        try:
            if address is not None:
                _knock(address)
                self.ray.init(address=address, **common)
                return
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self.ray.init(
                address="local",
                num_cpus=max(cores, threads * jobs),  # --jobs says how many trials there are room for
                include_dashboard=False,
                object_store_memory=80 << 20,  # tasks exchange a few hundred bytes
                _node_ip_address="127.0.0.1",
                **common,
            )
        except Exception as error:
            where = f"at {address}" if address else "here"
            raise RayError(f"Ray cannot be used {where}: {error}") from error

    def free(self) -> bool:
        """Whether another trial can be started."""
        return len(self.running) < self.jobs

    def start(self, name: str, attempt: Attempt) -> None:
        """Hand a trial to Ray."""
        attempt = replace(attempt, environment=passed_on(os.environ) | attempt.environment)
        gpus = self._gpu_share if attempt.device in ("auto", "cuda") else 0
        future = self._task.options(num_gpus=gpus).remote(attempt, str(self.stop_file.resolve()))
        self.running[future] = name, time.monotonic()

    def ended(self, seconds: float) -> list[tuple[str, Outcome]]:
        """The trials that ended, by name; waits for the first at most so long."""
        if not self.running:
            return []
        ready, _ = self.ray.wait([*self.running], num_returns=1, timeout=seconds)
        return [self._outcome(future) for future in ready]

    def _outcome(self, future: Any) -> tuple[str, Outcome]:
        name, began = self.running.pop(future)
        errors = self.ray.exceptions
        try:
            return name, self.ray.get(future)
        except errors.RayTaskError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return name, Outcome("failed", None, f"it could not be started: {lines[-1]}", time.monotonic() - began)
        except errors.RayError as error:
            reason = f"its worker was lost ({type(error).__name__})"
            return name, Outcome("interrupted", None, reason, time.monotonic() - began)

    def stop(self) -> None:
        """Ask all trials to save and stop; they end by and by."""
        self.stop_file.touch()

    def close(self) -> None:
        """Leave Ray; trials that still run lose their workers, and stop after their present batch."""
        for future in self.running:
            self.ray.cancel(future, force=True)
        if self.connected:
            self.ray.shutdown()


def _knock(address: str) -> None:
    """Find out at once whether anybody answers; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in address:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Within, whoever takes signal handlers gives them back: Ray puts its own in place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
