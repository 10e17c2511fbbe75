import gc
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch

if os.environ.get("PYTEST_XDIST_WORKER") and hasattr(os, "sched_setaffinity"):
    # A core each, for this process and those that it starts: with a thread for each core, test processes would
    # wait for one another most of the time.
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [_cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(_cores)]])

# What is kept for a user (which code may run) is none of a real one's.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="dnat-test-state-")

# A test process holds half a million objects that stay (torch, sympy): to look through all of them as often as
# Python does by itself is a seventh of the suite's time.
gc.set_threshold(20_000, 20, 50)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _the_same_every_time(tmp_path_factory):
    """Two processes of two threads each would wait for one another on a small machine.

    A test that draws without a generator of its own draws the same numbers in every run, whatever ran before
    it in its process: a test that fails once in a thousand draws would blame a change that has no part in it. And
    modules that one test wrote are not those that the next one imports by the same name.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path, imported = [*sys.path], {*sys.modules}
    yield
    sys.path[:] = path
    for name in {*sys.modules} - imported:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]


@pytest.fixture(scope="session")
def cifar10_root():
    """A folder that holds the real files of CIFAR-10."""
    if os.environ.get("DNAT_DATA") and (Path(os.environ["DNAT_DATA"]) / "cifar-10-batches-py").exists():
        return Path(os.environ["DNAT_DATA"])
    unpack = SHARED / "cifar10" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no CIFAR-10 here: set DNAT_DATA to a folder that holds cifar-10-batches-py")
    folder = Path(tempfile.gettempdir()) / "dnat-test-cifar10"
    if not folder.exists():
        # Unpacked elsewhere and then renamed: several test processes may come here at once.
        part = Path(tempfile.mkdtemp(dir=folder.parent))
        subprocess.run([sys.executable, unpack, part], check=True, capture_output=True)
        try:
            part.rename(folder)
        except OSError:
            shutil.rmtree(part)  # another was first
    return folder


@pytest.fixture(scope="session")
def tiny_imagenet_root():
    """A folder that holds Tiny ImageNet or a part of it, as a folder or zip archive."""
    for root in (Path(os.environ["DNAT_DATA"]) if os.environ.get("DNAT_DATA") else SHARED, SHARED):
        if (root / "tiny-imagenet-200").exists() or list(root.glob("tiny-imagenet-200*.zip")):
            return root
    pytest.skip("no Tiny ImageNet here: set DNAT_DATA to a folder that holds tiny-imagenet-200.zip")


@pytest.fixture(scope="session")
def timm():
    """timm, which imports torchvision, which needs our help beside a CPU build of torch."""
    from dnat.networks import import_torchvision

    import_torchvision()
    return pytest.importorskip("timm")


@pytest.fixture
def quiet():
    """Warnings of short architecture stages are expected here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="lr_theta")
        yield
