"""What may change: the setting `edges`."""

import pytest
import torch
from reference import images, legal_sets, small
from test_training import config, tiny_data

import dnat
from dnat.lab.runs import redraw, restore, run
from dnat.planning import make_plan
from dnat.records import Records
from dnat.settings import Config, Job, parse_setting, read_toml
from dnat.training import Interrupted

pytestmark = pytest.mark.usefixtures("quiet")

# Under this pressure every edge of the small network changes.
PRESSED = {"cost_weight": 20.0, "cost_target": 0.0, "lr_theta": 0.3, "batch_size": 8}
BARRED = "not among the edges that may change (setting edges)"


def plan(name, **options):
    given = small(name)
    return make_plan(given, dnat.trace(given, images(2)), images(2), config(**options))


def test_edges_that_match_no_pattern_are_fixed_and_say_why():
    everything = {e.key: e for e in plan("resnet8").edges}
    found = plan("resnet8", edges=("layer1.*", "layer3.?.conv2>*"))
    wanted = {k for k in everything if k.startswith("layer1.") or k == "layer3.0.conv2>layer3.0.bn2"}
    assert {e.key for e in found.edges} == wanted < everything.keys()
    barred = {e.key: dict(e.refused) for e in found.fixed if e.key in everything}
    assert barred.keys() == everything.keys() - wanted
    for key, refused in barred.items():
        assert {c: w for c, w in refused.items() if w == BARRED} == dict.fromkeys(
            everything[key].choices[1:], BARRED
        )
    assert plan("resnet8", edges=("*",)).edges == plan("resnet8").edges


def test_other_operations_are_barred_as_well():
    found = plan("resnet8", space="nat++", edges=("layer1.0.conv1>*",))
    (edge,) = found.edges
    assert edge.others
    assert not any(e.others for e in found.fixed)


def test_a_none_that_a_barred_edge_would_offer_is_offered_by_the_edge_that_may_change():
    """None at a branch and at its last unit do the same; the branch offers it, where it may change."""
    given = dnat.build("nasbench_macro:01201210", width=0.1, num_classes=5, seed=0)
    program, branch, unit = (
        dnat.trace(given, images(2)),
        "layers.1.layers",
        "layers.1.layers.6>layers.1.layers.7",
    )
    both = {e.key: e.choices for e in dnat.find_edges(program, everything=True)}
    assert both[branch] == ("original", "identity", "none")
    assert both[unit] == ("original",)
    (alone,) = make_plan(given, program, images(2), config(edges=("*>layers.1.layers.7",))).edges
    assert (alone.key, alone.choices) == (unit, ("original", "none"))
    made = dnat.discretize(given, {branch: "none"}, images(2))
    relaxed = dnat.relax(given, [alone])
    relaxed.set_one_hot({unit: "none"})
    assert torch.equal(made.eval()(images(2)), relaxed.eval()(images(2)))
    same = dnat.discretize(relaxed, {unit: "none"}, images(2))
    assert dnat.cost(same, images(2)) == dnat.cost(made, images(2)) != dnat.cost(given, images(2))


def test_with_patterns_all_legal_sets_are_those_that_change_nothing_else():
    given = small("residual")
    program = dnat.trace(given, images(2))
    key = dnat.find_edges(program)[-1].key
    wanted = {s[key] for s in legal_sets(dnat.find_edges(program))}
    assert {s[key] for s in legal_sets(dnat.find_edges(program, only=[key]))} == wanted


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        (("layr1.0.conv2>layer1.0.bn2",), "did you mean 'layer1.0.conv2>layer1.0.bn2'.*Known: layer1.0.conv1>"),
        (("layer1.*", "layer9.*"), "unknown edge that may change 'layer9.\\*'"),
        (("LAYER1.*",), "unknown edge"),
        (("conv1>bn1",), "has 'conv1>bn1', but conv1>bn1 may not change: identity: its input is 3x8x8"),
    ],
)
def test_patterns_of_nothing_that_may_change(edges, words):
    with pytest.raises(ValueError, match=words):
        plan("resnet8", edges=edges)


