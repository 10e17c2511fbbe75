# ruff: noqa: F401
"""Methods against ground truth: what became of an architecture, looked up in a table of accuracies of yours.

NAS-Bench-201 and NAS-Bench-Macro publish the accuracy of every architecture of a small space. A method transforms
architectures of such a space; its choices are read back as an architecture, which is looked up and compared with
all that could have been reached within its budget, and with a choice among those at random (`compare_with_table`).
Without a budget the result's own cost stands for it.
"""

from .comparison import compare_with_table
from .ranking import Known, Lookup, LookupSummary, Ranking, summary
from .spaces import SPACES, Prices, live_form, prices, reachable, read_architecture
from .tables import read_table
