import json
import shutil
from dataclasses import asdict

import pytest
import torch
from reference import images

import dnat
from dnat.data import describe
from dnat.lab.catalogue import catalogue, size_of
from dnat.lab.runs import build_network, sized
from dnat.networks import FAMILIES, GENOTYPES, NETWORKS, definition
from dnat.networks.cells import DropPath
from dnat.settings import Config, Job

COUNTED = [n for n in NETWORKS if not n.endswith("_imagenet") and n != "darts"]
COUNTED += ["darts_v2_imagenet", "mobilenet_v2_imagenet", "proxyless_gpu_imagenet", "resnet50_imagenet"]


def built(network, classes=10, shape=(3, 32, 32), options=None, **config):
    return build_network(
        Job(network=network, network_options=options or {}, config=Config(**config)), classes, shape
    )


def test_the_table_is_complete():
    listed = {n: (row["image_size"], row["source"]) for n, row in catalogue()["networks"].items()}
    assert listed == {n: (d.image_size, d.source) for n, d in NETWORKS.items()}
    assert list(listed) == list(NETWORKS)
    families = [(d.name, d.family, d.source) for d in FAMILIES.values()]
    assert [(row["name"], row["family"], row["source"]) for row in catalogue()["families"]] == families
    assert catalogue()["datasets"] == [asdict(d) for d in describe()]
    assert set(GENOTYPES) | {f"{n}_imagenet" for n in GENOTYPES} < set(NETWORKS)
    assert all(d.source for d in (*NETWORKS.values(), *FAMILIES.values()))


@pytest.mark.parametrize("name", COUNTED)
def test_what_is_listed_is_what_is_counted(name):
    side = NETWORKS[name].image_size
    with torch.device("meta"):
        found = dnat.cost(dnat.build(name), torch.zeros(2, 3, side, side))
    assert (found.params, found.madds) == (size_of(name).params, size_of(name).madds)


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vgg16", "proxyless_mobile", "resnet18_imagenet"])
def test_edges_of_hand_made_networks(name):
    size = size_of(name)
    counted = sized(name, {})
    assert (counted.edges, counted.groups) == (size.edges, size.groups)
    if size.skip_edges is not None:
        counted = sized(name, {"skips": True})
        assert (counted.edges, counted.groups) == (size.skip_edges, size.skip_groups)


# Searched and hand-made cells, with and without null edges.
SOME = ("darts_v2", "resblock", "nat_darts", "natv2_vgg_cell")


@pytest.mark.parametrize(
    "name", [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in GENOTYPES]
)
def test_edges_of_networks_of_cells(name):
    """Twenty cells have the edges of 18 normal and 2 reducing ones; small networks tell how many those have."""
    one, two = (sized(name, {"layers": layers, "channels": 4}) for layers in (3, 4))
    normal = two.edges - one.edges  # one normal cell more
    assert size_of(name).skip_edges or size_of(name).edges == one.edges + 17 * normal
    assert (
        size_of(f"{name}_imagenet").groups
        == size_of(name).groups
        == sized(name, {"layers": 3, "channels": 4, "skips": False}).groups
    )


def test_names_that_are_not_known():
    with pytest.raises(ValueError, match="did you mean 'mobilenet_v2'"):
        dnat.build("mobilenetv2")
    with pytest.raises(ValueError, match="unknown option of darts 'width'"):
        dnat.build("darts", width=3)
    assert definition("torchvision:resnet18") is None


@pytest.mark.parametrize("name", ["nasbench201:301420", "nasbench_macro:01201210"])
def test_families(name):
    small = {"width": 4, "cells": 1} if name.startswith("nasbench201") else {"width": 0.1}
    network = dnat.build(name, **small, num_classes=7)
    assert network(images(2, 32)).shape == (2, 7)
    assert definition(name).name == name.partition(":")[0]


