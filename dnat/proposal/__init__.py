"""Before anything is trained: what would go from a network at each budget, and what that does to its answers.

    result = plan(network, data, [0.7, "120M"])
    print(result)
    result.at(0.5)

Every choice of every edge is tried once (`dnat.sensitivity`). From that the integer program takes the set with the
least sum of damages that uses each budget, which is made and counted, and judged as a whole.
Another budget asks the program again and measures nothing.
"""

from .budgets import amount as amount
from .budgets import parse_budget as parse_budget
from .kept import kept as kept
from .planner import Planner as Planner
from .planner import plan as plan
from .planner import tied as tied
from .result import Proposal as Proposal
from .result import Proposals as Proposals
from .result import Tried as Tried
from .text import described as described
from .text import may_change as may_change