@pytest.mark.parametrize("edges", ["layer1.*", ("layer1.*", 3), ["layer1.*"], 5])
def test_what_is_no_list_of_patterns(edges):
    with pytest.raises(TypeError, match=r"edges must be a list of texts \(in Python a tuple\), not "):
        Config(edges=edges)


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="edges is empty, so nothing could change"):
        Config(edges=())


def test_the_setting_is_written_read_and_compared(tmp_path):
    key, value = parse_setting('edges=["layers.*.layers", "fc"]')
    job = Job.from_flat({"network": "resnet8", key: value})
    assert job.config.relaxation.edges == ("layers.*.layers", "fc")
    (tmp_path / "job.toml").write_text(job.to_toml())
    assert Job.from_flat(read_toml(tmp_path / "job.toml")) == job
    other = Job.from_flat({"network": "resnet8"})
    assert "edges" not in other.flat()
    assert job.differences(other) == {"edges": (["layers.*.layers", "fc"], None)}
    with pytest.raises(TypeError, match="edges must be a list of texts"):
        Job.from_flat({"network": "resnet8", **dict([parse_setting("edges=layers.*")])})


@pytest.mark.parametrize("place", [0, 1])
def test_a_run_changes_nothing_else(place, tmp_path):
    """Also when the run is stopped on its way."""
    given = small("residual")
    whole = dnat.transform(given, tiny_data(), config(**PRESSED)).choices
    assert list(whole.values()) == ["identity", "none"]
    mine, other = list(whole)[place], list(whole)[1 - place]
    job = Job(network="test:residual", config=config(**PRESSED, edges=(mine,)))
    result = dnat.transform(given, tiny_data(), job.config)
    assert result.choices.keys() == {mine}
    assert result.choices[mine] != "original"
    assert (BARRED,) in {r[1:] for r in next(e for e in result.commitment.fixed if e.key == other).refused}
    alone = dnat.discretize(given, result.choices, images(2))
    assert dnat.cost(result.network, images(2)) == dnat.cost(alone, images(2))
    if result.choices[mine] == "identity":
        entry = other.partition(">")[0]
        assert type(result.network.get_submodule(entry)) is type(given.get_submodule(entry))
    for step in (4, 8):  # before the choices come into force, and after
        with Records.open(tmp_path / f"{step}", job) as records, pytest.raises(Interrupted):
            dnat.transform(given, tiny_data(), job.config, records=records, stop=lambda p, n=step: p.step == n)
        with Records.open(tmp_path / f"{step}", job) as records:
            assert dnat.transform(given, tiny_data(), job.config, records=records).results() == result.results()


def test_a_run_that_may_change_some_edges_comes_back_from_its_files(tmp_path):
    """Its none is on an edge that would offer none, could the others change."""
    job = Job(
        network="nasbench_macro:01201210",
        network_options={"width": 0.1},
        image_size=16,
        train_limit=30,
        test_limit=20,
        config=config(edges=("*>layers.1.layers.7",), budget=0.99, epochs=2, architecture_epochs=1),
    )
    record = run(job, tmp_path / "run")
    assert record["results"]["choices"] == {"layers.1.layers.6>layers.1.layers.7": "none"}
    network, _, example = restore(tmp_path / "run")
    assert dnat.cost(network, example).madds == record["results"]["cost_after"]["madds"]
    assert redraw(tmp_path / "run", ("svg",))


def test_a_command_traces_and_plans_once(tmp_path, monkeypatch):
    import dnat.planning
    import dnat.session

    done = {"trace": 0, "plan": 0}

    def counted(module, name, what):
        own = getattr(module, name)

        def call(*args, **kwargs):
            done[what] += 1
            return own(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counted(dnat.session, "trace", "trace")
    counted(dnat.planning, "find_edges", "plan")
    config = dnat.Config(epochs=2, architecture_epochs=1, batch_size=64, threads=1)
    run(Job(network="resnet8", data="digits", train_limit=64, test_limit=64, config=config), tmp_path)
    assert done == {"trace": 1, "plan": 1}
