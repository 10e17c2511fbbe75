"""The errors that are meant for users, with one base class: whatever else is raised is a bug of ours.

Their texts say what was wrong, the value, and what to do. They keep the built-in class that fits beside the base
class, so that `except ValueError` works as well. A command exits with `exit_code`.
"""


class DnatError(Exception):
    """Base of all errors that dnat raises on purpose: wrong use, bad data, code of the user's that failed."""

    exit_code = 2


class UsageError(DnatError, ValueError):
    """A value that cannot be used."""


class WrongTypeError(DnatError, TypeError):
    """A value of a type that cannot be used."""


class UserCodeError(DnatError, ValueError):
    """Code of the user's that failed (a forward, a factory, a module that is imported); its error is chained."""


class DataError(DnatError, ValueError):
    """Data that cannot be used."""

    exit_code = 65
