"""Where a network may become narrower, as edges: the channels between layers (`dnat.channels`)."""

from ..channels import Place, places
from ..tracing import Program
from .edge import IDENTITY, NONE, ORIGINAL, Edge, widths_of

ENDING = ":width"
"""What the key of a width ends with."""


def width_edges(program: Program) -> tuple[Edge, ...]:
    """The widths of a network that may shrink, in order of execution.

    A layer that reads the channels must be a module of which they are the first argument: there they are weighed.
    """
    edges = (_edge(program, place) for place in places(program))
    return tuple(edge for edge in edges if edge is not None)


def _edge(program: Program, place: Place) -> Edge | None:
    trace = program.traces[0]
    readers = [name.rpartition(".")[0] for name in place.readers]
    if not all(_reads(program, path, place) for path in readers) or not widths_of(place.classes):
        return None
    first = min(readers, key=lambda path: trace.calls_of(path)[0])
    maker = place.makers[0].rpartition(".")[0]
    calls = trace.calls_of(maker)
    shape = trace.values[trace.calls[calls[0]].outputs[0]].shape[1:] if calls else ()
    each = next(len(row) for name, _, row in place.cuts if name == place.makers[0]) // place.classes
    why = "a width is no operation: it becomes narrower, and what it leaves out goes with it"
    return Edge(
        key=maker + ENDING,
        kind="width",
        operation=f"{place.classes} channels" if each == 1 else f"{place.classes} x {each} channels",
        entry=first,
        exit=first,
        shape_in=shape,
        shape_out=shape,
        madds=sum(trace.operations[i].madds for i in place.operations) // max(trace.batch, 1),
        choices=(ORIGINAL, *widths_of(place.classes)),
        group="",
        refused=((IDENTITY, why), (NONE, why)),
        place=place,
        program=program,
    )


def _reads(program: Program, path: str, place: Place) -> bool:
    """Whether a module is given the channels as its first argument, in every call."""
    trace = program.traces[0]
    calls = [trace.calls[i] for i in trace.calls_of(path)]
    return bool(calls) and all(call.plain and call.inputs[0] in place.values for call in calls)
