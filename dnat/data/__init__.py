"""Data sets by name, whole in memory, and their batches with keyed augmentation."""

from .images import Augmentation as Augmentation
from .images import Data as Data
from .images import DataError as DataError
from .sets import DataSet as DataSet
from .sets import describe as describe
from .sets import load as load
from .sets import names as names
