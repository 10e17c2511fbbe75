"""Where a run is computed, and how. Of what a run is, only that counts on which its bits depend."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator, Field

from ..errors import UsageError
from .part import Part, shown

MOST_THREADS = 1024
"""More threads than any machine that we know of has cores: torch dies of some, or asks for all memory."""

WHERE = frozenset({"data_root", "streaming", "workers"})
"""Settings that tell where and how the images are read, and change no bit of a run."""

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,4})?")


def _is_device(name: str) -> str:
    if not _DEVICE.fullmatch(name):
        raise UsageError(f"device must be auto, cpu, cuda, cuda:1, mps, not {shown(name)}")
    return name


class Machine(Part):
    """Where a run is computed, and how."""

    device: Annotated[str, AfterValidator(_is_device)] = "auto"
    """Device of the training: auto, cpu, cuda, cuda:1, mps. Bits depend on its kind; a run may go on
    on another."""
    channels_last: bool = True
    """Whether images and convolution weights are laid out channels last. Bits depend on it."""
    threads: Annotated[int, Field(ge=1, le=MOST_THREADS)]
    """CPU threads; sums, and so bits, depend on them. By default all cores at hand; a run goes on with as many as
    before."""
    compile: bool = False
    """Whether torch.compile compiles the network for its training, once for each kind of pass, which takes
    a minute, or several on a slow CPU; passes are rounded otherwise then, and a run has other bits. Not with hints
    of a teacher (`feature_distillation`), other operations (`space`), or several processes."""
    streaming: bool | None = None
    """Whether pictures of a data set by name are decoded while the network trains; by default where they do not
    fit into memory."""
    workers: Annotated[int, Field(ge=0, le=256)] | None = None
    """Processes that decode pictures which do not fit into memory; by default one a core, at most 8."""


def cores() -> int:
    """CPU cores that this process may use; processes that torchrun starts on one machine share them."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, here // max(1, int(sharing) if sharing.isdecimal() else 1))
