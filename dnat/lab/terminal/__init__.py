# ruff: noqa: F401
"""Progress and results on a terminal: live bars where someone watches, plain lines elsewhere."""

from .console import console, watched
from .results import changes_table, predictions_table, predictions_text, result_table, verdict
from .surveys import datasets_table, families_table, networks_table, survey_tables
from .sweep import SweepScreen, sweep_table, troubles_text
from .tracker import TerminalTracker
