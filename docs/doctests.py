"""For the reference: examples in docstrings as code."""

import re
from typing import Any

import griffe

_EXAMPLES = re.compile(r"(?m)^>>> .*(?:\n(?!\s*$).*)*")


def fenced(text: str) -> str:
    """A docstring whose doctests are blocks of code.

    >>> fenced("Adds.\\n\\n>>> 1 + 1\\n2")
    'Adds.\\n\\n```pycon\\n>>> 1 + 1\\n2\\n```'
    """
    return _EXAMPLES.sub(lambda match: f"```pycon\n{match[0]}\n```", text)


class Doctests(griffe.Extension):
    """Fences the doctests of everything that is read."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for each object."""
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
