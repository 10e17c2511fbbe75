"""What dnat has to be better than: choices by chance, evenly spread, fewer channels; each within the budget."""

import importlib.util
import itertools
import json
import sys

import pytest
import torch
from click.testing import CliRunner
from reference import Residual
from torch import nn

import dnat
from dnat.budget import Costs, by_edge
from dnat.edges import problems
from dnat.lab.baselines import Family, family_of, resized
from dnat.lab.baselines.channels import is_depthwise, widest
from dnat.lab.baselines.sets import random_set, uniform_set
from dnat.lab.cli import cli
from dnat.lab.methods import METHODS
from dnat.lab.runs import restore, run
from dnat.lab.sweep import settings as sweeps
from dnat.records import Records
from dnat.rundir import CHOSEN
from dnat.settings import CONTROLS, Config, Job
from dnat.training import Interrupted, take_statistics

X = torch.zeros(2, 3, 32, 32)
DATA = {"train_limit": 60, "test_limit": 40}
WITHOUT_EXTRAS = [m for m in CONTROLS if m != "control-prune"]


@pytest.fixture(scope="module")
def torch_pruning():
    return pytest.importorskip("torch_pruning")


def config(**own):
    known = {"epochs": 2, "architecture_epochs": 1, "batch_size": 20, "threads": 1, "seed": 0, "budget": 0.66}
    return Config(**(known | own))


def digits():
    return dnat.load("digits", train_limit=60, test_limit=40)


def problem(network, mode="full", example=X):
    """Groups, what they may become, and costs."""
    edges = dnat.find_edges(dnat.trace(network, example))
    groups = {}
    for edge in edges:
        groups.setdefault(edge.key if mode == "full" else edge.group, []).append(edge)
    legal = {g: [c for c in m[0].choices if all(c in e.choices for e in m)] for g, m in groups.items()}
    return groups, legal, Costs(edges)


def changes(choices):
    return {key: choice for key, choice in choices.items() if choice != "original"}


# Sets of choices


@pytest.mark.parametrize(
    ("name", "share"),
    [("resnet8", 0.8), ("resnet20", 0.66), ("mobilenet_v2", 0.7)],
)
def test_random_sets_are_legal_and_cost_what_the_budget_asks(name, share):
    network = dnat.build(name, seed=0)
    groups, legal, costs = problem(network)
    sets = [random_set(groups, legal, costs, share * costs.total, seed) for seed in range(4)]
    for chosen in sets:
        edges = by_edge(groups, chosen)
        assert all(choice in edge.choices for edge, choice in edges.items())
        assert not problems(edges)
        made = dnat.discretize(network, {e.key: c for e, c in edges.items()}, X, report=True)
        assert not made.undone
        left = dnat.cost(made.network, X).madds / dnat.cost(network, X).madds
        assert left <= share
        assert left >= 0.97 * share or name == "resnet8"  # whose four edges have no such set
    assert sets[0] == random_set(groups, legal, costs, share * costs.total, 0)
    assert name == "resnet8" or len({tuple(s.items()) for s in sets}) == 4


def every_set(groups, legal, costs):
    """{cost: sets} of all legal ones, by trying all."""
    found = {}
    for choices in itertools.product(*legal.values()):
        chosen = dict(zip(legal, choices, strict=True))
        if not problems(by_edge(groups, chosen)):
            found.setdefault(costs.of(by_edge(groups, chosen)), []).append(chosen)
    return found


@pytest.mark.parametrize(
    "make", [lambda: dnat.build("resnet8"), Residual, lambda: dnat.build("nasbench_macro:01201210", width=0.5)]
)
def test_sets_cost_as_much_as_any_may(make):
    """Beside all legal sets: within 3 % below the budget where there is one so dear, else the dearest there is."""
    torch.manual_seed(0)
    groups, legal, costs = problem(make())
    groups = dict(list(groups.items())[:7])  # few enough for trying all
    legal = {g: legal[g] for g in groups}
    known = every_set(groups, legal, costs)
    for share in (0.95, 0.85, 0.75, 0.65, 0.55, 0.45):
        limit = share * costs.total
        within = [cost for cost in known if cost <= limit]
        if not within:
            continue
        for seed in (0, 1):
            paid = costs.of(by_edge(groups, random_set(groups, legal, costs, limit, seed)))
            assert min(max(within), 0.97 * limit) <= paid <= limit
        assert costs.of(by_edge(groups, uniform_set(groups, legal, costs, limit))) <= limit


