"""An ONNX file in whole numbers of 8 bits: onnxruntime's static quantization, calibrated on training inputs.

Weights and what flows between operations become 8-bit numbers (QDQ, both signed); their ranges are those seen on
the calibration inputs. Whether weights get a scale for each channel, and whether 7 bits are better on a processor
that adds products of 8 bits in 16 (x86 without VNNI), is measured: the file whose answers are nearest is kept.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import UsageError
from ..naming import unknown
from ..tracing import Example, batch_size, examples_of
from ..tracing.steps import tensors_in
from .graphs import quiet

QUANTIZATIONS = ("int8",)
_ROWS, _JUDGED = 32, 64
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Agreement:
    """How near answers of another precision are to a network's.

    Attributes:
        error: the root mean square of the differences, as a share of that of the answers.
        same: the share of rows (or pixels) whose largest output is the same; None where there is one output only.
        rows: so many inputs were compared.
        largest: the largest difference.
    """

    error: float
    same: float | None
    rows: int
    largest: float

    def __str__(self) -> str:
        same = "" if self.same is None else f"the same answer for {100 * self.same:.1f} %, "
        return f"{same}outputs differ by {100 * self.error:.2g} % (root mean square) on {self.rows} inputs"


def check(quantize: str | None, to: str, calibration: Example | None) -> None:
    """Refuse what cannot be quantized, or not without more.

    Raises:
        ValueError: see above; the message says what to do.
    """
    if quantize is None:
        if calibration is not None:
            raise UsageError("calibration is for quantize='int8': give both or none")
        return
    if quantize not in QUANTIZATIONS:
        raise unknown("quantization", quantize, QUANTIZATIONS)
    if to != "onnx":
        raise UsageError(f"quantize={quantize!r} is for the form 'onnx', not {to!r}")
    if calibration is None or (isinstance(calibration, Sequence) and not calibration):
        raise UsageError(
            f"quantize={quantize!r} needs calibration: some hundred training inputs, as the network takes them "
            "(Data.train_inputs gives such)"
        )


def batches_of(calibration: Example, rows: int | None) -> list[Call]:
    """Calibration inputs in batches.

    Args:
        calibration: see `dnat.trace`.
        rows: of a batch, where the file takes no other; a rest is left out then. By default at most 32.

    Raises:
        ValueError: fewer inputs than one batch has.
    """
    batches = [cut for arguments in examples_of(calibration) for cut in _cut(arguments, rows)]
    if not batches:
        raise UsageError(f"calibration has fewer inputs than the {rows or 1} of a batch")
    return batches


def _cut(arguments: Call, rows: int | None) -> Iterator[Call]:
    arguments = tree_map_only(Tensor, lambda t: t.detach().cpu(), arguments)
    count = batch_size(arguments)
    if count is None:
        yield arguments
        return
    step = rows or _ROWS
    for start in range(0, count, step):
        end = min(start + step, count)
        if rows is None or end - start == rows:
            yield tree_map_only(
                Tensor,
                lambda t: t[start:end] if t.dim() and t.shape[0] == count else t,  # noqa: B023 (used at once)
                arguments,
            )


def quantized(path: Path, network: nn.Module, batches: Sequence[Call], told: Mapping[str, str]) -> str:
    """Turn an ONNX file into one in 8 bits, and tell how.

    Args:
        path: the file, which is replaced.
        network: what it computes.
        batches: calibration inputs.
        told: texts for its metadata.

    Raises:
        ValueError: there is nothing to quantize, or onnxruntime cannot do it.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = path.with_suffix(".prepared.onnx")
    try:
        with quiet():
            quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
    except Exception as error:
        raise UsageError(f"{type(network).__name__} cannot be quantized by onnxruntime: {error}") from error
    kinds = {node.op_type for node in onnx.load(ready).graph.node}
    if not kinds & {"Conv", "ConvTranspose", "Gemm", "MatMul"}:
        raise UsageError(
            f"{type(network).__name__} has nothing to quantize: no convolution, linear layer or matrix product is "
            f"in its graph (there are {', '.join(sorted(kinds)) or 'no operations'})"
        )
    judged = list(itertools.islice(batches, max(1, _JUDGED // (batch_size(batches[0]) or 1))))
    tried: dict[tuple[bool, bool], float] = {}
    for way in itertools.product((True, False), (False, True)):
        made = path.with_suffix(f".{way[0]:d}{way[1]:d}.onnx")
        _quantize(ready, made, batches, way, network)
        tried[way] = agreement(network, judged, answers(made, judged)).error
    best = min(tried, key=lambda way: tried[way] if tried[way] == tried[way] else float("inf"))
    model = onnx.load(path.with_suffix(f".{best[0]:d}{best[1]:d}.onnx"))
    rows = sum(batch_size(batch) or 1 for batch in batches)
    settings = {"weights": "int8", "activations": "int8", "per_channel": best[0], "bits": 7 if best[1] else 8}
    del model.metadata_props[:]
    for name, text in {**told, "quantization": json.dumps(settings | {"calibrated_on": rows})}.items():
        model.metadata_props.add(key=name, value=text)
    onnx.save(model, path)
    scales, bits = "channel" if best[0] else "tensor", 7 if best[1] else 8
    return (
        f"weights have {bits} bits and a scale for each {scales}: the nearest of four; calibrated on {rows} inputs"
    )


def _quantize(
    ready: Path, made: Path, batches: Sequence[Call], way: tuple[bool, bool], network: nn.Module
) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    try:
        with quiet():
            quantize_static(
                str(ready),
                str(made),
                _reader(ready, batches),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=way[0],
                reduce_range=way[1],
            )
    except Exception as error:
        raise UsageError(f"{type(network).__name__} cannot be quantized by onnxruntime: {error}") from error


def _reader(path: Path, batches: Iterable[Call]) -> Any:
    """What onnxruntime asks for calibration inputs."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = feeds(session(path), batches)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    return Reader()


def session(path: Path) -> Any:
    """An ONNX file in onnxruntime on the CPU, on as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds(opened: Any, batches: Iterable[Call]) -> Iterator[dict[str, Any]]:
    """Batches as a session takes them: arrays by the names of its inputs."""
    names = [i.name for i in opened.get_inputs()]
    for batch in batches:
        arrays = [t.numpy() for t in tree_leaves(batch) if isinstance(t, Tensor)]
        yield dict(zip(names, arrays, strict=True))


def answers(path: Path, batches: Iterable[Call]) -> list[list[Tensor]]:
    """What an ONNX file computes of batches."""
    opened = session(path)
    return [[torch.from_numpy(a) for a in opened.run(None, feed)] for feed in feeds(opened, batches)]


def agreement(network: nn.Module, batches: Sequence[Call], given: Sequence[Sequence[Tensor]]) -> Agreement:
    """How near answers are to what a network computes in eval mode.

    Raises:
        RuntimeError: they have other shapes.
    """
    apart = size = largest = 0.0
    same: list[Tensor] = []
    with torch.no_grad():
        for (args, kwargs), outputs in zip(batches, given, strict=True):
            expected = tensors_in(network(*args, **kwargs))
            if [t.shape for t in outputs] != [t.shape for t in expected]:
                raise RuntimeError("the quantized network's outputs have other shapes than the network's")
            for a, b in zip(outputs, expected, strict=True):
                difference = a.double() - b.double()
                apart += difference.square().sum().item()
                size += b.double().square().sum().item()
                largest = max(largest, difference.abs().max().item()) if b.numel() else largest
            first = expected[0]
            if first.dim() >= 2 and first.shape[1] > 1 and first.is_floating_point():
                same.append((outputs[0].argmax(1) == first.argmax(1)).double().flatten())
    share = torch.cat(same).mean().item() if same else None
    rows = sum(batch_size(batch) or 1 for batch in batches)
    return Agreement((apart / max(size, 1e-30)) ** 0.5, share, rows, largest)
