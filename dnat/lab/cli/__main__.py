"""`python -m dnat.lab.cli`: how a sweep starts its trials."""

from . import main

main()