def test_random_sets_are_drawn_evenly():
    """Five equal blocks, of which two must go: all ten pairs are alike likely."""

    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(5))
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            for block in self.blocks:
                x = x + torch.relu(block(x))
            return self.head(x.mean((2, 3)))

    groups, legal, costs = problem(Blocks(), example=torch.zeros(2, 3, 8, 8))
    assert list(legal.values()) == [["original", "identity", "none"]] * 5
    counts, seeds = {}, 400
    for seed in range(seeds):
        chosen = random_set(groups, legal, costs, 0.61 * costs.total, seed)
        gone = tuple(changes(chosen))
        assert len(gone) == 2
        counts[gone] = counts.get(gone, 0) + 1
    assert len(counts) == 10
    expected = seeds / 10
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 27.9  # 9 degrees of freedom, p = 0.001


def test_evenly_spread_blocks_by_hand():
    """ResNet20 has seven blocks that keep their shape, of 4.72 of 40.55 million multiply-adds each."""
    groups, legal, costs = problem(dnat.build("resnet20"))
    blocks = ["1.0", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2"]
    for k, places in {1: [3], 2: [1, 5], 3: [1, 3, 5], 4: [0, 2, 4, 6], 5: [0, 2, 3, 4, 6]}.items():
        limit = costs.total - k * 4718592
        gone = changes(uniform_set(groups, legal, costs, limit))
        expected = [f"layer{blocks[i]}.conv2>layer{blocks[i]}.bn2" for i in places]
        assert gone == dict.fromkeys(expected, "none"), k
    # At 0.7 two blocks cost too much and three leave 0.651: one of the three goes where its shape changes, 3.54
    # million; the nearest of the three is that in the middle.
    gone = changes(uniform_set(groups, legal, costs, 0.7 * costs.total))
    assert gone == {f"layer{b}.conv2>layer{b}.bn2": "none" for b in ("1.1", "2.0", "3.1")}
    assert changes(uniform_set(groups, legal, costs, costs.total)) == {}
    with pytest.raises(ValueError, match="smallest reachable cost"):
        uniform_set(groups, legal, costs, 0.01 * costs.total)


def test_where_nothing_more_keeps_its_shape_other_places_go():
    groups, legal, costs = problem(dnat.build("resnet20"))
    gone = changes(uniform_set(groups, legal, costs, costs.total - 7 * 4718592 - 3538944))
    assert {"layer2.0.conv2>layer2.0.bn2", "layer3.0.conv2>layer3.0.bn2"} & set(gone)
    assert len(gone) >= 8


def test_evenly_spread_groups_of_cell_mode():
    groups, legal, costs = problem(dnat.build("resnet20"), "cell")
    chosen = uniform_set(groups, legal, costs, 0.6 * costs.total)
    assert costs.of(by_edge(groups, chosen)) <= 0.6 * costs.total
    assert len(changes(chosen)) == 1


# Fewer channels


def resnet_madds(widths, blocks=3):
    """Multiply-adds of a ResNet for 32 x 32, by hand."""
    total, size, before = 27 * widths[0] * 32 * 32, 32, widths[0]
    for stage, out in enumerate(widths):
        for block in range(blocks):
            size = size // 2 if stage and not block else size
            total += 9 * size * size * (before * out + out * out)
            before = out
    return total + 10 * before


def test_a_width_that_is_not_whole_by_hand():
    assert dnat.cost(dnat.build("resnet20", width=12.8), X).madds == resnet_madds((13, 26, 51))
    whole, same = dnat.build("resnet20", width=16, seed=0), dnat.build("resnet20", width=16.0, seed=0)
    assert [p.shape for p in whole.parameters()] == [p.shape for p in same.parameters()]
    skips = dnat.build("resnet8", width=5.3, skips=True)
    assert skips(X).shape == (2, 10)


def test_the_widest_network_within_a_budget_by_hand():
    family = family_of("resnet20", {}, lambda **options: dnat.build("resnet20", seed=0, **options))
    assert (family.option, family.usual, family.whole) == ("width", 16, False)
    limit = 0.66 * 40551040
    value = widest(family, X, limit)
    sizes = {v / 256 * 16: resnet_madds([round(v / 256 * 16 * f) for f in (1, 2, 4)]) for v in range(1, 256)}
    assert value == max(v for v, madds in sizes.items() if madds <= limit)
    assert sizes[value] >= 0.97 * limit
    whole = Family("width", 16, True, lambda **options: dnat.build("resnet20", **options))
    assert widest(whole, X, limit) == 12  # 13 costs 0.662
    with pytest.raises(ValueError, match=r"width 0\.0625 is the least"):
        widest(family, X, 10)


def test_whose_width_can_be_told():
    found = {n: family_of(n, {}, None) for n in ("vgg16", "mobilenet_v2", "darts", "nasbench201:301420")}
    assert [(f.option, f.usual, f.whole) for f in found.values()] == [
        ("width", 64, True),
        ("width", 1.0, False),
        ("channels", 36, True),
        ("width", 16, True),
    ]
    assert family_of("resnet20", {"width": 8}, None).usual == 8
    assert family_of("torchvision:mobilenet_v2", {"width_mult": 1.0}, None).option == "width_mult"
    with pytest.raises(ValueError, match=r"resnet18_imagenet anew .* no argument .*--set network.width_mult"):
        family_of("resnet18_imagenet", {}, None)


def test_a_resized_network_has_the_first_channels():
    network = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 2, 1)
    )
    small = resized(network, {"0": (3, 4), "1": (4, 4), "2": (4, 4), "3": (4, 2)})
    assert is_depthwise(small[2])
    # With zeros in the channels that are gone the first ones say all.
    with torch.no_grad():
        network[3].weight[:, 4:] = 0
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(small.eval()(x), network.eval()(x), atol=1e-6)
    assert network[0].out_channels == 6


