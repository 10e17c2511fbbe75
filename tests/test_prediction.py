"""How images are made travels with a network: in its run, in its exports, and to what it says of pictures."""

import importlib.util
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from reference import unsealed
from rich.console import Console
from safetensors import safe_open
from torch import nn

import dnat
from dnat.data import DataError, Preprocess, load
from dnat.data.augmentation import normalized
from dnat.data.pictures import decode
from dnat.exports import export
from dnat.lab.cli import cli
from dnat.lab.prediction import Prediction, found_in, predicted
from dnat.lab.runs import preprocess_of, restore, run
from dnat.lab.terminal.tables import predictions_table, predictions_text
from dnat.settings import Config, Job

COLOURS = {"ape": (200, 60, 60), "bee": (60, 200, 60), "cow": (60, 60, 200), "dog": (200, 200, 60)}


def write_pictures(root, classes, count=8, noise=150):
    """Noisy pictures, each class of a colour, of many sizes and two formats."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                height, width = generator.integers(12, 60, 2)
                pixels = np.array(COLOURS[name]) + generator.integers(-noise, noise, (height, width, 3))
                picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                picture.save(root / split / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of pictures, and a run that was trained on it so little that its test accuracy is not 1."""
    folder = tmp_path_factory.mktemp("predict")
    write_pictures(folder / "abc", ("ape", "bee", "cow"))
    config = Config(epochs=1, architecture_epochs=1, batch_size=12, seed=0, threads=1)
    job = Job(
        network="resnet8",
        network_options={"width": 4},
        data="folder",
        data_root=str(folder / "abc"),
        image_size=16,
        method="original",
        config=config,
    )
    record = run(job, folder / "run")
    return folder, record


def dnat_(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)), catch_exceptions=True)


# Runs


def test_a_record_tells_how_images_are_made(finished):
    folder, record = finished
    data = load("folder", folder / "abc", image_size=16)
    told = json.loads((folder / "run/record.json").read_text())["preprocess"]
    assert told["classes"] == ["ape", "bee", "cow"]
    assert (told["mean"], told["std"]) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (told["size"], told["channels"], told["range"], told["margin"]) == ([16, 16], "RGB", [0, 1], 1.0)
    assert "short side" in told["fit"]
    assert preprocess_of(folder / "run") == data.preprocess
    assert record["skipped"] == []


def test_predictions_are_those_that_the_test_accuracy_counts(finished):
    folder, record = finished
    files = found_in([folder / "abc" / "val"])
    assert len(files) == 24
    right = [p.classes[0][0] == p.file.parent.name for p in predicted(folder / "run", files, top=1)]
    assert sum(right) / len(right) == record["results"]["test_accuracy"]
    assert 0 < sum(right) < 24  # neither says nothing
    # Their probabilities give the test loss.
    every = predicted(folder / "run", files, top=9)
    losses = [-np.log(dict(p.classes)[p.file.parent.name]) for p in every]
    assert np.mean(losses) == pytest.approx(record["results"]["test_loss"], rel=1e-5)


def test_what_cannot_be_read_is_named_and_the_others_are_predicted(finished, tmp_path):
    folder, _ = finished
    (tmp_path / "broken.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "pipe.png")
    good = folder / "abc/val/ape/0.jpg"
    files = [tmp_path / "broken.png", good, tmp_path / "none.png", tmp_path / "pipe.png"]
    found = list(predicted(folder / "run", files))
    assert [bool(p.problem) for p in found] == [True, False, True, True]
    assert [p.file for p in found] == files
    assert len(found[1].classes) == 3
    assert sum(share for _, share in found[1].classes) == pytest.approx(1)
    result = dnat_("predict", folder / "run", *files, "--top", 2)
    assert isinstance(result.exception, DataError)
    assert str(result.exception) == "3 of 4 files could not be read"
    (line,) = result.stdout.splitlines()
    file, first, share, second, other = line.split("\t")
    assert (file, {first, second} <= {"ape", "bee", "cow"}) == (str(good), True)
    assert float(share) >= float(other)
    for words in (
        "broken.png cannot be read as a picture",
        "none.png cannot be read: No such",
        "pipe.png cannot be",
    ):
        assert words in result.stderr


def test_predictions_as_json(finished):
    folder, _ = finished
    result = dnat_("predict", folder / "run", folder / "abc/val/ape", "--json", "--top", 1)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)
    assert [row["file"] for row in rows] == sorted(str(p) for p in (folder / "abc/val/ape").iterdir())
    assert all(len(row["classes"]) == 1 and row["classes"][0]["class"] in COLOURS for row in rows)


