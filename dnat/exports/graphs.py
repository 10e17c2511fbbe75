"""The forms "pt2" and "onnx": the network's eval mode as a graph."""

import contextlib
import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map, tree_map_only

from ..errors import UsageError
from ..tracing import batch_size, doubled


def exported(
    network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.export.ExportedProgram, bool]:
    """A network's eval mode as a program, and whether it takes any batch.

    Raises:
        ValueError: torch cannot export it, not even for the example's batch alone.
    """
    n = batch_size((args, kwargs))
    # A batch of 1 would be taken for a constant.
    many = doubled((args, kwargs)) if n == 1 else (args, kwargs)
    bound = inspect.signature(network.forward).bind(*many[0], **many[1]).arguments
    size = 2 if n == 1 else n
    dynamic = torch.export.Dim.DYNAMIC
    shapes = tree_map(
        lambda t: {0: dynamic} if isinstance(t, Tensor) and t.dim() and t.shape[0] == size else None, dict(bound)
    )
    with quiet():
        try:
            return torch.export.export(network, *fresh(many), dynamic_shapes=shapes, strict=False), True
        except Exception:
            try:
                return torch.export.export(network, *fresh((args, kwargs)), strict=False), False
            except Exception as error:
                raise UsageError(
                    f"torch.export cannot export {type(network).__name__}: {_first_line(error)}"
                ) from error


def fresh(arguments: Any) -> Any:
    """Copies of arguments; torch.export leaves marks on the tensors that it is given."""
    return tree_map_only(Tensor, torch.clone, arguments)


def write_program(
    path: Path, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Mapping[str, str]
) -> bool:
    """Write a .pt2 file, with texts beside the program; tells whether it takes any batch."""
    program, dynamic = exported(network, args, kwargs)
    with quiet():
        torch.export.save(program, path, extra_files={f"{name}.json": text for name, text in told.items()})
    return dynamic


def check_onnx() -> None:
    """Raise if what ONNX needs is not installed.

    Raises:
        ValueError: it is not.
    """
    missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
    if missing:
        raise UsageError(f"the form 'onnx' needs {' and '.join(missing)}: pip install dnat[onnx]")


def write_onnx(
    path: Path, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], told: Mapping[str, str]
) -> bool:
    """Write an .onnx file, with texts in its metadata; tells whether it takes any batch.

    Raises:
        ValueError: torch cannot export the network, or ONNX has no operator for what it does.
    """
    import onnx

    program, dynamic = exported(network, args, kwargs)
    try:
        with quiet():
            torch.onnx.export(program, f=path, dynamo=True, external_data=False, verbose=False)
            if told:
                model = onnx.load(path)
                for name, text in told.items():
                    model.metadata_props.add(key=name, value=text)
                onnx.save(model, path)
            onnx.checker.check_model(path)
    except Exception as error:
        raise UsageError(f"{type(network).__name__} cannot be written as ONNX: {_first_line(error)}") from error
    return dynamic


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within, torch's exporters say nothing."""
    logging.disable(logging.ERROR)
    said = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _first_line(error: Exception) -> str:
    cause = error.__cause__ or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
