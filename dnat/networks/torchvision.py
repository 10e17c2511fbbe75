"""`import_torchvision()`: torchvision, also where its compiled operators do not fit the installed torch.

PyPI's wheel of torchvision is built against the CUDA build of torch. Beside a CPU build of torch its compiled
library does not load, and importing it then fails with "operator torchvision::nms does not exist", because its
Python files register shape functions for two operators that only the library defines. Networks, transforms and
data sets need neither operator, so their two schemas are declared here, and only when that very error occurs.
Calling the operators still fails, clearly, as it should.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType

import torch

from ..errors import UsageError

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
# Declarations last as long as this object: it must outlive the function that makes it.
_declarations: list[torch.library.Library] = []


def import_torchvision() -> ModuleType:
    """Torchvision, imported.

    Raises:
        UsageError: torchvision is missing, or cannot be imported for another reason.
    """
    try:
        return importlib.import_module("torchvision")
    except ImportError as error:
        raise UsageError(f"this needs torchvision: pip install 'dnat[torchvision]' ({error})") from error
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise UsageError(f"torchvision cannot be imported: {error}") from error
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declarations.append(library)
    for operator in ("nms", "qnms"):
        if not _is_defined(f"torchvision::{operator}"):
            library.define(operator + _SCHEMA)
    return importlib.import_module("torchvision")


def mend_torchvision() -> None:
    """Import torchvision where it is installed, for libraries that do, beside a torch it does not fit."""
    if find_spec("torchvision"):
        import_torchvision()


def _is_defined(name: str) -> bool:
    try:
        torch._C._get_schema(name, "")
    except RuntimeError:
        return False
    return True
