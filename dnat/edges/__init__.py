"""Program -> Edges: where a network may change, what is legal there, and which edges share theta.

Kinds of edges:

unit    a convolution or linear layer with its only norm (the activation stays outside);
block   a module of several units that maps one tensor to one, with no shortcut inside;
branch  the same, where its output is only ever added to something else;
operation  an edge of a genotype's cell (`operations.CellOperation`); what is inside it is no edge of its own;
skip    a null edge (`operations.NullEdge`), where a connection may grow;
width   the channels between layers, of which some may go (`dnat.channels`); it may become narrower, in eighths.

An edge may become another operation where NAT++'s moves, or a table of yours, allow it: of a searched cell a named
one, and a plain convolution a cheaper one of its own shape (`dnat.candidates`).

An edge may become an identity where its output has its input's shape and type in every call that was seen (an edge
of a genotype, and a null edge, also where a reduction must stand in for the identity), and
may become none where a zero in its place would only ever meet data in an addition, or stand beside data in a
concatenation, so that dropping it is exact. Each edge tells why it has no other choices (`Edge.refused`).
"""

from .edge import IDENTITY as IDENTITY
from .edge import NONE as NONE
from .edge import ORIGINAL as ORIGINAL
from .edge import Edge as Edge
from .edge import EdgeSet as EdgeSet
from .edge import common_choices as common_choices
from .edge import crosses as crosses
from .edge import crossings as crossings
from .edge import in_order as in_order
from .edge import kept_of as kept_of
from .edge import problems as problems
from .edge import replacements as replacements
from .legality import Space as Space
from .legality import groups_of as groups_of
from .legality import legal_edges as legal_edges
from .legality import nones_once as nones_once
from .legality import parts_of as parts_of
from .legality import possible_edges as possible_edges
from .places import everything_else as everything_else
from .places import units as units
from .widths import ENDING as ENDING
from .words import Tally as Tally
from .words import channels_of as channels_of
from .words import is_share as is_share
from .words import narrowed as narrowed
from .words import remaining_share as remaining_share
