"""What networks are trained for. To add a task: write a module here and add its line to TASKS."""

from .base import Task as Task
from .classification import Classification

CLASSIFICATION = Classification()

TASKS: dict[str, Task] = {
    "classification": CLASSIFICATION,
}