def test_folders_without_pictures_and_runs_that_do_not_tell(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(DataError, match="holds no pictures"):
        found_in([tmp_path])
    old = tmp_path / "old"
    old.mkdir()
    for path in (folder / "run").iterdir():
        if path.is_file():
            (old / path.name).write_bytes(path.read_bytes())
    record = json.loads((old / "record.json").read_text())
    del record["preprocess"]
    (old / "record.json").write_text(json.dumps(unsealed(record)))
    result = dnat_("predict", old, folder / "abc/val/ape/0.jpg")
    assert "older dnat, which did not note how images are prepared" in str(result.exception)
    result = dnat_("export", old, "--to", "py", "--no-verify", "--out", tmp_path / "made")
    assert result.exit_code == 0, result.output
    assert "note: how images are made is not told" in result.output
    assert "def preprocess" not in (tmp_path / "made.py").read_text()


def test_predictions_on_a_terminal():
    names = (("a[b]\x1b[31mcat", 0.75), ("dog", 0.25))
    found = [Prediction(Path("one.jpg"), names), Prediction(Path("two\n.jpg"), names[:1])]
    screen = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    screen.print(predictions_table(found))
    text = screen.file.getvalue()
    assert [words in text for words in ("one.jpg", r"two\n.jpg", r"a[b]\x1b[31mcat", "0.7500")] == [True] * 4
    assert text.count("one.jpg") == 1
    assert list(predictions_text(found)) == [
        "one.jpg\ta[b]\\x1b[31mcat\t0.7500\tdog\t0.2500",
        "two\\n.jpg\ta[b]\\x1b[31mcat\t0.7500",
    ]


# Other images


def test_a_run_leaves_out_broken_pictures_where_that_is_asked_for(tmp_path):
    root = write_pictures(tmp_path / "set", ("ape", "bee"), count=4)
    (root / "train/ape/0.jpg").write_bytes((root / "train/ape/0.jpg").read_bytes()[:200])
    arguments = ["--network", "resnet8", "--set", "network.width=4", "--data", "folder", "--data-root", root]
    arguments += [
        "--image-size",
        16,
        "--epochs",
        1,
        "--batch-size",
        7,
        "--method",
        "original",
        "--set",
        "threads=1",
    ]
    refused = dnat_("transform", *arguments, "--out", tmp_path / "run")
    assert isinstance(refused.exception, DataError)
    assert "train/ape/0.jpg cannot be read as a picture" in str(refused.exception)
    assert not (tmp_path / "run").exists()
    done = dnat_("transform", *arguments, "--skip-broken", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "note: 1 broken picture(s) are left out" in done.output
    assert json.loads((tmp_path / "run/record.json").read_text())["skipped"] == ["train/ape/0.jpg"]
    assert "skip_broken = true" in (tmp_path / "run/config.toml").read_text()
    # It decides what is trained on, so that it belongs to the run.
    picture = root / "train/ape/0.jpg"
    picture.rename(tmp_path / "aside")
    other = dnat_("transform", *arguments, "--out", tmp_path / "run")
    (tmp_path / "aside").rename(picture)
    assert "skip_broken True (there) / None (now)" in str(other.exception)
    assert dnat_("evaluate", tmp_path / "run").exit_code == 0
    shutil.copytree(root, tmp_path / "more")
    (tmp_path / "more/val/bee/1.png").write_bytes(b"")
    (tmp_path / "more/train/bee/1.png").write_bytes(b"")
    again = dnat_("evaluate", tmp_path / "run", "--data-root", tmp_path / "more", "--skip-broken")
    assert "on 7 images" in again.output


def test_a_pipe_is_no_configuration(tmp_path):
    os.mkfifo(tmp_path / "pipe.toml")
    result = dnat_("transform", "--network", "resnet8", "--config", tmp_path / "pipe.toml")
    assert "pipe.toml: cannot be read: it is no regular file" in str(result.exception)


def test_other_images_are_scored_by_the_names_of_their_classes(finished, tmp_path):
    folder, record = finished
    # The same pictures, of two of the three classes: what the whole says of these two.
    for split in ("train", "val"):
        (tmp_path / "bc" / split).mkdir(parents=True)
        for name in ("bee", "cow"):
            (tmp_path / "bc" / split / name).symlink_to(folder / "abc" / split / name)
    files = [f for f in found_in([folder / "abc" / "val"]) if f.parent.name != "ape"]
    right = [p.classes[0][0] == p.file.parent.name for p in predicted(folder / "run", files, top=1)]
    result = dnat_("evaluate", folder / "run", "--data-root", tmp_path / "bc")
    assert f"test accuracy {sum(right) / len(right):.2%}" in result.output
    assert "of 2 of the network's 3 classes" in result.output
    assert "are not the images of the run" in result.output
    same = dnat_("evaluate", folder / "run")
    assert "note:" not in same.output
    assert f"test accuracy {record['results']['test_accuracy']:.2%}" in same.output


def test_other_classes_are_refused(finished, tmp_path):
    folder, _ = finished
    write_pictures(tmp_path / "bcd", ("bee", "cow", "dog"), count=2)
    result = dnat_("evaluate", folder / "run", "--data-root", tmp_path / "bcd")
    assert isinstance(result.exception, DataError)
    assert "classes that the network does not know: dog; it knows ape, bee, cow" in str(result.exception)
    network, *_ = restore(folder / "run")
    data = load("folder", tmp_path / "bcd", image_size=16)
    with pytest.raises(DataError, match="does not know: dog"):
        dnat.evaluate(network, data, classes=("ape", "bee", "cow"))
    with pytest.raises(ValueError, match="tells 3 classes apart, but there is a label 3"):
        dnat.evaluate(network, data.numbered(("ape", "bee", "cow", "dog")))


@pytest.mark.parametrize("form", ["run", "its weights", "export"])
def test_weights_of_a_run_are_taken_by_the_names_of_classes(finished, tmp_path, form):
    folder, _ = finished
    trained, _, example = restore(folder / "run")
    source = {"run": folder / "run", "its weights": folder / "run/network.safetensors"}.get(form)
    if source is None:
        preprocess = preprocess_of(folder / "run")
        source = export(
            trained, example, "safetensors", tmp_path / "x", preprocess=preprocess, verify=False
        ).files[0]
    load_weights = dnat.networks.load_weights

    def loaded(*classes):
        network = dnat.build("resnet8", width=4, num_classes=len(classes), seed=7)
        return network.eval(), load_weights(network, str(source), classes=classes)

    with torch.no_grad():
        wanted = trained(example)
        network, notes = loaded("ape", "bee", "cow")
        assert (notes, torch.equal(network(example), wanted)) == ([], True)
        network, notes = loaded("cow", "ape")
        assert torch.allclose(network(example), wanted[:, [2, 0]], atol=1e-6)
        assert "taken by name" in notes[0]
        network, notes = loaded("ape", "bee", "dog")
    assert notes == ["fc was not trained for dog, but for ape, bee, cow: it starts with fresh weights"]
    assert torch.equal(network.fc.weight, dnat.build("resnet8", width=4, num_classes=3, seed=7).fc.weight)
    assert torch.equal(network.conv1.weight, trained.conv1.weight)


# Exports


class Small(nn.Module):
    def __init__(self, channels=3):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


def written(folder, preprocess):
    example = torch.rand(2, *preprocess.shape)
    network = Small(len(preprocess.mean)).eval()
    made = export(network, example, "py", folder / "made", preprocess=preprocess, verify=False)
    spec = importlib.util.spec_from_file_location("made", made.files[0])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def encoded(picture, form, **options):
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def pictures():
    generator = np.random.default_rng(0)
    noise = Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    large = noise.resize((801, 603), Image.Resampling.BICUBIC)
    turned = Image.Exif()
    turned[0x0112] = 6
    odd = Image.Exif()
    odd[0x0112] = 77
    deep = Image.fromarray(generator.integers(0, 2**16, (20, 24), dtype=np.uint16))
    yield "png", encoded(noise, "PNG")
    yield "exact", encoded(noise.resize((16, 16)), "PNG")
    yield "jpeg", encoded(noise, "JPEG")
    yield "large", encoded(large, "JPEG")
    yield "large, turned", encoded(large, "JPEG", exif=turned)
    yield "turned", encoded(noise, "PNG", exif=turned)
    yield "odd", encoded(noise, "PNG", exif=odd)
    yield "grey", encoded(noise.convert("L"), "PNG")
    yield "alpha", encoded(noise.convert("RGBA"), "PNG")
    yield "palette", encoded(noise.quantize(16), "PNG", transparency=bytes(range(16)))
    yield "cmyk", encoded(noise.convert("CMYK"), "JPEG")
    yield "deep", encoded(deep, "PNG")


@pytest.mark.parametrize("margin", [1.0, 256 / 224])
def test_a_written_file_makes_images_as_the_test_images_were_made(tmp_path, margin):
    preprocess = Preprocess(("a cat", 'a "dog"\n{C}'), (16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.1), margin)
    module = written(tmp_path, preprocess)
    assert tuple(module.CLASSES) == preprocess.classes
    for name, content in pictures():
        pixels = torch.tensor(decode(content, name, 16, margin))[None]
        wanted = normalized(pixels, preprocess.mean, preprocess.std)
        (tmp_path / "picture").write_bytes(content)
        for given in (tmp_path / "picture", str(tmp_path / "picture"), Image.open(io.BytesIO(content))):
            assert torch.equal(module.preprocess(given), wanted), name
    assert module.load()(module.preprocess(tmp_path / "picture")).shape == (1, 2)


def test_a_written_file_takes_arrays_and_tensors(tmp_path):
    data = load("digits", train_limit=50, test_limit=20)
    module = written(tmp_path, data.preprocess)
    for i in range(4):
        pixels = data.test_images[i]
        for given in (pixels, pixels.numpy(), Image.fromarray(pixels.numpy())):
            assert torch.equal(module.preprocess(given), data.example(5)[i : i + 1])
    # Of another size what Pillow makes of it, to rounding.
    for width, inside in ((48, slice(None)), (64, slice(1, -1))):  # Pillow looks beyond the edges of what is taken
        large = np.random.default_rng(0).integers(0, 256, (48, width, 3), dtype=np.uint8)
        both = [module.preprocess(given)[:, :, :, inside] for given in (large, Image.fromarray(large))]
        assert (both[0] - both[1]).abs().max() * data.std[0] * 255 < 1.01
        assert both[0].std() > 0.1
    for wrong in (torch.zeros(3, 16, 16, dtype=torch.uint8), np.zeros((16, 16, 3))):
        with pytest.raises(ValueError, match=r"an image must be \(H, W, 3\) of uint8"):
            module.preprocess(wrong)


def test_a_written_file_of_grey_images_that_are_not_square(tmp_path):
    pixels = torch.randint(0, 256, (6, 1, 8, 12), dtype=torch.uint8)
    labels = torch.arange(6) % 2
    data = dnat.Data.from_tensors("grey", (pixels, labels), (pixels, labels))
    module = written(tmp_path, data.preprocess)
    assert torch.equal(module.preprocess(pixels[0].permute(1, 2, 0)), data.example(1))
    picture = Image.fromarray(pixels[0, 0].numpy())
    assert torch.equal(module.preprocess(picture), data.example(1))
    assert module.preprocess(picture.resize((120, 90))).shape == (1, 1, 8, 12)


def test_the_other_forms_tell_how_images_are_made(tmp_path):
    preprocess = load("digits", train_limit=50, test_limit=20).preprocess
    network, example = Small().eval(), torch.rand(2, 3, 16, 16)
    files = {}
    for form in ("safetensors", "pt2", "onnx", "py"):
        if form == "onnx":
            pytest.importorskip("onnxruntime")
        again = form in ("safetensors", "py")  # the others read it as ever
        files[form] = export(network, example, form, tmp_path / form, preprocess=preprocess, verify=again).files
    wanted = preprocess.table()
    assert Preprocess.from_table(json.loads(json.dumps(wanted))) == preprocess
    with safe_open(files["safetensors"][0], "pt") as file:
        assert json.loads(file.metadata()["preprocess"]) == wanted
        assert set(file.keys()) == set(network.state_dict())
    assert json.loads(files["safetensors"][1].read_text())["preprocess"] == wanted
    extra = {"preprocess.json": ""}
    torch.export.load(files["pt2"][0], extra_files=extra)
    assert json.loads(extra["preprocess.json"]) == wanted
    import onnxruntime

    session = onnxruntime.InferenceSession(files["onnx"][0], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["preprocess"]) == wanted


def test_a_preprocessing_that_does_not_fit_is_refused(tmp_path):
    preprocess = load("digits", train_limit=50, test_limit=20).preprocess
    with pytest.raises(
        ValueError, match=r"makes images of shape \(3, 16, 16\), but the example is \(2, 3, 8, 8\)"
    ):
        export(Small(), torch.rand(2, 3, 8, 8), "py", tmp_path / "x", preprocess=preprocess)
    with pytest.raises(TypeError, match=r"preprocess must be a dnat\.data\.Preprocess"):
        export(Small(), torch.rand(2, 3, 16, 16), "py", tmp_path / "x", preprocess={"mean": 0})
    for change in ({"mean": []}, {"std": [0.0, 1.0, 1.0]}, {"size": "16"}, {"margin": float("nan")}):
        with pytest.raises(DataError, match="preprocess"):
            Preprocess.from_table(preprocess.table() | change)
    assert not list(tmp_path.iterdir())
