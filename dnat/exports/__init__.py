"""A plain network -> files that others can use, read again by a fresh process before they are called done.

safetensors  the weights, and beside them a JSON file that lists the modules: for code that has the network
py           one Python file that builds the network with torch alone, and the weights beside it: for training
             on, in train and in eval mode
pt2          a torch.export program of the eval mode: for serving with torch
onnx         an ONNX model of the eval mode: for other runtimes (needs `pip install dnat[onnx]`)
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ..data import Preprocess, check_shape
from ..errors import UsageError, WrongTypeError
from ..naming import unknown
from ..relaxation import RelaxedNetwork
from ..rundir import atomic_write
from ..tracing import Example, copied, doubled, examples_of
from . import graphs, verification, weights
from .bodies import RefusedError
from .construction import is_leaf
from .recording import Recording, record
from .source import TYPES, source
from .structure import constants
from .verification import Case

FORMATS = ("safetensors", "py", "pt2", "onnx")


@dataclass(frozen=True)
class Exported:
    """Files that were written.

    Attributes:
        format: one of `FORMATS`.
        files: the files; the first is the one to open.
        difference: the largest difference between what they compute in a fresh process and what the network
            computes; 0 where nothing was compared.
        notes: what is worth knowing (a batch that is fixed).
    """

    format: str
    files: tuple[Path, ...]
    difference: float
    notes: tuple[str, ...] = ()


@dataclass
class _Draft:
    """Files in the making: main file first, cases to compare, and what to say."""

    files: list[Path]
    cases: list[Case]
    notes: list[str]


def export(
    network: nn.Module,
    example: Example,
    to: str,
    path: str | Path,
    *,
    preprocess: Preprocess | None = None,
    verify: bool = True,
) -> Exported:
    """Write a network to files of one form.

    Args:
        network: a plain network, as `dnat.discretize` returns it. It is left unchanged. Of one in DataParallel or
            torch.compile what is inside is written.
        example: see `dnat.trace`; the first batch counts.
        to: "safetensors", "py", "pt2" or "onnx"; see the module.
        path: where to write, with or without the form's ending. Folders are made, files that are there replaced.
        preprocess: how its images are made and what its outputs are called (`Data.preprocess`), to be told by the
            files: as a function `preprocess` and CLASSES in Python, as JSON under "preprocess" in the metadata of
            safetensors and ONNX, and as "preprocess.json" among the extra files of a program.
        verify: read the files in a fresh process and compare what they compute.

    Returns:
        What was written.

    Raises:
        ValueError: an unknown form, or a network that the form cannot hold; the message names the module and the
            reason. Nothing is written then.
        RuntimeError: the files do not compute what the network does. Nothing is left of them then.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [p.name for p in export(nn.Linear(2, 2), Tensor([[1, 2]]), "py", f"{folder}/x").files]
    ['x.py', 'x.safetensors']
    """
    if to not in FORMATS:
        raise unknown("form", to, FORMATS)
    if not isinstance(network, nn.Module):
        raise WrongTypeError(f"a network must be a torch.nn.Module, not {type(network).__name__}")
    if isinstance(network, RelaxedNetwork):
        raise UsageError("a relaxed network is not plain yet: make its choices with dnat.discretize first")
    network, wrapper = _unwrapped(network)
    target = Path(path)
    if target.suffix != f".{to}":
        target = target.with_name(f"{target.name}.{to}")
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name the file")
    twin = copied(network).cpu().eval()
    for ours, theirs in zip(network.modules(), twin.modules(), strict=True):
        if isinstance(ours, fx.GraphModule):  # each has a class of its own, and a copy forgets its name
            type(theirs).__name__ = type(ours).__name__
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().cpu(), examples_of(example)[0])
    _check_preprocess(preprocess, args)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made and compared in a folder beside, so that whatever fails leaves the files of before.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        draft = _WRITERS[to](twin, args, kwargs, Path(folder) / target.name, preprocess)
        difference = _verify(to, twin, draft) if verify else 0.0
        files = tuple(target.with_name(f.name) for f in draft.files)
        for draft_file, place in reversed(list(zip(draft.files, files, strict=True))):
            atomic_write(place, draft_file.read_bytes())
    notes = [f"the network inside {wrapper} is written: names in it are without the wrapper's"] if wrapper else []
    return Exported(to, files, difference, (*notes, *draft.notes))


def _unwrapped(network: nn.Module) -> tuple[nn.Module, str]:
    """The network inside wrappers that spread it over devices or compile it, and the outermost one's name.

    They are how a network was trained, not what it computes, and no other program could do anything with them.
    """
    wrapper = ""
    while True:
        parallel = isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel)
        inside = getattr(network, "module" if parallel else "_orig_mod", None)
        if not isinstance(inside, nn.Module):
            return network, wrapper
        network, wrapper = inside, wrapper or type(network).__name__


def _verify(form: str, network: nn.Module, draft: _Draft) -> float:
    read = verification.read_again(form, draft.files[0], draft.cases)
    if form == "safetensors":
        if read != weights.digests(weights.state(network)):
            raise RuntimeError("the file does not hold the network's tensors bit for bit")
        return 0.0
    if form == "py" and set(read["keys"]) != set(weights.state(network)):
        raise RuntimeError("the exported network's state dict has other keys than the network's")
    return verification.difference(network, draft.cases, read["outputs"])


def _check_preprocess(preprocess: object, args: tuple[Any, ...]) -> None:
    if preprocess is None:
        return
    if not isinstance(preprocess, Preprocess):
        kind = type(preprocess).__name__
        raise WrongTypeError(f"preprocess must be a dnat.data.Preprocess (Data.preprocess), not {kind}")
    if len(args) == 1 and isinstance(args[0], Tensor):
        check_shape(preprocess, args[0].shape)


def _write_safetensors(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    preprocess: Preprocess | None,
) -> _Draft:
    description = path.with_suffix(".json")
    path.write_bytes(weights.packed(weights.state(network), preprocess))
    description.write_bytes(weights.architecture(network, args, kwargs, preprocess))
    same = weights.aliases(weights.state(network))
    notes = [f"{name} is {other}, and stored once" for name, other in same.items()]
    return _Draft([path, description], [], [*notes, *_left_out(network)])


def _write_py(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    preprocess: Preprocess | None,
) -> _Draft:
    try:
        _check_types(network)
        recording = record(network, args, kwargs)
        text = source(network, recording, (args, kwargs), preprocess)
    except RefusedError as error:
        raise UsageError(
            f"{type(network).__name__} cannot be written as one Python file: {error}. The forms 'pt2', 'onnx' and "
            "'safetensors' may do"
        ) from error
    path.write_text(text, encoding="utf-8")
    files = [path, path.with_suffix(".safetensors")]
    files[1].write_bytes(weights.packed(weights.state(network), preprocess))
    others = constants(network, recording)
    if others:
        files.append(path.with_suffix(".constants.safetensors"))
        files[2].write_bytes(weights.packed(others))
    notes = _notes(network, recording)
    many = doubled((args, kwargs))
    cases = [Case(False, args, kwargs)]
    if recording.fixed != "batch":
        cases += [Case(False, *many), Case(True, *many)]
    else:
        cases += [Case(True, args, kwargs)]
    return _Draft(files, cases, notes)


def _left_out(network: nn.Module) -> list[str]:
    return [f"{key} is left out: files hold weights and buffers" for key in weights.extras(network)]


def _notes(network: nn.Module, recording: Recording) -> list[str]:
    notes = _left_out(network)
    if recording.fixed == "batch":
        notes.append("the batch decides what the forward does: the file takes inputs of the example's shapes only")
    elif recording.fixed == "size":
        notes.append("sizes decide what the forward does: the file takes inputs of the example's size only")
    elif recording.decides():
        notes.append("sizes decide what the forward does: the file refuses those that would go another way")
    notes += [f"what it gives is written without its {kind}" for kind in recording.lost]
    for path, module in network.named_modules():
        flags = {p.requires_grad for p in module.parameters()}
        if len(flags) > 1 and is_leaf(module):
            notes.append(f"{path}: only some of its weights are frozen, and all come back trainable")
    return notes


def _check_types(network: nn.Module) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.dtype not in TYPES:
            raise RefusedError(f"{name} is of type {tensor.dtype}")


def _write_pt2(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    preprocess: Preprocess | None,
) -> _Draft:
    return _graph(graphs.write_program(path, network, args, kwargs, _told(preprocess)), args, kwargs, path)


def _write_onnx(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    path: Path,
    preprocess: Preprocess | None,
) -> _Draft:
    graphs.check_onnx()
    return _graph(graphs.write_onnx(path, network, args, kwargs, _told(preprocess)), args, kwargs, path)


def _told(preprocess: Preprocess | None) -> dict[str, str]:
    return {"preprocess": json.dumps(preprocess.table())} if preprocess else {}


def _graph(dynamic: bool, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> _Draft:
    cases = [Case(False, args, kwargs)]
    if dynamic:
        return _Draft([path], [*cases, Case(False, *doubled((args, kwargs)))], [])
    return _Draft([path], cases, ["the batch is fixed to the example's: torch.export found it in the graph"])


_WRITERS: dict[str, Callable[..., _Draft]] = {
    "safetensors": _write_safetensors,
    "py": _write_py,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}
