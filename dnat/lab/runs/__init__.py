"""A job and a directory -> a run and its result: networks and data by name, files in place, resumable.

loading     data and networks by the names that a job has for them
running     `run`
tested      what a run's networks take each test image for
finished    a finished run's network, and what it takes
pictures    a run's pictures, and genotypes by name
surveys     what may change in a network: `dnat edges`, `dnat networks`
"""

from .finished import check_data as check_data
from .finished import other_images as other_images
from .finished import preprocess_of as preprocess_of
from .finished import restore as restore
from .loading import build_network as build_network
from .loading import load_data as load_data
from .loading import network_and_images as network_and_images
from .loading import network_for as network_for
from .pictures import draw_named as draw_named
from .pictures import picture_rows as picture_rows
from .pictures import redraw as redraw
from .running import run as run
from .surveys import Survey as Survey
from .surveys import sized as sized
from .surveys import survey as survey
