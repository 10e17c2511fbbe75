# ruff: noqa: F401
"""Records of finished runs -> means, intervals and tests over seeds, and a table of them.

Trials of one network on one data set with one method make a row. A method is compared with the baseline on the
same network and data by the differences of accuracies at equal seeds: there both began with the same weights and
saw the same images in the same order, so that what a seed does to both cancels out. Differences are in percentage
points, the method less the baseline.
"""

from .comparison import Comparison, Row
from .statistics import Interval
from .summaries import Summary, summarize
from .tables import markdown
from .trials import Trial, settings_of, trial_from
