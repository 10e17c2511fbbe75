"""All commands at once, for those who ask about each; `dnat` imports the one that it runs."""

import importlib

from .group import MODULES
from .group import cli as cli
from .group import exit_code as exit_code
from .options import make_job as make_job

for _module in dict.fromkeys(MODULES.values()):
    importlib.import_module(f".{_module}", __package__)
