"""A mixed integer linear program, row by row, and its solution by HiGHS."""

import ctypes
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

MOST_NODES = 1000
"""After how many branches the best set so far is taken where much of a limit is to be used: whether sizes can add
up to that may take for ever to find out. Small networks need fewer."""

MOST_BRANCHES = 50_000
"""After how many branches the best set so far is taken anyway, and told of: some minutes of a program of hundreds
of choices. A limit on time would make the result depend on the machine."""

ALWAYS = -1
"""Stands for a need that is certain; other needs are numbers of variables, or None where nothing is needed."""

Row = tuple[Sequence[tuple[int, float]], float]
"""A linear constraint: the sum of (variable, coefficient) is at least a bound."""

CHATTER = b"HighsMipSolverData"
"""Begins a line that HiGHS writes to the process's standard output, whatever it is asked; it would spoil JSON."""


@contextmanager
def without_chatter() -> Iterator[None]:
    """Within, what C code writes to the standard output waits, and goes on without the solver's lines."""
    sys.stdout.flush()
    try:
        before = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            if os.name == "posix":
                ctypes.CDLL(None).fflush(None)
            os.dup2(before, 1)
            os.close(before)
            file.seek(0)
            rest = b"".join(line for line in file if not line.startswith(CHATTER))
            while rest:
                rest = rest[os.write(1, rest) :]


class IntegerProgram:
    """Variables between 0 and 1, of which the first are integers, what they are worth, and constraints.

    Args:
        exact: whether a need is held at 0 where nothing needs it. Who is asked to be cheap needs nothing that is
            not needed; others might say that they do.
        branches: after how many of them the best solution so far is taken; by default `MOST_BRANCHES`, or where
            exact `MOST_NODES`.

    Attributes:
        objective: what each variable is worth.
        rows: the constraints.
        binaries: how many variables are integers.
        gap: what another solution than the last may be worth more: 0 where it is the best, infinite where none
            was found.
    """

    def __init__(self, *, exact: bool, branches: int | None = None) -> None:
        self.exact = exact
        self.branches = branches or (MOST_NODES if exact else MOST_BRANCHES)
        self.gap = 0.0
        self.objective: list[float] = []
        self.rows: list[Row] = []
        self.binaries = 0

    def variable(self, worth: float = 0.0) -> int:
        """The number of a new variable between 0 and 1."""
        self.objective.append(worth)
        return len(self.objective) - 1

    def binary(self, worth: float) -> int:
        """The number of a new variable that is 0 or 1; these come before all others."""
        assert self.binaries == len(self.objective)
        self.binaries += 1
        return self.variable(worth)

    def require(self, terms: Sequence[tuple[int, float]], least: float) -> None:
        """A sum of (variable, coefficient) is at least so much."""
        self.rows.append((terms, least))

    def equate(self, terms: Sequence[tuple[int, float]], value: float) -> None:
        """A sum is a value."""
        self.require(terms, value)
        self.require([(variable, -coefficient) for variable, coefficient in terms], -value)

    def any_of(self, needs: Iterable[int | None]) -> int | None:
        """The need that is there as soon as one of several is."""
        open_needs = {need for need in needs if need is not None}
        if ALWAYS in open_needs:
            return ALWAYS
        if len(open_needs) < 2:
            return next(iter(open_needs), None)
        joint = self.variable()
        for need in open_needs:
            self.require([(joint, 1.0), (need, -1.0)], 0.0)
        if self.exact:
            self.require([(joint, -1.0), *((need, 1.0) for need in open_needs)], 0.0)
        return joint

    def restricted(self, need: int, plus: Sequence[int], minus: Sequence[int]) -> int:
        """The need that is there where `need` and all of `plus` are, and none of `minus` is."""
        rest = self.variable()
        terms = [(rest, 1.0), *((p, -1.0) for p in plus), *((m, 1.0) for m in minus)]
        least = -float(len(plus))
        if need == ALWAYS:
            least += 1.0
        else:
            terms.append((need, -1.0))
        self.require(terms, least)
        if self.exact:
            for upper in (*plus, *([need] if need != ALWAYS else [])):
                self.require([(rest, -1.0), (upper, 1.0)], 0.0)
            for other in minus:
                self.require([(rest, -1.0), (other, -1.0)], -1.0)
        return rest

    def solution(self, cuts: Sequence[Row] = ()) -> np.ndarray | None:
        """The values of the variables that are worth most; None where there are none, or none was found.

        Args:
            cuts: further constraints.
        """
        rows = [*self.rows, *cuts]
        entries = [(number, *term) for number, (terms, _) in enumerate(rows) for term in terms]
        row, column, value = zip(*entries, strict=True) if entries else ((), (), ())
        matrix = csr_array((value, (row, column)), shape=(len(rows), len(self.objective)))
        integrality = np.zeros(len(self.objective))
        integrality[: self.binaries] = 1
        with without_chatter():
            result = milp(
                -np.asarray(self.objective),
                integrality=integrality,
                bounds=Bounds(0, 1),
                constraints=LinearConstraint(matrix, lb=[least for _, least in rows]),
                options={"mip_rel_gap": 0.0, "node_limit": self.branches},
            )
        self.gap = 0.0
        if result.status not in (_SOLVED, _WITHOUT_SOLUTION):
            self.gap = math.inf if result.x is None else result.fun - result.mip_dual_bound
        return result.x


_SOLVED, _WITHOUT_SOLUTION = 0, 2
"""How `milp` calls its ends but for that at a limit, which has several names."""
