# ruff: noqa: F401
"""Pictures: networks before and after their transformation, plans, and the cells of genotypes."""

from .cells import draw_genotype
from .changes import Change, cell_edges
from .networks import OperationRow, draw_network, rows_from_json, rows_to_json
from .plans import check_picture, draw_plan
