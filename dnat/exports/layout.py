"""Expressions of Python laid out on lines: a call stays on one line or gets a line for each argument."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

WIDTH = 110


@dataclass(frozen=True)
class Tree:
    """A call or a bracketed list; `head` is all that stands before its bracket."""

    head: str
    parts: "tuple[Expression, ...]"
    brackets: tuple[str, str] = ("(", ")")
    suffix: str = ""


Expression: TypeAlias = Tree | str


def call(head: str, parts: Sequence[Expression], *, opening: str = "(", suffix: str = "") -> Tree:
    """A call of `head`; `opening` may hold several brackets."""
    closing = opening[::-1].translate(str.maketrans("([{", ")]}"))
    return Tree(head, tuple(parts), (opening, closing), suffix)


def prefixed(prefix: str, expression: Expression) -> Expression:
    """An expression with text before it: `name=...`."""
    if isinstance(expression, str):
        return prefix + expression
    return Tree(prefix + expression.head, expression.parts, expression.brackets, expression.suffix)


def flat(expression: Expression) -> str:
    """An expression on one line.

    >>> flat(call("f", ["1", call("g", ["2"], opening="([")]))
    'f(1, g([2]))'
    """
    if isinstance(expression, str):
        return expression
    opening, closing = expression.brackets
    return f"{expression.head}{opening}{', '.join(map(flat, expression.parts))}{closing}{expression.suffix}"


def laid_out(expression: Expression, indent: int = 0) -> str:
    """An expression on as many lines as it needs; `indent` is where its first line begins."""
    line = flat(expression)
    if isinstance(expression, str) or indent + len(line) <= WIDTH or not expression.parts:
        return line
    opening, closing = expression.brackets
    space = " " * (indent + 4)
    parts = "".join(f"{space}{laid_out(p, indent + 4)},\n" for p in expression.parts)
    return f"{expression.head}{opening}\n{parts}{' ' * indent}{closing}{expression.suffix}"
