"""What networks are trained for. To add a task: write a module here and add its line to TASKS."""

from .agreement import Agreement, Embedding
from .base import Case as Case
from .base import Task as Task
from .binary import Binary
from .classification import Classification
from .language import Language, Tokens
from .multilabel import Multilabel
from .own import OwnTask as OwnTask
from .own import own_task as own_task
from .regression import Regression
from .segmentation import Segmentation

# `--task auto` takes the first that fits the labels and outputs.
TASKS: dict[str, Task] = {
    "binary": Binary(),
    "classification": Classification(),
    "language": Language(),
    "tokens": Tokens(),
    "segmentation": Segmentation(),
    "multilabel": Multilabel(),  # also of masks, where they are not of one class for each position
    "regression": Regression(),
    "agreement": Agreement(),
    "embedding": Embedding(),
}

AGREEMENT, CLASSIFICATION = TASKS["agreement"], TASKS["classification"]