def test_a_genotype_of_your_own(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(GENOTYPES["enas"].genotype.to_json())
    network = dnat.build(f"genotype:{file}", channels=4, layers=3, seed=0)
    same = dnat.build("enas", channels=4, layers=3, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    table = json.loads(file.read_text())
    table["normal"]["nodes"][2][0]["operation"] = "sep_conv_3x4"
    file.write_text(json.dumps(table))
    with pytest.raises(
        ValueError, match=r"mine.json: normal.nodes\[2\]\[0\].operation: .*did you mean 'sep_conv_3x3'"
    ):
        dnat.build(f"genotype:{file}")
    file.unlink()
    with pytest.raises(ValueError, match=r"mine.json cannot be read"):
        dnat.build(f"genotype:{file}")


def test_large_images_go_through_a_stem_with_stride():
    for name in ("resnet20", "vgg16", "mobilenet_v2", "proxyless_mobile", "darts"):
        with torch.device("meta"):
            usual, large = built(name), built(name, shape=(3, 64, 64))
            same = dnat.cost(usual, torch.zeros(2, 3, 32, 32)), dnat.cost(large, torch.zeros(2, 3, 64, 64))
        assert same[0] == same[1], name
    # A choice of the user's own counts more.
    with torch.device("meta"):
        assert built("resnet20", shape=(3, 64, 64), options={"stem_stride": 1}).conv1.stride == (1, 1)


def test_darts_recipe_goes_with_networks_of_cells():
    options = {"channels": 4, "layers": 3}
    network = built("darts", options=options)
    assert network.auxiliary is not None
    assert any(isinstance(m, DropPath) for m in network.modules())
    assert built("darts", options=options, shape=(3, 16, 16)).auxiliary is None  # too small for its pools
    plain = built("darts", options=options, auxiliary=0.0, drop_path=0.0)
    assert plain.auxiliary is None
    assert not any(isinstance(m, DropPath) for m in plain.modules())
    x = images(2, 32)
    assert dnat.cost(network, x) == dnat.cost(plain, x)  # the head is for training, and is not counted


def test_null_edges_come_with_the_paper_preset():
    for name, options in (("resnet20", {}), ("vgg_cell", {"channels": 4, "layers": 3})):
        counts = [
            sum("NullEdge" in type(m).__name__ for m in built(name, options=options, preset=preset).modules())
            for preset in ("paper", "improved")
        ]
        assert counts[0] > 0 == counts[1]


def test_proxyless_has_no_cell_mode():
    with pytest.raises(ValueError, match=r"proxyless_gpu has no mode 'cell'.*use mode 'full'"):
        built("proxyless_gpu", mode="cell")


def test_the_run_holds_the_genotype(tmp_path, monkeypatch):
    """It can be restored where the file is gone."""
    from click.testing import CliRunner

    from dnat.lab.cli import cli
    from dnat.lab.runs import restore

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text(GENOTYPES["darts_v2"].genotype.to_json())
    words = "transform --network genotype:mine.json --epochs 2 --architecture-epochs 1"
    words += " --train-limit 64 --test-limit 20 --batch-size 32 --mode cell --budget 0.8 --set lr_theta=0.5"
    words += " --set threads=1 --set network.channels=4 --set network.layers=3 --out run"
    result = CliRunner().invoke(cli, words.split(), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.json").unlink()
    network, _, example = restore("run")
    assert network(example).shape == (2, 10)
    assert (tmp_path / "run" / "cells.png").exists()
    shutil.copy("run/cells.svg", "before.svg")
    assert CliRunner().invoke(cli, ["draw", "run"], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "before.svg").read_bytes() == (tmp_path / "run" / "cells.svg").read_bytes()
    architecture = json.loads((tmp_path / "run" / "architecture.json").read_text())
    first, last = architecture["genotypes"]
    assert first == json.loads(GENOTYPES["darts_v2"].genotype.to_json())
    changed = [e for e in architecture["commitment"]["edges"] if e["choice"] != "original"]
    assert changed
    for edge in changed:
        kind, _, place = edge["group"].partition(":")
        node, number = map(int, place.split("."))
        wanted = {"none": "null", "identity": "skip_connect"}[edge["choice"]]
        assert last[kind]["nodes"][node][number]["operation"] == wanted


def test_drawing_by_name(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from dnat.lab.cli import cli

    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["draw", "darts", "--after", "nat_darts"], catch_exceptions=False)
    assert sorted(result.output.split()) == ["darts-nat_darts.png", "darts-nat_darts.svg"]
    (tmp_path / "mine.json").write_text(GENOTYPES["enas"].genotype.to_json())
    result = CliRunner().invoke(
        cli, ["draw", "mine.json", "--format", "pdf", "--out", "there"], catch_exceptions=False
    )
    assert (tmp_path / "there.pdf").stat().st_size > 1000
    with pytest.raises(ValueError, match="differ in more than their operations"):
        CliRunner().invoke(cli, ["draw", "darts", "--after", "mine.json"], catch_exceptions=False)
    with pytest.raises(ValueError, match="unknown genotype 'resnet20'"):
        CliRunner().invoke(cli, ["draw", "resnet20"], catch_exceptions=False)
