"""Network + edges -> `RelaxedNetwork`: theta on every edge, the function unchanged at the start.

A relaxed edge computes, for its input x and its operation op,

    o(x) = g(theta_original) * op(x) + g(theta_identity) * x          (DNAT, section 3.1)

The third term of the paper, theta_none * 0, is always zero and so is its gradient: theta_none never moves and acts
as a threshold. On a null edge op(x) is zero, and the identity is a reduction where x does not fit.

Where other operations op_k may be chosen, they stand in the original's place, each with a share s_k of it:

    g(theta_original) * ((1 - sum of s_k) * op(x) + sum of s_k * op_k(x)) + g(theta_identity) * x

with s_k = g(theta_k), divided by their sum where that exceeds 1. So theta_k's gradient says what would become of
the loss if op_k came for op, and theta_original's what if both were gone. In a step one of them can be sampled for
each group (`RelaxedNetwork.sample`); the others' shares are the original's then.

Of a width the other choices are its narrower selves: each channel is weighed, where it is read, by what the
original has left and by the shares of all widths that keep it. There is no second path, and theta_original counts
as 1.

Two forms of the gate g: "raw" is g(theta) = theta, as in the paper. "sigmoid" is the logistic function moved and
scaled so that g(0) = 0 and g(1) = 1 exactly; it flattens beyond both ends. Theta starts at (none 0, identity 0,
original 1), where every output equals the original network's bit for bit, in eval and in train mode.
"""

from .attaching import IDENTITY_NAME as IDENTITY_NAME
from .attaching import module_name as module_name
from .mixing import mix as mix
from .network import RelaxedNetwork as RelaxedNetwork
from .network import relax as relax
from .theta import CHOICES as CHOICES
from .theta import FORGETTING as FORGETTING
from .theta import Theta as Theta
