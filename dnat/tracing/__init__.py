"""Any network and example batches -> `Program`: every call and operation of a run, and what feeds what.

The tracer runs the network as it is (module hooks and a `TorchFunctionMode`), so that data-dependent control
flow, keyword arguments and shared modules are no obstacle. It analyses a copy and rewrites nothing. What it
records is plain data.
"""

from ..reductions import has_hooks as has_hooks
from .behaviour import GATHERING as GATHERING
from .behaviour import behaviour as behaviour
from .changes import Change as Change
from .changes import change_of as change_of
from .changes import changed_states as changed_states
from .changes import losses as losses
from .examples import Example as Example
from .examples import add_bits as add_bits
from .examples import batch_size as batch_size
from .examples import doubled as doubled
from .examples import enlarged as enlarged
from .examples import examples_of as examples_of
from .examples import tensors_of as tensors_of
from .modes import copied as copied
from .modes import fixed_randomness as fixed_randomness
from .modes import frozen_modules as frozen_modules
from .modes import gpus_of as gpus_of
from .modes import in_mode as in_mode
from .modes import in_training as in_training
from .modes import kept_buffers as kept_buffers
from .program import Call as Call
from .program import Operation as Operation
from .program import Program as Program
from .program import State as State
from .program import Trace as Trace
from .running import observed as observed
from .running import recorded as recorded
from .running import repeated as repeated
from .running import timed as timed
from .running import trace as trace
from .running import trained as trained
from .surroundings import in_reentrant_checkpoint as in_reentrant_checkpoint
