"""Data sets by name, in memory or in files, with keyed augmentation; and data of anything (`from_loaders`)."""

from ..errors import DataError as DataError
from .augmentation import normalized as normalized
from .batch import count_of as count_of
from .batch import moved as moved
from .files import ImageFiles as ImageFiles
from .files import decoded as decoded
from .files import found_below as found_below
from .images import Augmentation as Augmentation
from .images import Data as Data
from .images import taken as taken
from .loaders import LoaderData as LoaderData
from .loaders import from_loaders as from_loaders
from .preprocess import Preprocess as Preprocess
from .preprocess import check_shape as check_shape
from .sets import DataSet as DataSet
from .sets import describe as describe
from .sets import load as load
from .sets import names as names
from .source import Source as Source
from .source import steps_of as steps_of
from .source import usual_batch as usual_batch
from .validation import validation_split as validation_split
