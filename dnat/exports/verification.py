"""Reads an exported network in a fresh process, without dnat, and compares what it computes with the network."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tracing import copied
from ..tracing.steps import tensors_in

# What the fresh process does: read the file in its form, run it on every case, save what comes out.
_CHILD = """
import hashlib, importlib.util, sys

for name in ("dnat", "torchvision", "timm"):
    sys.modules[name] = None  # importing it fails
import torch
from torch.utils._pytree import tree_leaves

form, path, cases, results, threads = sys.argv[1:]
torch.set_num_threads(int(threads))


def run(call, args, kwargs):
    def opened(x):
        if hasattr(x, "to_tuple"):
            return opened(x.to_tuple())
        return [t for item in x for t in opened(item)] if isinstance(x, (tuple, list)) else [x]

    with torch.no_grad():
        return [t for t in tree_leaves(opened(call(*args, **kwargs))) if isinstance(t, torch.Tensor)]


def weights():
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        same = {k: v for k, v in file.metadata().items() if k not in ("format", "preprocess")}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    tensors |= {name: tensors[other] for name, other in same.items()}
    return {
        name: f"{tuple(t.shape)} {t.dtype} "
        + hashlib.sha256(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, t in tensors.items()
    }


def py():
    spec = importlib.util.spec_from_file_location("network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outputs = []
    for training, args, kwargs in torch.load(cases, weights_only=True):
        network = module.load().train(training)
        torch.manual_seed(0)
        outputs.append(run(network, args, kwargs))
    return {"outputs": outputs, "keys": list(network.state_dict())}


def pt2():
    network = torch.export.load(path).module()
    return {"outputs": [run(network, args, kwargs) for _, args, kwargs in torch.load(cases, weights_only=True)]}


def onnx():
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    outputs = []
    for _, args, kwargs in torch.load(cases, weights_only=True):
        inputs = [t.numpy() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        answers = session.run(None, dict(zip(names, inputs, strict=True)))
        outputs.append([torch.from_numpy(a) for a in answers])
    return {"outputs": outputs}


torch.save({"safetensors": weights, "py": py, "pt2": pt2, "onnx": onnx}[form](), results)
"""

_TIMEOUT = 1800
_RTOL = 1e-4
_SCALE = {torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Case:
    """Arguments for a network, and the mode to run it in."""

    training: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def read_again(form: str, path: Path, cases: Sequence[Case] = ()) -> dict[str, Any]:
    """What a fresh process finds in a file: outputs of every case, keys, or checksums of tensors.

    Raises:
        RuntimeError: it cannot be read or run there.
    """
    with tempfile.TemporaryDirectory(prefix="export-") as folder:
        arguments, results = Path(folder) / "cases.pt", Path(folder) / "results.pt"
        torch.save([(c.training, c.args, c.kwargs) for c in cases], arguments)
        names = map(str, (form, path.resolve(), arguments, results, torch.get_num_threads()))
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-I", "-W", "ignore", "-c", _CHILD, *names],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
        if child.returncode != 0:
            raise RuntimeError(f"{path.name} cannot be used in a fresh process: {_last_line(child.stderr)}")
        return torch.load(results, weights_only=True)


def difference(network: nn.Module, cases: Sequence[Case], outputs: Sequence[Sequence[Tensor]]) -> float:
    """The largest difference between outputs and what the network computes, over all cases.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    largest = 0.0
    for case, output in zip(cases, outputs, strict=True):
        expected = _run(network, case)
        if [(t.shape, t.dtype) for t in output] != [(t.shape, t.dtype) for t in expected]:
            raise RuntimeError("the exported network's outputs have other shapes or types than the network's")
        for a, b in zip(output, expected, strict=True):
            largest = max(largest, _compare(a, b, "train" if case.training else "eval"))
    return largest


def apart(network: nn.Module, other: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The largest difference between what two networks compute in eval mode.

    Raises:
        RuntimeError: they differ by more than rounding.
    """
    case = Case(False, args, kwargs)
    return difference(network, [case], [_run(other, case)])


def _run(network: nn.Module, case: Case) -> list[Tensor]:
    twin = copied(network).train(case.training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        result = twin(*case.args, **case.kwargs)
    return tensors_in(result)


def _compare(output: Tensor, expected: Tensor, mode: str) -> float:
    if not expected.is_floating_point():
        if not torch.equal(output, expected):
            raise RuntimeError(f"the exported network computes something else in {mode} mode")
        return 0.0
    a, b = output.double(), expected.double()
    size = torch.nan_to_num(b.abs(), posinf=0).max().item() if b.numel() else 0.0
    scale = _SCALE.get(expected.dtype, _RTOL)
    apart = torch.nan_to_num((a - b).abs()).max().item() if b.numel() else 0.0
    if not torch.allclose(a, b, rtol=scale, atol=scale * max(size, 1e-30), equal_nan=True):
        raise RuntimeError(
            f"the exported network computes something else in {mode} mode: outputs of size {size:.3g} differ by "
            f"{apart:.3g}"
        )
    return apart


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it died without a word"
