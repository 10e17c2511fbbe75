"""Settings: in parts, told and checked by what stands beside each."""

import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dnat
from dnat.lab.cli import cli, make_job
from dnat.lab.cli.options import FLAGS
from dnat.settings import OWNERS, PARTS, PRESETS, SETTINGS, Config, Job, Search, conflicts, cores
from dnat.settings.described import described

ROOT = Path(__file__).resolve().parent.parent

SHARES = st.floats(0, 1, exclude_max=True)
DRAWN = {
    "preset": st.sampled_from(sorted(PRESETS)),
    "seed": st.integers(0, 2**32 - 1),
    "lr": st.floats(1e-9, 1e9),
    "batch_size": st.integers(1, 10**6),
    "momentum": SHARES,
    "cutout": st.integers(0, 99) | st.just("searched"),
    "space": st.sampled_from(["dnat", "nat++", "width", "dnat,width"]),
    "edges": st.lists(st.text("abc.*", min_size=1), min_size=1).map(tuple),
    "lr_theta": st.floats(1e-9, 1) | st.just("auto"),
    "theta_betas": st.tuples(SHARES, SHARES),
    "skips": st.booleans(),
    "budget": st.floats(0.01, 1) | st.integers(2, 10**12) | st.sampled_from(["70%", "120M"]),
    "judge_images": st.integers(1, 999) | st.just("auto"),
    "threads": st.integers(1, 64),
    "workers": st.integers(0, 8),
    "search": st.builds(Search, layers=st.integers(1, 9), official=st.booleans(), split=st.floats(0.1, 0.9)),
}


@given(st.fixed_dictionaries({}, optional=DRAWN))
def test_settings_are_what_they_were_made_from(settings):
    config = Config(**settings)
    flat = config.flat()
    assert tuple(flat) == SETTINGS
    for name, value in settings.items():
        if name != "search":
            assert flat[name] == value
            assert type(flat[name]) is type(value)
    assert Config(**flat) == config == config.but() == config.but(seed=3).but(seed=config.seed)
    assert hash(config.training) == hash(Config(**flat).training)
    if "width" in config.relaxation.space:  # nat knows none
        job = Job(network="resnet8", config=config.but(search=Search()))
    else:
        job = Job(network="resnet8", method="nat", config=config)
    assert Job.from_flat(tomllib.loads(job.to_toml())) == job


