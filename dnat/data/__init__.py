"""Data sets by name, in memory or in files, and their batches with keyed augmentation."""

from ..errors import DataError as DataError
from .augmentation import normalized as normalized
from .files import ImageFiles as ImageFiles
from .files import decoded as decoded
from .files import found_below as found_below
from .images import Augmentation as Augmentation
from .images import Data as Data
from .images import taken as taken
from .preprocess import Preprocess as Preprocess
from .preprocess import check_shape as check_shape
from .preprocess import listed as listed
from .preprocess import positions as positions
from .sets import DataSet as DataSet
from .sets import describe as describe
from .sets import load as load
from .sets import names as names
from .source import Source as Source
from .source import steps_of as steps_of
