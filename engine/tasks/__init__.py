"""What networks are trained for. To add a task: write a module here and add its line to TASKS."""

from .agreement import Agreement
from .base import Task as Task
from .classification import Classification

AGREEMENT = Agreement()
CLASSIFICATION = Classification()

TASKS: dict[str, Task] = {
    "agreement": AGREEMENT,
    "classification": CLASSIFICATION,
}
