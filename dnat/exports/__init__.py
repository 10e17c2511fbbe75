"""A plain network -> files that others can use, read again by a fresh process before they are called done.

safetensors  the weights, and beside them a JSON file that lists the modules: for code that has the network
py           one Python file that builds the network with torch alone, and the weights beside it: for training
             on, in train and in eval mode
pt2          a torch.export program of the eval mode: for serving with torch
onnx         an ONNX model of the eval mode: for other runtimes (needs `pip install dnat[onnx]`); also in 8 bits

Batch norms can be folded into the layers before them in every form (`fold`).
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..data import Preprocess, check_shape
from ..errors import UsageError, WrongTypeError
from ..files import atomic_write
from ..naming import unknown
from ..relaxation import RelaxedNetwork
from ..tracing import Example, batch_size, doubled, examples_of
from . import folding, graphs, quantization, verification, weights
from .bodies import RefusedError
from .construction import is_leaf
from .folding import Folding as Folding
from .folding import fold as fold
from .quantization import QUANTIZATIONS as QUANTIZATIONS
from .quantization import Agreement as Agreement
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
        notes: what is worth knowing (a batch that is fixed, norms that are not folded).
        quantized: "int8" of a network in 8 bits.
        agreement: how near its answers on the calibration inputs are then, in a fresh process.
    """

    format: str
    files: tuple[Path, ...]
    difference: float
    notes: tuple[str, ...] = ()
    quantized: str = ""
    agreement: Agreement | None = None


@dataclass(frozen=True)
class _Given:
    """What is to be written: a network, its arguments, how images are made, folded norms, calibration inputs."""

    network: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    preprocess: Preprocess | None
    folded: tuple[str, ...]
    calibration: Example | None


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
    fold: bool = False,
    quantize: str | None = None,
    calibration: Example | None = None,
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
        fold: fold batch norms into the layers before them, for eval mode; see `dnat.exports.fold`.
        quantize: "int8" for an ONNX model in 8 bits: onnxruntime's static quantization.
        calibration: for that some hundred training inputs, as `example` (`data.train_inputs(256, seed=0)`).
        verify: read the files in a fresh process and compare what they compute. In 8 bits that differs from what
            the network computes; how much is told (`Exported.agreement`).

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
    quantization.check(quantize, to, calibration)
    network, wrapper = _unwrapped(network)
    target = Path(path)
    if target.suffix != f".{to}":
        target = target.with_name(f"{target.name}.{to}")
    if target.is_dir():
        raise UsageError(f"{target} is a folder: name the file")
    twin = folding.twin_of(network).cpu().eval()
    args, kwargs = tree_map_only(Tensor, lambda t: t.detach().cpu(), examples_of(example)[0])
    _check_preprocess(preprocess, args)
    notes = [f"the network inside {wrapper} is written: names in it are without the wrapper's"] if wrapper else []
    norms: tuple[str, ...] = ()
    if fold:
        without_norms = folding.fold(twin, kwargs or args)
        twin, norms = without_norms.network, tuple(without_norms.norms)
        notes += _told_of(without_norms)
    given = _Given(twin, args, kwargs, preprocess, norms, calibration)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made and compared in a folder beside, so that whatever fails leaves the files of before.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        draft = _WRITERS[to](given, Path(folder) / target.name)
        agreement = _agreement(twin, draft) if verify and quantize else None
        difference = agreement.largest if agreement else _verify(to, twin, draft) if verify else 0.0
        files = tuple(target.with_name(f.name) for f in draft.files)
        for draft_file, place in reversed(list(zip(draft.files, files, strict=True))):
            atomic_write(place, draft_file.read_bytes())
    return Exported(to, files, difference, (*notes, *draft.notes), quantize or "", agreement)


def _told_of(done: Folding) -> list[str]:
    many = len(done.norms)
    told = "no batch norm is folded"
    if many:
        told = (
            f"{many} batch norm{'s are' if many > 1 else ' is'} folded, outputs differ by at most "
            f"{done.difference:.2g}: for eval mode only"
        )
    return [told, *(f"{path} is not folded: {why}" for path, why in done.kept.items())]


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


def _agreement(network: nn.Module, draft: _Draft) -> Agreement:
    """How near a quantized network is, in a fresh process.

    Raises:
        RuntimeError: it is no nearer than one that answers 0.
    """
    outputs = verification.read_again("onnx", draft.files[0], draft.cases)["outputs"]
    found = quantization.agreement(network, [(c.args, c.kwargs) for c in draft.cases], outputs)
    if not found.error < 1:
        raise RuntimeError(f"in 8 bits the network computes something else: {found}")
    return found


def _check_preprocess(preprocess: object, args: tuple[Any, ...]) -> None:
    if preprocess is None:
        return
    if not isinstance(preprocess, Preprocess):
        kind = type(preprocess).__name__
        raise WrongTypeError(f"preprocess must be a dnat.data.Preprocess (Data.preprocess), not {kind}")
    if len(args) == 1 and isinstance(args[0], Tensor):
        check_shape(preprocess, args[0].shape)


def _write_safetensors(given: _Given, path: Path) -> _Draft:
    network, description = given.network, path.with_suffix(".json")
    path.write_bytes(weights.packed(weights.state(network), given.preprocess))
    description.write_bytes(weights.architecture(network, given.args, given.kwargs, given.preprocess))
    same = weights.aliases(weights.state(network))
    notes = [f"{name} is {other}, and stored once" for name, other in same.items()]
    return _Draft([path, description], [], [*notes, *_left_out(network)])


def _write_py(given: _Given, path: Path) -> _Draft:
    network, args, kwargs, preprocess = given.network, given.args, given.kwargs, given.preprocess
    try:
        _check_types(network)
        network, recording = folding.without(network, record(network, args, kwargs), given.folded)
        text = source(network, recording, (args, kwargs), preprocess, folded=bool(given.folded))
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


def _write_pt2(given: _Given, path: Path) -> _Draft:
    told = _told(given.preprocess)
    return _graph(graphs.write_program(path, given.network, given.args, given.kwargs, told), given, path)


def _write_onnx(given: _Given, path: Path) -> _Draft:
    graphs.check_onnx()
    told = _told(given.preprocess)
    dynamic = graphs.write_onnx(path, given.network, given.args, given.kwargs, told)
    draft = _graph(dynamic, given, path)
    if given.calibration is None:
        return draft
    rows = None if dynamic else batch_size((given.args, given.kwargs))
    batches = quantization.batches_of(given.calibration, rows)
    note = quantization.quantized(path, given.network, batches, told)
    return _Draft([path], [Case(False, *batch) for batch in batches], [*draft.notes, note])


def _told(preprocess: Preprocess | None) -> dict[str, str]:
    return {"preprocess": json.dumps(preprocess.table())} if preprocess else {}


def _graph(dynamic: bool, given: _Given, path: Path) -> _Draft:
    cases = [Case(False, given.args, given.kwargs)]
    if dynamic:
        return _Draft([path], [*cases, Case(False, *doubled((given.args, given.kwargs)))], [])
    return _Draft([path], cases, ["the batch is fixed to the example's: torch.export found it in the graph"])


_WRITERS: dict[str, Callable[..., _Draft]] = {
    "safetensors": _write_safetensors,
    "py": _write_py,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}
