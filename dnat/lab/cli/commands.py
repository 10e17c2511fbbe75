"""All commands at once, for those who ask about each; `dnat` imports the one that it runs."""

from . import (  # noqa: F401 (each adds its commands)
    comparing,
    explaining,
    exporting,
    listing,
    planning,
    results,
    running,
    sweeping,
)
from .group import cli as cli
from .group import exit_code as exit_code
from .options import make_job as make_job