def test_every_setting_has_one_place_and_is_read_there_alone():
    names = [name for part in PARTS.values() for name in part.model_fields]
    assert len(names) == len({*names, "preset", "seed", "search"}) - 3
    config = Config(lr=0.3)
    assert config.training.lr == 0.3
    for name, part in OWNERS.items():
        assert getattr(getattr(config, part), name) == config.flat()[name]
        with pytest.raises(AttributeError, match=rf"it is config\.{part}\.{name}$"):
            getattr(config, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = config.nothing
    with pytest.raises(Exception, match="frozen"):
        config.training.lr = 1


@pytest.mark.parametrize(
    ("wrong", "kind", "words"),
    [
        ({"lr": "fast"}, TypeError, "lr must be a number, not the text 'fast'"),
        ({"lr": True}, TypeError, "lr must be a number, not the truth value True"),
        ({"lr": 0}, ValueError, "lr must be a positive number, not 0"),
        ({"lr": float("nan")}, ValueError, "lr must be a positive number, not nan"),
        ({"lr": float("inf")}, ValueError, "lr must be a positive number, not inf"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, not float 1.5"),
        ({"epochs": "9"}, TypeError, "epochs must be an integer, not the text '9'"),
        ({"cutout": -1}, ValueError, "cutout must be 'searched' or at least 0, not -1"),
        ({"lr_theta": "slow"}, TypeError, "lr_theta must be a number or 'auto', not the text 'slow'"),
        ({"momentum": 1}, ValueError, "momentum must be in [0, 1), not 1"),
        ({"distillation": 2}, ValueError, "distillation must be from 0 to 1, not 2"),
        ({"theta_betas": (0.5, 1)}, ValueError, "theta_betas must be in [0, 1), not (0.5, 1)"),
        ({"theta_betas": (0.5,)}, TypeError, "theta_betas must be 2 numbers, not tuple (0.5,)"),
        ({"skips": 1}, TypeError, "skips must be true or false, not int 1"),
        ({"choices": {"a": 1}}, TypeError, "choices must be a table of texts, not dict {'a': 1}"),
        ({"budget": True}, TypeError, "budget must be a text or a number, not the truth value True"),
        ({"mode": "both"}, ValueError, "mode must be one of full, cell, not the text 'both'"),
        ({"preset": ["paper"]}, ValueError, "preset must be one of paper, improved, fine-tune"),
        ({"epochs": 3, "warm_up": 4}, ValueError, "warm_up must be from 0 to epochs (3), not 4"),
        ({"epochs": 3, "architecture_epochs": 4}, ValueError, "architecture_epochs must be from 1 to epochs (3)"),
        ({"lrr": 1}, ValueError, "unknown setting 'lrr'; did you mean 'lr'?"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_the_value_and_what_is_allowed(wrong, kind, words):
    with pytest.raises(dnat.DnatError) as error:
        Config(**wrong)
    assert isinstance(error.value, kind)
    assert words in str(error.value)
    with pytest.raises(dnat.DnatError, match=re.escape(words[:20])):  # also where a few others are changed
        Config().but(**wrong)


def test_the_search_has_a_table_of_its_own():
    with pytest.raises(ValueError, match="layers must be at least 1, not 0"):
        Search(layers=0)
    with pytest.raises(ValueError, match=r"unknown setting 'search.layer'; did you mean 'search.layers'\?"):
        Job.from_flat({"network": "resnet8", "method": "nat", "search": {"layer": 3}})


# --- one text for each


def test_every_setting_is_listed_and_explained():
    known = described()
    own = [n for n in Job.model_fields if n != "config"]
    search = [f"search.{n}" for n in Search.model_fields]
    assert {*known} == {*own, *SETTINGS, *search} - {"search"}
    listed = CliRunner().invoke(cli, ["settings"], catch_exceptions=False).output
    for name, setting in known.items():
        assert setting.text.endswith("."), name
        assert re.search(rf"^{re.escape(name)}: {re.escape(setting.allowed)}", listed, re.M), name
        full = CliRunner().invoke(cli, ["settings", name], catch_exceptions=False).output
        assert setting.text in " ".join(full.split()), name
    result = CliRunner().invoke(cli, ["settings", "lrr"])
    assert "did you mean 'lr'?" in str(result.exception)


def test_the_page_about_settings_is_what_the_command_prints():
    printed = CliRunner().invoke(cli, ["settings", "--markdown"], catch_exceptions=False).output
    assert (ROOT / "docs" / "settings.md").read_text() == printed, "dnat settings --markdown > docs/settings.md"


@pytest.mark.parametrize("command", ["transform", "sweep", "plan"])
def test_flags_are_the_settings_with_their_texts(command):
    flags = {p.name: p for p in cli.commands[command].params if p.name in FLAGS}
    assert len(flags) >= 10
    for name, flag in flags.items():
        if name in ("budget", "latency_budget") and command == "plan":
            continue  # several of them
        setting = described()[name]
        assert flag.help.startswith(setting.summary.removesuffix(".")), name
        assert flag.is_flag == (setting.types == (bool,))
        for choice in setting.choices if flag.metavar else ():
            assert choice in flag.metavar
    if command == "transform":
        assert {*flags} == {*FLAGS}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["transform", "--preset", "f"], ["fine-tune"]),
        (["transform", "--network", "resnet2"], ["resnet20"]),
        (["transform", "--method", "dnat-"], ["dnat-full", "dnat-cell"]),
        (["transform", "--data", "cifar"], ["cifar10", "cifar100"]),
        (["transform", "--set", "search.la"], ["search.layers="]),
        (["settings", "warm"], ["warm_up", "warm_start"]),
    ],
)
def test_a_shell_completes_values(words, offered):
    from click.shell_completion import BashComplete

    *before, incomplete = words
    found = BashComplete(cli, {}, "dnat", "_DNAT_COMPLETE").get_completions(before, incomplete)
    assert [item.value for item in found] == offered


def test_networks_are_completed_without_torch():
    code = "import sys; sys.modules['torch'] = None\nfrom dnat.lab.cli import cli\n"
    code += "from click.shell_completion import BashComplete as B\n"
    code += "print(*[i.value for i in B(cli, {}, 'dnat', 'X').get_completions(['plan', '--network'], 'vgg')])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "vgg16" in result.stdout.split(), result.stderr


# --- files and machines

OLD = """network = "resnet20"
data = "cifar10"
data_root = "/somewhere"
workers = 2
method = "nat"
preset = "paper"
seed = 7
mode = "cell"
space = "dnat"
epochs = 60
architecture_epochs = 5
batch_size = 96
lr = 0.025
cutout = 0
theta_betas = [
    0.5,
    0.999,
]
lr_theta = 0.0003
judge = "theta"
pruning = "l2"
device = "cuda:1"
threads = 3

[network_options]
width = 8

[search]
epochs = 10
betas_policy = [
    0.5,
    0.999,
]
"""
"""A config.toml as dnat wrote it when settings stood in one flat table."""


def test_files_of_old_runs_are_read(tmp_path):
    (tmp_path / "config.toml").write_text(OLD)
    job = make_job(str(tmp_path / "config.toml"), (), {})
    assert (job.network, job.network_options, job.config.seed) == ("resnet20", {"width": 8}, 7)
    assert (job.config.training.epochs, job.config.relaxation.theta_betas) == (60, (0.5, 0.999))
    assert (job.config.machine.device, job.config.machine.workers) == ("cuda:1", 2)
    assert job.config.search.epochs == 10
    written = tomllib.loads(job.to_toml())
    assert {k: v for k, v in written.items() if k in tomllib.loads(OLD) and k != "search"} == {
        k: v for k, v in tomllib.loads(OLD).items() if k != "search"
    }


@dataclass(frozen=True)
class Elsewhere:
    """A setting of the machine, and whether a run that began with another value may go on with it."""

    there: dict
    now: dict
    differing: tuple = ()


@pytest.mark.parametrize(
    "case",
    [
        Elsewhere({"device": "cpu"}, {"device": "cuda:1"}),
        Elsewhere({"workers": 1, "streaming": True}, {"workers": 4}),
        Elsewhere({"threads": cores() + 1}, {}),
        Elsewhere({"threads": cores() + 1}, {"threads": cores() + 2}, ("threads",)),
        Elsewhere({"channels_last": True}, {"channels_last": False}, ("channels_last",)),
        Elsewhere({"device": "cpu", "lr": 0.1}, {"lr": 0.2}, ("lr",)),
    ],
)
def test_of_the_machine_that_counts_on_which_bits_depend(case):
    there, now = (Job(network="resnet8", config=Config(**settings)) for settings in (case.there, case.now))
    assert tuple(conflicts(there, now)) == case.differing
