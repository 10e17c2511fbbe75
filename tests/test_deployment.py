"""ONNX in 8 bits, and a run's exported forms side by side."""

import importlib.util
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from reference import images, small
from test_folding import lived_in
from torch import nn

import dnat
from dnat.exports import export
from dnat.lab.cli import cli
from dnat.lab.cli.exporting import _training_inputs

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def opened(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    """A network whose norms do something, in 8 bits and in 32."""
    folder, data = tmp_path_factory.mktemp("int8"), dnat.load("digits")
    network = lived_in(dnat.build("resnet8", seed=0))
    written = export(
        network,
        data.example(),
        "onnx",
        folder / "small",
        quantize="int8",
        calibration=data.train_inputs(100, seed=0),
        preprocess=data.preprocess,
    )
    return network, data, written


def test_a_network_in_8_bits_answers_alike(int8):
    """Counted here in another process than the one that wrote the file read it in, image by image."""
    network, data, written = int8
    session, (name,) = opened(written.files[0]), [i.name for i in opened(written.files[0]).get_inputs()]
    (calibration,) = data.train_inputs(100, seed=0)
    with torch.no_grad():
        expected = network(calibration).numpy()
    given = np.concatenate([session.run(None, {name: x[None].numpy()})[0] for x in calibration])
    agreement = written.agreement
    assert agreement.rows == 100
    assert agreement.same == pytest.approx((given.argmax(1) == expected.argmax(1)).mean(), abs=0.02)
    error = np.sqrt(((given - expected) ** 2).mean() / (expected**2).mean())
    assert agreement.error == pytest.approx(error, rel=0.1)
    assert 0 < agreement.error < 0.1
    assert written.difference == agreement.largest == pytest.approx(np.abs(given - expected).max(), rel=0.1)
    assert written.quantized == "int8"


def test_every_layer_is_in_8_bits(int8):
    network, _, written = int8
    model = onnx.load(written.files[0])
    kernels = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) >= 2]
    assert len(kernels) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules()) == 8
    weights = sum(int(np.prod(t.dims)) for t in kernels)
    assert weights == sum(p.numel() for p in network.parameters() if p.dim() >= 2)


def test_how_images_are_made_stands_in_the_file(int8):
    _, data, written = int8
    told = {p.key: json.loads(p.value) for p in onnx.load(written.files[0]).metadata_props}
    assert told["preprocess"] == json.loads(json.dumps(data.preprocess.table()))
    assert told["quantization"]["calibrated_on"] == 100
    assert {"weights", "activations", "per_channel", "bits"} <= told["quantization"].keys()


def test_a_fixed_batch_is_calibrated_with_such_batches(tmp_path):
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            return self.fc(x).view(4, 3)

    written = export(
        Fixed(), torch.randn(4, 6), "onnx", tmp_path / "x", quantize="int8", calibration=torch.randn(10, 6)
    )
    assert written.agreement.rows == 8
    with pytest.raises(ValueError, match="calibration has fewer inputs than the 4 of a batch"):
        export(Fixed(), torch.randn(4, 6), "onnx", tmp_path / "y", quantize="int8", calibration=torch.randn(3, 6))
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_what_cannot_be_quantized_is_refused(tmp_path, monkeypatch):
    network, x = small("residual"), images()
    for words, message in (
        ({"quantize": "int8"}, "needs calibration: some hundred training inputs"),
        ({"quantize": "int9", "calibration": x}, "unknown quantization 'int9'; did you mean 'int8'"),
        ({"calibration": x}, "calibration is for quantize='int8'"),
        ({"quantize": "int8", "calibration": []}, "needs calibration"),
    ):
        with pytest.raises(ValueError, match=message):
            export(network, x, "onnx", tmp_path / "net", **words)
    with pytest.raises(ValueError, match="quantize='int8' is for the form 'onnx', not 'py'"):
        export(network, x, "py", tmp_path / "net", quantize="int8", calibration=x)
    nothing = nn.Sequential(nn.ReLU(), nn.Flatten())
    with pytest.raises(ValueError, match=r"Sequential has nothing to quantize: .* \(there are .*Relu.*\)"):
        export(nothing, x, "onnx", tmp_path / "net", quantize="int8", calibration=x)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *r: None if n == "onnxruntime" else find(n, *r))
    with pytest.raises(ValueError, match=r"needs onnxruntime: pip install dnat\[onnx\]"):
        export(network, x, "onnx", tmp_path / "net", quantize="int8", calibration=x)
    assert not list(tmp_path.iterdir())