# Runs


@pytest.fixture(scope="module")
def trained():
    """A network whose norms have seen images."""
    return dnat.train("resnet8", digits(), config(budget=None)).network


@pytest.mark.parametrize("method", ["control-random", "control-uniform"])
def test_a_run_keeps_its_set_and_what_the_network_knew(method, trained):
    result = METHODS[method](trained, digits(), config(lr=1e-12, grad_clip=1e-12, distillation=0.0))
    assert result.cost_after.madds <= 0.66 * result.cost_before.madds
    assert {e.by for e in result.commitment.edges} == {"chance" if "random" in method else "evenly"}
    made = dnat.discretize(trained, result.choices, digits().example(2))
    for (name, before), after in zip(made.named_parameters(), result.network.parameters(), strict=True):
        assert torch.allclose(before, after, atol=1e-6), name
    recorded = dnat.evaluate(made, digits())
    take_statistics(made, [digits().train_inputs(500, 0)[0]])  # no more than one batch of them
    assert result.commitment.compact == dnat.evaluate(made, digits()) != recorded
    assert [row["stage"] for row in result.history] == ["network"] * 2


def test_seeds_draw_different_sets_and_the_rule_does_not():
    random, even = (
        [METHODS[m]("resnet20", digits(), config(epochs=1, seed=s)).choices for s in (0, 1)]
        for m in ("control-random", "control-uniform")
    )
    assert random[0] != random[1]
    assert even[0] == even[1]
    assert set(changes(even[0])) == {f"layer{b}.conv2>layer{b}.bn2" for b in ("1.1", "2.1", "3.1")}


def test_a_narrow_network_computes_as_much_as_the_original_in_its_epochs():
    result = METHODS["control-narrow"]("resnet8", digits(), config(budget=0.5, epochs=4))
    done = len(result.history) * result.cost_after.madds
    whole = 4 * result.cost_before.madds
    assert abs(done - whole) <= result.cost_after.madds / 2
    assert result.cost_after.madds <= 0.5 * result.cost_before.madds
    width = result.commitment.widths["width"]
    assert result.network.conv1.out_channels == round(width)
    with pytest.raises(ValueError, match="give the network by name"):
        METHODS["control-narrow"](dnat.build("resnet8"), digits(), config())


