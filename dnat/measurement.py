"""What each choice does to the answers, in a file: measuring goes on where it was stopped, and never begins twice.

A run has it as `sensitivity.json` in its directory, an unfinished plan beside its own file. It is for people, too:

    images        how many were shown so far, of how many (`of`)
    compared      "class scores" (by KL) or "outputs" (squared difference as a share of their variance)
    random        whether the network draws at random, so that nothing could be computed once for several choices
    damages       {group: {choice: damage}} so far; null where the answers were not finite
    not_judged    {group: {choice: why}}: what could not be made, or does more than can be counted
    digest        of all that damages depend on
    batches       distances batch by batch, from which it goes on
    sha256        of all of that: what was changed is measured again
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import SEAL, atomic_write, parse_json, read_bytes, seal_of, sealed
from .relaxation import RelaxedNetwork
from .sensitivity import Distances, Judge, Sensitivity
from .tasks import Classification, Task
from .tracing import add_bits, tensors_of

COMPARED = "norms re-estimated in both"
"""How answers are compared; part of the digest, since files from elsewhere may hold other distances."""


def digest_of(
    relaxed: RelaxedNetwork, weights: str, seed: int, batches: Iterable[Any], task: Task | None = None
) -> str:
    """A SHA-256 over all that damages depend on but for the machine.

    Args:
        relaxed: the network.
        weights: digest of its weights.
        seed: of the weights of operations that are added.
        batches: what is shown.
        task: which compares answers; without one as of class scores.
    """
    rows = [(group, relaxed.choices_of(group)) for group in relaxed.groups]
    settings = [COMPARED, relaxed.edges.program.fingerprint, relaxed.mode, rows, seed, weights]
    compared = [] if task is None or isinstance(task, Classification) else [task]
    digest = hashlib.sha256(str(settings + compared).encode())
    for batch in batches:
        for tensor in tensors_of(batch):
            add_bits(digest, tensor)
    return digest.hexdigest()


def measured(
    judge: Judge,
    path: Path | None,
    digest: str,
    tell: Callable[[int, int], None] | None = None,
    *,
    known: Sequence[Distances] = (),
    kept: Callable[[], None] | None = None,
) -> Sensitivity:
    """The damage of every choice alone; what a file holds of the same is not measured again.

    Args:
        judge: compares answers.
        path: of the file, which is written whenever a batch is done; None: none is.
        digest: see `digest_of`. A file with another one is overwritten.
        tell: see `Judge.alone`.
        known: what is known from elsewhere (`batches_in`), where the file holds nothing.
        kept: is called whenever the file was written, and may raise.
    """

    def keep(found: list[Distances]) -> None:
        if path:
            atomic_write(path, (json.dumps(_table(judge, digest, found), indent=1) + "\n").encode())
        if kept:
            kept()

    return judge.alone(tell, known=(batches_in(path, digest) if path else []) or known, keep=keep)


def batches_in(path: Path, digest: str) -> list[Distances]:
    """What a file holds of the same measurement; nothing where that cannot be told."""
    try:
        table: Any = parse_json(read_bytes(path))
        if table["digest"] != digest or table[SEAL] != seal_of(table):  # another, or damaged: measured again
            return []
        return [
            {g: {c: infinite(d) for c, d in row.items()} for g, row in part.items()} for part in table["batches"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _table(judge: Judge, digest: str, found: Sequence[Distances]) -> dict[str, Any]:
    so_far = judge.sensitivity(found)
    table: dict[str, Any] = finite(
        {
            "images": so_far.images,
            "of": sum(judge.sizes),
            "compared": "class scores" if judge.sees_classes else "outputs",
            "random": judge.draws,
            "damages": so_far.damages,
            "not_judged": not_judged(judge.relaxed, so_far),
            "digest": digest,
            "batches": found,
        }
    )
    return sealed(table)


def not_judged(relaxed: RelaxedNetwork, sensitivity: Sensitivity) -> dict[str, dict[str, str]]:
    """{group: {choice: why}} of what was not tried, or gave no number."""
    found: dict[str, dict[str, str]] = {}
    for group, members in relaxed.by_group().items():
        row = {choice: why for edge in members for choice, why in edge.refused}
        others = {choice for edge in members for choice in edge.choices} - {*relaxed.choices_of(group), *row}
        row |= dict.fromkeys(sorted(others), "other edges of the group cannot become it")
        damages = sensitivity.damages[group]
        row |= {c: "the answers are not finite with it" for c, d in damages.items() if not math.isfinite(d)}
        if row:
            found[group] = row
    return found


def finite(value: Any) -> Any:
    """A structure for JSON: what is not finite becomes null."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def infinite(value: Any) -> float:
    """A number from JSON: null is infinity."""
    return math.inf if value is None else float(value)
