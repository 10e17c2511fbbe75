"""A recorded network -> which of its channels belong together: what a narrower layer takes along.

Each output channel of each dense layer has a label, and labels are carried through the run beside the values.
What works channel by channel (norms, activations, pools, depthwise convolutions) hands them on; views and
transposes move them as they move the values; a product of two labelled values, such as a gate, or queries and
keys, makes their labels one; so does all that mixes channels without weights that could be cut (softmax, layer
norm). A dense layer reads labels and gives new ones. So no class of a layer or network needs to be known.

Channels whose labels have become one form a class: they stay or go together (a head of attention with its
queries, keys and values; the two halves of a gated unit; a group of a grouped convolution). A `Place` is all
classes that the same layers make and the same layers read. What is summed with other layers' channels, a residual
stream, keeps its width, and so does all that anything else reads: outputs, and functions of which it is not known
what they do.
"""

from .places import Place as Place
from .places import places as places
