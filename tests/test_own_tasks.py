"""Tasks, data and recipes of the user's own, through the library and the command."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference import small
from test_training import config, tiny_data
from torch import nn
from torch.utils.data import TensorDataset

import dnat
from dnat.data import validation_split
from dnat.errors import UsageError
from dnat.session import weights_digest
from dnat.tasks import Classification, MultiLabel, Regression
from dnat.training import Interrupted

MODULE = """
import torch
from torch import nn
from torch.nn.functional import l1_loss
from torch.utils.data import TensorDataset
import dnat

class Curve(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.inward = nn.Linear(3, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4))
        self.outward = nn.Linear(width, 1)

    def forward(self, x):
        x = self.inward(x)
        for block in self.blocks:
            x = x + block(x)
        return self.outward(x)[:, 0]

def points():
    draws = torch.Generator().manual_seed(0)
    x = torch.rand(260, 3, generator=draws) * 2 - 1
    y = (x * x).sum(1)
    return TensorDataset(x[:200], y[:200]), TensorDataset(x[200:], y[200:])

TASK = dnat.Task.of(torch.nn.functional.mse_loss, {"mae": (l1_loss, "min")}, name="distance")
"""


def command(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path(dnat.__file__).parents[1])])}
    done = subprocess.run(
        [sys.executable, "-m", "dnat.lab.cli", *arguments],
        capture_output=True, text=True, cwd=folder, env=environment, timeout=300,
    )  # fmt: skip
    assert not done.returncode, done.stderr + done.stdout
    return done.stdout


def test_the_command_trains_what_a_module_of_ones_own_says(tmp_path):
    """Regression on tensors by a network, data and a task that stand in the user's module; also tested again."""
    (tmp_path / "mine.py").write_text(MODULE)
    settings = ["--set", "optimizer=adamw", "--set", "lr=0.01", "--set", "lr_theta=0.2", "--set", "threads=1"]
    command(
        "transform", "--network", "mine:Curve", "--data", "mine:points", "--task", "mine:TASK", "--budget", "0.7",
        "--epochs", "12", "--architecture-epochs", "6", "--batch-size", "20", *settings, "--out", "run",
        folder=tmp_path,
    )  # fmt: skip
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    results = record["results"]
    assert record["metrics"] == {"mae": "min"}
    assert results["test_mae"] < 0.5 * results["test_mae_before"]
    assert results["cost_after"]["madds"] <= 0.7 * results["cost_before"]["madds"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_mae"] == results["test_mae"]
    told = command("evaluate", "run", folder=tmp_path)
    assert f"MAE {results['test_mae']:.4g}" in told
    assert "on 60 examples" in told
    assert "edges" in command("plan", "--network", "mine:Curve", "--data", "mine:points", "--budget", "0.7",
                              "--json", folder=tmp_path)  # fmt: skip


def tensors(n=60):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, 8, 8, generator=draws)
    return TensorDataset(x, (x.mean((2, 3)) > 0).float())


def labelled(**options):
    data = dnat.from_loaders(tensors(), tensors(20))
    network = small("residual")
    network.head = nn.Linear(network.head.in_features, 3)
    return dnat.transform(network, data, config(**options), task=MultiLabel())


@pytest.mark.filterwarnings("ignore:lr_theta")
@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "ema": 0.9}, {"validation": 0.2}])
def test_stopped_and_resumed_it_has_the_same_bits(options, tmp_path):
    """With AdamW's moments, averaged weights and a validation part; stopped in both stages."""
    from dnat.records import Records
    from dnat.settings import Job

    data = dnat.from_loaders(tensors(), tensors(20))
    network = small("residual")
    network.head = nn.Linear(network.head.in_features, 3)
    c = config(**options, lr=0.01)
    whole = dnat.transform(network, data, c, task="multi-label")
    for at in (2, 14):
        j = Job(network="residual", config=c)
        with Records.open(tmp_path / f"{at}", j) as records, pytest.raises(Interrupted):
            dnat.transform(
                network, data, c, task=MultiLabel(), records=records, stop=lambda p, at=at: p.step == at
            )
        with Records.open(tmp_path / f"{at}", j) as records:
            again = dnat.transform(network, data, c, task=MultiLabel(), records=records)
        assert again.results() == whole.results(), at


def test_averaged_weights_are_what_is_kept():
    """By hand: the average of the weights after each step, from the choices on cut along."""
    data, network = tiny_data(), small("residual")
    c = config(epochs=2, architecture_epochs=1, ema=0.5)
    seen = []
    from dnat.training import Trainer

    step = Trainer.step

    def spied(self, inputs, target):
        step(self, inputs, target)
        seen.append({n: p.detach().clone() for n, p in self.weights.named_parameters()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", spied)
        result = dnat.train(network, data, c)
    assert len(seen) == 6
    average = {n: p.detach().clone() for n, p in network.named_parameters()}
    for t, weights in enumerate(seen):
        rate = 1 - min(0.5, (1 + t) / (10 + t))
        average = {n: a + rate * (weights[n] - a) for n, a in average.items()}
    for name, parameter in result.network.named_parameters():
        assert torch.allclose(parameter, average[name], rtol=1e-5, atol=1e-7), name
    assert result.test.accuracy == dnat.evaluate(result.network, data).accuracy


def test_with_a_validation_part_the_test_images_decide_nothing():
    """Other test images change what is told of them, and no bit of the network."""
    data = tiny_data(40)
    other = replace(data, test_images=255 - data.test_images)
    c = config(epochs=3, architecture_epochs=2, validation=0.25, lr_theta=0.3)
    runs = [dnat.transform(small("residual"), d, c) for d in (data, other)]
    assert weights_digest(runs[0].network) == weights_digest(runs[1].network)
    assert runs[0].choices == runs[1].choices
    for run, source in zip(runs, (data, other), strict=True):
        assert run.watched == "validation"
        assert "test_accuracy" not in run.history[0]
        part = validation_split(source, 0.25, 0)
        assert run.history[-1]["validation_accuracy"] == dnat.evaluate(run.network, part).accuracy
        assert run.test == dnat.evaluate(run.network, source)
        assert "relaxed_validation_accuracy" in run.results()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dnat.transform(small("residual"), tiny_data(), config(), task="segmentatio"), "did you mean"),
        (lambda: dnat.train(small("residual"), tiny_data(), config(), task=Regression()), "regression"),
        (lambda: labelled(label_smoothing=0.1), "label_smoothing is for tasks with classes"),
        (lambda: labelled(validation=0.001), "share"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(call, words):
    with pytest.raises(UsageError, match=words):
        call()


def test_smoothed_labels_by_hand():
    data, network = tiny_data(), small("residual")
    smooth = dnat.train(network, data, config(epochs=1, architecture_epochs=1, label_smoothing=0.2))
    given = dnat.train(network, data, config(epochs=1, architecture_epochs=1), task=Classification(0.2))
    assert smooth.results() == given.results()
    plain = dnat.train(network, data, config(epochs=1, architecture_epochs=1))
    assert smooth.results() != plain.results()
