"""What decides a run: `Config` (the method, in parts), `Job` (with network and data), and the presets.

Every open point of the DNAT paper is a setting here, and each preset is one visible table. No torch is imported:
settings are checked before anybody waits for it.
"""

from .config import OWNERS as OWNERS
from .config import PARTS as PARTS
from .config import SETTINGS as SETTINGS
from .config import Config as Config
from .job import ALIASES as ALIASES
from .job import CONTROLS as CONTROLS
from .job import METHODS as METHODS
from .job import SEARCHING as SEARCHING
from .job import UNCOUNTED as UNCOUNTED
from .job import Job as Job
from .job import check_label as check_label
from .job import conflicts as conflicts
from .job import directory_name as directory_name
from .job import run_name as run_name
from .limit import Amount as Amount
from .limit import parse_amount as parse_amount
from .machine import WHERE as WHERE
from .machine import Machine as Machine
from .machine import cores as cores
from .part import shown as shown
from .presets import PRESETS as PRESETS
from .relaxation import Mode as Mode
from .relaxation import Relaxation as Relaxation
from .search import Control as Control
from .search import Search as Search
from .toml import parse_setting as parse_setting
from .toml import read_toml as read_toml
from .training import Training as Training
