import ast
import importlib.util
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

import dnat
from dnat import lab
from dnat.lab.cli import cli
from dnat.lab.report import gather
from dnat.networks import Genotype
from dnat.settings import METHODS, OWNERS, PRESETS, Search

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
GUIDES = {path.relative_to(DOCS).as_posix(): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
GUIDES["README.md"] = README


def of_docs(name):
    """A script beside the guides."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


blocks, site = of_docs("blocks"), of_docs("site")

EXECUTED = {
    "README.md": "test_the_code_of_the_readme_runs, test_the_commands_of_the_readme_run",
    "any_network.md": "test_the_code_of_the_guide_to_any_network_runs",
    "baselines.md": "test_the_code_of_the_guide_to_baselines_runs",
    "exports.md": "test_the_guide_to_exports_runs",
    "ground_truth.md": "tests/test_ground_truth.py",
    "index.md": "test_the_manual_begins_as_the_readme_does: it is README's first block",
    "results.md": "test_the_code_of_the_guide_to_results_runs, tests/test_tabulation.py",
    "your_own.md": "test_the_code_of_the_guide_to_your_own_runs, that for_other_libraries_runs",
    "tutorials/trained.md": "test_a_tutorial_runs",
    "tutorials/paper.md": "test_a_tutorial_runs",
    "tutorials/pictures.md": "test_a_tutorial_runs",
}
"""Where the blocks of Python and shell of a page are run, all of them."""
TYPED = {
    "README.md": "they need CIFAR-10, Tiny ImageNet, weights or pictures of the reader's, or hours",
    "any_network.md": "they need a network and pictures of the reader's",
    "baselines.md": "they need CIFAR-10 and days",
    "cluster.md": "they need several machines, Slurm, Ray or GPUs, and hours",
    "ground_truth.md": "they need a table of NAS-Bench",
    "evidence.md": "they need CIFAR-10, trained weights and hours",
    "log.md": "they need CIFAR-10 and hours, as the experiments did",
    "networks.md": "they need data of the reader's, or hours",
    "reliability.md": "they take minutes, and need nothing but this repository",
    "reproducibility.md": "they need a sweep of hours",
    "results.md": "they need finished sweeps, or other programs' servers",
    "wandb.md": "they need an account at Weights & Biases",
    "your_own.md": "they need modules of the reader's",
}
"""Why the commands that a page shows in indented lines are not run, but parsed with the types of their flags
(`test_commands_that_are_shown_can_be_typed`)."""


def test_every_block_is_run_or_says_why_not():
    for page, text in GUIDES.items():
        run = any(language in ("python", "sh", "console") for language, _ in blocks.blocks(text))
        assert run == (page in EXECUTED), page
        shown = re.search(
            r"^    (dnat|make|pip|torchrun|sbatch|srun|wandb|python|tensorboard|mlflow) ", text, re.M
        )
        assert bool(shown) == bool(TYPED.get(page)), page
        fenced = text.count("\n```") + text.startswith("```")
        assert fenced == 2 * len(blocks.blocks(text)), f"{page}: a block is not closed"


def test_the_manual_begins_as_the_readme_does():
    (first,) = [code for language, code in blocks.blocks(GUIDES["index.md"]) if language == "python"]
    assert first in README


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) for name in blocks.PICTURES],
)
def test_a_tutorial_runs(name, tmp_path):
    for library in {"pictures": ["onnxruntime"], "paper": ["pandas"]}.get(name, []):
        pytest.importorskip(library)
    page = DOCS / "tutorials" / f"{name}.md"
    printed = blocks.run(page, tmp_path)
    for made, stored in blocks.PICTURES[name].items():
        assert (tmp_path / made).stat().st_size > 1000
        assert (DOCS / "tutorials" / stored).stat().st_size < 300_000
        assert f"]({stored})" in page.read_text()
    if name == "trained":
        assert "torch.Size([2, 10])" in printed
        assert "read again without dnat" in printed
    elif name == "paper":
        assert len((tmp_path / "trials.csv").read_text().splitlines()) == 1 + 9
        assert "\\toprule" in (tmp_path / "table.tex").read_text()
        assert re.search(r"^dnat-full 0.7 .*\d$", printed, re.M)
    else:  # the file alone gives the answers of dnat's own command
        answers = dict(re.findall(r"^(\S+\.png) -> (\w+)$", printed, re.M))
        own = dict(re.findall(r"^(\S+\.png)\s+(\w+)", printed.split(" -> ")[0], re.M))
        assert len(answers) == 2
        assert answers == {file: own[file] for file in answers}


@pytest.mark.slow  # test_deployment and test_folding hold the same
def test_the_guide_to_exports_runs(tmp_path):
    pytest.importorskip("onnxruntime")
    printed = blocks.run(DOCS / "exports.md", tmp_path)
    assert "compact, int8" in printed
    assert "7 folded, 0 kept" in printed


def test_pictures_of_the_guides_exist():
    shown = 0
    for page, text in GUIDES.items():
        folder = ROOT if page == "README.md" else (DOCS / page).parent
        for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", text):
            assert (folder / name).is_file(), f"{page}: {name}"
            shown += 1
    assert shown >= 9


def test_the_reference_has_every_public_name_once_in_order():
    listed = [name for _, _, names in site.REFERENCE.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert {n for n in listed if "." not in n} == set(dnat.__all__)
    assert {n.removeprefix("lab.") for n in listed if n.startswith("lab.")} == set(lab.__all__)
    for _, _, names in site.REFERENCE.values():
        public = [dnat.__all__.index(n) for n in names if n in dnat.__all__ and n not in ("Task", "Records")]
        assert public == sorted(public)
    for name in listed:
        assert pkgutil.resolve_name(f"dnat.{name}").__doc__


def test_the_page_of_the_command_has_every_flag():
    text = site.command()
    for name, command in cli.commands.items():
        part = text.partition(f"\n## dnat {name}\n")[2].partition("\n## ")[0]
        flags = {flag for p in command.params for flag in p.opts if flag.startswith("--")}
        assert flags <= set(re.findall(r"--[a-z][a-z-]+", part)), name


@pytest.mark.parametrize("name", sorted(site.EVIDENCE))
def test_tables_of_the_evidence_are_those_of_its_records(name):
    title, baseline = site.EVIDENCE[name]
    section = GUIDES["evidence.md"].partition(f". {title}\n")[2].partition("\n## ")[0]
    found = gather([ROOT / "benchmarks" / "results" / "evidence" / name], baseline)
    compared = {c.method: c for c in found.summary.comparisons}
    assert len(found.summary.rows) > (0 if name == "resnet56" else 3)  # which has dnat alone, as its section says
    for row in found.summary.rows:
        cells = [f"| {row.n} | {row.mean:.2f} ± {row.std:.2f} "]
        if comparison := compared.get(row.method):
            cells.append(f"{comparison.mean:+.2f} [{comparison.interval[0]:+.2f}, {comparison.interval[1]:+.2f}]")
            cells.append(f" {comparison.p_holm:.2g} ")
        cells.append(f"({row.madds_change:+.1f} %)")
        assert any(all(cell in line for cell in cells) for line in section.splitlines()), (row.method, cells)
    assert not any("not set" in note for note in found.summary.notes)


@pytest.mark.slow
def test_the_manual_is_built_without_warnings(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings_handlers.python")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    pages = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.html")}
    assert {page.replace(".md", ".html") for page in GUIDES if page != "README.md"} <= pages
    for page in pages:  # it works where nothing can be fetched
        assert not re.search(
            r"""<(script|link|img|iframe)[^>]+(src|href)=["']?https?:""", (tmp_path / page).read_text()
        )


OTHER_PROGRAMS = {  # flags of torchrun, sbatch, `wandb sync` and benchmarks
    *("--standalone", "--nproc-per-node", "--max-restarts", "--no-python", "--array", "--gres", "--signal"),
    *("--include-online", "--json", "--random", "--theta-seeds", "--arguments", "--rows", "--budgets"),
    *("--torchvision", "--timm", "--transformers", "--kills", "--signals", "--fuzz", "--part"),
    *("--batch", "--time", "--rounds", "--few"),
}

OPTIONAL = {"dnat.integrations.lightning", "dnat.integrations.huggingface"}  # need their libraries


def run_code(code, folder):
    """Run code in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def test_the_code_of_the_readme_runs(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    assert code.count("dnat.") >= 10
    result = run_code(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "MAdds" in result.stdout
    assert "multiply-adds" in result.stdout


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_stands_in_the_readme(name):
    assert f"dnat {name}" in README


def test_the_settings_that_are_named_exist():
    assert set(PRESETS["paper"]) == set(PRESETS["improved"]) <= {*OWNERS}
    assert f"weight {PRESETS['improved']['cost_weight']}" in (ROOT / "docs" / "concepts.md").read_text()
    flags = {
        flag for command in cli.commands.values() for p in command.params for flag in (*p.opts, *p.secondary_opts)
    }
    flags |= OTHER_PROGRAMS
    assert sum("--" in text for text in GUIDES.values()) >= 5
    for path, text in GUIDES.items():
        for flag in set(re.findall(r"[ `](--[a-z][a-z-]+)", text)):
            assert flag in flags, f"{path}: {flag}"


def test_the_commands_of_the_readme_run(tmp_path, monkeypatch):
    """The three jobs, as they stand there."""
    monkeypatch.chdir(tmp_path)
    lines = "".join(re.findall(r"```sh\n(.*?)```", README, re.S)).splitlines()
    assert len(lines) == 8
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "dnat"
        result = CliRunner().invoke(cli, words, catch_exceptions=False)
        assert result.exit_code == 0, f"{line}\n{result.output}"
        assert "warning" not in result.output, line
    assert (tmp_path / "small.py").exists()
    assert (tmp_path / "runs" / "first" / "report.html").stat().st_size > 1e6
    assert "wandb sync" in result.output


@pytest.mark.parametrize("path", GUIDES)
def test_commands_that_are_shown_can_be_typed(path):
    """Each has known flags, and values of the right type; `...` stands for something."""
    lines = re.findall(r"^    (dnat .*)$", GUIDES[path], re.M)
    lines += [shlex.join(words) for words in blocks.commands(GUIDES[path])]
    assert lines or not re.search(r"^ +\$? ?dnat [a-z]+ ", GUIDES[path], re.M)
    for line in lines:
        words = shlex.split(line, comments=True)
        if "..." in words or words[-1] in (">", "|"):
            continue
        words = words[: words.index(">")] if ">" in words else words
        command = cli.commands[words[1]]
        command.make_context(words[1], words[2:])  # raises what the user would see


def test_the_code_of_the_guide_to_any_network_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", GUIDES["any_network.md"], re.S)
    exec(compile(code, "any_network.md", "exec"), {"__name__": "guide"})
    printed = capsys.readouterr().out
    assert "blocks.0.conv1>blocks.0.norm1" in printed
    assert any(choice in printed for choice in (" none ", " identity "))


SECTIONS = {
    text.partition("\n")[0]: "".join(re.findall(r"```python\n(.*?)```", text, re.S))
    for text in re.split(r"^#{1,2} ", GUIDES["your_own.md"], flags=re.M)[1:]
}
"""Of the guide to one's own loop, loss and data; the first has what the others work on."""
FIRST = next(iter(SECTIONS))
LIBRARIES = {"Lightning": "lightning", "Hugging Face's Trainer": "accelerate"}


def run_sections(headings, folder, *options):
    """What sections of the guide print."""
    code = "\n".join(["import warnings", "warnings.simplefilter('ignore')", *map(SECTIONS.get, headings)])
    (folder / "guide.py").write_text(code)
    words = [sys.executable, *options, "guide.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_code_of_the_guide_to_your_own_runs(tmp_path):
    """All but that for other libraries, as torchrun starts it; what is trained learns."""
    headings = [heading for heading in SECTIONS if heading not in LIBRARIES]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1")
    printed = run_sections(headings, tmp_path, *torchrun)
    assert "2 of 4 edges change" in printed
    assert (tmp_path / "small.py").exists()
    pairs = re.findall(r"^(\{.*\}) -> (\{.*\})$", printed, re.M)
    (dark, counts) = [[ast.literal_eval(text) for text in pair] for pair in pairs]
    assert dark[1]["mae"] < 0.5 * dark[0]["mae"]
    assert counts[0]["r2"] < 0 < counts[1]["r2"]
    validated, recipe = printed.splitlines()[-2:]
    assert min(float(value) for value in (*validated.split(), recipe)) > 0.5  # of ten classes


@pytest.mark.slow  # test_integrations holds the same
def test_the_code_of_the_guide_for_other_libraries_runs(tmp_path):
    for heading, library in LIBRARIES.items():
        if find_spec(library) is None:
            pytest.skip(f"needs {library}: {heading}")
    beside = "from dnat.networks import import_torchvision\nimport_torchvision()\n"  # that both import
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SECTIONS, FIRST, beside + SECTIONS[FIRST])
        printed = run_sections([FIRST, *LIBRARIES], tmp_path)
    assert len(re.findall(r"\d+ of \d+ edges change", printed)) == 2


@pytest.mark.slow
def test_the_code_of_the_guide_to_baselines_runs(tmp_path):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "baselines.md").read_text(), re.S))
    result = run_code(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["nat", "random", "nao"]


def test_the_code_of_the_guide_to_results_runs(tmp_path, monkeypatch):
    """But for the table of runs, for which `test_tabulation` has some."""
    pytest.importorskip("tensorboard")
    _, *blocks = re.findall(r"```python\n(.*?)```", GUIDES["results.md"], re.S)
    result = run_code("\n".join(blocks), tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.match(r"1 \d\.\d+\n2 \d\.\d+\n +before +after", result.stdout)
    assert len((tmp_path / "numbers.csv").read_text().splitlines()) == 3
    assert list((tmp_path / "events").iterdir())


def test_the_guide_to_baselines_names_all_methods():
    guide = (ROOT / "docs" / "baselines.md").read_text()
    for name in METHODS:
        assert f"| `{name}`" in guide or f"`{name}`, " in guide, name
    settings = re.findall(r"search\.(\w+)", guide)
    assert len(settings) >= 5
    for name in settings:
        assert name in {*Search.model_fields, "NAME", "jsonl", "json"}, name


def test_the_genotype_of_the_guide():
    guide = (ROOT / "docs" / "networks.md").read_text()
    (text,) = re.findall(r"```json\n(.*?)```", guide, re.S)
    genotype = Genotype.from_json(text)
    assert genotype.normal.concat == (2, 3)
    wrong = r"normal.nodes\[1\]\[0\].operation: unknown operation 'conv_1x2'; did you mean 'conv_1x1'\?"
    with pytest.raises(ValueError, match=wrong):
        Genotype.from_json(text.replace("conv_1x1", "conv_1x2"))
    assert re.search(wrong, guide)


def test_facts_that_are_cited_stand_in_the_guide_to_methods():
    headings = re.findall(r"^### ([A-E]\d+) · \S", GUIDES["methods.md"], re.M)
    assert len(headings) == len(set(headings))
    cited = {}
    for path in [p for folder in ("dnat", "tests", "benchmarks", "docs") for p in (ROOT / folder).rglob("*.py")]:
        text = path.read_text()
        for where in re.findall(r"docs/methods\.md((?:(?:,| and| to)? [A-E]\d+)*)", text):
            for name in re.findall(r"[A-E]\d+", where):
                cited.setdefault(name, path)
        # None in another form, which this test would not see.
        assert not re.search(r"\bmethods,? [A-E]\d|docs/methods\.md,? [A-E]\d+\.\d", text), path
    assert len(cited) >= 15
    for name, path in cited.items():
        assert name in headings, f"{path} cites {name}"


def exists(name):
    """Whether a dotted name is one of the code: a module, what stands in it, or a field."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        owner, _, last = name.rpartition(".")
        return "." in owner and last in getattr(pkgutil.resolve_name(owner), "__dataclass_fields__", {})
    return True


@pytest.mark.parametrize("path", [*GUIDES, "CONTRIBUTING.md"])
def test_what_is_named_exists(path):
    """Files and folders of the repository, and names of the library."""
    text = GUIDES.get(path) or (ROOT / path).read_text()
    for name in re.findall(r"`((?:docs|dnat|benchmarks|examples|tests)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"`(dnat(?:\.\w+)+)", text)) - OPTIONAL:
        assert exists(name), name
    if path == "README.md":
        assert all((ROOT / name).exists() for name in ("docs/demo.png", "docs/report.png", "LICENSE"))


def test_the_map_of_the_code_has_every_module():
    """What stands on the top level of both packages, each in five to eight words."""
    text = README.partition("## Map of the code\n")[2].partition("\n## ")[0]
    method, experiments = text.split("`dnat.lab` is")
    for folder, part in ((ROOT / "dnat", method), (ROOT / "dnat" / "lab", experiments)):
        rows = re.findall(r"^    (\w+) +(.+)$", part, re.M)
        modules = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
        assert sorted(name for name, _ in rows) == sorted(modules - {"__init__"})
        for name, words in rows:
            assert 5 <= len(words.split()) <= 8, name


def test_nothing_private_is_in_the_repository():
    for path in ROOT.glob("**/*"):
        if path.suffix in (".py", ".md", ".toml", ".txt", "") and path.is_file() and ".venv" not in path.parts:
            inside = path.relative_to(ROOT).parts
            if any((part.startswith(".") and part != ".ci") or part == "runs" for part in inside):
                continue  # what tools leave behind
            text = path.read_text(errors="ignore")
            assert str(Path.home()) + "/" not in text or str(Path.home()) == "/", path
            assert str(ROOT) not in text, path


GLOSSARY = re.findall(r"^\| ([\w ]+) \| .* \| `(dnat[\w.]+)` \|$", GUIDES["concepts.md"], re.M)


@pytest.mark.parametrize(("word", "name"), GLOSSARY)
def test_a_word_of_the_glossary_is_one_of_the_code(word, name):
    owner, _, last = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    fields_of = getattr(owner, "__dataclass_fields__", {})
    assert last in fields_of or pkgutil.resolve_name(name) is not None


def test_the_glossary_has_a_word_once():
    words = [word for word, _ in GLOSSARY]
    assert len(set(words)) == len(words) >= 25