@pytest.mark.parametrize("method", ["control-random", "control-narrow"])
def test_the_network_that_was_given_is_the_teacher(method, trained):
    """With all weight on its answers, the labels do not matter."""
    family = family_of("resnet8", {}, lambda **options: dnat.build("resnet8", seed=0, **options))
    more = {"family": family} if method == "control-narrow" else {}
    data = digits()
    other = digits()
    other.train_labels.copy_(other.train_labels.flip(0))
    taught = config(distillation=1.0, epochs=1)
    one, two = (METHODS[method](trained, d, taught, **more).results()["weights_sha256"] for d in (data, other))
    own = METHODS[method](dnat.build("resnet8", seed=3), data, taught, **more)
    assert one == two
    assert own.results()["weights_sha256"] != one


@pytest.mark.parametrize("method", CONTROLS)
def test_resumed_runs_and_restored_networks_have_the_same_bits(method, tmp_path):
    if method == "control-prune":
        pytest.importorskip("torch_pruning")
    job = Job(network="resnet8", method=method, config=config(), **DATA)
    whole = run(job, tmp_path / "whole")
    for step in (1, 4):
        with pytest.raises(Interrupted):
            run(job, tmp_path / "parts", stop=lambda progress, step=step: progress.step >= step)
    assert run(job, tmp_path / "parts")["results"] == whole["results"]
    network, _, example = restore(tmp_path / "whole")
    before = whole["results"]["cost_before"]["madds"]
    assert dnat.cost(network, example).madds == whole["results"]["cost_after"]["madds"] <= 0.66 * before
    assert dnat.evaluate(network, digits()).accuracy == whole["results"]["test_accuracy"]
    known = json.loads((tmp_path / "whole" / CHOSEN).read_text())["commitment"]
    written = json.loads((tmp_path / "whole" / "architecture.json").read_text())["commitment"]
    assert (known["edges"], known["widths"]) == (written["edges"], written["widths"])
    other = run(Job(network="resnet8", method=method, config=config(seed=1), **DATA), tmp_path / "other")
    assert other["results"]["weights_sha256"] != whole["results"]["weights_sha256"]


def test_what_another_network_chose_is_refused(tmp_path):
    job = Job(network="test:any", method="control-random", config=config())
    data = digits()
    with Records.open(tmp_path / "run", job) as records, pytest.raises(Interrupted):
        METHODS["control-random"]("resnet8", data, job.config, records=records, stop=lambda p: True)
    with Records.open(tmp_path / "run", job) as records, pytest.raises(ValueError, match="with other weights"):
        METHODS["control-random"](dnat.build("resnet8", seed=5), data, job.config, records=records)


