"""A network and its arguments -> what it does, in both modes and whatever the batch (`Recording`).

A run shows one way through a forward only. What values of tensors would decide is refused. What sizes decide is
noted, and other shapes are run and compared.
"""

import pickle
import random
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..tracing import copied
from .recorder import Recorder
from .scope import OpenError, RefusedError
from .steps import Body, Recording, Step


def batch_size(arguments: Any) -> int | None:
    """The first size of the first tensor."""
    return next((t.shape[0] for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.dim()), None)


def doubled(arguments: Any) -> Any:
    """Arguments with every image twice: tensors whose first size is the batch's are repeated."""
    n = batch_size(arguments)
    return tree_map_only(
        Tensor, lambda t: t.repeat_interleave(2, 0) if t.dim() and t.shape[0] == n else t, arguments
    )


def _larger(arguments: Any) -> Any:
    """Arguments of another size: images with 32 more pixels each way, sequences of whole numbers with 2 more."""

    def larger(t: Tensor) -> Tensor:
        if t.dim() >= 4:
            return t.new_zeros(*t.shape[:2], *(n + 32 for n in t.shape[2:]))
        return torch.cat([t, t[:, :2]], 1) if t.dim() == 2 and not t.is_floating_point() else t

    return tree_map_only(Tensor, larger, arguments)


class FailedError(RefusedError):
    """A forward that fails by itself."""


class _Runs:
    """Runs of copies of one network, which must all show the same."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.opened: set[str] = set()
        self.sized = False
        self.constants: set[str] = set()

    def once(self, training: bool, arguments: Any) -> dict[str, Body]:
        """The bodies of one run; modules that cannot have one are opened on the way."""
        while True:
            recorder = Recorder(copied(self.network).train(training), self.opened)
            try:
                self._run(recorder, arguments)
            except OpenError as error:
                if not error.paths - self.opened:
                    raise RefusedError(f"{error or 'the network'} uses what other modules keep") from None
                self.opened |= error.paths
                continue
            self.sized |= recorder.sized
            self.constants |= recorder.constants
            return recorder.bodies

    def _run(self, recorder: Recorder, arguments: Any) -> None:
        args, kwargs = tree_map_only(Tensor, torch.clone, arguments)
        try:
            with _Seeded() as numbers:
                recorder.run(args, kwargs)
                if numbers.drawn():
                    raise RefusedError("random numbers of Python or numpy decide what it does")
        except (OpenError, RefusedError):
            raise
        except Exception as error:
            if recorder.failure is not None:  # the network's own code has wrapped it
                raise recorder.failure from error
            mode = "train" if recorder.network.training else "eval"
            raise FailedError(f"its forward fails on the example in {mode} mode: {error}") from error

    def other(self, training: bool, arguments: Any) -> dict[str, Body] | None:
        """The bodies for other arguments, opening nothing; None if the network does not take them."""
        opened = set(self.opened)
        try:
            bodies = self.once(training, arguments)
            return bodies if self.opened == opened else {}
        except RefusedError:
            return None
        finally:
            self.opened = opened


class _Seeded:
    """Within, torch's random numbers have a seed; afterwards everything is as before."""

    def __init__(self) -> None:
        self.fork = torch.random.fork_rng(devices=[])
        self.before = self._others()

    def __enter__(self) -> "_Seeded":
        self.fork.__enter__()
        torch.manual_seed(0)
        return self

    def drawn(self) -> bool:
        """Whether Python's or numpy's random numbers were drawn."""
        return pickle.dumps(self._others()) != pickle.dumps(self.before)

    def _others(self) -> tuple[Any, Any]:
        return random.getstate(), numpy.random.get_state()  # noqa: NPY002

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)
        random.setstate(self.before[0])
        numpy.random.set_state(self.before[1])  # noqa: NPY002


def record(network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
    """What a network does, in both modes and whatever the batch.

    Raises:
        RefusedError: its forward cannot be written as a file of its own; the reason is the message.
    """
    runs = _Runs(network)
    small = (args, kwargs)
    opened: set[str] | None = None
    while opened != runs.opened:
        opened = set(runs.opened)
        evaluation = runs.once(False, small)
        train, trained_with = _train(runs, small)
    fixed = ""
    many = runs.other(False, doubled(small)), runs.other(True, doubled(trained_with))
    if many != (evaluation, train):
        fixed = "batch"
    elif runs.sized and _is_fixed(evaluation, runs.other(False, _larger(small))):
        fixed = "size"
    paths = {**evaluation, **train}
    both = {p: (train.get(p), evaluation.get(p)) for p in paths}
    return Recording(both, runs.constants, fixed)


def _is_fixed(bodies: dict[str, Body], larger: dict[str, Body] | None) -> bool:
    """Whether a size decided something that no comparison tells of (the number of rounds of a loop)."""
    if larger is None or larger == bodies:
        return False  # what the network itself does not take the written code does not take either
    return _decisions(larger) == _decisions(bodies)


def _decisions(bodies: dict[str, Body]) -> dict[str, list[Step]]:
    return {path: [s for s in body.steps if s.kind == "decision"] for path, body in bodies.items()}


def _train(runs: _Runs, arguments: Any) -> tuple[dict[str, Body], Any]:
    try:
        return runs.once(True, arguments), arguments
    except FailedError as error:
        if "more than 1 value per channel" not in str(error):
            raise
    return runs.once(True, doubled(arguments)), doubled(arguments)
