"""Modules that give again what they gave, while choices behind them are tried."""

import functools
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..edges import Edge


def modules_before(edges: Sequence[Edge]) -> frozenset[str]:
    """Paths of modules whose only call has ended before the first of the edges begins; outermost ones alone."""
    trace = edges[0].program.traces[0]
    first = min(trace.calls_of(edge.entry)[0] for edge in edges)
    around = {None, *trace.calls[first].scope[:-1]}
    return frozenset(
        call.path
        for call in trace.calls[:first]
        if call.parent in around and call.scope[-1] not in around and len(trace.calls_of(call.path)) == 1
    )


class Memory:
    """Within, modules can remember what they gave, and give it again uncomputed until a pass comes to an edge.

    What is computed before an edge is entered is the same whatever the edge becomes, also where a network goes
    other ways than in its trace. What nothing needs is not computed, either: zeros stand in its place.

    Args:
        network: which holds them.
        paths: of modules that may remember or be idle, and of those at which edges begin.
    """

    def __init__(self, network: nn.Module, paths: Set[str]) -> None:
        modules = {path: network.get_submodule(path) for path in sorted(paths)}
        # A scripted module takes no other forward.
        self.modules = {p: m for p, m in modules.items() if not isinstance(m, torch.jit.ScriptModule)}
        self.complete = len(self.modules) == len(modules)
        self.before: dict[str, Any] = {}
        self.known: dict[str, Tensor] = {}
        self.shapes: dict[str, tuple[Tensor, torch.device]] = {}
        self.active = False
        self.ready: set[str] = set()
        self.idle: set[str] = set()
        self.entries: frozenset[str] = frozenset()

    def __enter__(self) -> "Memory":
        self.before = {path: module.__dict__.get("forward") for path, module in self.modules.items()}
        for path, module in self.modules.items():
            # In the instance, where it stands before the method of the class.
            module.__dict__["forward"] = functools.partial(self._forward, path, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        for path, module in self.modules.items():
            del module.__dict__["forward"]
            if self.before[path] is not None:
                module.__dict__["forward"] = self.before[path]
        self.known.clear()

    def keep(self, paths: frozenset[str]) -> None:
        """Forget what other modules gave."""
        self.known = {key: output for key, output in self.known.items() if key in paths}

    @contextmanager
    def of(self, paths: frozenset[str], entries: frozenset[str], idle: frozenset[str]) -> Iterator[None]:
        """Within, for one pass, the first calls of these modules are remembered, until it comes to the entries.

        Args:
            paths: of the modules.
            entries: of edges that are not what they were.
            idle: modules whose first calls nothing needs.
        """
        self.ready, self.entries, self.idle = set(paths) if self.complete else set(), entries, set(idle)
        self.active = True
        try:
            yield
        finally:
            self.ready, self.entries, self.idle, self.active = set(), frozenset(), set(), False

    def _forward(self, path: str, compute: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.active:
            return compute(*args, **kwargs)
        if path in self.entries:
            self.ready.clear()
        if path in self.idle:
            self.idle.remove(path)  # a second call may be needed
            if path in self.shapes:
                shape, device = self.shapes[path]
                return torch.zeros_like(shape, device=device)
        if path not in self.ready:
            result = compute(*args, **kwargs)
            if isinstance(result, Tensor) and path not in self.shapes:
                self.shapes[path] = result.to("meta"), result.device
            return result
        self.ready.remove(path)  # a second call may give something else
        if path in self.known:
            return self.known[path].clone()  # other code may write into it
        between, self.ready = self.ready, set()  # what is inside is not needed any more
        result = compute(*args, **kwargs)
        self.ready = between
        if isinstance(result, Tensor):
            self.known[path] = result.clone()
        return result
