"""A run's network as it is given and as it is exported, side by side: metric, time, size."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..costs import Latency, latency
from ..data import Source
from ..exports import Exported, export
from ..exports.quantization import feeds, session
from ..exports.weights import packed, state
from ..rundir import NETWORK, RunFiles
from ..settings import Job
from ..tasks import task_of
from ..tracing import Example
from ..training import evaluate
from .metrics import Metric, metrics_of
from .runs import network_for
from .runs.finished import Accept

BATCHES = (1, 64)


@dataclass(frozen=True)
class Form:
    """One form of a run's network.

    Attributes:
        name: which network, and in what numbers.
        runtime: what runs it.
        value: of the run's first metric on the test examples; None where it was not trained.
        latencies: for each of `BATCHES`; None where the form takes another batch only.
        size: of its weights' file, in bytes.
    """

    name: str
    runtime: str
    value: float | None
    latencies: tuple[Latency | None, ...]
    size: int


class OnnxNetwork(nn.Module):
    """An ONNX file as a network, run by onnxruntime on as many threads as torch has.

    Attributes:
        rows: the only batch that it takes; None where it takes any.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.session = session(path)
        sizes = self.session.get_inputs()[0].shape
        self.rows = sizes[0] if sizes and isinstance(sizes[0], int) else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network's own forward takes and gives, tensors alone."""
        (feed,) = feeds(self.session, [(args, kwargs)])
        outputs = self.session.run(None, feed)
        tensors = tuple(map(torch.from_numpy, outputs))
        return tensors[0] if len(tensors) == 1 else tensors


def forms(
    directory: str | Path,
    restored: tuple[nn.Module, Job, Example],
    data: Source,
    written: Exported,
    accept: Accept = None,
) -> tuple[Metric, list[Form]]:
    """What there is of a finished run's network, measured here: the original, the compact one, what was exported.

    Of an ONNX file the same networks are measured in onnxruntime, too, so that what the file gains can be told
    from what the runtime gains.

    Args:
        directory: of the run.
        restored: what `restore` gives of it.
        data: the run's.
        written: what was exported of it.
        accept: see `RunFiles`.

    Returns:
        The metric that is told, and the forms.
    """
    compact, job, example = restored
    files = RunFiles(directory, accept=accept)
    record = files.record()
    metric = metrics_of(record)[0]
    # Only its shape counts: what it was worth stands in the record.
    original = network_for(job.but(weights=None), data).eval()
    before = record["results"].get(f"test_{metric.name}_before") if job.weights is not None else None
    table = [
        Form("original", "torch", before, _times(original, data), len(packed(state(original)))),
        _measured("compact", compact, data, job, metric, files.path(NETWORK).stat().st_size),
    ]
    if job.method == "original":
        table = table[1:]
    if written.format != "onnx":
        return metric, table
    with tempfile.TemporaryDirectory() as folder:
        if job.method != "original":
            path = export(original, example, "onnx", Path(folder) / "original", verify=False).files[0]
            table.append(Form("original", "onnxruntime", before, _times(OnnxNetwork(path), data), _size(path)))
        path = written.files[0]
        if written.quantized:
            plain = export(compact, example, "onnx", Path(folder) / "compact", verify=False).files[0]
            table.append(_measured("compact", OnnxNetwork(plain), data, job, metric, _size(plain)))
        name = f"compact, {written.quantized}" if written.quantized else "compact"
        table.append(_measured(name, OnnxNetwork(path), data, job, metric, _size(path)))
    return metric, table


def _size(path: Path) -> int:
    return path.stat().st_size


def _measured(name: str, network: nn.Module, data: Source, job: Job, metric: Metric, size: int) -> Form:
    value = None
    if not isinstance(network, OnnxNetwork) or network.rows is None:
        value = evaluate(network, data, job.config, task=task_of(job.task)).metrics[metric.name]
    runtime = "onnxruntime" if isinstance(network, OnnxNetwork) else "torch"
    return Form(name, runtime, value, _times(network, data), size)


def _times(network: nn.Module, data: Source) -> tuple[Latency | None, ...]:
    rows = network.rows if isinstance(network, OnnxNetwork) else None
    return tuple(latency(network, data.example(n)) if rows in (None, n) else None for n in BATCHES)


def is_slower(table: list[Form]) -> bool:
    """Whether a network in fewer bits takes longer here than the same one in 32, for every batch."""
    times = {form.name: form.latencies for form in table if form.runtime == "onnxruntime"}
    few = next((taken for name, taken in times.items() if "," in name), ())
    pairs = zip(few, times.get("compact", ()), strict=False)
    return bool(few) and all(a is not None and b is not None and a.seconds > b.seconds for a, b in pairs)


def cells(metric: Metric, table: list[Form]) -> Iterator[tuple[str, ...]]:
    """The table as text, its head first.

    >>> from dnat.costs import Latency
    >>> row = Form("compact", "torch", 0.98, (Latency(0.001, 0.0002, 20, 1, "cpu"), None), 94_000)
    >>> list(cells(Metric("accuracy"), [row]))[1]
    ('compact', 'torch', '98.00%', '1.00 ± 0.10', '-', '94 kB')
    """
    yield ("network", "run by", metric.title, *(f"ms for {n}" for n in BATCHES), "file")
    for form in table:
        value = "-" if form.value is None else metric.text(form.value)
        times = ("-" if t is None else f"{t.seconds * 1e3:.2f} ± {t.spread * 5e2:.2f}" for t in form.latencies)
        size = f"{form.size / 1e6:.1f} MB" if form.size >= 1e6 else f"{form.size / 1e3:.0f} kB"
        yield (form.name, form.runtime, value, *times, size)