def test_what_the_command_tells(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "transform --network resnet8 --epochs 2 --train-limit 60 --test-limit 40 --batch-size 20 --budget 0.5"
    told = {
        method: CliRunner().invoke(cli, [*words.split(), "--method", method], catch_exceptions=False).output
        for method in ("control-narrow", "control-random")
    }
    assert " 4/4  " in told["control-narrow"]
    assert "for 4 epochs, which compute what 2 of the original do" in told["control-narrow"]
    assert "edges" not in told["control-narrow"]
    assert "chance" in told["control-random"]
    assert "theta" not in told["control-random"]
    assert "architecture stage" not in "".join(told.values())


# Torch-Pruning


@pytest.mark.parametrize("settings", [{}, {"pruning": "l1"}, {"pruning": "taylor"}, {"pruning_global": True}])
def test_pruned_channels_are_inner_ones_within_the_budget(settings, torch_pruning, trained):
    result = METHODS["control-prune"](trained, digits(), config(epochs=1, **settings))
    left = result.cost_after.madds / result.cost_before.madds
    assert 0.97 * 0.66 <= left <= 0.66
    for path, module in result.network.named_modules():
        if isinstance(module, nn.Conv2d):
            before = trained.get_submodule(path)
            stream = path == "conv1" or path.endswith("conv2")
            assert (module.out_channels == before.out_channels) == stream, path
    assert result.network.fc.weight.shape == trained.fc.weight.shape
    assert type(result.network) is type(trained)
    assert trained.layer1[0].conv1.out_channels == 16  # what was given is as it was


def test_the_channels_of_the_least_norm_go(torch_pruning):
    """By hand: in each block those whose weights, there and in the norm and the layer behind, are small."""
    network = dnat.build("resnet8", seed=0)
    with torch.no_grad():
        for layer in (network.layer1, network.layer2, network.layer3):
            block, half = layer[0], layer[0].conv1.out_channels // 2
            block.conv1.weight[half:] *= 1e-3
            block.bn1.weight[half:] = 1e-3
            block.conv2.weight[:, half:] *= 1e-3
    result = METHODS["control-prune"](network, digits(), config(lr=1e-12, grad_clip=1e-12, budget=0.6))
    for name in ("layer1", "layer2", "layer3"):
        conv, before = (n.get_submodule(f"{name}.0.conv1").weight for n in (result.network, network))
        half = len(before) // 2
        assert torch.allclose(conv[:half], before[:half], atol=1e-6), name  # all that are large are still there
        assert len(conv) < len(before)


def test_what_cannot_be_pruned_is_told(torch_pruning):
    with pytest.raises(ValueError, match="one channel in each of the 3 layers"):
        METHODS["control-prune"]("resnet8", digits(), config(budget=0.001))
    with pytest.raises(ValueError, match="no channels in Sequential"):
        METHODS["control-prune"](nn.Sequential(nn.Flatten(), nn.Linear(768, 10)), digits(), config())


def test_a_pruned_run_can_be_exported_without_torch_pruning(torch_pruning, tmp_path, monkeypatch):
    run(Job(network="resnet8", method="control-prune", config=config(epochs=1), **DATA), tmp_path / "run")
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    network, _, example = restore(tmp_path / "run")
    dnat.export(network, example, "py", tmp_path / "small.py")
    spec = importlib.util.spec_from_file_location("small", tmp_path / "small.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again = module.load()
    assert torch.allclose(again(example), network(example), atol=1e-6)


def test_without_torch_pruning_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install 'dnat\[prune\]'"):
        METHODS["control-prune"]("resnet8", digits(), config())


# Settings


@pytest.mark.parametrize("method", CONTROLS)
def test_a_control_needs_a_budget(method, tmp_path):
    job = Job(network="resnet8", method=method, config=config(budget=None), **DATA)
    with pytest.raises(ValueError, match=rf"{method} needs the budget.*{method}@0.7"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="needs the budget"):
        METHODS[method]("resnet8", digits(), config(budget=None, latency_budget=0.7))


def planned(methods, **table):
    sweep = sweeps.Sweep.from_table({"networks": ["resnet8"], "methods": methods, "seeds": "1"} | table)
    return {t.method: t.job for t in sweeps.plan(sweeps.resolve(sweep))}


def test_controls_in_sweeps():
    methods = ["original", "dnat-full@0.66", *(f"{m}@0.66" for m in CONTROLS)]
    jobs = planned(methods, judge="loss", pruning="l1", weights="w.safetensors", mode="full")
    assert {m: j.config.limit.budget for m, j in jobs.items()} == dict.fromkeys(methods, "0.66") | {
        "original": None
    }
    assert {m for m, j in jobs.items() if j.config.control.pruning == "l1"} == {"control-prune@0.66"}
    assert {m for m, j in jobs.items() if j.config.limit.judge == "loss"} == {"dnat-full@0.66"}
    assert {j.config.preset for j in jobs.values()} == {"fine-tune"}
    # One recipe for all.
    for name in ("lr", "distillation", "feature_distillation", "epochs", "batch_size"):
        assert len({getattr(j.config.training, name) for j in jobs.values()}) == 1
    assert [dnat.lab.labels.label(jobs[m].flat()) for m in methods[2:]] == [f"{m} 0.66" for m in CONTROLS]
    with pytest.raises(ValueError, match="control-random needs the budget"):
        planned(["control-random"])
    with pytest.raises(ValueError, match="did you mean 'control-random'"):
        planned(["control-randon@0.5"])
    with pytest.raises(ValueError, match="pruning is for control-prune"):
        Job(network="resnet8", config=Config(pruning="l1"))


def test_a_network_that_has_no_width_is_refused_before_anything_is_written(tmp_path):
    job = Job(network="torchvision:resnet18", method="control-narrow", config=config(), **DATA)
    with pytest.raises(ValueError, match="no argument for that"):
        run(job, tmp_path / "run")
    assert not (tmp_path / "run").exists()
