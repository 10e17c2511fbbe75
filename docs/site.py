"""Pages of the manual that are made when it is built: the public names, the command's flags, the changes."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent

REFERENCE = {
    "network": (
        "Networks and data",
        "What a run begins with.",
        ("build", "load", "from_loaders", "Data"),
    ),
    "steps": (
        "The story, step by step",
        "What `dnat.transform` does, as functions of their own: a network, its program, its edges, theta on them, "
        "choices, a plain network, and what it costs.",
        (
            *("transitions", "trace", "Program", "find_edges", "Edge", "relax", "RelaxedNetwork", "select"),
            *("discretize", "cost", "Cost", "latency", "Latency"),
        ),
    ),
    "runs": (
        "In one call",
        "Settings, plans, whole runs and what comes out of them.",
        (
            *(
                "Config",
                "plan",
                "Proposals",
                "transform",
                "train",
                "evaluate",
                "Transformation",
                "Task",
                "Records",
            ),
            *("Tracker", "DnatError"),
        ),
    ),
    "loop": ("In your own loop", "Theta in a training of yours.", ("attach", "Architecture")),
    "exports": (
        "Exports",
        "A plain network as files that need no dnat.",
        ("export", "exports.Exported", "exports.Agreement", "exports.fold", "exports.Folding"),
    ),
    "lab": (
        "Results of many runs",
        "`dnat.lab` compares methods; the command does most of it, and this is what Python code takes from it.",
        ("lab.results",),
    ),
}
"""{page: (title, what it has, names below `dnat`)}; each public name stands on one page."""


def reference(page: str) -> str:
    """A page of public names, of which mkdocstrings takes the docstrings."""
    title, about, names = REFERENCE[page]
    return "\n\n".join([f"# {title}", about, *(f"::: dnat.{name}" for name in names)])


def command() -> str:
    """The command's page: each subcommand with its help and flags."""
    sys.path.insert(0, str(ROOT))  # where dnat is not installed
    from dnat.lab.cli import cli

    parts = [
        "# The command",
        "What `dnat COMMAND --help` says. [Settings](../settings.md) has all that `--set` takes.",
    ]
    for name, subcommand in sorted(cli.commands.items()):
        context = click.Context(subcommand, info_name=f"dnat {name}")
        parts += [
            f"## dnat {name}",
            "```text",
            subcommand.get_usage(context),
            "```",
            *_help(subcommand.help or ""),
        ]
        params = [p for p in subcommand.get_params(context) if p.name != "help"]
        rows = [row for p in params if (row := p.get_help_record(context))]
        if rows:
            cells = [f"| {_code(flag)} | {_cell(text)} |" for flag, text in rows]
            parts.append("\n".join(["| flag | |", "|---|---|", *cells]))
    return "\n\n".join(parts).replace("```text\n\n", "```text\n").replace("\n\n```\n", "\n```\n")


def _help(text: str) -> Iterator[str]:
    """Paragraphs of a command's help; those that click must not wrap are examples."""
    for paragraph in text.replace("\r", "").split("\n\n"):
        lines = paragraph.strip().splitlines()
        if lines and lines[0] == "\b":
            yield "\n".join(["```sh", *(line.strip() for line in lines[1:]), "```"])
        elif lines:
            yield _cell(" ".join(lines))


def _code(flag: str) -> str:
    return "`" + flag.replace("|", "\\|") + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


EVIDENCE = {
    "trained": ("A trained network, few images", "dnat-full 0.73"),
    "equal-run": ("A trained network, few images, in the same minutes", "dnat from 250 images"),
    "all": ("A trained network, all images", "dnat-full 0.73"),
    "resnet56": ("Deeper, at the cost of a smaller twin", "dnat-full 69M"),
    "few-50": ("Fifty images, without labels", "dnat from 50"),
    "few-1000": ("A thousand images, without labels", "dnat from 1000"),
    "time": ("A trained network, at equal time", "dnat at 0.75 of the time"),
    "scratch": ("From the beginning, in the papers' ways", "original"),
}
"""{folder of records: (title, with what the others are compared)}; docs/evidence.md has the questions."""


def evidence() -> dict[str, str]:
    """What `dnat report` makes of the records behind the evidence: a page for each question, and their list."""
    from dnat.lab.report import gather, page

    lines, made = ["# Pages of the evidence", "", "What `dnat report` makes of the records of each question."], {}
    for name, (title, baseline) in EVIDENCE.items():
        made[f"reports/{name}.html"] = page(gather([ROOT / "benchmarks/results/evidence" / name], baseline))
        lines += ["", f"- [{title}](reports/{name}.html)"]
    return made | {"reports.md": "\n".join(lines)}


def pages() -> dict[str, str]:
    """{place in the manual: text} of what is made."""
    made = {f"reference/{page}.md": reference(page) for page in REFERENCE}
    made["reference/command.md"] = command()
    made |= evidence()
    made["changelog.md"] = (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    return made


def on_files(files: Any, config: Any) -> Any:
    """Called by mkdocs: the pages beside those that are written."""
    from mkdocs.structure.files import File

    with contextlib.chdir(ROOT):
        for place, text in pages().items():
            files.append(File.generated(config, place, content=text))
    return files