def command(*words):
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "small"
    quick = ("--epochs", 3, "--architecture-epochs", 1, "--batch-size", 64, "--budget", 0.7)
    result = command("transform", "--network", "resnet8", *quick, "--test-limit", 200, "--out", run)
    assert result.exit_code == 0, result.output
    return run


@pytest.mark.slow
def test_the_command_shows_all_forms_side_by_side(finished):
    """The accuracies are counted once more by a reader that has the file alone, and the pixels."""
    result = command("export", finished, "--to", "onnx", "--quantize", "int8", "--images", 64)
    assert result.exit_code == 0, result.output
    assert "calibrated on 64 inputs" in result.output
    assert re.search(r"the same answer for \d+\.\d %, outputs differ by \S+ % .* on 64 inputs", result.output)
    lines = result.output.splitlines()
    rows = [re.split(" {2,}", line.strip()) for line in lines if line.startswith(("original ", "compact"))]
    names = [("original", "torch"), ("compact", "torch")]
    names += [(name, "onnxruntime") for name in ("original", "compact", "compact, int8")]
    assert [tuple(row[:2]) for row in rows] == names
    assert [row[2] for row in rows][0::2][:1] == ["-"]  # it was not trained
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", cell) for cell in row[3:5])

    data, path = dnat.load("digits", test_limit=200), finished / "exported.int8.onnx"
    session = opened(path)
    told = json.loads(session.get_modelmeta().custom_metadata_map["preprocess"])
    pixels = (data.test_images.numpy() / 255 - told["mean"]) / told["std"]
    x = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    answers = session.run(None, {session.get_inputs()[0].name: x})[0].argmax(1)
    right = (answers == data.test_labels.numpy()).mean()
    accuracies = {tuple(row[:2]): row[2] for row in rows}
    assert accuracies["compact, int8", "onnxruntime"].replace(" ", "") == f"{right:.2%}"
    record = json.loads((finished / "record.json").read_text())["results"]["test_accuracy"]
    for runtime in ("torch", "onnxruntime"):
        assert accuracies["compact", runtime].replace(" ", "") == f"{record:.2%}"
    sizes = [float(row[5].removesuffix(" kB")) for row in rows]
    assert sizes[4] == round(path.stat().st_size / 1e3)
    assert sizes[4] < 0.5 * sizes[3]


def test_a_changed_run_is_measured_where_changes_are_taken(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "changed")
    text = (run / "config.toml").read_text()
    assert "weight_decay = 0.0003" in text
    (run / "config.toml").write_text(text.replace("weight_decay = 0.0003", "weight_decay = 0.0004"))
    words = ("export", run, "--to", "safetensors", "--measure")
    assert "weight_decay" in str(command(*words).exception)
    result = command(*words, "--accept-changes")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines() if " torch " in line] == ["original", "compact"]


def test_the_command_folds(finished):
    result = command("export", finished, "--to", "py", "--fold")
    assert result.exit_code == 0, result.output
    assert re.search(
        r"note: \d batch norms are folded, outputs differ by at most \S+: for eval mode", result.output
    )
    assert "BatchNorm" not in (finished / "exported.py").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "onnx", "--quantize", "int88"), "unknown quantization 'int88'; did you mean 'int8'"),
        (("--to", "py", "--quantize", "int8"), "--quantize is for --to onnx, not --to py"),
        (("--to", "onnx", "--images", "64"), "--images is for --quantize"),
        (("--to", "onnx", "--quantize", "int8", "--images", "0"), "0 is not in the range x>=1"),
    ],
)
def test_wrong_flags_are_refused_before_a_run_is_read(words, message):
    result = command("export", "no-such-run", *words)
    assert message in f"{result.output}{result.exception}"


def test_data_without_training_images_are_refused():
    with pytest.raises(ValueError, match="mine has no training images, on which --quantize finds the range"):
        _training_inputs(SimpleNamespace(name="mine", train_count=0), 256, 0)
