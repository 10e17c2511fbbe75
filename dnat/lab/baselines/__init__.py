"""The methods that dnat is compared with: NAT, NAT++, the policies that NAT was compared with, and NAO.

All have dnat's own signature, take the same data, seeds and records, and return the same `Transformation`: they
search with shared weights first, and then train what they found from the beginning, with the recipe of the others.
docs/baselines.md says what is the papers' and what is ours.
"""

from .channels import Family as Family
from .channels import family_of as family_of
from .channels import resized as resized
from .controls import check_budget as check_budget
from .controls import check_control as check_control
from .controls import control as control
from .searching import LEARNERS as LEARNERS
from .searching import check_search as check_search
from .searching import configured as configured
from .searching import search_and_train as search_and_train
from .searching import works_on_genotype as works_on_genotype
