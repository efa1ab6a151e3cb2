"""The Task interface: modality-specific code that the training and evaluation loops call.

A task has two parts that need no model: `Task.reader` turns user input into rows, and `Task.scorer` turns outputs into
predictions and metrics.
"""

from sft_hf.tasks.base.batches import Batch, Items, pinned, to_device
from sft_hf.tasks.base.reader import Preview, Reader
from sft_hf.tasks.base.scorer import Scorer
from sft_hf.tasks.base.task import Task, task_class, vocabulary_digest

__all__ = [
    "Batch",
    "Items",
    "Preview",
    "Reader",
    "Scorer",
    "Task",
    "pinned",
    "task_class",
    "to_device",
    "vocabulary_digest",
]
