"""The command `dnat` without installing it: `python cli.py transform ...`."""

from dnat.cli import main

main()
