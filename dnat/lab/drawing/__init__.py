# ruff: noqa: F401
"""Pictures: networks before and after their transformation, plans, and the cells of genotypes."""

from .cells import draw_genotype
from .changes import Change, cell_edges
from .graphs import Graph, Node, graph_of, graphs_of
from .networks import draw_network
from .plans import check_picture, draw_plan
from .rows import OperationRow, rows_from_json, rows_to_json
