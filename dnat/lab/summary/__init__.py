# ruff: noqa: F401
"""Records of finished runs -> means, intervals and tests over seeds, and a table of them.

Trials of one network on one data set with one method make a row. A method is compared with the baseline on the
same network and data by the differences of the first metric at equal seeds: there both began with the same weights
and saw the same examples in the same order, so that what a seed does to both cancels out. Differences are the
method less the baseline; of shares, as accuracy is one, in percentage points.
"""

from .comparison import Comparison, NotWorse, Row
from .grouping import labels_by, parse_by
from .statistics import Chances, Interval
from .summaries import Summary, summarize
from .tables import markdown
from .trials import Trial, settings_of, trial_from
