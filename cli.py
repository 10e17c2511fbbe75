"""The command `dnat` without installing it: `python cli.py transform ...`."""

from dnat.lab.cli import main

main()
