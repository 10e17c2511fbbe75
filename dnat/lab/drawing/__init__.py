"""Pictures: networks before and after their transformation, plans, and the cells of genotypes."""

from .cells import draw_genotype
from .changes import Change, genotype_changes
from .networks import OperationRow, draw_network, rows_from_json, rows_to_json
from .plans import check_picture, draw_plan

__all__ = [
    "Change",
    "OperationRow",
    "check_picture",
    "draw_genotype",
    "draw_network",
    "draw_plan",
    "genotype_changes",
    "rows_from_json",
    "rows_to_json",
]
