"""How branches are taken out of a module: its forward as a `torch.fx` graph, in which zeros go and what fed them.

The smallest module around a branch, the additions that it feeds and all that fed only the branch is traced in
train and in eval mode, which must agree; the additions lose the branch, a concatenation gets zeros that cost
nothing, and what fed nothing else is removed. `rewritable` tries that before anything is offered.
"""

from .branches import Outcome as Outcome
from .branches import drop as drop
from .inputs import Inputs as Inputs
from .modules import close as close
from .modules import exchanged as exchanged
from .modules import identified as identified
from .modules import submodule as submodule
from .trials import rewritable as rewritable
from .ways import branch_places as branch_places
