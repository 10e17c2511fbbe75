"""Runs the tutorials as they stand, and stores their pictures: `python docs/blocks.py` (about two minutes)."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PICTURES = {
    "trained": {"plan.png": "trained-plan.png", "runs/small/architecture.png": "trained-network.png"},
    "paper": {"figures/tradeoff-resnet8-digits.png": "paper-tradeoff.png"},
    "pictures": {"sheet.png": "pictures-sheet.png", "runs/pictures/architecture.png": "pictures-network.png"},
}
"""{tutorial: {file that its blocks write: name beside the tutorial}}."""


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, content) of each block of code of a page, in order."""
    return [(language, code) for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a page's shell blocks."""
    for language, code in blocks(text):
        if language in ("sh", "console"):
            lines = code.replace("\\\n", "").splitlines()
            yield from (shlex.split(line.removeprefix("$ ")) for line in lines if line.strip())


def run(page: Path, folder: Path) -> str:
    """Run a page's blocks of Python and shell in a folder, one after the other, each in a process of its own.

    Returns:
        What they print.

    Raises:
        RuntimeError: one fails; the message has what it said.
    """
    printed = []
    places = os.pathsep.join(filter(None, (str(DOCS.parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": places}
    for language, code in blocks(page.read_text()):
        if language == "python":
            words = [[sys.executable, "-W", "ignore", "-c", code]]
        else:
            words = [
                [sys.executable, "-m", "dnat.lab.cli", *line[1:]] for line in commands(f"```{language}\n{code}```")
            ]
        for each in words:
            done = subprocess.run(each, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)  # noqa: S603
            if done.returncode:
                raise RuntimeError(f"{page.name}: {each[3:] if language != 'python' else code}\n{done.stderr}")
            printed.append(done.stdout)
    return "".join(printed)


def main() -> None:
    """Run all tutorials, or those that are named, and store their pictures."""
    for name in sys.argv[1:] or PICTURES:
        with tempfile.TemporaryDirectory() as folder:
            print(run(DOCS / "tutorials" / f"{name}.md", Path(folder)))
            for made, stored in PICTURES[name].items():
                shutil.copy(Path(folder) / made, DOCS / "tutorials" / stored)


if __name__ == "__main__":
    main()
