"""Training: `ImageWAMTrainer` and its arguments."""

from .arguments import ImageWAMTrainingArguments
from .trainer import ImageWAMTrainer

__all__ = ["ImageWAMTrainer", "ImageWAMTrainingArguments"]
