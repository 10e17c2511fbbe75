# ruff: noqa: F401
"""Progress and results on a terminal: live bars where someone watches, plain lines elsewhere."""

from .console import console, watched
from .grid import Grid
from .report import report_parts, summary_tables
from .sweep import SweepScreen, sweep_table, troubles_text
from .tables import (
    changes_table,
    datasets_table,
    families_table,
    networks_table,
    predictions_table,
    predictions_text,
    result_table,
    survey_tables,
    verdict,
)
from .tracker import TerminalTracker
