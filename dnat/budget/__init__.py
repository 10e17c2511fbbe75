"""What each set of choices costs, and the best set within a budget.

`Costs` knows, for every operation of a traced network, whether it is still needed once some choices are made:
what only fed a branch that is dropped, and what lies inside a block that is replaced, costs nothing any more.

`best` finds the legal set of choices with the largest score whose cost keeps a limit: a multiple-choice knapsack
with precedence, solved exactly as a mixed integer linear program by `scipy.optimize.milp` (HiGHS). The variables
are the choices of each group of edges (binary) and whether each value is needed (continuous, but forced to 0 or 1
by the choices). Sets that cannot be made together are cut off one conflict at a time, as they turn up.
"""

from .model import InfeasibleError as InfeasibleError
from .model import best as best
from .model import cheapest as cheapest
from .model import is_hard as is_hard
from .prices import Costs as Costs
from .prices import Groups as Groups
from .prices import Parts as Parts
from .prices import by_edge as by_edge
