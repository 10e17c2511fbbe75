"""Networks that torch.compile compiles for their training: how often, and that they compute what they did."""

import functools

import pytest
import torch
from reference import small
from test_training import config, tiny_data
from torch._dynamo.utils import counters

import dnat
from dnat.distributed import World
from dnat.errors import UsageError

# Torch warns of its own use of torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def traced(monkeypatch):
    """torch's compiler without its last part, which makes C++ of what is traced: minutes on a slow machine."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


def run(**options):
    return dnat.transform(
        small("residual"), tiny_data(), config(epochs=4, architecture_epochs=3, lr_theta=0.2, **options)
    )


@pytest.mark.parametrize(
    ("options", "graphs"),
    [
        ({"preset": "paper"}, 3),  # weights, theta, the plain network
        ({"preset": "improved"}, 4),  # and the gates that settle, over many steps
        ({"preset": "improved", "single_pass": True}, 3),
    ],
)
def test_each_kind_of_pass_is_one_graph(traced, options, graphs):
    plain = run(**options)
    assert not traced["stats"]
    compiled = run(**options, compile=True)
    assert traced["stats"]["unique_graphs"] == graphs
    assert not traced["graph_break"]
    assert compiled.choices == plain.choices
    for row, other in zip(compiled.history, plain.history, strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-3)
    state = plain.network.state_dict()
    assert compiled.network.state_dict().keys() == state.keys()
    assert type(compiled.network) is type(plain.network)
    for name, tensor in compiled.network.state_dict().items():
        assert torch.allclose(tensor, state[name], rtol=1e-2, atol=1e-3), name


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_bits(traced, tmp_path):
    job = dnat.settings.Job(
        network="resnet8",
        network_options={"width": 2},
        train_limit=40,
        test_limit=20,
        image_size=8,
        config=config(epochs=3, batch_size=10, lr_theta=0.3, compile=True),
    )
    from dnat.lab.runs import run
    from dnat.training import Interrupted

    whole = run(job, tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(job, tmp_path / "parts", stop=lambda progress: progress.step == 6)
    assert run(job, tmp_path / "parts")["results"]["weights_sha256"] == whole["results"]["weights_sha256"]


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    with pytest.raises(UsageError, match=r"no hints.*feature_distillation=0"):
        config(preset="fine-tune", compile=True)
    with pytest.raises(UsageError, match=r"compile is not for the space 'nat\+\+'"):
        config(space="nat++", compile=True)
    monkeypatch.setattr("dnat.session.world", lambda: World(1, 2))
    with pytest.raises(UsageError, match="compile is for one process"):
        run(compile=True)


@pytest.mark.slow
def test_a_compiled_network_learns():
    """With all of the compiler."""
    torch._dynamo.reset()
    result = dnat.transform(
        small("residual"),
        tiny_data(),
        config(architecture_epochs=1, lr=0.1, lr_theta=0.4, preset="paper", compile=True),
    )
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
