"""The example scripts as they stand: each learns what it is about, within its budget."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

EXAMPLES = {  # the share of multiply-adds that may remain, and a metric that guessing does not reach
    "sound": (0.6, "F1", 0.9),  # every note given everywhere: 0.46
    "augmentation": (0.6, "accuracy", 0.8),  # of ten classes
    "text": (0.6, "accuracy", 0.8),  # of two
    "segmentation": (0.8, "mean IoU", 0.45),  # the ground alone: 0.28
    "pitch": (0.5, "accuracy", 0.98),  # as the package has it: 0.999
}
NEEDED = {"text": "transformers", "pitch": "torchcrepe"}
QUICK = ("augmentation",)


def test_every_example_is_run():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in EXAMPLES]
)
def test_an_example_learns_within_its_budget(name, tmp_path):
    if name in NEEDED and not importlib.util.find_spec(NEEDED[name]):
        pytest.skip(f"needs {NEEDED[name]}")
    share, metric, floor = EXAMPLES[name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    before, after = (float(text) for text in re.findall(r"([\d.]+) M MAdds", printed))
    assert after <= share * before + 0.01  # both are rounded to hundredths
    reached = float(re.search(rf"^{metric} .*?([\d.]+)$", printed, re.M)[1])
    assert reached > floor, printed
    assert not list(tmp_path.iterdir())  # nothing is left behind
