"""Two networks image by image: the file of a run, held against its record and its networks; and what is made of it."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

import dnat
from dnat.lab.runs import load_data, network_for, restore, run
from dnat.settings import Job

SMALL = {
    "network": "resnet8",
    "network_options": {"width": 4},
    "train_limit": 100,
    "test_limit": 70,
    "epochs": 3,
    "architecture_epochs": 2,
    "threads": 1,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two methods at two seeds, with a validation part; one of other test images."""
    folder = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a short architecture stage
        for method in ("original", "dnat-full"):
            for seed in (0, 1):
                run(Job.from_flat(SMALL | {"method": method, "seed": seed}), folder / f"{method}-{seed}")
        run(Job.from_flat(SMALL | {"test_limit": 50, "train_limit": 120, "seed": 0}), folder / "other")
        run(Job.from_flat(SMALL | {"train_limit": 120, "validation": 0.2, "seed": 0}), folder / "more")
    return folder


def test_predictions_are_the_networks(runs):
    """Those of the network that is read again, and of the one that was given; their share is the record's."""
    for folder in runs.iterdir():
        table = load_file(folder / "predictions.safetensors")
        record = json.loads((folder / "record.json").read_text())
        network, job, _ = restore(folder)
        data = load_data(job)
        given = network_for(job, data)
        inputs, target = next(data.test_batches(data.test_count))
        assert table["labels"].tolist() == target.tolist()
        assert table["labels"].dtype == np.uint8
        for name, tested, key in (("before", given, "_before"), ("after", network, "")):
            with torch.no_grad():
                assert table[name].tolist() == tested.eval()(inputs).argmax(1).tolist()
            right = float((table[name] == table["labels"]).mean())
            assert right == record["results"][f"test_accuracy{key}"]
            assert right == pytest.approx(dnat.evaluate(tested, data).accuracy)


def digest(folder):
    with safe_open(folder / "predictions.safetensors", "np") as file:
        return file.metadata()["test"]


def test_the_digest_is_of_the_test_images_alone(runs):
    assert digest(runs / "original-0") == digest(runs / "dnat-full-1") == digest(runs / "more")
    assert digest(runs / "other") != digest(runs / "more")


def test_tasks_without_classes_have_no_predictions(runs):
    from dnat.lab.runs.tested import write_predictions
    from dnat.tasks import task_of

    network, job, _ = restore(runs / "original-0")
    assert write_predictions(network, network, load_data(job), job.config, task_of("regression")) is None
