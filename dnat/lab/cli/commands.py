"""All commands, and what runs one."""

from . import (  # noqa: F401 (each adds its commands)
    comparing,
    exporting,
    listing,
    planning,
    results,
    running,
    sweeping,
)
from .group import cli as cli
from .group import exit_code as exit_code
from .group import main as main
from .options import make_job as make_job
