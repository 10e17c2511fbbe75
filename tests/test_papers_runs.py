"""The papers' networks on real images: two epochs of the command, in small sizes, must learn."""

import json
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

from dnat.lab.cli import cli

pytestmark = pytest.mark.data
SHORT = "--epochs 2 --architecture-epochs 1 --batch-size 32 --set threads=1"


def transform(folder, words):
    result = CliRunner().invoke(cli, ["transform", *words.split(), "--out", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    results = json.loads((folder / "record.json").read_text())["results"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return results, rows, result.output


@pytest.mark.parametrize(
    "network",
    [
        "resnet20 --set network.width=8",
        pytest.param("mobilenet_v2 --set network.width=0.25", marks=pytest.mark.slow),
        "darts --set network.channels=4 --set network.layers=3 --mode cell",
        pytest.param("proxyless_mobile --set network.width=0.25", marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:lr_theta")
def test_two_epochs_on_cifar10(tmp_path, cifar10_root, network):
    """By 2,000 images and by the loss, since 300 test images say little: chance is 10 % with a deviation of 0.7
    points, and what knows nothing has a loss of log(10) = 2.303. After 1,000 images that is still a matter of the
    machine's digits."""
    words = f"--network {network} --data cifar10 --data-root {cifar10_root} --train-limit 2000 --test-limit 300"
    results, rows, _ = transform(tmp_path / "run", f"{words} {SHORT}")
    assert rows[-1]["train_accuracy"] > 0.13
    assert results["test_loss"] < 2.28
    assert results["cost_after"]["madds"] <= results["cost_before"]["madds"]


@pytest.mark.slow
def test_two_epochs_on_tiny_imagenet(tmp_path, tiny_imagenet_root):
    """By the loss: what knows nothing has log(200) = 5.298. Of 2,000 images at 0.5 % accuracies say little."""
    words = f"--network resnet20 --data tiny_imagenet --data-root {tiny_imagenet_root} --train-limit 4000"
    results, rows, output = transform(tmp_path / "run", f"{words} {SHORT} --set network.width=8")
    assert results["test_loss"] < 5.28
    assert rows[-1]["train_loss"] < 5.29
    # What was charged above half of the multiply-adds is no reason to drop all that can be dropped.
    assert 0.35 < results["cost_after"]["madds"] / results["cost_before"]["madds"] < 1
    assert "10,000 of 100,000" in output


@pytest.mark.filterwarnings("ignore:lr_theta")
def test_a_folder_of_pictures_from_the_command_line(tmp_path, tiny_imagenet_root):
    """Streamed with workers, stopped nowhere, and the same as in memory."""
    from dnat.data import load

    data = load("tiny_imagenet", tiny_imagenet_root, train_limit=400, test_limit=200)
    for i in range(0, 400, 10):
        folder = tmp_path / "pictures" / ("train" if i % 50 else "val") / f"class{i % 20 // 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.train_images[i].numpy()).save(folder / f"{i}.png")
    words = f"--network resnet8 --data folder --data-root {tmp_path / 'pictures'} --image-size 32 {SHORT}"
    words += " --set network.width=4"
    found = []
    for way in ("streaming=false", "streaming=true --workers 0", "streaming=true --workers 2"):
        results, _, _ = transform(tmp_path / "run", f"{words} --set {way}")
        found.append({k: v for k, v in results.items() if k != "seconds"})
        shutil.rmtree(tmp_path / "run")
    assert found[0] == found[1] == found[2]
