"""What a network is trained for: a loss, metrics and which way they are better, and how answers are compared.

Four tasks come along; others are made of functions (`Task.of`) or as classes derived from `Task`:

    task                 answers              loss                      metrics (the first is looked at)
    Classification       class scores         cross entropy             accuracy
    MultiLabel           a logit each label   binary cross entropy      f1 (micro), exact
    Regression           numbers              mean squared error        mae, r2, mse
    Segmentation         scores each pixel    cross entropy             miou, accuracy

What is counted for metrics is summed over batches and processes first, so that they are those of the whole data
and not means over batches.
"""

from typing import Any

from ..errors import UsageError, WrongTypeError
from ..naming import imported, unknown
from .classes import Classification as Classification
from .classes import Segmentation as Segmentation
from .labels import MultiLabel as MultiLabel
from .numbers import Regression as Regression
from .task import Task as Task
from .task import relative_error as relative_error

TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Classification, MultiLabel, Regression, Segmentation)}
"""The tasks that have a name."""


def task_of(spec: object = None) -> Task:
    """The task that is meant.

    Args:
        spec: None for classification; a `Task`; the name of one of `TASKS`; or "package.module:NAME" for a task in
            a module of the user's, or a function without arguments that makes one.

    Raises:
        ValueError: an unknown name, a module that cannot be imported, or metrics without directions.
        TypeError: something else.

    >>> task_of(), task_of("regression").metrics["r2"]
    (Classification(label_smoothing=0.0), 'max')
    """
    task: Any = Classification() if spec is None else spec
    if isinstance(task, str):
        task = _named(task)
    if isinstance(task, type) and issubclass(task, Task):
        raise WrongTypeError(f"a task must be made, not a class: give {task.__name__}()")
    if not isinstance(task, Task):
        raise WrongTypeError(f"a task must be a dnat.Task or the name of one, not {type(task).__name__}")
    if not isinstance(task.name, str) or not task.metrics:
        raise UsageError(f"{type(task).__name__} needs a name and at least one metric")
    if "loss" in task.metrics:
        raise UsageError(f"a metric of {task.name} is called 'loss', as the loss itself is: give it another name")
    for metric, direction in task.metrics.items():
        if direction not in ("max", "min"):
            raise UsageError(
                f"metric {metric!r} of {task.name}: what is better must be 'max' or 'min', not {direction!r}"
            )
    return task


def _named(name: str) -> Any:
    if name in TASKS:
        return TASKS[name]()
    if ":" not in name:
        raise unknown("task", name, [*TASKS, "package.module:NAME"])
    task = imported("task", name, lambda value: isinstance(value, Task) or _makes(value))
    return task() if not isinstance(task, Task) and callable(task) else task


def _makes(value: object) -> bool:
    return callable(value) and value is not Task
