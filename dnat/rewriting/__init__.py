"""How branches are taken out of a network: the steps of a forward, in which zeros go and what fed them.

The smallest module around a branch, the additions that it feeds and all that fed only the branch is written anew
from the steps that were recorded in train and in eval mode, which must agree; the additions lose the branch, a
concatenation gets zeros that cost nothing, and what fed nothing else is removed.
"""

from .modules import close as close
from .modules import exchanged as exchanged
from .modules import identified as identified
from .modules import submodule as submodule
from .overwriting import overwrite as overwrite
from .places import drop_branches as drop_branches
from .trials import rewritable as rewritable
